package server

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/slirp"
)

const (
	// firstPort of the uplink's address leads to containers.
	firstPort = 1024
	// An uplink that lived shorter than shortLife has failed; after tries of them in a row the next waits for it.
	shortLife = 2 * time.Second
	tries     = 5
)

// uplink is the way out: a TUN device served by a network stage.
type uplink struct {
	cfg      slirp.Config
	tun      *os.File
	cmd      *exec.Cmd
	conn     *handoff.Conn
	started  time.Time
	failures int
}

// published is a port of a container.
type published struct {
	slirp.PortMapping        // as the container's monitor has it
	port              uint16 // of the uplink's address
	// bound is the mapping that the network stage has.
	bound slirp.PortMapping
}

// needUplink makes the uplink if there is none.
func (s *server) needUplink() error {
	if s.uplink != nil {
		return nil
	}
	cfg, err := slirp.Config{}.WithDefaults()
	if err != nil {
		return err
	}
	u := &uplink{cfg: cfg}
	err = s.thread.do(func() error {
		var err error
		if u.tun, err = slirp.Configure(cfg); err != nil {
			var other error
			u.cfg.NoTUN = true
			if u.tun, other = slirp.Configure(u.cfg); other != nil {
				return errors.Join(err, other)
			}
		}
		link, err := s.nl.LinkByName(uplinkName)
		if err != nil {
			return fmt.Errorf("find %s: %w", uplinkName, err)
		}
		return forward4(link)
	})
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			err = &infra.Failure{
				Message: fmt.Sprintf("the way out of the networks: %v", err),
				Cure:    "make a network without a way out with --internal, or have the administrator run: modprobe tun; chmod 666 /dev/net/tun",
			}
		}
		return errors.Join(err, u.close())
	}
	if err := s.serveUplink(u); err != nil {
		return errors.Join(err, u.close())
	}
	s.uplink = u
	return nil
}

func (u *uplink) close() error {
	if u.tun == nil {
		return nil
	}
	return u.tun.Close()
}

// serveUplink starts the network stage. It dies with the main thread, which starts it.
func (s *server) serveUplink(u *uplink) error {
	err := s.onMain(func() error {
		cmd, conn, err := handoff.Command(fmt.Sprintf("/proc/self/fd/%d", s.exe.Fd()), handoff.Network)
		if err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true, AmbientCaps: handoff.AllCapabilities()}
		if err := cmd.Start(); err != nil {
			return errors.Join(fmt.Errorf("start network stage: %w", err), conn.Close())
		}
		handoff.Donated(cmd)
		u.cmd, u.conn, u.started = cmd, conn, time.Now()
		return nil
	})
	if err != nil {
		return err
	}
	if err := u.conn.Send(monitor.KindPorts, u.cfg); err != nil {
		return err
	}
	if _, err := expect(u.conn, monitor.KindListening); err != nil {
		return err
	}
	if err := u.conn.Send(monitor.KindAttach, monitor.Attach{}, u.tun); err != nil {
		return err
	}
	go s.watchUplink(u, u.cmd)
	return nil
}

// expect takes an answer of the network stage.
func expect(conn *handoff.Conn, kind string) (*handoff.Message, error) {
	m, err := conn.Recv()
	if err != nil {
		return nil, fmt.Errorf("network stage: %w", err)
	}
	if m.Kind == monitor.KindFailed {
		var f stage.Failed
		if err := m.Decode(&f); err != nil {
			return nil, err
		}
		return nil, &infra.Failure{Message: f.Error, Cure: f.Hint}
	}
	if m.Kind != kind {
		return nil, fmt.Errorf("network stage: answer %q, want %q", m.Kind, kind)
	}
	return m, nil
}

// watchUplink puts another network stage in the place of one that ended. Its connections are lost.
func (s *server) watchUplink(u *uplink, cmd *exec.Cmd) {
	_ = cmd.Wait() // how it ended makes no difference
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uplink != u || s.ending {
		return
	}
	if time.Since(u.started) < shortLife {
		u.failures++
	} else {
		u.failures = 0
	}
	if u.failures >= tries {
		s.dropUplink()
		return
	}
	u.conn.Close()
	err := s.serveUplink(u)
	for _, c := range s.members {
		for i := range c.ports {
			if err == nil {
				err = s.bind(c, &c.ports[i])
			}
		}
	}
	if err != nil {
		s.dropUplink()
	}
}

// dropUplink gives the uplink up; the next container that needs it makes another.
func (s *server) dropUplink() {
	u := s.uplink
	s.uplink = nil
	if u == nil {
		return
	}
	u.conn.Close()
	_ = u.cmd.Process.Kill()
	_ = u.close() // the device stays with the namespace
	_ = s.remove(uplinkName)
}

// publish publishes ports of a container, instead of those from before.
func (s *server) publish(c *member, ports []slirp.PortMapping) ([]slirp.PortMapping, error) {
	if err := s.unpublish(c); err != nil {
		return nil, err
	}
	if len(ports) == 0 {
		return nil, nil
	}
	if c.outside() == nil {
		return nil, &infra.Failure{
			Message: "publish ports: the container's networks are internal",
			Cure:    "connect it to a network that is not, or leave out -p",
		}
	}
	if err := s.needUplink(); err != nil {
		return nil, err
	}
	var out []slirp.PortMapping
	for _, p := range ports {
		entry := published{PortMapping: p, port: s.freePort()}
		if err := s.bind(c, &entry); err != nil {
			return nil, errors.Join(err, s.unpublish(c))
		}
		entry.HostPort, entry.HostPortEnd = entry.bound.HostPort, 0
		c.ports = append(c.ports, entry)
		out = append(out, entry.PortMapping)
	}
	return out, s.filter()
}

// bind has the network stage listen for a port.
func (s *server) bind(c *member, p *published) error {
	ask, out := p.PortMapping, c.outside()
	ask.ContainerPort, ask.OnlyIPv4 = p.port, out == nil || !out.endpoint.IPv6.IsValid()
	if err := s.uplink.conn.Send(monitor.KindPublish, []slirp.PortMapping{ask}); err != nil {
		return err
	}
	m, err := expect(s.uplink.conn, monitor.KindListening)
	if err != nil {
		return err
	}
	var bound []slirp.PortMapping
	if err := m.Decode(&bound); err != nil {
		return err
	}
	if len(bound) != 1 {
		return fmt.Errorf("network stage: published %d ports for one", len(bound))
	}
	p.bound = bound[0]
	return nil
}

// unpublish takes back a container's ports.
func (s *server) unpublish(c *member) error {
	var errs []error
	for _, p := range c.ports {
		if s.uplink == nil {
			continue
		}
		err := s.uplink.conn.Send(monitor.KindUnpublish, []slirp.PortMapping{p.bound})
		if err == nil {
			_, err = expect(s.uplink.conn, monitor.KindDone)
		}
		errs = append(errs, err)
	}
	had := len(c.ports) > 0
	c.ports = nil
	if had {
		errs = append(errs, s.filter())
	}
	return errors.Join(errs...)
}

// freePort is a port of the uplink's address that leads nowhere yet.
func (s *server) freePort() uint16 {
	used := map[uint16]bool{}
	for _, c := range s.members {
		for _, p := range c.ports {
			used[p.port] = true
		}
	}
	for {
		s.nextPort++
		if s.nextPort < firstPort {
			s.nextPort = firstPort
		}
		if !used[s.nextPort] {
			return s.nextPort
		}
	}
}

// translations are all published ports as the rules have them.
func (s *server) translations() []translation {
	var all []translation
	for _, c := range s.members {
		out := c.outside()
		if out == nil {
			continue
		}
		for _, p := range c.ports {
			t := translation{proto: p.Protocol, port: p.port, to4: netip.AddrPortFrom(out.endpoint.IPv4.Addr(), p.ContainerPort)}
			if out.endpoint.IPv6.IsValid() && !p.bound.OnlyIPv4 {
				t.to6 = netip.AddrPortFrom(out.endpoint.IPv6.Addr(), p.ContainerPort)
			}
			all = append(all, t)
		}
	}
	return all
}
