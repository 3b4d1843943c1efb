package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// in6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const in6AddrGenModeNone = 1

// batch collects rtnetlink requests and sends them to the kernel in one message: the set-up of the
// container's interfaces is on the critical path of its start, and one system call for all of it costs a
// tenth of one call each. Requests are carried out in order; each is acknowledged by its sequence number.
type batch struct {
	buf   []byte
	names []string // of the requests, by sequence number - 1
}

// request appends a message; body is the fixed part, attrs the attributes.
func (b *batch) request(name string, typ uint16, flags uint16, body []byte, attrs ...[]byte) {
	start := len(b.buf)
	b.names = append(b.names, name)
	b.buf = append(b.buf, make([]byte, unix.NLMSG_HDRLEN)...)
	b.buf = append(b.buf, body...)
	for _, a := range attrs {
		b.buf = append(b.buf, a...)
	}
	hdr := b.buf[start:]
	binary.NativeEndian.PutUint32(hdr[0:], uint32(len(hdr)))
	binary.NativeEndian.PutUint16(hdr[4:], typ)
	binary.NativeEndian.PutUint16(hdr[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(hdr[8:], uint32(len(b.names)))
}

// attr encodes one attribute, padded to 4 bytes as rtnetlink(7) wants.
func attr(typ uint16, parts ...[]byte) []byte {
	n := unix.SizeofRtAttr
	for _, p := range parts {
		n += len(p)
	}
	out := make([]byte, unix.SizeofRtAttr, (n+3)&^3)
	binary.NativeEndian.PutUint16(out[0:], uint16(n))
	binary.NativeEndian.PutUint16(out[2:], typ)
	for _, p := range parts {
		out = append(out, p...)
	}
	return out[:cap(out)]
}

func attrU32(typ uint16, v uint32) []byte {
	return attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func ifinfo(index int32, flags, change uint32) []byte {
	out := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(out[4:], uint32(index))
	binary.NativeEndian.PutUint32(out[8:], flags)
	binary.NativeEndian.PutUint32(out[12:], change)
	return out
}

func rtFamily(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// linkUp sets IFF_UP and, if mtu is not 0, the MTU.
func (b *batch) linkUp(name string, index int32, mtu int) {
	var attrs [][]byte
	if mtu != 0 {
		attrs = append(attrs, attrU32(unix.IFLA_MTU, uint32(mtu)))
	}
	b.request("bring "+name+" up", unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP, unix.IFF_UP), attrs...)
}

// veth makes a pair of devices without ARP.
func (b *batch) veth(name string, mac []byte, peer string, peerMAC []byte) {
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	attrs := func(name string, mac []byte) [][]byte {
		return [][]byte{attr(unix.IFLA_IFNAME, []byte(name+"\x00")), attr(unix.IFLA_ADDRESS, mac)}
	}
	info := ifinfo(0, unix.IFF_NOARP, unix.IFF_NOARP)
	other := attr(vethInfoPeer, append([][]byte{info}, attrs(peer, peerMAC)...)...)
	b.request("make "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, info,
		append(attrs(name, mac), attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("veth")), attr(unix.IFLA_INFO_DATA, other)))...)
}

// noLinkLocal stops the kernel from generating a link-local IPv6 address, and with it duplicate address
// detection, router solicitations and multicast reports that nobody on a point-to-point TUN answers. It
// must come before the link is up: addresses are generated on the way up (net/ipv6/addrconf.c).
func (b *batch) noLinkLocal(name string, index int32) {
	mode := attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{in6AddrGenModeNone})
	b.request("set address generation of "+name, unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0),
		attr(unix.IFLA_AF_SPEC, attr(unix.AF_INET6, mode)))
}

// acceptLocal makes the kernel take packets from an interface whose source is an address of its own (ip-sysctl,
// accept_local).
func (b *batch) acceptLocal(name string, index int32) {
	const inetConf, devconfAcceptLocal = 1, 23 // IFLA_INET_CONF, IPV4_DEVCONF_ACCEPT_LOCAL
	b.request("accept local sources on "+name, unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0),
		attr(unix.IFLA_AF_SPEC, attr(unix.AF_INET, attr(inetConf, attrU32(devconfAcceptLocal, 1)))))
}

func (b *batch) address(name string, index int32, p netip.Prefix) {
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0] = rtFamily(p.Addr())
	body[1] = byte(p.Bits())
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	ip := p.Addr().AsSlice()
	// NODAD: an address under duplicate address detection cannot be bound for a second.
	b.request(fmt.Sprintf("add address %s to %s", p, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body,
		attr(unix.IFA_LOCAL, ip), attr(unix.IFA_ADDRESS, ip), attrU32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_PERMANENT))
}

// localRoute makes the kernel take packets to an IPv6 address as its own. It does so by itself for every address, but
// from a work queue, some time after the address was acknowledged (addrconf_dad_completed), and sends what comes before
// that back to the TUN. A route of our own, of another metric, is there at once.
func (b *batch) localRoute(name string, index int32, a netip.Addr) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = rtFamily(a)
	body[1] = byte(a.BitLen())
	body[4] = unix.RT_TABLE_LOCAL
	body[5] = unix.RTPROT_BOOT
	body[6] = unix.RT_SCOPE_HOST
	body[7] = unix.RTN_LOCAL
	b.request(fmt.Sprintf("add local route %s to %s", a, name), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body,
		attr(unix.RTA_DST, a.AsSlice()), attrU32(unix.RTA_OIF, uint32(index)), attrU32(unix.RTA_PRIORITY, 1024))
}

// markRule sends packets with a mark to a routing table.
func (b *batch) markRule(family byte, mark, table uint32) {
	const frActToTable = 1                 // FR_ACT_TO_TBL of linux/fib_rules.h
	body := make([]byte, unix.SizeofRtMsg) // struct fib_rule_hdr is laid out like it
	body[0], body[7] = family, frActToTable
	b.request("add rule for marked packets", unix.RTM_NEWRULE, unix.NLM_F_CREATE, body,
		attrU32(unix.FRA_FWMARK, mark), attrU32(unix.FRA_TABLE, table), attrU32(unix.FRA_PRIORITY, 100))
}

// localDefault makes every address the machine's own in a routing table.
func (b *batch) localDefault(family byte, index int32, table uint32) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = family
	body[5] = unix.RTPROT_BOOT
	body[6] = unix.RT_SCOPE_HOST
	body[7] = unix.RTN_LOCAL
	b.request("add local default route", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body,
		attrU32(unix.RTA_OIF, uint32(index)), attrU32(unix.RTA_TABLE, table))
}

func (b *batch) defaultRoute(name string, index int32, gw netip.Addr) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = rtFamily(gw)
	body[4] = unix.RT_TABLE_MAIN
	body[5] = unix.RTPROT_BOOT
	body[6] = unix.RT_SCOPE_UNIVERSE
	body[7] = unix.RTN_UNICAST
	b.request(fmt.Sprintf("add default route by %s to %s", gw, name), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body,
		attr(unix.RTA_GATEWAY, gw.AsSlice()), attrU32(unix.RTA_OIF, uint32(index)))
}

// send carries out the requests in the network namespace of the calling thread. The error joins those of
// all requests that failed, each with its name.
func (b *batch) send() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer unix.Close(fd)
	// Without NETLINK_CAP_ACK each failure echoes its whole request.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		return fmt.Errorf("set NETLINK_CAP_ACK: %w", err)
	}
	if err := unix.Sendto(fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink requests: %w", err)
	}
	var errs []error
	buf := make([]byte, 8192)
	for acked := 0; acked < len(b.names); {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive netlink answers: %w", err)
		}
		acks, err := parseAcks(buf[:n])
		if err != nil {
			return err
		}
		for _, a := range acks {
			if a.seq == 0 || int(a.seq) > len(b.names) {
				return fmt.Errorf("netlink answer to unknown request %d", a.seq)
			}
			acked++
			if a.errno != 0 {
				errs = append(errs, fmt.Errorf("%s: %w", b.names[a.seq-1], a.errno))
			}
		}
	}
	return errors.Join(errs...)
}

type ack struct {
	seq   uint32
	errno unix.Errno
}

// parseAcks reads the NLMSG_ERROR messages of one datagram and passes over others.
func parseAcks(p []byte) ([]ack, error) {
	var acks []ack
	for len(p) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(p))
		if n < unix.NLMSG_HDRLEN || n > len(p) {
			return nil, fmt.Errorf("netlink message of %d bytes in %d", n, len(p))
		}
		if binary.NativeEndian.Uint16(p[4:]) == unix.NLMSG_ERROR {
			if n < unix.NLMSG_HDRLEN+4 {
				return nil, fmt.Errorf("netlink acknowledgement of %d bytes", n)
			}
			acks = append(acks, ack{
				seq:   binary.NativeEndian.Uint32(p[8:]),
				errno: unix.Errno(-int32(binary.NativeEndian.Uint32(p[unix.NLMSG_HDRLEN:]))),
			})
		}
		p = p[min((n+3)&^3, len(p)):]
	}
	return acks, nil
}
