package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Wish is a network to be made. Zero values are to be chosen.
type Wish struct {
	Name             string
	Subnets          []netip.Prefix // at most one of each family
	Gateways         []netip.Addr
	IPv6, Internal   bool
	MTU              int
	Labels, Options  map[string]string
	IgnoreIfExisting bool // --ignore: an existing one is fine
}

// Create makes a network.
func (s *Store) Create(w Wish) (*Network, error) {
	if err := CheckName(w.Name); err != nil {
		return nil, err
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if n, err := s.read(w.Name); err == nil {
		if w.IgnoreIfExisting {
			return n, nil
		}
		return nil, fmt.Errorf("%w: %s", ErrExists, w.Name)
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	n := &Network{
		ID: newID(), Name: w.Name, Created: time.Now(), Driver: "bridge",
		Internal: w.Internal, MTU: w.MTU, Labels: w.Labels, Options: w.Options,
	}
	if err := n.place(w, all); err != nil {
		return nil, err
	}
	return n, s.write(n)
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// place gives the network its addresses.
func (n *Network) place(w Wish, others []*Network) error {
	for _, p := range w.Subnets {
		if err := n.subnet(p, others); err != nil {
			return err
		}
	}
	if !n.Subnet4.IsValid() {
		p, err := freeSubnet(append(taken(others), hostNetworks()...))
		if err != nil {
			return err
		}
		n.Subnet4 = p
	}
	if w.IPv6 && !n.Subnet6.IsValid() {
		n.Subnet6 = randomULA()
	}
	n.Gateway4 = n.Subnet4.Addr().Next()
	if n.IPv6() {
		n.Gateway6 = n.Subnet6.Addr().Next()
	}
	for _, a := range w.Gateways {
		switch {
		case n.Subnet4.Contains(a) && n.assignable(a):
			n.Gateway4 = a
		case n.IPv6() && n.Subnet6.Contains(a) && n.assignable(a):
			n.Gateway6 = a
		default:
			return fmt.Errorf("gateway %s: no address of a subnet of the network", a)
		}
	}
	return nil
}

// subnet takes a subnet that the user chose.
func (n *Network) subnet(p netip.Prefix, others []*Network) error {
	if p != p.Masked() {
		return fmt.Errorf("subnet %s: is an address in %s", p, p.Masked())
	}
	for _, o := range taken(others) {
		if o.Overlaps(p) {
			return fmt.Errorf("subnet %s: overlaps with %s of another network", p, o)
		}
	}
	if p.Addr().Is4() {
		if n.Subnet4.IsValid() {
			return errors.New("more than one subnet of IPv4")
		}
		if p.Bits() > 29 || p.Bits() < 8 {
			return fmt.Errorf("subnet %s: must be a /8 to a /29", p)
		}
		if !p.Addr().IsGlobalUnicast() {
			return fmt.Errorf("subnet %s: no addresses for hosts", p)
		}
		n.Subnet4 = p
		return nil
	}
	if n.Subnet6.IsValid() {
		return errors.New("more than one subnet of IPv6")
	}
	if p.Bits() > 120 || p.Bits() < 16 || !p.Addr().IsGlobalUnicast() || p.Addr().Is4In6() {
		return fmt.Errorf("subnet %s: must be a global or unique local network of /16 to /120", p)
	}
	n.Subnet6 = p
	return nil
}

func taken(all []*Network) []netip.Prefix {
	out := []netip.Prefix{uplinkNet4, uplinkNet6, resolverNet}
	for _, n := range all {
		out = append(out, n.Subnet4)
		if n.IPv6() {
			out = append(out, n.Subnet6)
		}
	}
	return out
}

var (
	// What slirp has on the way out of all networks (slirp.Config's defaults).
	uplinkNet4 = netip.MustParsePrefix("10.0.2.0/24")
	uplinkNet6 = netip.MustParsePrefix("fd75:7275:6e00::/64")
	// The resolver of all networks.
	resolverNet = netip.PrefixFrom(Resolver, 32)
)

// Resolver answers DNS on every network. It is a link-local address, so that it is the same on all of them and
// stays when a container leaves one.
var Resolver = netip.AddrFrom4([4]byte{169, 254, 53, 53})

// freeSubnet takes the first /24 of podman's range that nothing else uses.
func freeSubnet(used []netip.Prefix) (netip.Prefix, error) {
	for i := 89; i < 256; i++ {
		for j := range 256 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j), 0}), 24)
			free := true
			for _, u := range used {
				free = free && !u.Overlaps(p)
			}
			if free {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("no subnet is free in 10.89.0.0 to 10.255.255.255: give one with --subnet")
}

// hostNetworks are those that the host itself is on: containers shall reach them.
func hostNetworks() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // it only avoids a clash
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// randomULA is a unique local prefix (RFC 4193).
func randomULA() netip.Prefix {
	a := [16]byte{0: 0xfd}
	rand.Read(a[1:6]) // never fails since Go 1.24
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// assignable tells whether an address of a subnet may be a host's: it is neither that of the network nor the
// broadcast address.
func (n *Network) assignable(a netip.Addr) bool {
	if a.Is4() {
		return n.Subnet4.Contains(a) && a != n.Subnet4.Addr() && a != lastAddr(n.Subnet4)
	}
	return n.IPv6() && n.Subnet6.Contains(a) && a != n.Subnet6.Addr()
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
