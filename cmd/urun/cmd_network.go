package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/urun-dev/urun/internal/events"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
)

// NetworkCmd groups the commands on networks.
type NetworkCmd struct {
	Create     NetworkCreateCmd     `cmd:"" help:"Make a network."`
	Ls         NetworkLsCmd         `cmd:"" aliases:"list" help:"List networks."`
	Inspect    NetworkInspectCmd    `cmd:"" help:"Show all that is known of networks, as JSON."`
	Connect    NetworkConnectCmd    `cmd:"" help:"Put a container on a network."`
	Disconnect NetworkDisconnectCmd `cmd:"" help:"Take a container off a network."`
	Rm         NetworkRmCmd         `cmd:"" aliases:"remove" help:"Remove networks that no container has."`
	Prune      NetworkPruneCmd      `cmd:"" help:"Remove the networks that no container has."`
}

// networks opens the store of networks, which is that of the containers.
func (a *App) networks() (*network.Store, error) { return network.Open(a.stateRoot()) }

// allNetworks lists the networks, with their store and that of the containers, which may be on them.
func (a *App) allNetworks() (*state.Store, *network.Store, []*network.Network, error) {
	st, err := a.Containers()
	if err != nil {
		return nil, nil, nil, err
	}
	nets, err := a.networks()
	if err != nil {
		return nil, nil, nil, err
	}
	all, err := nets.List()
	return st, nets, all, err
}

// networkUsers tells which containers are on a network, running or not.
func networkUsers(st *state.Store, name string) ([]*state.Record, error) {
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r *state.Record) bool { return r.Endpoint(name) == nil }), nil
}

func (a *App) tellNetwork(action string, n *network.Network, attributes map[string]string) {
	all := map[string]string{"name": n.Name, "type": n.Driver}
	for k, v := range attributes {
		all[k] = v
	}
	a.tell(events.Event{Type: "network", Action: action, Actor: events.Actor{ID: n.ID, Attributes: all}})
}

// NetworkCreateCmd makes a network.
type NetworkCreateCmd struct {
	Driver   string   `short:"d" default:"bridge" placeholder:"bridge" help:"There is one kind of network: bridge."`
	Subnet   []string `placeholder:"PREFIX" help:"Addresses of the network, such as 10.90.0.0/24; once for each of IPv4 and IPv6."`
	Gateway  []string `placeholder:"ADDRESS" help:"Address of the gateway; the first of the subnet by default."`
	IPv6     bool     `name:"ipv6" help:"Give the network IPv6 too."`
	Internal bool     `help:"No way out of the network."`
	Label    []string `sep:"none" placeholder:"KEY=VALUE" help:"Label of the network."`
	Opt      []string `short:"o" sep:"none" placeholder:"KEY=VALUE" help:"Option of the driver: mtu."`
	Ignore   bool     `help:"Do not mind a network of this name that is there already."`
	Name     string   `arg:"" name:"network"`
}

// Run prints the id of the network.
func (c *NetworkCreateCmd) Run(app *App) error {
	w, err := c.wish()
	if err != nil {
		return err
	}
	nets, err := app.networks()
	if err != nil {
		return err
	}
	n, err := nets.Create(w)
	if err != nil {
		return err
	}
	app.tellNetwork("create", n, nil)
	_, err = fmt.Fprintln(app.Stdout, n.ID)
	return err
}

func (c *NetworkCreateCmd) wish() (network.Wish, error) {
	w := network.Wish{
		Name: c.Name, IPv6: c.IPv6, Internal: c.Internal, IgnoreIfExisting: c.Ignore,
		Labels: map[string]string{}, Options: map[string]string{},
	}
	if c.Driver != "bridge" {
		return w, &hintError{fmt.Errorf("network create: no driver %q", c.Driver), "networks are bridges: leave --driver out"}
	}
	for _, s := range c.Subnet {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return w, fmt.Errorf("--subnet %s: want ADDRESS/BITS", s)
		}
		w.Subnets = append(w.Subnets, p)
	}
	for _, s := range c.Gateway {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return w, fmt.Errorf("--gateway %s: not an address", s)
		}
		w.Gateways = append(w.Gateways, a)
	}
	for _, l := range c.Label {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return w, fmt.Errorf("--label %q: want KEY=VALUE", l)
		}
		w.Labels[key] = value
	}
	return w, c.options(&w)
}

// options takes the driver's options; docker's long name of the MTU is fine too.
func (c *NetworkCreateCmd) options(w *network.Wish) error {
	for _, o := range c.Opt {
		key, value, _ := strings.Cut(o, "=")
		if key != "mtu" && key != "com.docker.network.driver.mtu" {
			return &hintError{fmt.Errorf("--opt %s: unknown option", o), "there is one: mtu"}
		}
		mtu, err := strconv.Atoi(value)
		if err != nil || mtu < 1280 || mtu > 65535 {
			return fmt.Errorf("--opt %s: must be 1280 to 65535", o)
		}
		w.MTU = mtu
		w.Options[key] = value
	}
	return nil
}

// NetworkRmCmd removes networks.
type NetworkRmCmd struct {
	Force    bool     `short:"f" help:"Do not mind networks that do not exist."`
	Networks []string `arg:"" name:"network"`
}

// Run removes what can be removed and tells of the rest.
func (c *NetworkRmCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	nets, err := app.networks()
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range c.Networks {
		n, err := nets.Find(ref)
		if err == nil {
			err = app.removeNetwork(st, nets, n)
		}
		switch {
		case err == nil:
			fmt.Fprintln(app.Stdout, ref)
		case !c.Force || !errors.Is(err, network.ErrNotFound):
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (a *App) removeNetwork(st *state.Store, nets *network.Store, n *network.Network) error {
	err := nets.Remove(n, func() (string, error) {
		users, err := networkUsers(st, n.Name)
		var names []string
		for _, r := range users {
			names = append(names, r.Name)
		}
		return strings.Join(names, ", "), err
	})
	if err == nil {
		a.tellNetwork("destroy", n, nil)
	}
	return err
}

// NetworkPruneCmd removes networks that nobody has.
type NetworkPruneCmd struct {
	Force  bool     `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
	Filter []string `sep:"none" placeholder:"KEY=VALUE" help:"Only networks with this label[=value], without one (label!=...), or until=TIME."`
}

// Run prints the names of those that went.
func (c *NetworkPruneCmd) Run(app *App) error {
	keys := networkFilters(nil)
	for k := range keys {
		if !strings.HasPrefix(k, "label") && k != "until" {
			delete(keys, k)
		}
	}
	keep, err := parseFilters(c.Filter, keys)
	if err != nil {
		return err
	}
	st, nets, all, err := app.allNetworks()
	if err != nil {
		return err
	}
	for _, n := range all {
		if !keep.match(n) {
			continue
		}
		err := app.removeNetwork(st, nets, n)
		if errors.Is(err, network.ErrInUse) || errors.Is(err, network.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(app.Stdout, n.Name)
	}
	return nil
}
