package slirp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestExternalCommands(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"slirp4netns", Config{Driver: DriverSlirp4netns}, "--configure --ready-fd=3 --mtu=1500 --cidr=10.0.2.0/24 --disable-host-loopback --netns-type=path /proc/self/fd/4 tun0"},
		{"slirp4netns to the host", Config{Driver: DriverSlirp4netns, AllowHostLoopback: true, MTU: 9000}, "--configure --ready-fd=3 --mtu=9000 --cidr=10.0.2.0/24 --netns-type=path /proc/self/fd/4 tun0"},
		{
			"pasta",
			Config{Driver: DriverPasta, Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 5353, Protocol: "udp"}}},
			"--foreground --quiet --pid /proc/self/fd/3 --config-net --netns-only --ns-ifname tun0 --mtu 1500 --address 10.0.2.100 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --tcp-ns none --udp-ns none --no-map-gw --ipv4-only --tcp-ports 8080:80 --udp-ports 127.0.0.1/53:5353 --no-netns-quit --netns /proc/self/fd/4",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := tt.cfg.WithDefaults()
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(ExternalCommand(cfg, "/bin/x").Args[1:], " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMissingExternalIsNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := FindExternal(Config{Driver: DriverPasta})
	var e *ExternalError
	if !errors.As(err, &e) || !strings.Contains(e.Hint(), "passt") {
		t.Errorf("%v, want the package in the hint", err)
	}
}
