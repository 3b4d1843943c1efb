package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Slirp are the options of --network slirp, which has podman's names for them:
// slirp4netns:allow_host_loopback=true works too. Zero values are the defaults.
type Slirp struct {
	AllowHostLoopback bool
	NoIPv6            bool
	MTU               int
	CIDR              netip.Prefix // of IPv4; the container's address is number 100 of it
	Driver            string       // kernel, netstack, or a program: pasta or slirp4netns
}

// parseSlirp parses KEY=VALUE,...
func parseSlirp(s string) (Slirp, error) {
	var o Slirp
	for _, opt := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(opt, "=")
		if !ok || key == "" {
			return o, fmt.Errorf("option %q must be key=value", opt)
		}
		if err := o.set(key, value); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *Slirp) set(key, value string) error {
	var err error
	switch key {
	case "allow_host_loopback":
		o.AllowHostLoopback, err = strconv.ParseBool(value)
	case "enable_ipv6":
		var on bool
		on, err = strconv.ParseBool(value)
		o.NoIPv6 = !on
	case "mtu":
		if o.MTU, err = strconv.Atoi(value); err == nil && (o.MTU < 1280 || o.MTU > 65535) {
			err = fmt.Errorf("must be 1280 to 65535")
		}
	case "cidr":
		if o.CIDR, err = netip.ParsePrefix(value); err == nil && (!o.CIDR.Addr().Is4() || o.CIDR.Bits() > 25) {
			err = fmt.Errorf("must be an IPv4 network of /25 or larger")
		}
	case "driver":
		if o.Driver = value; !slices.Contains([]string{"kernel", "netstack", "pasta", "slirp4netns"}, value) {
			err = fmt.Errorf("must be kernel, netstack, pasta or slirp4netns")
		}
	default:
		return hint("known are allow_host_loopback, driver, enable_ipv6, mtu and cidr", "unknown option %q", key)
	}
	if err != nil {
		return fmt.Errorf("option %s: invalid value %q: %w", key, value, err)
	}
	return nil
}
