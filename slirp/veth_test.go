package slirp

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var fragmentEnds = [][2]netip.AddrPort{
	{netip.MustParseAddrPort("10.0.2.2:53"), netip.MustParseAddrPort("10.0.2.100:4000")},
	{netip.MustParseAddrPort("[fd75::2]:53"), netip.MustParseAddrPort("[fd75::100]:4000")},
}

// What is put into frames for a packet socket comes out of them as it was.
func TestEtherFrames(t *testing.T) {
	for _, ends := range fragmentEnds {
		frame := slices.Clone(putUDP(make([]byte, udpHeadroom+100), ends[0], ends[1], 100))
		for name, pieces := range map[string][]unix.Iovec{
			"in one":      {iovec(frame)},
			"header only": {iovec(frame[:vnetHdrLen]), iovec(frame[vnetHdrLen : vnetHdrLen+30]), iovec(frame[vnetHdrLen+30:])},
		} {
			var head [vnetHdrLen + etherHdrLen]byte
			var got []byte
			for _, v := range etherFrame(pieces, &head) {
				got = append(got, unsafe.Slice(v.Base, v.Len)...)
			}
			if h, _ := parseVnetHdr(got); int(h.csumStart) != etherHdrLen+ipHdrLen(ends[0].Addr()) {
				t.Errorf("%s: the checksum starts at %d", name, h.csumStart)
			}
			if !stripEther(got) {
				t.Fatalf("%s: not IP", name)
			}
			if got = slices.Delete(got, vnetHdrLen, vnetHdrLen+etherHdrLen); !bytes.Equal(got, frame) {
				t.Errorf("%s:\n%x, want\n%x", name, got, frame)
			}
		}
	}
	arp := make([]byte, vnetHdrLen+etherHdrLen+28)
	arp[vnetHdrLen+12], arp[vnetHdrLen+13] = 8, 6
	if stripEther(arp) {
		t.Error("an ARP request was taken for IP")
	}
}

// What the container has made is not trusted to be as the helper makes it.
func TestFragmentsOfWhatTheHelperDoesNotMake(t *testing.T) {
	ends := fragmentEnds[0]
	good := putUDP(make([]byte, udpHeadroom+2000), ends[0], ends[1], 2000)
	if len(inFragments(good, 1280, 1)) < 2 {
		t.Fatal("the packet itself is not cut")
	}
	options := slices.Clone(good)
	options[vnetHdrLen] = 0x4f
	far := slices.Clone(good)
	vnetHdr{flags: vnetNeedsCsum, csumStart: 65000, csumOffset: 65000}.put(far)
	for name, frame := range map[string][]byte{"options": options, "a checksum outside": far} {
		if f := inFragments(frame, 1280, 1); f != nil {
			t.Errorf("%s: %d fragments", name, len(f))
		}
	}
}

// The fragments of a datagram fit the MTU and are together what it was, with a checksum that holds.
func TestFragments(t *testing.T) {
	const mtu = 1280
	for _, ends := range fragmentEnds {
		for _, size := range []int{mtu, 2*mtu - 1, 9000, 60000} {
			buf := make([]byte, udpHeadroom+size)
			for i := range buf {
				buf[i] = byte(i * 7)
			}
			want := slices.Clone(buf[udpHeadroom:])
			hdr := ipHdrLen(ends[0].Addr())
			var whole []byte
			for i, f := range inFragments(putUDP(buf, ends[0], ends[1], size), mtu, 77) {
				ip := f[vnetHdrLen:]
				if len(ip) > mtu {
					t.Fatalf("a packet of %d bytes", len(ip))
				}
				var at, after int
				var id uint32
				if hdr == ipv4HdrLen {
					h := header.IPv4(ip)
					if !h.IsValid(len(ip)) || !h.IsChecksumValid() {
						t.Fatalf("fragment %d: bad header %x", i, ip[:hdr])
					}
					at, id, after = int(h.FragmentOffset()), uint32(h.ID()), hdr
				} else {
					h := header.IPv6Fragment(ip[hdr:])
					if !header.IPv6(ip).IsValid(len(ip)) || h.TransportProtocol() != header.UDPProtocolNumber {
						t.Fatalf("fragment %d: bad header %x", i, ip[:hdr])
					}
					at, id, after = int(h.FragmentOffset())*8, h.ID(), hdr+header.IPv6FragmentHeaderSize
				}
				if at != len(whole) || id != 77 {
					t.Fatalf("fragment %d of packet %d at %d, want it at %d", i, id, at, len(whole))
				}
				whole = append(whole, ip[after:]...)
			}
			if !bytes.Equal(whole[udpHdrLen:], want) {
				t.Fatalf("%d bytes, not the %d that were sent", len(whole)-udpHdrLen, size)
			}
			src, dst := tcpip.AddrFromSlice(ends[0].Addr().AsSlice()), tcpip.AddrFromSlice(ends[1].Addr().AsSlice())
			pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(len(whole)))
			if fold(sum(uint32(pseudo), whole)) != 0xffff {
				t.Errorf("%d bytes: the checksum does not hold", size)
			}
		}
	}
}
