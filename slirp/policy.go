package slirp

import "net/netip"

// verdict is what becomes of a packet from the container by its addresses alone.
type verdict uint8

const (
	forward verdict = iota // to the host's network
	local                  // for the gateway or resolver: the stack's own addresses
	deny                   // answered with prohibited
	drop                   // not answered: not from the container, or to a group
)

// policy decides which addresses the container may use. It is the only place that does: every packet
// passes check before anything else reads it.
type policy struct {
	addr4, gw4, dns4 netip.Addr
	addr6, gw6, dns6 netip.Addr // zero without IPv6
	net4, net6       netip.Prefix
	hostLoopback     bool
}

func newPolicy(c Config) policy {
	p := policy{
		addr4: c.Address4.Addr(), gw4: c.Gateway4, dns4: c.DNS4, net4: c.Address4.Masked(),
		hostLoopback: c.AllowHostLoopback,
	}
	if !c.NoIPv6 {
		p.addr6, p.gw6, p.dns6, p.net6 = c.Address6.Addr(), c.Gateway6, c.DNS6, c.Address6.Masked()
	}
	return p
}

func (p *policy) check(src, dst netip.Addr) verdict {
	if src != p.addr4 && src != p.addr6 || src.Is4() != dst.Is4() {
		return drop
	}
	if dst == p.gw4 || dst == p.dns4 || dst == p.gw6 || dst == p.dns6 {
		return local
	}
	if dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return drop
	}
	if p.net4.Contains(dst) || p.net6.Contains(dst) || !reachable(dst) {
		return deny
	}
	return forward
}

// embedded4 is the IPv4 address that a translator finds in an IPv6 one: after a prefix of RFC 6052 or, for local use, RFC 8215. 6to4
// (RFC 3056) has it right after 2002::/16.
func embedded4(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case [4]byte(b[:4]) == nat64:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

// nat64 is what 64:ff9b::/96 and 64:ff9b:1::/48 begin with.
var nat64 = [4]byte{0x00, 0x64, 0xff, 0x9b}

// translatedLocally tells whether a translator with a longer or shorter prefix within 64:ff9b:1::/48, which the network's owner is free to choose, could
// make a loopback or link-local address of a. RFC 6052 puts the address right after the prefix, around the ninth byte.
func translatedLocally(a netip.Addr) bool {
	b := a.As16()
	if [4]byte(b[:4]) != nat64 || b[4] != 0 || b[5] != 1 {
		return false
	}
	for _, form := range [][4]byte{{b[6], b[7], b[9], b[10]}, {b[7], b[9], b[10], b[11]}, {b[9], b[10], b[11], b[12]}} {
		if a4 := netip.AddrFrom4(form); a4.IsLoopback() || a4.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// metadata6 tells whether it is a metadata service of a cloud that is not at a link-local address: Amazon's fd00:ec2::254, Google's fd20:ce::254, Oracle's
// fd00:c1::a9fe:a9fe.
func metadata6(a [16]byte) bool {
	switch a {
	case [16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54},
		[16]byte{0: 0xfd, 1: 0x20, 3: 0xce, 14: 0x02, 15: 0x54},
		[16]byte{0: 0xfd, 3: 0xc1, 12: 0xa9, 13: 0xfe, 14: 0xa9, 15: 0xfe}:
		return true
	}
	return false
}

// reachable tells whether the container may talk to an address in the host's network. Loopback, link-local
// (the metadata services of clouds live there) and the unspecified address, which Linux takes for
// loopback, are not, whatever they are dressed as.
func reachable(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && b[0] != 0 && b != [4]byte{255, 255, 255, 255}
	}
	if !a.Is6() || a.Zone() != "" {
		return false
	}
	if metadata6(a.As16()) || translatedLocally(a) {
		return false
	}
	if a4, ok := embedded4(a); ok {
		return reachable(a4)
	}
	b := a.As16()
	// ::/32 and more: ::, ::1, v4-compatible ::/96, v4-mapped ::ffff:0:0/96 and SIIT ::ffff:0:0:0/96.
	if [8]byte(b[:8]) == [8]byte{} {
		return false
	}
	// fe80::/10, and fec0::/10, the site-local addresses of old.
	return !(b[0] == 0xfe && b[1] >= 0x80) && !a.IsMulticast()
}

// target is the address that the host side connects to for dst, which check has let pass; ok is false for
// an address of the stack's own that stands for nothing on the host.
func (p *policy) target(dst netip.Addr) (_ netip.Addr, ok bool) {
	switch dst {
	case p.gw4:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.hostLoopback
	case p.gw6:
		return netip.IPv6Loopback(), p.hostLoopback
	case p.dns4, p.dns6:
		return netip.Addr{}, false
	}
	return dst, true
}

// inside gives the container's address and the source address under which a client of a published port
// appears inside. A client's own address is kept. The container's kernel would drop a loopback or
// link-local source as a martian, and answer its own address by itself: those appear as the gateway. only4 says that
// the container has no IPv6.
func (p *policy) inside(client netip.Addr, only4 bool) (container, source netip.Addr) {
	client = client.Unmap().WithZone("")
	if client.Is4() || only4 || !p.addr6.IsValid() {
		if client.Is4() && reachable(client) && !p.net4.Contains(client) {
			return p.addr4, client
		}
		return p.addr4, p.gw4
	}
	if reachable(client) && !p.net6.Contains(client) {
		return p.addr6, client
	}
	return p.addr6, p.gw6
}
