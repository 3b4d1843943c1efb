package launch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/slirp"
)

// slirpConfig is the network's configuration.
func slirpConfig(n spec.Network) (slirp.Config, error) {
	cfg := slirp.Config{AllowHostLoopback: n.Slirp.AllowHostLoopback, NoIPv6: n.Slirp.NoIPv6, MTU: n.Slirp.MTU, Driver: n.Slirp.Driver, NoTUN: n.NoTUN}
	if n.Slirp.CIDR.IsValid() {
		var err error
		if cfg.Address4, err = hostOf(n.Slirp.CIDR, 100); err != nil {
			return cfg, err
		}
	}
	for _, p := range n.Ports {
		cfg.Ports = append(cfg.Ports, slirp.PortMapping{
			HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd, ContainerPort: p.ContainerPort, Protocol: p.Proto,
		})
	}
	for _, ip := range n.DNS {
		cfg.Resolvers = append(cfg.Resolvers, netip.AddrPortFrom(ip, 53))
	}
	cfg, err := cfg.WithDefaults()
	if err == nil && slirp.External(cfg.Driver) {
		cfg.Program, err = slirp.FindExternal(cfg)
	}
	return cfg, err
}

// hostOf is the host of a number in a network.
func hostOf(p netip.Prefix, n int) (netip.Prefix, error) {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	if !p.Contains(a) {
		return netip.Prefix{}, fmt.Errorf("network %s has no address number %d", p, n)
	}
	return netip.PrefixFrom(a, p.Bits()), nil
}

// gatewayToHost is the address that stands for the host inside. Where the
// container may reach the host's loopback, it is the gateway, which leads there;
// else the host's own address in its network, where it finds what the host
// offers to others.
func gatewayToHost(n spec.Network, cfg slirp.Config) (netip.Addr, error) {
	switch {
	case n.Mode == "host":
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	case n.Mode == "slirp" && cfg.AllowHostLoopback:
		return cfg.Gateway4, nil
	}
	return hostAddr()
}

// hostAddr is the address from which the host speaks to the world, or one of its
// others.
func hostAddr() (netip.Addr, error) {
	// Connecting a datagram socket sends nothing: it looks the route up. The
	// address is one of TEST-NET-3, which goes the default way.
	if c, err := net.Dial("udp4", "203.0.113.1:9"); err == nil {
		defer c.Close()
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); usable(a) {
			return a, nil
		}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("addresses of the host: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && usable(p.Addr()) {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, errNoHostAddr
}

func usable(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsLoopback() }

var errNoHostAddr = &hintError{
	errors.New("this host has no address but its loopback's"),
	"with --network slirp:allow_host_loopback=true the gateway leads there",
}

// hintError is an error with a known cure.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }
