package slirp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// unprivilegedStart holds the first port that an ordinary user may listen on.
const unprivilegedStart = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

// PortError is a published port that cannot be listened on.
type PortError struct {
	Port PortMapping
	Addr netip.AddrPort
	Err  error
	// Cure says what helps, where something does.
	Cure string
}

func (e *PortError) Error() string {
	return fmt.Sprintf("listen on %s/%s for published port %s: %v", e.Addr, e.Port.protocol(), e.Port, e.Err)
}

func (e *PortError) Unwrap() error { return e.Err }

// Hint is Cure.
func (e *PortError) Hint() string { return e.Cure }

// Listeners are the published ports, bound before there is a container: that a port is taken should be
// known before anything is started.
type Listeners struct {
	cfg   Config
	ports []PortMapping
	tcp   []tcpListener
	udp   []udpListener
}

type tcpListener struct {
	*net.TCPListener
	containerPort uint16
	only4         bool
}

type udpListener struct {
	*net.UDPConn
	containerPort uint16
	only4         bool
}

// Listen binds the published ports. An error is a *PortError.
func Listen(cfg Config) (*Listeners, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	l := &Listeners{cfg: cfg}
	for _, p := range cfg.Ports {
		bound, err := l.bind(p)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.ports = append(l.ports, bound)
	}
	return l, nil
}

// Ports gives the mappings with the ports that were chosen for 0.
func (l *Listeners) Ports() []PortMapping { return append([]PortMapping(nil), l.ports...) }

// Close stops listening.
func (l *Listeners) Close() error {
	errs := []error{l.closeTCP()}
	for _, u := range l.udp {
		errs = append(errs, unlessClosed(u.Close()))
	}
	return errors.Join(errs...)
}

// closeTCP stops listening for connections.
func (l *Listeners) closeTCP() error {
	var errs []error
	for _, t := range l.tcp {
		errs = append(errs, unlessClosed(t.Close()))
	}
	return errors.Join(errs...)
}

func unlessClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// bind listens for one mapping, on one address or on the unspecified address of both families. A random port
// must be free in both, so that some are tried; of a range the first that is free is taken.
func (l *Listeners) bind(p PortMapping) (PortMapping, error) {
	p.Protocol = p.protocol()
	addrs := []netip.Addr{p.HostIP.Unmap()}
	if !p.HostIP.IsValid() {
		addrs = []netip.Addr{netip.IPv4Unspecified()}
		if HaveIPv6() {
			addrs = append(addrs, netip.IPv6Unspecified())
		}
	}
	last := p.HostPortEnd
	p.HostPortEnd = 0
	const tries = 16
	for try := 1; ; try++ {
		port, err := l.bindAll(p, addrs)
		switch {
		case err == nil:
			p.HostPort = port
			return p, nil
		case !errors.Is(err, unix.EADDRINUSE):
			return p, err
		case p.HostPort != 0 && p.HostPort < last:
			p.HostPort++
		case p.HostPort != 0 || try == tries:
			return p, err
		}
	}
}

func (l *Listeners) bindAll(p PortMapping, addrs []netip.Addr) (uint16, error) {
	nt, nu := len(l.tcp), len(l.udp)
	port := p.HostPort
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, port)
		err := l.listen(p, at, &port)
		if err != nil {
			undone := &Listeners{tcp: l.tcp[nt:], udp: l.udp[nu:]}
			err = errors.Join(portError(p, at, err), undone.Close())
			l.tcp, l.udp = l.tcp[:nt], l.udp[:nu]
			return 0, err
		}
	}
	return port, nil
}

func (l *Listeners) listen(p PortMapping, at netip.AddrPort, port *uint16) error {
	network := p.Protocol + "4"
	if at.Addr().Is6() {
		network = p.Protocol + "6"
	}
	lc := net.ListenConfig{Control: controlListener}
	lc.SetMultipathTCP(false) // no client inside would use it, and it costs speed
	if p.Protocol == "udp" {
		c, err := lc.ListenPacket(context.Background(), network, at.String())
		if err != nil {
			return err
		}
		conn := c.(*net.UDPConn)
		*port = uint16(conn.LocalAddr().(*net.UDPAddr).Port)
		l.udp = append(l.udp, udpListener{conn, p.ContainerPort, p.OnlyIPv4})
		return nil
	}
	c, err := lc.Listen(context.Background(), network, at.String())
	if err != nil {
		return err
	}
	ln := c.(*net.TCPListener)
	*port = uint16(ln.Addr().(*net.TCPAddr).Port)
	l.tcp = append(l.tcp, tcpListener{ln, p.ContainerPort, p.OnlyIPv4})
	return nil
}

// controlListener asks for the address that each datagram was sent to, so that the answer comes from it.
func controlListener(network, _ string, c syscall.RawConn) error {
	var err error
	set := func(level, opt int) {
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, 1) }); cerr != nil {
			err = cerr
		}
	}
	switch network {
	case "udp4":
		set(unix.IPPROTO_IP, unix.IP_PKTINFO)
	case "udp6":
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO)
	}
	return err
}

func portError(p PortMapping, at netip.AddrPort, err error) error {
	// Without the net package's own words, which name the address again.
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	pe := &PortError{Port: p, Addr: at, Err: err}
	switch {
	case errors.Is(err, unix.EACCES):
		start := "1024"
		if b, rerr := os.ReadFile(unprivilegedStart); rerr == nil {
			start = strings.TrimSpace(string(b))
		}
		if n, perr := strconv.Atoi(start); perr == nil && int(at.Port()) < n {
			pe.Err = fmt.Errorf("%w: ports below %d need the sysctl net.ipv4.ip_unprivileged_port_start=%d or lower", err, n, at.Port())
			pe.Cure = fmt.Sprintf("sysctl -w net.ipv4.ip_unprivileged_port_start=%d, or publish a port from %d on", at.Port(), n)
		}
	case errors.Is(err, unix.EADDRINUSE):
		pe.Cure = "stop what listens there (ss -lnp shows it), or publish another port"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		pe.Cure = "the host has no such address (ip addr shows them)"
	}
	return pe
}
