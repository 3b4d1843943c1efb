package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
	"github.com/urun-dev/urun/slirp/dnsproxy"
)

// departTime bounds the wait for the end of a monitor's old connection.
const departTime = 5 * time.Second

// member is a container that is on networks.
type member struct {
	id, name string
	upstream *dnsproxy.Upstream
	own      bool // the upstream is this one's own
	on       []*place
	ports    []published
}

// place is a container's place in a network.
type place struct {
	network  *network.Network
	endpoint state.Endpoint
	index    int
}

func (p *place) prefixes() []netip.Prefix {
	if p.endpoint.IPv6.IsValid() {
		return []netip.Prefix{p.endpoint.IPv4, p.endpoint.IPv6}
	}
	return []netip.Prefix{p.endpoint.IPv4}
}

// outside is the container's place in the network that leads out; nil if none does.
func (c *member) outside() *place {
	var first *place
	for _, p := range c.on {
		if !p.network.Internal && (first == nil || p.index < first.index) {
			first = p
		}
	}
	return first
}

// serve serves one monitor until its connection ends; then its container is on no network any more.
func (s *server) serve(u *net.UnixConn) {
	pid, err := peer(u)
	if err != nil {
		u.Close()
		return
	}
	f, err := u.File()
	if err = errors.Join(err, u.Close()); err != nil {
		return
	}
	conn, err := handoff.FromFile(f)
	if err != nil {
		return
	}
	defer conn.Close()
	c, err := s.hello(conn, pid)
	if err != nil {
		_ = conn.Send(infra.KindFailed, failure(err))
		return
	}
	if c == nil {
		return // the process is ending
	}
	defer s.depart(c)
	for {
		m, err := conn.Recv()
		if err != nil {
			return
		}
		kind, answer, err := s.answer(c, m)
		m.Close()
		if err != nil {
			kind, answer = infra.KindFailed, failure(err)
		}
		if conn.Send(kind, answer) != nil {
			return
		}
	}
}

// peer is the process that connected.
func peer(u *net.UnixConn) (pid int, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// hello lets the monitor of a container in. It is nil if the process is ending.
func (s *server) hello(conn *handoff.Conn, pid int) (*member, error) {
	m, err := conn.Expect(infra.KindHello)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var h infra.Hello
	if err := m.Decode(&h); err != nil {
		return nil, err
	}
	if err := s.check(h.ID, pid); err != nil {
		return nil, err
	}
	c := &member{id: h.ID, name: h.Name, upstream: s.upstream}
	if len(h.DNS) > 0 {
		var servers []netip.AddrPort
		for _, a := range h.DNS {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
		c.upstream, c.own = dnsproxy.NewUpstream(dnsproxy.Config{Servers: servers}), true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A monitor that restarts its container comes again, and may be heard before its old connection's end.
	for end := time.Now().Add(departTime); s.members[h.ID] != nil; {
		if time.Now().After(end) {
			return nil, fmt.Errorf("container %.12s is here already", h.ID)
		}
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
		s.mu.Lock()
	}
	if h.UserNS != s.userNS {
		if len(s.members) > 0 || s.spawned > 0 {
			return nil, errOtherUser
		}
		// Nobody needs this process: the monitor starts one in its own user namespace.
		s.finish()
	}
	if s.ending {
		return nil, nil
	}
	s.members[h.ID] = c
	s.timer.Stop()
	if err := conn.Send(infra.KindWelcome, nil, s.thread.netns); err != nil {
		s.forget(c)
		return nil, err
	}
	return c, nil
}

// check makes sure that the process is the monitor of the container.
func (s *server) check(id string, pid int) error {
	st, err := state.Open(s.Root)
	if err != nil {
		return err
	}
	rec, err := st.Find(id)
	if err != nil {
		return err
	}
	now, err := state.ProcessOf(pid)
	if err != nil {
		return err
	}
	if rec.ID != id || rec.Monitor != now {
		return fmt.Errorf("process %d is not the monitor of container %.12s", pid, id)
	}
	return nil
}

// answer does what a monitor asks for.
func (s *server) answer(c *member, m *handoff.Message) (kind string, body any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.Kind {
	case infra.KindJoin:
		var j infra.Join
		if err := m.Decode(&j); err != nil {
			return "", nil, err
		}
		if len(m.Files) != 1 {
			return "", nil, fmt.Errorf("join: got %d files", len(m.Files))
		}
		return infra.KindDone, nil, s.join(c, &j, m.Files[0])
	case infra.KindLeave:
		var l infra.Leave
		if err := m.Decode(&l); err != nil {
			return "", nil, err
		}
		return infra.KindDone, nil, s.leave(c, l.NetworkID)
	case infra.KindPublish:
		var ports []slirp.PortMapping
		if err := m.Decode(&ports); err != nil {
			return "", nil, err
		}
		bound, err := s.publish(c, ports)
		return infra.KindPublished, bound, err
	case infra.KindRename:
		var r infra.Rename
		if err := m.Decode(&r); err != nil {
			return "", nil, err
		}
		c.name = r.Name
		s.rename()
		return infra.KindDone, nil, nil
	}
	return "", nil, fmt.Errorf("unknown request %q", m.Kind)
}

// join puts a container on a network.
func (s *server) join(c *member, j *infra.Join, netns *os.File) error {
	for _, p := range c.on {
		if p.network.ID == j.Network.ID {
			return fmt.Errorf("container %s is on network %s already", c.name, j.Network.Name)
		}
	}
	n := s.networks[j.Network.ID]
	fresh := n == nil
	if fresh {
		n = &j.Network
		s.networks[n.ID] = n
	}
	c.on = append(c.on, &place{network: n, endpoint: j.Endpoint, index: j.Index})
	err := s.open(c, j, netns, fresh)
	if err != nil {
		err = errors.Join(err, s.leave(c, n.ID))
	}
	return err
}

// open makes what the new place of a container needs.
func (s *server) open(c *member, j *infra.Join, netns *os.File, fresh bool) error {
	if !j.Network.Internal {
		if err := s.needUplink(); err != nil {
			return err
		}
		if j.Network.IPv6() {
			if err := s.thread.do(forward6); err != nil {
				return err
			}
		}
	}
	if err := s.plug(c.id, j, netns); err != nil {
		return err
	}
	s.rename()
	if fresh || len(c.ports) > 0 {
		return s.filter()
	}
	return nil
}

// leave takes a container off a network, and the network's bridge away with the last one.
func (s *server) leave(c *member, id string) error {
	i := slices.IndexFunc(c.on, func(p *place) bool { return p.network.ID == id })
	if i < 0 {
		return errors.New("the container is not on the network")
	}
	n := c.on[i].network
	c.on = slices.Delete(c.on, i, i+1)
	errs := []error{s.unplug(c.id, n)}
	last := true
	for _, m := range s.members {
		last = last && !slices.ContainsFunc(m.on, func(p *place) bool { return p.network.ID == id })
	}
	if last {
		delete(s.networks, id)
		errs = append(errs, s.remove(n.Bridge()))
	}
	s.rename()
	if last || len(c.ports) > 0 {
		errs = append(errs, s.filter())
	}
	return errors.Join(errs...)
}

// depart takes a container off all networks: its monitor is gone. What cannot be removed goes with the container's
// namespace; nobody is left to be told.
func (s *server) depart(c *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.unpublish(c)
	for len(c.on) > 0 {
		_ = s.leave(c, c.on[0].network.ID)
	}
	s.forget(c)
}

// forget removes a member that is on no network; s.mu is held.
func (s *server) forget(c *member) {
	delete(s.members, c.id)
	if c.own {
		go c.upstream.Close()
	}
	s.rest()
}
