package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// network parses --network, --dns and their like, with docker's rules on what
// excludes what.
func (b *builder) network() error {
	n, err := parseNetwork(b.opt.Network)
	if err != nil {
		return err
	}
	b.c.Network = n
	if err := b.attachments(); err != nil {
		return err
	}
	if n.Mode == "container" {
		switch {
		case b.opt.Hostname != "":
			return conflict("hostname and the network mode")
		case len(b.opt.DNS)+len(b.opt.DNSSearch)+len(b.opt.DNSOptions) > 0:
			return conflict("dns and the network mode")
		case len(b.opt.AddHosts) > 0:
			return conflict("custom host-to-IP mapping and the network mode")
		}
	}
	return b.names()
}

func parseNetwork(s string) (Network, error) {
	mode, rest, has := strings.Cut(s, ":")
	switch mode {
	case "", "slirp", "slirp4netns", "private":
		n := Network{Mode: "slirp"}
		if !has {
			return n, nil
		}
		var err error
		if n.Slirp, err = parseSlirp(rest); err != nil {
			return Network{}, fmt.Errorf("--network %s: %w", s, err)
		}
		return n, nil
	case "pasta":
		// podman's name; its options are others.
		if !has {
			return Network{Mode: "slirp", Slirp: Slirp{Driver: "pasta"}}, nil
		}
	case "none", "host":
		if !has {
			return Network{Mode: mode}, nil
		}
	case "container":
		if rest != "" {
			return Network{Mode: mode, Container: rest}, nil
		}
	case "bridge", "default":
		return Network{}, hint("make a network with urun network create and name it, or leave out --network for a private one",
			"--network %s: there is no default bridge", s)
	default:
		return Network{Mode: "bridge"}, nil
	}
	return Network{}, fmt.Errorf("--network %s: must be slirp[:OPTION=VALUE,...], pasta, none, host, container:NAME or the name of a network", s)
}

// names parses what ends up in resolv.conf and hosts.
func (b *builder) names() error {
	n := &b.c.Network
	if slices.Equal(b.opt.DNS, []string{"none"}) {
		n.KeepResolvConf = true
		return b.hosts()
	}
	for _, s := range b.opt.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--dns: IP address is not correctly formatted: %s", s)
		}
		n.DNS = append(n.DNS, a)
	}
	for _, s := range b.opt.DNSSearch {
		if s == "" || strings.ContainsAny(s, " \t\n") {
			return fmt.Errorf("--dns-search: %q is not a valid domain", s)
		}
		n.DNSSearch = append(n.DNSSearch, s)
	}
	for _, s := range b.opt.DNSOptions {
		if s == "" || strings.ContainsAny(s, " \t\n") {
			return fmt.Errorf("--dns-option: %q is not a valid option", s)
		}
		n.DNSOptions = append(n.DNSOptions, s)
	}
	return b.hosts()
}

func (b *builder) hosts() error {
	for _, s := range b.opt.AddHosts {
		h, err := parseHost(s)
		if err != nil {
			return err
		}
		b.c.Network.Hosts = append(b.c.Network.Hosts, h...)
	}
	return nil
}

// parseHost parses NAME[;NAME...]:IP, or with = as docker has it too.
func parseHost(s string) ([]HostEntry, error) {
	sep := strings.IndexAny(s, "=:")
	if sep < 1 {
		return nil, fmt.Errorf("--add-host: bad format %q, must be NAME:IP", s)
	}
	names, ip := s[:sep], s[sep+1:]
	if ip != "host-gateway" {
		a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"))
		if err != nil {
			return nil, fmt.Errorf("--add-host %s: invalid IP address %q", s, ip)
		}
		ip = a.String()
	}
	var out []HostEntry
	for _, name := range strings.Split(names, ";") {
		if name == "" || strings.ContainsAny(name, " \t\n#") {
			return nil, fmt.Errorf("--add-host: bad host name in %q", s)
		}
		out = append(out, HostEntry{name, ip})
	}
	return out, nil
}

// ports parses -p.
func (b *builder) ports() error {
	n := &b.c.Network
	for _, s := range b.opt.Publish {
		list, err := parsePublish(s)
		if err != nil {
			return err
		}
		n.Ports = append(n.Ports, list...)
	}
	if len(n.Ports) > 0 || b.opt.PublishAll {
		switch n.Mode {
		case "container":
			return conflict("port publishing and the container type network mode")
		case "host":
			return hint("with the host's network the ports are there without -p", "conflicting options: port publishing and the host network mode")
		case "none":
			return conflict("port publishing and no network")
		}
	}
	return uniquePorts(n.Ports)
}

func uniquePorts(list []Port) error {
	for i, p := range list {
		if p.HostPort != 0 && p.HostPortEnd == 0 && slices.ContainsFunc(list[:i], func(q Port) bool {
			sameIP := p.HostIP == q.HostIP || !p.HostIP.IsValid() || !q.HostIP.IsValid()
			return sameIP && p.HostPort == q.HostPort && q.HostPortEnd == 0 && p.Proto == q.Proto
		}) {
			return fmt.Errorf("-p: host port %d/%s is published twice", p.HostPort, p.Proto)
		}
	}
	return nil
}

// exposedPorts publishes for -P what the image or --expose exposes and -p does
// not name.
func (b *builder) exposedPorts() error {
	for _, s := range b.opt.Expose {
		if err := b.expose(s); err != nil {
			return fmt.Errorf("--expose %s: %w", s, err)
		}
	}
	for _, s := range slices.Sorted(maps.Keys(b.facts.Image.ExposedPorts)) {
		if !b.opt.PublishAll {
			return nil
		}
		if err := b.expose(s); err != nil {
			return fmt.Errorf("exposed port of the image: %w", err)
		}
	}
	return nil
}

// expose publishes an exposed port or range of them, if all are to be.
func (b *builder) expose(s string) error {
	port, proto, err := splitProto(s)
	if err != nil {
		return err
	}
	first, last, err := portRange(port)
	if err != nil || !b.opt.PublishAll {
		return err
	}
	n := &b.c.Network
	for p := int(first); p <= int(last); p++ {
		if !slices.ContainsFunc(n.Ports, func(q Port) bool { return int(q.ContainerPort) == p && q.Proto == proto }) {
			n.Ports = append(n.Ports, Port{ContainerPort: uint16(p), Proto: proto})
		}
	}
	return nil
}

// parsePublish parses [[IP:][HOST]:]CONTAINER[/PROTO]; HOST and CONTAINER may
// be ranges of one length, or HOST alone one: then its first free port is taken.
// IPv6 addresses stand in brackets.
func parsePublish(s string) ([]Port, error) {
	ports, err := publish(s)
	if err != nil {
		return nil, fmt.Errorf("-p %s: %w", s, err)
	}
	return ports, nil
}

func publish(s string) ([]Port, error) {
	rest, proto, err := splitProto(s)
	if err != nil {
		return nil, err
	}
	var ip netip.Addr
	host, container := "", rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, container = rest[:i], rest[i+1:]
		if j := strings.LastIndexByte(host, ':'); j >= 0 {
			if ip, err = publishIP(host[:j]); err != nil {
				return nil, err
			}
			host = host[j+1:]
		}
	}
	first, last, err := portRange(container)
	if err != nil {
		return nil, err
	}
	hostFirst := uint16(0)
	if host != "" && host != "0" {
		var hostLast uint16
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return nil, err
		}
		if first == last && hostLast > hostFirst {
			return []Port{{HostIP: ip, HostPort: hostFirst, HostPortEnd: hostLast, ContainerPort: first, Proto: proto}}, nil
		}
		if hostLast-hostFirst != last-first {
			return nil, fmt.Errorf("host and container ranges differ in length")
		}
	}
	var out []Port
	for i := 0; i <= int(last-first); i++ {
		p := Port{HostIP: ip, ContainerPort: first + uint16(i), Proto: proto}
		if hostFirst != 0 {
			p.HostPort = hostFirst + uint16(i)
		}
		out = append(out, p)
	}
	return out, nil
}

func publishIP(s string) (netip.Addr, error) {
	inner, bracket := strings.CutPrefix(s, "[")
	if bracket {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return netip.Addr{}, fmt.Errorf("invalid IP address %q", s)
		}
	}
	if inner == "" && !bracket {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(inner)
	if err != nil || a.Is6() != bracket || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("invalid IP address %q", s)
	}
	return a, nil
}

func splitProto(s string) (rest, proto string, err error) {
	rest, proto, has := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	switch {
	case !has || proto == "tcp":
		return rest, "tcp", nil
	case proto == "udp":
		return rest, "udp", nil
	case proto == "sctp":
		return "", "", fmt.Errorf("the user-mode network has no sctp")
	}
	return "", "", fmt.Errorf("invalid protocol %q", proto)
}

func portRange(s string) (first, last uint16, err error) {
	a, z, isRange := strings.Cut(s, "-")
	if first, err = port(a); err != nil || !isRange {
		return first, first, err
	}
	if last, err = port(z); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("invalid range of ports %q", s)
	}
	return first, last, nil
}

func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("invalid port %q", s)
	}
	return uint16(n), nil
}
