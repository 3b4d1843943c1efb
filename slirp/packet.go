package slirp

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	ipv4HdrLen = 20
	ipv6HdrLen = 40
	udpHdrLen  = 8
	icmpHdrLen = 8
	tcpHdrLen  = 20

	tcpFIN, tcpSYN, tcpRST, tcpACK = 1, 2, 4, 16
)

var (
	errShortPacket = errors.New("packet too short")
	errBadPacket   = errors.New("malformed packet")
)

// ipPacket is what the helper itself reads of a packet from the container.
type ipPacket struct {
	src, dst netip.Addr
	proto    uint8
	fragment bool   // any fragment, the first one too
	hdr      int    // bytes before payload
	payload  []byte // of IP, cut to the length that the header states
}

// parseIP reads the IP header at the start of p. p may hold only the start of a packet of total bytes;
// payload is then the part that is there. IPv6 extension headers are not walked: proto is then the first of
// them, and whoever wants more lets the stack read the packet.
func parseIP(p []byte, total int) (ipPacket, error) {
	if len(p) < 1 {
		return ipPacket{}, errShortPacket
	}
	switch p[0] >> 4 {
	case 4:
		if len(p) < ipv4HdrLen {
			return ipPacket{}, errShortPacket
		}
		hdr, length := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		if hdr < ipv4HdrLen || hdr > length || length > total || hdr > len(p) {
			return ipPacket{}, errBadPacket
		}
		return ipPacket{
			src:      netip.AddrFrom4([4]byte(p[12:16])),
			dst:      netip.AddrFrom4([4]byte(p[16:20])),
			proto:    p[9],
			fragment: binary.BigEndian.Uint16(p[6:])&0x3fff != 0,
			hdr:      hdr,
			payload:  p[hdr:min(length, len(p))],
		}, nil
	case 6:
		if len(p) < ipv6HdrLen {
			return ipPacket{}, errShortPacket
		}
		length := ipv6HdrLen + int(binary.BigEndian.Uint16(p[4:]))
		if length > total {
			return ipPacket{}, errBadPacket
		}
		return ipPacket{
			src:      netip.AddrFrom16([16]byte(p[8:24])),
			dst:      netip.AddrFrom16([16]byte(p[24:40])),
			proto:    p[6],
			fragment: p[6] == 44,
			hdr:      ipv6HdrLen,
			payload:  p[ipv6HdrLen:min(length, len(p))],
		}, nil
	}
	return ipPacket{}, errBadPacket
}

// sum adds p to a ones' complement sum (RFC 1071).
func sum(acc uint32, p []byte) uint32 {
	for len(p) >= 2 {
		acc += uint32(p[0])<<8 | uint32(p[1])
		p = p[2:]
		if acc > 0xf0000000 {
			acc = acc&0xffff + acc>>16
		}
	}
	if len(p) == 1 {
		acc += uint32(p[0]) << 8
	}
	return acc
}

func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc&0xffff + acc>>16
	}
	return uint16(acc)
}

// pseudoSum is the checksum of the pseudo header, not complemented: what a packet carries when the rest of
// its checksum is left to the kernel.
func pseudoSum(src, dst netip.Addr, proto uint8, length int) uint32 {
	acc := uint32(proto) + uint32(length)
	acc = sum(acc, src.AsSlice())
	return sum(acc, dst.AsSlice())
}

// putIP writes the IP header of a packet with n bytes after the header and returns the header's length.
func putIP(p []byte, src, dst netip.Addr, proto uint8, n int) int {
	if src.Is4() {
		clear(p[:ipv4HdrLen])
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(ipv4HdrLen+n))
		p[8] = 64
		p[9] = proto
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(p[10:], ^fold(sum(0, p[:ipv4HdrLen])))
		return ipv4HdrLen
	}
	clear(p[:ipv6HdrLen])
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(n))
	p[6] = proto
	p[7] = 64
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return ipv6HdrLen
}

func ipHdrLen(a netip.Addr) int {
	if a.Is4() {
		return ipv4HdrLen
	}
	return ipv6HdrLen
}

// udpHeadroom is what a datagram needs before its payload: vnet, IP and UDP headers of either family.
const udpHeadroom = vnetHdrLen + ipv6HdrLen + udpHdrLen

// putUDP puts headers before the payload at buf[udpHeadroom:udpHeadroom+n] and returns the whole frame for
// the TUN. The checksum is left to the kernel.
func putUDP(buf []byte, src, dst netip.AddrPort, n int) []byte {
	ip := ipHdrLen(src.Addr())
	frame := buf[udpHeadroom-udpHdrLen-ip-vnetHdrLen : udpHeadroom+n]
	vnetHdr{flags: vnetNeedsCsum, csumStart: uint16(ip), csumOffset: 6}.put(frame)
	putIP(frame[vnetHdrLen:], src.Addr(), dst.Addr(), protoUDP, udpHdrLen+n)
	udp := frame[vnetHdrLen+ip:]
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpHdrLen+n))
	binary.BigEndian.PutUint16(udp[6:], fold(pseudoSum(src.Addr(), dst.Addr(), protoUDP, udpHdrLen+n)))
	return frame
}

// putICMP builds a frame with one ICMP message of the family of src: typ, code, the four bytes of rest and
// a body.
func putICMP(src, dst netip.Addr, typ, code uint8, rest [4]byte, body []byte) []byte {
	ip, n := ipHdrLen(src), icmpHdrLen+len(body)
	frame := make([]byte, vnetHdrLen+ip+n)
	acc := uint32(0)
	if src.Is4() {
		putIP(frame[vnetHdrLen:], src, dst, protoICMP, n)
	} else {
		putIP(frame[vnetHdrLen:], src, dst, protoICMPv6, n)
		acc = pseudoSum(src, dst, protoICMPv6, n)
	}
	icmp := frame[vnetHdrLen+ip:]
	icmp[0], icmp[1] = typ, code
	copy(icmp[4:], rest[:])
	copy(icmp[icmpHdrLen:], body)
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum(acc, icmp)))
	return frame
}

// putReset builds the segment that refuses the SYN which syn, a TCP header, begins: RST and ACK, as RFC 9293 wants it in
// the state CLOSED.
func putReset(src, dst netip.AddrPort, syn []byte, payload int) []byte {
	ip := ipHdrLen(src.Addr())
	frame := make([]byte, vnetHdrLen+ip+tcpHdrLen)
	putIP(frame[vnetHdrLen:], src.Addr(), dst.Addr(), protoTCP, tcpHdrLen)
	tcp := frame[vnetHdrLen+ip:]
	binary.BigEndian.PutUint16(tcp[0:], src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[8:], binary.BigEndian.Uint32(syn[4:])+1+uint32(payload))
	tcp[12] = tcpHdrLen / 4 << 4
	tcp[13] = tcpRST | tcpACK
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(pseudoSum(src.Addr(), dst.Addr(), protoTCP, tcpHdrLen), tcp)))
	return frame
}

// reason is why a packet cannot be delivered, in terms of both ICMP versions.
type reason uint8

const (
	netUnreachable reason = iota
	hostUnreachable
	portUnreachable
	prohibited
)

// putUnreachable builds the destination unreachable message that answers the packet which starts with
// orig, as if it came from its destination. RFC 792 wants the IP header and 8 bytes of orig, RFC 4443 as
// much as fits; 128 bytes serve both.
func putUnreachable(src, dst netip.Addr, why reason, orig []byte) []byte {
	orig = orig[:min(len(orig), 128)]
	if src.Is4() {
		return putICMP(src, dst, 3, [...]uint8{netUnreachable: 0, hostUnreachable: 1, portUnreachable: 3, prohibited: 13}[why], [4]byte{}, orig)
	}
	return putICMP(src, dst, 1, [...]uint8{netUnreachable: 0, hostUnreachable: 3, portUnreachable: 4, prohibited: 1}[why], [4]byte{}, orig)
}
