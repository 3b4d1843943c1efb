package slirp

import (
	"fmt"
	"net/netip"
)

// PortMapping publishes one port of the container on the host.
type PortMapping struct {
	// HostIP is the host address to listen on; the zero Addr means every address of both families.
	HostIP netip.Addr `json:"hostIP"`
	// HostPort is the port on the host; 0 asks for a free one.
	HostPort uint16 `json:"hostPort"`
	// HostPortEnd, if it is not 0, asks for the first free one from HostPort to this.
	HostPortEnd uint16 `json:"hostPortEnd,omitempty"`
	// ContainerPort is the port inside.
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp" or "udp"; empty means tcp.
	Protocol string `json:"protocol"`
	// OnlyIPv4: the container has no IPv6. Clients that have appear as the gateway.
	OnlyIPv4 bool `json:"onlyIPv4,omitempty"`
}

// String gives the mapping as docker prints it: 0.0.0.0:8080->80/tcp.
func (p PortMapping) String() string {
	host := "*"
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
		if p.HostIP.Is6() {
			host = "[" + host + "]"
		}
	}
	return fmt.Sprintf("%s:%d->%d/%s", host, p.HostPort, p.ContainerPort, p.protocol())
}

func (p PortMapping) protocol() string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

// Config describes the network of one container. It is a plain value that travels as JSON between
// processes; the zero value of each field means its default.
type Config struct {
	// NoTUN has a packet socket on a veth pair instead of a TUN, for where there is no /dev/net/tun.
	NoTUN bool `json:"noTUN,omitempty"`

	// MTU of the TUN device in bytes, 1500.
	MTU int `json:"mtu,omitempty"`

	// Address4 is the container's address with its on-link prefix, 10.0.2.100/24. Gateway4 and DNS4
	// lie in that prefix and belong to the stack: 10.0.2.2 and 10.0.2.3.
	Address4 netip.Prefix `json:"address4"`
	Gateway4 netip.Addr   `json:"gateway4"`
	DNS4     netip.Addr   `json:"dns4"`

	// The same for IPv6: fd75:7275:6e00::100/64, ::2 and ::3.
	Address6 netip.Prefix `json:"address6"`
	Gateway6 netip.Addr   `json:"gateway6"`
	DNS6     netip.Addr   `json:"dns6"`
	// NoIPv6 leaves IPv6 out.
	NoIPv6 bool `json:"noIPv6,omitempty"`

	// Ports are published on the host.
	Ports []PortMapping `json:"ports,omitempty"`

	// Resolvers are asked in this order; empty means those of the host's ResolvConf, which is read
	// again when it changes.
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`
	// ResolvConf is /etc/resolv.conf.
	ResolvConf string `json:"resolvConf,omitempty"`
	// Hosts are names that the forwarder answers itself, without a final dot, in lower case.
	Hosts map[string][]netip.Addr `json:"hosts,omitempty"`

	// Driver is DriverKernel, DriverNetstack, one that is a program of others (External), or empty for the best that there is. It
	// concerns whoever sets the network up.
	Driver string `json:"driver,omitempty"`
	// Program is the path of the driver's program, if it is one.
	Program string `json:"program,omitempty"`

	// AllowHostLoopback makes the gateway addresses stand for the host's 127.0.0.1 and ::1, and
	// host.containers.internal resolve to them.
	AllowHostLoopback bool `json:"allowHostLoopback,omitempty"`

	// KeepTimeWait leaves the container's net.ipv4.tcp_max_tw_buckets as it is, which DriverKernel otherwise sets to 0.
	KeepTimeWait bool `json:"keepTimeWait,omitempty"`

	// Bounds; what is over them is refused or waits, never queued without end.
	MaxTCPFlows  int `json:"maxTCPFlows,omitempty"`  // 16384
	MaxHalfOpen  int `json:"maxHalfOpen,omitempty"`  // 4096 host-side connects at once
	MaxUDPFlows  int `json:"maxUDPFlows,omitempty"`  // 4096
	MaxEchoFlows int `json:"maxEchoFlows,omitempty"` // 256
	MaxQueries   int `json:"maxQueries,omitempty"`   // 512 DNS queries at once
}

// WithDefaults returns the configuration with every default filled in, or an error that names the
// field that cannot be used.
func (c Config) WithDefaults() (Config, error) {
	setInt := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	setInt(&c.MTU, 1500)
	setInt(&c.MaxTCPFlows, 16384)
	setInt(&c.MaxHalfOpen, 4096)
	setInt(&c.MaxUDPFlows, 4096)
	setInt(&c.MaxEchoFlows, 256)
	setInt(&c.MaxQueries, 512)
	if c.MTU < 1280 || c.MTU > 65535 {
		return c, fmt.Errorf("mtu %d: outside 1280-65535", c.MTU)
	}
	if c.Driver != "" && c.Driver != DriverKernel && c.Driver != DriverNetstack && !External(c.Driver) {
		return c, fmt.Errorf("driver %q: must be %s, %s, %s or %s", c.Driver, DriverKernel, DriverNetstack, DriverPasta, DriverSlirp4netns)
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	var err error
	if c.Address4, c.Gateway4, c.DNS4, err = family(c.Address4, c.Gateway4, c.DNS4, "10.0.2.100/24", "10.0.2.2", "10.0.2.3"); err != nil {
		return c, err
	}
	if !c.Address4.Addr().Is4() {
		return c, fmt.Errorf("address4 %s: not IPv4", c.Address4)
	}
	if !c.NoIPv6 {
		c.Address6, c.Gateway6, c.DNS6, err = family(c.Address6, c.Gateway6, c.DNS6,
			"fd75:7275:6e00::100/64", "fd75:7275:6e00::2", "fd75:7275:6e00::3")
		if err != nil {
			return c, err
		}
		if !c.Address6.Addr().Is6() || c.Address6.Addr().Is4In6() {
			return c, fmt.Errorf("address6 %s: not IPv6", c.Address6)
		}
	}
	for _, p := range c.Ports {
		if p.ContainerPort == 0 {
			return c, fmt.Errorf("published port %s: no container port", p)
		}
		if p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort {
			return c, fmt.Errorf("published port %s: the range ends at %d", p, p.HostPortEnd)
		}
		if proto := p.protocol(); proto != "tcp" && proto != "udp" {
			return c, fmt.Errorf("published port %s: unknown protocol %q", p, proto)
		}
	}
	return c, nil
}

// family fills in and checks the three addresses of one address family. A gateway or resolver that is
// not given is number 2 or 3 of the container's prefix.
func family(prefix netip.Prefix, gw, dns netip.Addr, defPrefix, defGW, defDNS string) (netip.Prefix, netip.Addr, netip.Addr, error) {
	nth := func(n int) netip.Addr {
		a := prefix.Masked().Addr()
		for range n {
			a = a.Next()
		}
		return a
	}
	if !prefix.IsValid() {
		prefix = netip.MustParsePrefix(defPrefix)
		if !gw.IsValid() {
			gw = netip.MustParseAddr(defGW)
		}
		if !dns.IsValid() {
			dns = netip.MustParseAddr(defDNS)
		}
	}
	if !gw.IsValid() {
		gw = nth(2)
	}
	if !dns.IsValid() {
		dns = nth(3)
	}
	for _, a := range []netip.Addr{gw, dns} {
		if !prefix.Contains(a) || a == prefix.Addr() {
			return prefix, gw, dns, fmt.Errorf("address %s: not a free address of %s", a, prefix)
		}
	}
	if gw == dns {
		return prefix, gw, dns, fmt.Errorf("address %s: gateway and resolver must differ", gw)
	}
	return prefix, gw, dns, nil
}
