package slirp

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestVnetHdrGoesRound(t *testing.T) {
	want := vnetHdr{flags: 1, gsoType: 4, hdrLen: 60, gsoSize: 1440, csumStart: 40, csumOffset: 16}
	var b [vnetHdrLen]byte
	want.put(b[:])
	if got, err := parseVnetHdr(b[:]); got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseVnetHdr(b[:9]); err == nil {
		t.Error("a header of 9 bytes was taken")
	}
}

// TestBuiltPackets holds our packets against gVisor's reading of them.
func TestBuiltPackets(t *testing.T) {
	for _, tt := range []struct{ src, dst string }{{"192.0.2.1", "10.0.2.100"}, {"2001:db8::1", "fd75:7275:6e00::100"}} {
		src, dst := netip.MustParseAddr(tt.src), netip.MustParseAddr(tt.dst)
		orig := bytes.Repeat([]byte{0xa5}, 61)
		frame := putUnreachable(src, dst, portUnreachable, orig)[vnetHdrLen:]
		p, err := parseIP(frame, len(frame))
		if err != nil || p.src != src || p.dst != dst || !bytes.Equal(p.payload[icmpHdrLen:], orig) {
			t.Fatalf("%+v, %v", p, err)
		}
		if src.Is4() {
			if !header.IPv4(frame).IsChecksumValid() || checksum.Checksum(p.payload, 0) != 0xffff {
				t.Error("bad IPv4 or ICMP checksum")
			}
		} else {
			xsum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, toStack(src), toStack(dst), uint16(len(p.payload)))
			if checksum.Checksum(p.payload, xsum) != 0xffff {
				t.Error("bad ICMPv6 checksum")
			}
		}
		buf := make([]byte, udpHeadroom+100)
		frame = putUDP(buf, netip.AddrPortFrom(src, 53), netip.AddrPortFrom(dst, 4000), 5)
		hdr, err := parseVnetHdr(frame)
		if err != nil || hdr.flags != vnetNeedsCsum || int(hdr.csumStart) != ipHdrLen(src) || hdr.csumOffset != 6 {
			t.Errorf("%+v, %v", hdr, err)
		}
		p, err = parseIP(frame[vnetHdrLen:], len(frame)-vnetHdrLen)
		if err != nil || p.proto != protoUDP || len(p.payload) != udpHdrLen+5 {
			t.Fatalf("%+v, %v", p, err)
		}
		udp := header.UDP(p.payload)
		if udp.SourcePort() != 53 || udp.DestinationPort() != 4000 || udp.Length() != 13 {
			t.Errorf("%v", udp)
		}
		if udp.Checksum() != header.PseudoHeaderChecksum(header.UDPProtocolNumber, toStack(src), toStack(dst), 13) {
			t.Error("bad partial checksum")
		}
	}
}

func FuzzParseIP(f *testing.F) {
	f.Add(synFrame("10.0.2.100", "192.0.2.1", 80), 0)
	f.Add(synFrame("fd75:7275:6e00::100", "2001:db8::1", 80), 3000)
	f.Fuzz(func(t *testing.T, b []byte, more int) {
		total := len(b) + max(0, min(more, 1<<16))
		p, err := parseIP(b, total)
		if err != nil {
			return
		}
		if p.hdr+len(p.payload) > len(b) || p.src.Is4() != p.dst.Is4() {
			t.Errorf("%+v of %d bytes", p, len(b))
		}
		if len(b) > 0 {
			needsWhole(append(b, make([]byte, 20)...))
		}
		putUnreachable(p.dst, p.src, prohibited, b)
	})
}

// FuzzInspect feeds packets to everything that reads them before the stack does. Nothing it makes leaves the machine.
func FuzzInspect(f *testing.F) {
	f.Add(synFrame("10.0.2.100", "127.0.0.1", 80))
	f.Add(synFrame("10.0.2.100", "10.0.2.77", 80))
	c, err := Config{}.WithDefaults()
	if err != nil {
		f.Fatal(err)
	}
	pol := newPolicy(c)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseIP(b, len(b))
		if err != nil {
			return
		}
		if pol.check(p.src, p.dst) == forward {
			if a, ok := pol.target(p.dst); !ok || a.IsLoopback() || a.IsUnspecified() {
				t.Errorf("%s is forwarded to %s", p.dst, a)
			}
		}
	})
}

func FuzzParseAcks(f *testing.F) {
	var b batch
	b.linkUp("lo", 1, 0)
	f.Add(b.buf)
	f.Fuzz(func(t *testing.T, p []byte) {
		acks, err := parseAcks(p)
		if err == nil && len(acks)*unix.NLMSG_HDRLEN > len(p) {
			t.Errorf("%d acknowledgements in %d bytes", len(acks), len(p))
		}
	})
}
