package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/urun-dev/urun/internal/state"
)

// Claim chooses addresses for the endpoint of a network and writes them into the record of the container that h is:
// from then on they are taken for as long as its monitor lives. It runs in the monitor. names are the interfaces
// that the container has already.
func (s *Store) Claim(st *state.Store, h *state.Handle, ep *state.Endpoint) (*Network, error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	n, err := s.Find(ep.Network)
	if err != nil {
		return nil, err
	}
	if ep.NetworkID != "" && ep.NetworkID != n.ID {
		ep.NetworkID = n.ID // made anew under the same name
	}
	others, err := Members(st, n, h.ID)
	if err != nil {
		return nil, err
	}
	if err := n.choose(ep, others, h.ID); err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return n, h.Save()
}

// Members are the containers on a network whose monitor lives, but for one.
func Members(st *state.Store, n *Network, but string) ([]*state.Record, error) {
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r *state.Record) bool {
		return r.ID == but || r.Endpoint(n.Name) == nil || !alive(r)
	}), nil
}

// alive tells whether the container's monitor lives.
func alive(r *state.Record) bool {
	return r.Monitor.PID != 0 && r.Status != state.Exited && !errors.Is(r.Monitor.Signal(0), os.ErrProcessDone)
}

// choose fills in the endpoint's addresses. An address that it had before is taken again if it is free.
func (n *Network) choose(ep *state.Endpoint, others []*state.Record, id string) error {
	used := map[netip.Addr]string{n.Gateway4: "the gateway"}
	if n.IPv6() {
		used[n.Gateway6] = "the gateway"
	}
	macs := map[string]string{}
	for _, r := range others {
		o := r.Endpoint(n.Name)
		for _, p := range []netip.Prefix{o.IPv4, o.IPv6} {
			if p.IsValid() {
				used[p.Addr()] = "container " + r.Name
			}
		}
		macs[o.MAC] = r.Name
	}
	a4, err := n.pick(n.Subnet4, ep.Static4, ep.IPv4.Addr(), used)
	if err != nil {
		return err
	}
	ep.NetworkID, ep.IPv4, ep.IPv6 = n.ID, netip.PrefixFrom(a4, n.Subnet4.Bits()), netip.Prefix{}
	if ep.Static6.IsValid() && !n.IPv6() {
		return fmt.Errorf("address %s: the network has no IPv6", ep.Static6)
	}
	if n.IPv6() {
		a6, err := n.pick(n.Subnet6, ep.Static6, ep.IPv6.Addr(), used)
		if err != nil {
			return err
		}
		ep.IPv6 = netip.PrefixFrom(a6, n.Subnet6.Bits())
	}
	ep.MAC = ep.StaticMAC
	if ep.MAC == "" {
		ep.MAC = macOf(a4, id)
	}
	if by, ok := macs[ep.MAC]; ok {
		return fmt.Errorf("MAC address %s is that of container %s", ep.MAC, by)
	}
	return nil
}

// pick gives the address that is wanted, else the one from before, else the first that is free.
func (n *Network) pick(subnet netip.Prefix, want, before netip.Addr, used map[netip.Addr]string) (netip.Addr, error) {
	if want.IsValid() {
		if !n.assignable(want) {
			return want, fmt.Errorf("address %s: not of %s", want, subnet)
		}
		if by, ok := used[want]; ok {
			return want, fmt.Errorf("address %s is in use by %s", want, by)
		}
		return want, nil
	}
	if before.IsValid() && n.assignable(before) && used[before] == "" {
		return before, nil
	}
	// No more than used addresses are passed over.
	for a, i := subnet.Addr().Next(), 0; subnet.Contains(a) && i <= len(used)+1; a, i = a.Next(), i+1 {
		if n.assignable(a) && used[a] == "" {
			return a, nil
		}
	}
	return want, fmt.Errorf("no address of %s is free", subnet)
}

// macOf makes a locally administered address that differs between the containers of a network, as docker does from
// the IP address, and between users, whose networks are alike.
func macOf(a netip.Addr, id string) string {
	b := a.As4()
	var salt byte
	for i := range len(id) {
		salt = salt*31 + id[i]
	}
	return net.HardwareAddr{0x02, salt, b[0], b[1], b[2], b[3]}.String()
}
