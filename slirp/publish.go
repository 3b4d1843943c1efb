package slirp

import (
	"errors"
	"net"
	"sync"
)

// published are the ports that were added to a network while it is served.
type published struct {
	mu     sync.Mutex
	groups []*Listeners
	closed bool
}

// Publish publishes more ports while the network is served, all of them or none, and gives them with what was
// chosen. It may be called after Lockdown: binding a port needs no privilege that the process has given up.
func (n *Network) Publish(ports []PortMapping) ([]PortMapping, error) {
	cfg := n.cfg
	cfg.Ports = ports
	l, err := Listen(cfg)
	if err != nil {
		return nil, err
	}
	n.published.mu.Lock()
	defer n.published.mu.Unlock()
	if n.published.closed {
		return nil, errors.Join(net.ErrClosed, l.Close())
	}
	n.published.groups = append(n.published.groups, l)
	l.serve(n)
	return l.Ports(), nil
}

// Unpublish takes back what one call of Publish gave. Connections that are there stay.
func (n *Network) Unpublish(ports []PortMapping) error {
	n.published.mu.Lock()
	defer n.published.mu.Unlock()
	for i, l := range n.published.groups {
		if len(l.ports) == len(ports) && len(ports) > 0 && l.ports[0] == ports[0] {
			n.published.groups = append(n.published.groups[:i], n.published.groups[i+1:]...)
			return l.Close()
		}
	}
	return errors.New("no such published ports")
}

// close takes back everything, and whatever comes later.
func (p *published) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, l := range p.groups {
		errs = append(errs, l.Close())
	}
	p.groups = nil
	return errors.Join(errs...)
}
