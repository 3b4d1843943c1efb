package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/network"
)

const defaultMTU = 1500

// metricStep lies between the routes of two interfaces of a container.
const metricStep = 100

// prepare sets up what the namespace has besides bridges.
func (s *server) prepare() error {
	return s.thread.do(func() error {
		var err error
		if s.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		lo, err := s.nl.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := s.nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		return s.address(s.nl, lo, netip.PrefixFrom(network.Resolver, 32))
	})
}

// bridge finds or makes the bridge of a network.
func (s *server) bridge(n *network.Network) (netlink.Link, error) {
	link, err := s.nl.LinkByName(n.Bridge())
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = n.Bridge(), mtu(n)
		// Without one of its own a bridge has that of a port, and another when that port goes; containers would
		// send to the old one for half a minute.
		attrs.HardwareAddr = bridgeMAC(n)
		if err := s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", n.Bridge(), err)
		}
		link, err = s.nl.LinkByName(n.Bridge())
	}
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", n.Bridge(), err)
	}
	if err := s.nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring bridge %s up: %w", n.Bridge(), err)
	}
	if err := s.address(s.nl, link, netip.PrefixFrom(n.Gateway4, n.Subnet4.Bits())); err != nil {
		return nil, err
	}
	if n.IPv6() {
		if err := s.address(s.nl, link, netip.PrefixFrom(n.Gateway6, n.Subnet6.Bits())); err != nil {
			return nil, err
		}
	}
	return link, forward4(link)
}

// bridgeMAC is a locally administered address from the network's id.
func bridgeMAC(n *network.Network) net.HardwareAddr {
	mac := net.HardwareAddr{0x06, 0, 0, 0, 0, 0}
	if raw, err := hex.DecodeString(n.ID[:10]); err == nil {
		copy(mac[1:], raw)
	}
	return mac
}

func mtu(n *network.Network) int {
	if n.MTU != 0 {
		return n.MTU
	}
	return defaultMTU
}

// address adds an address without duplicate address detection, during which it could not be used.
func (s *server) address(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	flags := 0
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p), Flags: flags})
	if err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// forward4 lets IPv4 packets that come in by a link be forwarded. It goes by netlink, since /proc/sys may be
// read-only (inet_set_link_af, net/ipv4/devinet.c).
func forward4(link netlink.Link) error {
	const (
		inetConf       = 1 // IFLA_INET_CONF
		confForwarding = 1 // IPV4_DEVCONF_FORWARDING
	)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	conf := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(inetConf|unix.NLA_F_NESTED, nil)
	conf.AddRtAttr(confForwarding, nl.Uint32Attr(1))
	req.AddData(spec)
	// The request opens its socket on the calling thread, which is the one in the namespace.
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("forward packets of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// forward6 lets IPv6 packets be forwarded, for which there is no other way than this.
func forward6() error {
	if err := writeSysctl("ipv6/conf/all/forwarding", "1"); err != nil {
		return &infra.Failure{
			Message: fmt.Sprintf("forward IPv6 packets: %v", err),
			Cure:    "make /proc/sys writable, or make the network without --ipv6",
		}
	}
	return nil
}

// hostEnd is the name of the bridge's end of a container's interface.
func hostEnd(id string, n *network.Network) string { return "v" + id[:7] + n.ID[:7] }

// plug connects a container to the bridge of a network. One that was connected by a process before this one stays as
// it is.
func (s *server) plug(id string, j *infra.Join, netns *os.File) error {
	return s.thread.do(func() error {
		br, err := s.bridge(&j.Network)
		if err != nil {
			return err
		}
		name := hostEnd(id, &j.Network)
		if link, err := s.nl.LinkByName(name); err == nil {
			if link.Attrs().MasterIndex == br.Attrs().Index && link.Attrs().Flags&net.FlagUp != 0 {
				return nil
			}
			if err := s.nl.LinkDel(link); err != nil {
				return fmt.Errorf("remove interface %s: %w", name, err)
			}
		}
		return s.connect(id, j, br, netns)
	})
}

// connect makes the pair of interfaces and sets up the container's end.
func (s *server) connect(id string, j *infra.Join, br netlink.Link, netns *os.File) error {
	mac, err := net.ParseMAC(j.Endpoint.MAC)
	if err != nil {
		return fmt.Errorf("MAC address %s: %w", j.Endpoint.MAC, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = hostEnd(id, &j.Network), mtu(&j.Network), br.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: j.Endpoint.Interface, PeerHardwareAddr: mac,
		PeerNamespace: netlink.NsFd(int(netns.Fd())), PeerMTU: uint32(mtu(&j.Network)),
	}
	if err := s.nl.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EPERM) {
			return errOtherUser
		}
		return fmt.Errorf("make interface %s: %w", j.Endpoint.Interface, err)
	}
	err = within(netns, func() error { return s.inside(j) })
	if err == nil {
		var link netlink.Link
		if link, err = s.nl.LinkByName(attrs.Name); err == nil {
			err = s.nl.LinkSetUp(link)
		}
	}
	if err != nil {
		return errors.Join(err, s.nl.LinkDel(veth))
	}
	return nil
}

// inside sets up the container's end of the pair. It runs in the container's network namespace.
func (s *server) inside(j *infra.Join) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(j.Endpoint.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", j.Endpoint.Interface, err)
	}
	addrs := []netip.Prefix{j.Endpoint.IPv4}
	if j.Endpoint.IPv6.IsValid() {
		addrs = append(addrs, j.Endpoint.IPv6)
	}
	for _, p := range addrs {
		if err := s.address(h, link, p); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", j.Endpoint.Interface, err)
	}
	for _, r := range routes(j, link.Attrs().Index) {
		if err := h.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route %s by %s: %w", r.Dst, j.Endpoint.Interface, err)
		}
	}
	return nil
}

// routes are a container's ways to the resolver and out. Each interface has its own; the first one's count, and when
// it goes, the next one's.
func routes(j *infra.Join, index int) []netlink.Route {
	metric := (j.Index + 1) * metricStep
	all := []netlink.Route{{
		LinkIndex: index, Priority: metric, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(network.Resolver, 32)),
	}}
	if j.Network.Internal {
		return all
	}
	all = append(all, netlink.Route{
		LinkIndex: index, Priority: metric, Gw: j.Network.Gateway4.AsSlice(), Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
	})
	if j.Network.IPv6() {
		all = append(all, netlink.Route{
			LinkIndex: index, Priority: metric, Gw: j.Network.Gateway6.AsSlice(), Dst: ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0)),
		})
	}
	return all
}

// unplug takes a container off a network. Its interface may be gone with its namespace.
func (s *server) unplug(id string, n *network.Network) error {
	return s.remove(hostEnd(id, n))
}

// remove removes an interface if it is there.
func (s *server) remove(name string) error {
	return s.thread.do(func() error {
		link, err := s.nl.LinkByName(name)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		if err == nil {
			err = s.nl.LinkDel(link)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove interface %s: %w", name, err)
		}
		return nil
	})
}

var errOtherUser = &infra.Failure{
	Message: "the networks' bridges are in the user namespace of containers with another id map",
	Cure:    "containers that are on networks at the same time need the same --userns; urun ps --filter network=NAME shows who is",
}
