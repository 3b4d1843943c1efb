package spec

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// OnNetworks tells whether --network names networks of the user's own.
func OnNetworks(s string) bool {
	n, err := parseNetwork(s)
	return err == nil && n.Mode == "bridge"
}

// attachments parses the names of networks in --network, and the flags that are
// about a container's place in one.
func (b *builder) attachments() error {
	n := &b.c.Network
	if n.Mode != "bridge" {
		return b.noAttachments()
	}
	for _, s := range append([]string{b.opt.Network}, b.opt.MoreNetworks...) {
		list, err := parseAttachments(s)
		if err != nil {
			return fmt.Errorf("--network %s: %w", s, err)
		}
		n.Attachments = append(n.Attachments, list...)
	}
	seen := map[string]bool{}
	for _, a := range n.Attachments {
		if seen[a.Network] {
			return fmt.Errorf("--network %s: named twice", a.Network)
		}
		seen[a.Network] = true
	}
	return b.placeInNetwork()
}

// noAttachments refuses what only makes sense on a network of one's own.
func (b *builder) noAttachments() error {
	if len(b.opt.MoreNetworks) > 0 {
		return fmt.Errorf("--network %s: cannot be combined with other networks", b.opt.Network)
	}
	for _, f := range []struct {
		flag string
		set  bool
	}{
		{"--ip", b.opt.IP != ""},
		{"--ip6", b.opt.IP6 != ""},
		{"--mac-address", b.opt.MACAddress != ""},
		{"--network-alias", len(b.opt.NetworkAliases) > 0},
	} {
		if f.set {
			return hint("make one with urun network create, and name it with --network", "%s: needs a network of its own", f.flag)
		}
	}
	return nil
}

// placeInNetwork applies --ip and its like, which are about the only network.
func (b *builder) placeInNetwork() error {
	all := b.c.Network.Attachments
	if b.opt.IP != "" || b.opt.IP6 != "" || b.opt.MACAddress != "" {
		if len(all) > 1 {
			return hint("give each its own: --network NAME:ip=ADDRESS", "--ip, --ip6 and --mac-address: cannot be used with several networks")
		}
	}
	for i := range all {
		all[i].Aliases = append(all[i].Aliases, b.opt.NetworkAliases...)
		for _, o := range []struct{ flag, key, value string }{
			{"--ip", "ip", b.opt.IP}, {"--ip6", "ip6", b.opt.IP6}, {"--mac-address", "mac", b.opt.MACAddress},
		} {
			if o.value == "" {
				continue
			}
			if err := all[i].Set(o.key, o.value); err != nil {
				return fmt.Errorf("%s: %w", o.flag, err)
			}
		}
	}
	for _, alias := range b.opt.NetworkAliases {
		if err := checkAlias(alias); err != nil {
			return fmt.Errorf("--network-alias: %w", err)
		}
	}
	return nil
}

// parseAttachments parses NAME[,NAME...], podman's NAME:KEY=VALUE[,...] or
// docker's name=NAME,KEY=VALUE[,...].
func parseAttachments(s string) ([]Attachment, error) {
	var name, options string
	long := strings.HasPrefix(s, "name=") || strings.Contains(s, ",name=")
	if long {
		for _, part := range strings.Split(s, ",") {
			key, value, _ := strings.Cut(part, "=")
			if key == "name" {
				name = value
				continue
			}
			options = strings.TrimPrefix(options+","+part, ",")
		}
	} else {
		name, options, long = strings.Cut(s, ":")
	}
	if !long {
		var out []Attachment
		for _, name := range strings.Split(s, ",") {
			if err := checkAlias(name); err != nil {
				return nil, err
			}
			out = append(out, Attachment{Network: name})
		}
		return out, nil
	}
	a := Attachment{Network: name}
	if err := checkAlias(name); err != nil {
		return nil, err
	}
	for _, opt := range strings.Split(options, ",") {
		if opt == "" {
			continue
		}
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			return nil, fmt.Errorf("option %q must be key=value", opt)
		}
		if err := a.Set(key, value); err != nil {
			return nil, err
		}
	}
	return []Attachment{a}, nil
}

// Set sets an option: ip, ip6, mac or alias.
func (a *Attachment) Set(key, value string) error {
	switch key {
	case "ip", "ip6":
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Is4() != (key == "ip") && !(key == "ip" && addr.Is6()) || addr.Zone() != "" {
			return fmt.Errorf("invalid address %q for %s", value, key)
		}
		if addr.Is4() {
			a.IPv4 = addr
		} else {
			a.IPv6 = addr
		}
	case "mac", "mac-address":
		mac, err := net.ParseMAC(value)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("invalid MAC address %q", value)
		}
		a.MAC = mac.String()
	case "alias":
		if err := checkAlias(value); err != nil {
			return err
		}
		a.Aliases = append(a.Aliases, value)
	default:
		return hint("known are ip, ip6, mac and alias", "unknown option %q", key)
	}
	return nil
}

// checkAlias tells whether a word may be a name in a network.
func checkAlias(s string) error {
	ok := s != "" && len(s) <= 200
	for i, c := range s {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (alnum || i > 0 && strings.ContainsRune("_.-", c))
	}
	if !ok {
		return fmt.Errorf("%q is not a valid name", s)
	}
	return nil
}
