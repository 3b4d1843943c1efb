package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/urun-dev/urun/internal/state"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestCreate(t *testing.T) {
	s := open(t)
	first, err := s.Create(Wish{Name: "a", IPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Create(Wish{Name: "b", Subnets: prefixes("10.7.0.0/16", "2001:db8::/64"), Gateways: []netip.Addr{netip.MustParseAddr("10.7.0.9")}})
	if err != nil {
		t.Fatal(err)
	}
	if first.Subnet4.Overlaps(second.Subnet4) || !first.Subnet4.Addr().IsPrivate() || first.Gateway4 != first.Subnet4.Addr().Next() ||
		!first.IPv6() || !first.Subnet6.Addr().IsPrivate() || len(first.Bridge()) != 15 {
		t.Errorf("%+v", first)
	}
	if second.Gateway4.String() != "10.7.0.9" || second.Gateway6.String() != "2001:db8::1" {
		t.Errorf("%+v", second)
	}
	for name, w := range map[string]Wish{
		"already exists":         {Name: "a"},
		"meaning of its own":     {Name: "host"},
		"are allowed":            {Name: "../x"},
		"overlaps":               {Name: "c", Subnets: prefixes("10.7.1.0/24")},
		"10.0.2.0/24":            {Name: "c", Subnets: prefixes("10.0.0.0/16")},
		"is an address in":       {Name: "c", Subnets: prefixes("10.8.0.1/24")},
		"must be a /8":           {Name: "c", Subnets: prefixes("10.8.0.0/30")},
		"no addresses for hosts": {Name: "c", Subnets: prefixes("127.0.0.0/8")},
		"more than one":          {Name: "c", Subnets: prefixes("10.8.0.0/24", "10.9.0.0/24")},
		"no address of a subnet": {Name: "c", Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	} {
		if _, err := s.Create(w); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v, want %q", w, err, name)
		}
	}
	if n, err := s.Create(Wish{Name: "a", IgnoreIfExisting: true}); err != nil || n.ID != first.ID {
		t.Errorf("%v, %v", n, err)
	}
	for _, ref := range []string{"a", first.ID, first.ID[:6]} {
		if n, err := s.Find(ref); err != nil || n.Name != "a" {
			t.Errorf("%s: %v, %v", ref, n, err)
		}
	}
	if err := s.Remove(first, func() (string, error) { return "web", nil }); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "web") {
		t.Errorf("%v", err)
	}
	unused := func() (string, error) { return "", nil }
	if err := s.Remove(first, unused); err != nil {
		t.Error(err)
	}
	if err := s.Remove(first, unused); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].Name != "b" {
		t.Errorf("%v, %v", all, err)
	}
}

// What a killed process left of a network that it was writing is no network, and in nobody's way.
func TestHalfWrittenNetwork(t *testing.T) {
	s := open(t)
	if err := os.WriteFile(filepath.Join(s.Dir(), ".a.json"), []byte(`{"name`), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := s.Create(Wish{Name: "a"}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(s.path("b"), []byte(`{"name":"b"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("b"); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
}

// claimant makes a container that this process is the monitor of.
func claimant(t *testing.T, st *state.Store, name string, ep state.Endpoint) *state.Handle {
	t.Helper()
	me, err := state.ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	h, err := st.Create(state.Record{ID: state.NewID(), Name: name, Status: state.Creating, Monitor: me, Networks: []state.Endpoint{ep}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestAddressesAreClaimedOnce(t *testing.T) {
	root := t.TempDir()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	st, err := state.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Create(Wish{Name: "n", Subnets: prefixes("10.9.0.0/28", "fd00::/64")})
	if err != nil {
		t.Fatal(err)
	}
	handles := make([]*state.Handle, 13) // the subnet has 14 addresses, of which one is the gateway's
	for i := range handles {
		handles[i] = claimant(t, st, string(rune('a'+i)), state.Endpoint{Network: "n"})
	}
	var wg sync.WaitGroup
	for _, h := range handles {
		wg.Go(func() {
			if _, err := s.Claim(st, h, &h.Networks[0]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{n.Gateway4: true, n.Gateway6: true}
	for _, h := range handles {
		ep := h.Networks[0]
		for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if seen[p.Addr()] || !n.assignable(p.Addr()) {
				t.Errorf("%s has %s, which is taken or none for hosts", h.Name, p)
			}
			seen[p.Addr()] = true
		}
	}
	more := claimant(t, st, "more", state.Endpoint{Network: "n"})
	if _, err := s.Claim(st, more, &more.Networks[0]); err == nil || !strings.Contains(err.Error(), "no address of 10.9.0.0/28 is free") {
		t.Errorf("%v", err)
	}
	// The monitor of one is gone: its address is free, whatever its record says.
	freed := handles[4].Networks[0].IPv4.Addr()
	handles[4].Monitor = state.Process{PID: handles[4].Monitor.PID, Start: 1}
	if err := handles[4].Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(st, more, &more.Networks[0]); err != nil || more.Networks[0].IPv4.Addr() != freed {
		t.Errorf("%v, %v, want %v", more.Networks[0].IPv4, err, freed)
	}
	members, err := Members(st, n, more.ID)
	if err != nil || len(members) != 12 {
		t.Errorf("%d members, %v", len(members), err)
	}
}

func TestStaticAddresses(t *testing.T) {
	root := t.TempDir()
	s, _ := Open(root)
	st, err := state.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(Wish{Name: "n", Subnets: prefixes("10.9.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	taken := claimant(t, st, "taken", state.Endpoint{Network: "n", Static4: addr("10.9.0.7"), StaticMAC: "02:00:00:00:00:01"})
	if _, err := s.Claim(st, taken, &taken.Networks[0]); err != nil || taken.Networks[0].IPv4.String() != "10.9.0.7/24" {
		t.Fatalf("%v, %v", taken.Networks, err)
	}
	for want, ep := range map[string]state.Endpoint{
		"in use by container taken": {Network: "n", Static4: addr("10.9.0.7")},
		"in use by the gateway":     {Network: "n", Static4: addr("10.9.0.1")},
		"not of 10.9.0.0/24":        {Network: "n", Static4: addr("10.9.0.255")},
		"no IPv6":                   {Network: "n", Static6: addr("fd00::1")},
		"MAC address":               {Network: "n", StaticMAC: "02:00:00:00:00:01"},
		"no such network":           {Network: "m"},
	} {
		h := claimant(t, st, "x"+strings.ReplaceAll(want, " ", "")[:4]+string(rune('a'+len(want))), ep)
		if _, err := s.Claim(st, h, &h.Networks[0]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", ep, err, want)
		}
	}
}
