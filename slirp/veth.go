package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where there is no /dev/net/tun, which an unprivileged user cannot make, a packet socket takes its place: the container's device is
// one end of a veth pair, and the socket is bound to the other, in the same network namespace. With PACKET_VNET_HDR it reads
// and writes what a TUN with virtio headers does, behind an Ethernet header that the link adds and takes away. CAP_NET_RAW over the
// namespace is needed to make it, and nothing to use it, so the helper holds it as it holds a TUN.
//
// Its receive buffer is of net.core.rmem_max bytes at most, where a TUN counts packets: a few trains of segments fill it. It costs
// little (docs/decisions/0020).

const (
	// vethPeer is the end that the packet socket is bound to. Nothing else uses it: it has no address, and what arrives is addressed to
	// the other end.
	vethPeer    = "tun0-peer"
	etherHdrLen = 14
	// vethMSS: a veth device drops what is longer than its MTU, which the container may have made smaller, unless it is to be cut. So
	// all that would not pass at the smallest of IPv6 is, and nobody cuts it on the way to the container's socket.
	vethMSS = 1280 - ipv6HdrLen - tcpHdrLen
)

// The two ends' addresses, locally administered. Neither is ever asked for: the device does no ARP.
var (
	tunMAC  = []byte{0x02, 'u', 'r', 'u', 'n', 1}
	peerMAC = []byte{0x02, 'u', 'r', 'u', 'n', 2}
)

// openVeth makes the veth pair and the packet socket, in the network namespace of the calling thread.
func openVeth(mtu int, ipv6 bool) (*os.File, error) {
	var b batch
	b.veth(tunName, tunMAC, vethPeer, peerMAC)
	if err := b.send(); err != nil {
		return nil, fmt.Errorf("make veth pair: %w", err)
	}
	peer, err := linkIndex(vethPeer)
	if err != nil {
		return nil, err
	}
	b = batch{}
	if ipv6 {
		b.noLinkLocal(vethPeer, peer)
	}
	b.linkUp(vethPeer, peer, mtu)
	if err := b.send(); err != nil {
		return nil, err
	}
	if err := segmentDatagrams(tunName); err != nil {
		return nil, err
	}
	// Protocol 0: nothing arrives before it is bound to the device.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "packet:"+vethPeer)
	const wantedBuffer = 8 << 20 // the kernel takes what net.core.rmem_max allows
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, wantedBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, wantedBuffer),
	)
	if err == nil {
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(peer)})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up packet socket: %w", err), f.Close())
	}
	return f, nil
}

// segmentDatagrams has the container's kernel cut a datagram that is sent in segments (UDP_SEGMENT) before it reaches the device. The
// header for such a train is younger (Linux 6.2) than the trains, and without one the packet socket drops them.
func segmentDatagrams(name string) error {
	const (
		countStrings = 0x37 // ETHTOOL_GSSET_INFO of linux/ethtool.h
		getStrings   = 0x1b // ETHTOOL_GSTRINGS
		setFeatures  = 0x3b // ETHTOOL_SFEATURES
		features     = 4    // ETH_SS_FEATURES
		stringLen    = 32   // ETH_GSTRING_LEN
		feature      = "tx-udp-segmentation"
	)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	call := func(what string, data []byte) error {
		if err := ethtool(fd, name, data); err != nil {
			return fmt.Errorf("%s of %s: %w", what, name, err)
		}
		return nil
	}
	u32 := binary.NativeEndian.PutUint32
	count := make([]byte, 20) // struct ethtool_sset_info and one number
	u32(count, countStrings)
	binary.NativeEndian.PutUint64(count[8:], 1<<features)
	if err := call("count features", count); err != nil {
		return err
	}
	n := int(binary.NativeEndian.Uint32(count[16:]))
	names := make([]byte, 12+n*stringLen) // struct ethtool_gstrings
	u32(names, getStrings)
	u32(names[4:], features)
	u32(names[8:], uint32(n))
	if err := call("list features", names); err != nil {
		return err
	}
	for i := range n {
		if unix.ByteSliceToString(names[12+i*stringLen:12+(i+1)*stringLen]) != feature {
			continue
		}
		words := (n + 31) / 32
		set := make([]byte, 8+words*8) // struct ethtool_sfeatures: pairs of what is valid and what is requested
		u32(set, setFeatures)
		u32(set[4:], uint32(words))
		u32(set[8+i/32*8:], 1<<(i%32))
		return call("switch "+feature, set)
	}
	return nil // an older kernel, which sends no such trains
}

// ethtool makes the request SIOCETHTOOL; data is read and written by the kernel.
func ethtool(fd int, device string, data []byte) error {
	// struct ifreq: the name, and a pointer in the union after it.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], device)
	req.data = unsafe.Pointer(unsafe.SliceData(data))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// isPacketSocket tells a link made by openVeth from a TUN.
func isPacketSocket(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && domain == unix.AF_PACKET
}

// LinkNamespace opens the network namespace of a TUN that Configure made, or of the packet socket in its place. It wants CAP_NET_ADMIN over that
// namespace; for a TUN, Linux 5.7.
func LinkNamespace(tun *os.File) (*os.File, error) {
	ns, err := linkNamespace(int(tun.Fd()))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(ns), "network namespace"), nil
}

// linkNamespace opens the network namespace of a link's device: see LinkNamespace.
func linkNamespace(fd int) (int, error) {
	request := uint(unix.TUNGETDEVNETNS)
	if isPacketSocket(fd) {
		request = unix.SIOCGSKNS
	}
	ns, err := unix.IoctlRetInt(fd, request)
	if err != nil {
		return -1, fmt.Errorf("find the link's network namespace: %w", err)
	}
	return ns, nil
}

// etherFrame gives the pieces of a frame for a packet socket from those for a TUN: an Ethernet header follows the vnet header, which
// counts from there. The first piece has the vnet header whole; head is what the first piece of the result is made in.
func etherFrame(iov []unix.Iovec, head *[vnetHdrLen + etherHdrLen]byte) []unix.Iovec {
	first := unsafe.Slice(iov[0].Base, iov[0].Len)
	copy(head[:], first[:vnetHdrLen])
	h, _ := parseVnetHdr(head[:]) // cannot be too short
	if h.flags&vnetNeedsCsum != 0 {
		h.csumStart += etherHdrLen
	}
	if h.hdrLen != 0 {
		h.hdrLen += etherHdrLen
	}
	h.put(head[:])
	out := append(make([]unix.Iovec, 0, len(iov)+1), iovec(head[:]))
	if rest := first[vnetHdrLen:]; len(rest) > 0 {
		out = append(out, iovec(rest))
	}
	out = append(out, iov[1:]...)
	ether := head[vnetHdrLen:]
	copy(ether, tunMAC)
	copy(ether[6:], peerMAC)
	etherType := uint16(unix.ETH_P_IP)
	if len(out) > 1 && out[1].Len > 0 && *out[1].Base>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	binary.BigEndian.PutUint16(ether[12:], etherType)
	return out
}

// stripEther turns the headers of a frame from a packet socket into the vnet header of a TUN; false if it is not an IP packet.
func stripEther(head []byte) bool {
	switch binary.BigEndian.Uint16(head[vnetHdrLen+12:]) {
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
	default:
		return false
	}
	h, _ := parseVnetHdr(head) // cannot be too short
	if h.flags&vnetNeedsCsum != 0 {
		h.csumStart -= etherHdrLen
	}
	if h.hdrLen >= etherHdrLen {
		h.hdrLen -= etherHdrLen
	}
	h.put(head)
	return true
}

// inFragments cuts a packet that is larger than the MTU, as its sender would (RFC 791, RFC 8200); a checksum that was left to
// the kernel is filled in. Each fragment has a vnet header. The packet has no options and no extension headers, as the helper makes them;
// of one that has (a SYN that comes back) nothing is sent.
func inFragments(frame []byte, mtu int, id uint32) [][]byte {
	const moreFragments, fragmentHdrLen, fragmentHeader = 0x2000, 8, 44
	h, _ := parseVnetHdr(frame) // cannot be too short
	packet := slices.Clone(frame[vnetHdrLen:])
	if packet[0]>>4 == 4 && packet[0] != 0x45 || int(h.csumStart)+int(h.csumOffset)+2 > len(packet) {
		return nil
	}
	if h.flags&vnetNeedsCsum != 0 {
		// The field holds the sum of the pseudo header.
		covered := packet[h.csumStart:]
		check := ^fold(sum(0, covered))
		if check == 0 { // which would mean that there is none (RFC 768)
			check = 0xffff
		}
		binary.BigEndian.PutUint16(covered[h.csumOffset:], check)
	}
	is4 := packet[0]>>4 == 4
	hdr, extra := ipv4HdrLen, 0
	if !is4 {
		hdr, extra = ipv6HdrLen, fragmentHdrLen
	}
	var out [][]byte
	step := (mtu - hdr - extra) &^ 7
	payload := packet[hdr:]
	for off := 0; off < len(payload); off += step {
		piece := payload[off:min(off+step, len(payload))]
		f := append(make([]byte, vnetHdrLen, vnetHdrLen+hdr+extra+len(piece)), packet[:hdr]...)
		ip := f[vnetHdrLen:]
		last := off+len(piece) == len(payload)
		if is4 {
			field := uint16(off / 8)
			if !last {
				field |= moreFragments
			}
			binary.BigEndian.PutUint16(ip[2:], uint16(hdr+len(piece)))
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			binary.BigEndian.PutUint16(ip[6:], field)
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip)))
		} else {
			binary.BigEndian.PutUint16(ip[4:], uint16(extra+len(piece)))
			ip[6] = fragmentHeader
			field := uint16(off)
			if !last {
				field |= 1
			}
			f = append(f, packet[6], 0, byte(field>>8), byte(field))
			f = binary.BigEndian.AppendUint32(f, id)
		}
		out = append(out, append(f, piece...))
	}
	return out
}

// packetDeviceGone tells whether ENETDOWN from a packet socket means that its device was removed; it may only have been set down.
func packetDeviceGone(fd int) bool {
	sa, err := unix.Getsockname(fd)
	ll, ok := sa.(*unix.SockaddrLinklayer)
	return err != nil || !ok || ll.Ifindex <= 0
}
