package monitor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// bridges are a container's connection to the process that holds the bridges of
// networks. All of its fields belong to the goroutine that handles events.
type bridges struct {
	client *infra.Client
	netns  *os.File // the container's
	outer  *os.File // the bridges', kept for a successor of their process
}

// joined is an event: what connecting to networks came to.
type joined struct {
	client *infra.Client
	ports  []slirp.PortMapping
	err    error
}

// startBridges puts a container on its networks, once it has a network
// namespace. The event that it is done comes from another goroutine.
func (c *container) startBridges() error {
	if !c.Bridge {
		return nil
	}
	var err error
	if c.bridges.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", c.init.cmd.Process.Pid)); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var joins []infra.Join
	for i := range c.handle.Networks {
		j, err := c.claim(&c.handle.Networks[i], i)
		if err != nil {
			return err
		}
		joins = append(joins, j)
	}
	// The process of the bridges asks the record who the monitor is.
	if err := errors.Join(c.handle.Save(), c.writeHosts()); err != nil {
		return err
	}
	c.joinAll(joins)
	return nil
}

// claim chooses addresses for the container's place in a network.
func (c *container) claim(ep *state.Endpoint, index int) (infra.Join, error) {
	nets, err := network.Open(c.StateRoot)
	if err != nil {
		return infra.Join{}, err
	}
	st, err := state.Open(c.StateRoot)
	if err != nil {
		return infra.Join{}, err
	}
	ep.Interface = fmt.Sprintf("eth%d", index)
	n, err := nets.Claim(st, c.handle, ep)
	if err != nil {
		return infra.Join{}, err
	}
	return infra.Join{Network: *n, Endpoint: *ep, Index: index}, nil
}

// joinAll connects in the background, and makes an event of the outcome.
func (c *container) joinAll(joins []infra.Join) {
	opt, netns, ports := c.infraOptions(), c.bridges.netns, c.Slirp.Ports
	go func() {
		j := joined{}
		j.client, j.ports, j.err = connect(opt, netns, joins, ports)
		c.events <- event{from: fromBridges, joined: &j}
	}()
}

func (c *container) infraOptions() infra.Options {
	opt := infra.Options{
		Root: c.StateRoot, Exe: c.exe, Keeper: c.holder.Another, NetNS: c.bridges.outer,
		Outside: c.Outside, Map: IDMap(&c.handle.Record).Key(),
		Hello: infra.Hello{ID: c.handle.ID, Name: c.handle.Name},
	}
	for _, a := range c.Slirp.Resolvers {
		opt.Hello.DNS = append(opt.Hello.DNS, a.Addr())
	}
	return opt
}

// connect says all that a container wants of the bridges.
func connect(opt infra.Options, netns *os.File, joins []infra.Join, ports []slirp.PortMapping) (*infra.Client, []slirp.PortMapping, error) {
	var err error
	if opt.Hello.UserNS, err = handoff.UserNamespace(); err != nil {
		return nil, nil, err
	}
	client, err := infra.Connect(opt)
	if err != nil {
		return nil, nil, err
	}
	for _, j := range joins {
		if err := client.Join(j, netns); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("join network %s: %w", j.Network.Name, err), client.Close())
		}
	}
	if len(ports) > 0 {
		if ports, err = client.Publish(ports); err != nil {
			return nil, nil, errors.Join(err, client.Close())
		}
	}
	return client, ports, nil
}

// fromBridges takes the outcome of connecting, or the end of the connection.
func (c *container) fromBridges(e event) error {
	if e.joined == nil {
		c.bridges.lost()
		if c.stopping {
			return nil
		}
		// The process was killed. Whoever is first starts another.
		return c.joinAgain()
	}
	j := e.joined
	if j.err != nil {
		return j.err
	}
	if c.stopping {
		return j.client.Close()
	}
	c.bridges.client = j.client
	if c.bridges.outer != nil {
		c.bridges.outer.Close()
	}
	c.bridges.outer = j.client.NetNS
	c.Slirp.Ports, c.handle.Ports = j.ports, published(j.ports)
	go func() {
		<-j.client.Ended()
		c.events <- event{from: fromBridges}
	}()
	if c.started {
		return c.handle.Save()
	}
	return nil
}

// joinAgain connects to a new process with what the container has.
func (c *container) joinAgain() error {
	nets, err := network.Open(c.StateRoot)
	if err != nil {
		return err
	}
	var joins []infra.Join
	for i, ep := range c.handle.Networks {
		n, err := nets.Find(ep.Network)
		if err != nil {
			return err
		}
		joins = append(joins, infra.Join{Network: *n, Endpoint: ep, Index: index(ep, i)})
	}
	c.joinAll(joins)
	return nil
}

// lost forgets a connection that has ended.
func (b *bridges) lost() {
	if b.client != nil {
		_ = b.client.CloseConn() // it is closed at the other end
		b.client = nil
	}
}

// close leaves all networks.
func (b *bridges) close() {
	b.lost()
	for _, f := range []*os.File{b.netns, b.outer} {
		if f != nil {
			f.Close()
		}
	}
}

// index is the number of the endpoint's interface.
func index(ep state.Endpoint, fallback int) int {
	var n int
	if _, err := fmt.Sscanf(ep.Interface, "eth%d", &n); err != nil {
		return fallback
	}
	return n
}

// connectNetwork puts the running container on one more network.
func (c *container) connectNetwork(ep state.Endpoint) error {
	if err := c.bridged(); err != nil {
		return err
	}
	if c.handle.Endpoint(ep.Network) != nil {
		return fmt.Errorf("container %s is already on network %s", c.handle.Name, ep.Network)
	}
	next := 0
	for _, other := range c.handle.Networks {
		next = max(next, index(other, 0)+1)
	}
	before := c.handle.Networks
	c.handle.Networks = append(slices.Clone(before), ep)
	j, err := c.claim(&c.handle.Networks[len(before)], next)
	if err == nil {
		err = c.bridges.client.Join(j, c.bridges.netns)
	}
	if err == nil {
		err = c.portsAgain()
	}
	if err != nil {
		c.handle.Networks = before
		return errors.Join(err, c.handle.Save())
	}
	return c.writeHosts()
}

// disconnectNetwork takes the running container off a network.
func (c *container) disconnectNetwork(name string) error {
	if err := c.bridged(); err != nil {
		return err
	}
	ep := c.handle.Endpoint(name)
	if ep == nil {
		return fmt.Errorf("container %s is not on network %s", c.handle.Name, name)
	}
	if err := c.bridges.client.Leave(ep.NetworkID); err != nil {
		return err
	}
	c.handle.Networks = slices.DeleteFunc(c.handle.Networks, func(e state.Endpoint) bool { return e.Network == name })
	return errors.Join(c.portsAgain(), c.handle.Save(), c.writeHosts())
}

// portsAgain leads the published ports by the network that now is the way out.
// Without one they are closed until there is one again.
func (c *container) portsAgain() error {
	if len(c.Slirp.Ports) == 0 {
		return nil
	}
	nets, err := network.Open(c.StateRoot)
	if err != nil {
		return err
	}
	ports := []slirp.PortMapping(nil)
	for _, ep := range c.handle.Networks {
		if n, err := nets.Find(ep.Network); err == nil && !n.Internal {
			ports = c.Slirp.Ports
		}
	}
	_, err = c.bridges.client.Publish(ports)
	return err
}

// bridged tells whether the container can be put on networks now.
func (c *container) bridged() error {
	switch {
	case !c.Bridge:
		return fmt.Errorf("container %s has a network of its own kind: only one that was started on a network can join others", c.handle.Name)
	case c.bridges.client == nil:
		return fmt.Errorf("container %s is being connected: try again", c.handle.Name)
	}
	return nil
}

// addresses are the container's own in its networks.
func (c *container) addresses() []netip.Addr {
	var all []netip.Addr
	for _, ep := range c.handle.Networks {
		for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if p.IsValid() {
				all = append(all, p.Addr())
			}
		}
	}
	return all
}
