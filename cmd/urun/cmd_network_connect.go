package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// NetworkConnectCmd puts a container on a network.
type NetworkConnectCmd struct {
	IP         string   `name:"ip" placeholder:"ADDRESS" help:"IPv4 address in the network."`
	IP6        string   `name:"ip6" placeholder:"ADDRESS" help:"IPv6 address in the network."`
	MACAddress string   `name:"mac-address" placeholder:"MAC" help:"Hardware address in the network."`
	Alias      []string `sep:"none" placeholder:"NAME" help:"Another name of the container in the network."`
	Network    string   `arg:""`
	Container  string   `arg:""`
}

// Run connects a container that runs at once, another at its next start.
func (c *NetworkConnectCmd) Run(app *App) error {
	a := spec.Attachment{Network: c.Network}
	for _, o := range [][2]string{{"ip", c.IP}, {"ip6", c.IP6}, {"mac", c.MACAddress}} {
		if o[1] != "" {
			if err := a.Set(o[0], o[1]); err != nil {
				return err
			}
		}
	}
	for _, alias := range c.Alias {
		if err := a.Set("alias", alias); err != nil {
			return err
		}
	}
	nets, err := app.networks()
	if err != nil {
		return err
	}
	ep, n, err := launch.Endpoint(nets, a)
	if err != nil {
		return err
	}
	rec, err := app.changeNetworks(c.Container, monitor.KindConnect, ep, func(rec *state.Record) error {
		if rec.Endpoint(n.Name) != nil {
			return fmt.Errorf("container %s is already on network %s", rec.Name, n.Name)
		}
		rec.Networks = append(rec.Networks, ep)
		return nil
	})
	if err == nil {
		app.tellNetwork("connect", n, map[string]string{"container": rec.ID})
	}
	return err
}

// NetworkDisconnectCmd takes a container off a network.
type NetworkDisconnectCmd struct {
	Force     bool   `short:"f" help:"Accepted for scripts written for docker."`
	Network   string `arg:""`
	Container string `arg:""`
}

// Run disconnects it.
func (c *NetworkDisconnectCmd) Run(app *App) error {
	nets, err := app.networks()
	if err != nil {
		return err
	}
	n, err := nets.Find(c.Network)
	if err != nil {
		return err
	}
	rec, err := app.changeNetworks(c.Container, monitor.KindDisconnect, n.Name, func(rec *state.Record) error {
		if rec.Endpoint(n.Name) == nil {
			return fmt.Errorf("container %s is not on network %s", rec.Name, n.Name)
		}
		rec.Networks = slices.DeleteFunc(rec.Networks, func(e state.Endpoint) bool { return e.Network == n.Name })
		return nil
	})
	if err == nil {
		app.tellNetwork("disconnect", n, map[string]string{"container": rec.ID})
	}
	return err
}

// changeNetworks has the container's monitor do it, or changes the record of one that does not run.
func (a *App) changeNetworks(ref, kind string, body any, change func(*state.Record) error) (*state.Record, error) {
	st, err := a.Containers()
	if err != nil {
		return nil, err
	}
	rec, err := st.Find(ref)
	if err != nil {
		return nil, err
	}
	err = monitor.Ask(st.Dir(rec.ID), kind, body)
	if !errors.Is(err, handoff.ErrNobody) {
		return rec, err
	}
	h, err := st.Lock(rec.ID)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	p, err := launch.Load(st, &h.Record, executable(), a.stateRoot(), a.Debug)
	if err != nil {
		return nil, err
	}
	if p.Container.Network.Mode != "bridge" {
		return nil, fmt.Errorf("container %s has a network of its own kind: only one that was made on a network can join others", rec.Name)
	}
	if err := change(&h.Record); err != nil {
		return nil, err
	}
	return &h.Record, h.Save()
}
