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

// nat64 are the prefixes after which a translator puts an IPv4 address: RFC 6052 and, for local use,
// RFC 8215. 6to4 (RFC 3056) has it right after 2002::/16.
func embedded4(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case b[0] == 0 && b[1] == 0x64 && b[2] == 0xff && b[3] == 0x9b:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
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
