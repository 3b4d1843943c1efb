package server

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
)

func TestAContainerSeesTheNamesOfItsNetworks(t *testing.T) {
	one := &network.Network{ID: "1", Name: "One", Subnet4: netip.MustParsePrefix("10.1.0.0/24")}
	two := &network.Network{ID: "2", Name: "two", Subnet4: netip.MustParsePrefix("10.2.0.0/24"), Internal: true}
	on := func(n *network.Network, addr string, aliases ...string) *place {
		return &place{network: n, endpoint: state.Endpoint{IPv4: netip.MustParsePrefix(addr + "/24"), Aliases: aliases}}
	}
	s := &server{
		networks: map[string]*network.Network{"1": one, "2": two},
		members: map[string]*member{
			"a": {id: "aaaaaaaaaaaaaaaa", name: "Web", on: []*place{on(one, "10.1.0.2", "db")}},
			"b": {id: "bbbbbbbbbbbbbbbb", name: "both", on: []*place{on(one, "10.1.0.3", "db"), on(two, "10.2.0.3")}},
			"c": {id: "cccccccccccccccc", name: "closed", on: []*place{on(two, "10.2.0.4")}},
		},
	}
	s.rename()
	dir := *s.directory.Load()
	for _, tt := range []struct{ from, name, want string }{
		{"10.1.0.2", "web", "[10.1.0.2] true"},
		{"10.1.0.2", "web.one", "[10.1.0.2] true"},
		{"10.1.0.2", "bbbbbbbbbbbb", "[10.1.0.3] true"},
		{"10.1.0.2", "closed", "[] false"},
		{"10.2.0.4", "web", "[] false"},
		{"10.2.0.4", "both", "[10.2.0.3] true"},
		{"10.2.0.3", "closed.two", "[10.2.0.4] true"},
	} {
		addrs, known := dir[netip.MustParseAddr(tt.from)].Addrs(tt.name)
		if got := fmt.Sprint(addrs, known); got != tt.want {
			t.Errorf("%s asks for %s: %s, want %s", tt.from, tt.name, got, tt.want)
		}
	}
	if addrs, _ := dir[netip.MustParseAddr("10.1.0.3")].Addrs("db"); len(addrs) != 2 {
		t.Errorf("an alias of two is %v", addrs)
	}
	for _, tt := range []struct{ from, addr, want string }{
		{"10.1.0.3", "10.1.0.2", "[Web] true"},
		{"10.1.0.3", "10.1.0.9", "[] true"},
		{"10.1.0.2", "10.2.0.4", "[] false"},
	} {
		names, known := dir[netip.MustParseAddr(tt.from)].Reverse(netip.MustParseAddr(tt.addr))
		if got := fmt.Sprint(names, known); got != tt.want {
			t.Errorf("%s asks for %s: %s, want %s", tt.from, tt.addr, got, tt.want)
		}
	}
	if dir[netip.MustParseAddr("10.1.0.2")].internal || !dir[netip.MustParseAddr("10.2.0.4")].internal || dir[netip.MustParseAddr("10.2.0.3")].internal {
		t.Error("who has a way out is not known")
	}
	if dir[netip.MustParseAddr("10.1.0.9")] != nil {
		t.Error("an address of nobody has names")
	}
}
