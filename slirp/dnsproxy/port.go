package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	// A port takes queries for so long and so many of them: an off-path attacker who learns its number has little
	// time for it. At thousands of queries a second a socket each would cost more than all the rest.
	portLife    = 2 * time.Second
	portQueries = 128
	// maxPending bounds what waits on one port, below the number of identifiers.
	maxPending = 16384
)

// health is what is thought of a server.
type health uint8

const (
	healthy     health = iota
	silent             // it did not answer lately
	worthAProbe        // it did not, but may be back
)

// server is one resolver.
type server struct {
	addr netip.AddrPort
	u    *Upstream

	bad atomic.Bool // it is silent

	mu      sync.Mutex // before that of a port
	current *port      // takes new queries
	closed  bool
	retry   time.Time // when to see whether it is back
}

func (s *server) state(now time.Time) health {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.bad.Load():
		return healthy
	case now.Before(s.retry):
		return silent
	}
	s.retry = now.Add(suspectFor)
	return worthAProbe
}

// silentSince notes that the server lets a query wait.
func (s *server) silentSince(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.bad.Swap(true) {
		s.retry = now.Add(suspectFor)
	}
}

// answered notes that the server is there.
func (s *server) answered() {
	if s.bad.Load() {
		s.bad.Store(false)
	}
}

func (s *server) close() {
	s.mu.Lock()
	p := s.current
	s.current, s.closed = nil, true
	s.mu.Unlock()
	if p != nil {
		p.fail(net.ErrClosed)
	}
}

// send sends a query; done gets what becomes of it, unless the ticket is cancelled before. It must not wait.
func (s *server) send(q *Query, done func(answer)) (*ticket, error) {
	p, err := s.port()
	if err != nil {
		return nil, err
	}
	t := &ticket{port: p, q: q, done: done}
	if err := p.send(t); err != nil {
		return nil, err
	}
	return t, nil
}

// port gives the socket for the next query.
func (s *server) port() (*port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	now := time.Now()
	if p := s.current; p != nil && p.use(now) {
		return p, nil
	}
	fd, err := connectUDP(s.addr)
	if err != nil {
		return nil, err
	}
	p := &port{server: s, fd: fd, born: now, uses: 1, pending: map[uint16]*ticket{}}
	if err := p.listen(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if s.current != nil {
		s.current.retire()
	}
	s.current = p
	return p, nil
}

// connectUDP makes a socket that takes datagrams of one peer. It never blocks.
func connectUDP(to netip.AddrPort) (int, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if a := to.Addr().Unmap(); a.Is4() {
		sa = &unix.SockaddrInet4{Addr: a.As4(), Port: int(to.Port())}
	} else {
		scope, err := zoneIndex(a.Zone())
		if err != nil {
			return -1, err
		}
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16(), Port: int(to.Port()), ZoneId: scope}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		return -1, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	return fd, nil
}

// zoneIndex is the interface that a link-local address belongs to, by name or number.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(i.Index), nil
}

// port is a UDP socket connected to one server, with the queries that wait for an answer on it.
type port struct {
	server *server
	fd     int
	stop   func() // ends the watching of fd, before it is closed
	born   time.Time

	mu      sync.Mutex // held while fd is used: whoever has it sees closed first
	uses    int
	pending map[uint16]*ticket
	retired bool
	closed  bool
}

// listen has answers taken: by whoever watches sockets, or by a goroutine.
func (p *port) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.server.u.watcher; w != nil {
		stop, err := w.Watch(p.fd, func() { p.read() })
		p.stop = stop
		return err
	}
	// A duplicate for the runtime's poller, so that the descriptor itself has one owner.
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "dns")
	raw, err := f.SyscallConn()
	if err == nil && !p.server.u.start(func() {
		defer f.Close()
		_ = raw.Read(func(uintptr) bool { return !p.read() }) // until the end, by stop
	}) {
		err = net.ErrClosed
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	p.stop = func() { _ = f.SetReadDeadline(time.Unix(1, 0)) } // it can only be closed already
	return nil
}

// ticket is a query that waits on a port.
type ticket struct {
	port *port
	id   uint16
	q    *Query
	done func(answer)
}

var errBusy = errors.New("too many queries at once")

// use counts a query in; false means that the port is spent.
func (p *port) use(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.uses >= portQueries || now.Sub(p.born) > portLife {
		return false
	}
	p.uses++
	return true
}

// randomID: the generator behind math/rand/v2's functions is ChaCha8, seeded by the system.
func randomID() uint16 { return uint16(rand.Uint32()) }

func (p *port) send(t *ticket) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if len(p.pending) >= maxPending {
		return errBusy
	}
	for t.id = randomID(); p.pending[t.id] != nil; t.id = randomID() {
	}
	out := binary.BigEndian.AppendUint16(make([]byte, 0, maxQuery), t.id)
	if err := write(p.fd, append(out, t.q.msg[2:]...)); err != nil {
		return err
	}
	p.pending[t.id] = t
	return nil
}

// maxQuery is room for nearly every query; what is longer is allocated.
const maxQuery = 512

func write(fd int, b []byte) error {
	for {
		_, err := unix.Write(fd, b)
		if err != unix.EINTR {
			return os.NewSyscallError("send", err)
		}
	}
}

// retire closes the port as soon as nobody waits on it.
func (p *port) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired = true
	p.closeIfDone()
}

// closeIfDone closes a retired port on which nobody waits; p.mu is held.
func (p *port) closeIfDone() {
	if p.retired && len(p.pending) == 0 {
		p.close()
	}
}

// close closes the socket; p.mu is held.
func (p *port) close() {
	if !p.closed {
		p.closed = true
		p.stop()
		_ = unix.Close(p.fd) // nothing is lost with it
	}
}

// cancel gives up waiting; false means that there was an answer already.
func (t *ticket) cancel() bool {
	p := t.port
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending[t.id] != t {
		return false
	}
	delete(p.pending, t.id)
	p.closeIfDone()
	return true
}

// pending tells whether the query has had no answer yet.
func (t *ticket) pending() bool {
	t.port.mu.Lock()
	defer t.port.mu.Unlock()
	return t.port.pending[t.id] == t
}

// read takes the answers that are there; false means that the port is closed.
func (p *port) read() bool {
	buf := p.server.u.bufs.Get().(*[dns.MaxMsgSize]byte)
	defer p.server.u.bufs.Put(buf)
	for {
		t, n, err := p.receive(buf[:])
		switch {
		case err == unix.EAGAIN:
			return true
		case err == net.ErrClosed:
			return false
		case err != nil:
			// An ICMP error: nobody is there. Whoever waits asks somebody else.
			p.fail(err)
			return false
		case t != nil:
			reply := append([]byte(nil), buf[:n]...)
			copy(reply, t.q.msg[:2])
			t.done(answer{from: p.server, msg: reply})
		}
	}
}

// receive takes one datagram, and the ticket that it answers out. What nobody waits for is late or forged.
func (p *port) receive(buf []byte) (*ticket, int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, 0, net.ErrClosed
	}
	n, err := unix.Read(p.fd, buf)
	if err == unix.EINTR {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	in := buf[:n]
	if n < headerSize || in[2]&0x80 == 0 {
		return nil, 0, nil
	}
	p.server.answered() // if late, it is there
	id := binary.BigEndian.Uint16(in)
	t := p.pending[id]
	if t == nil || !answers(in, t.q.wire()) {
		return nil, 0, nil
	}
	delete(p.pending, id)
	p.closeIfDone()
	return t, n, nil
}

// fail ends the port and everything that waits on it.
func (p *port) fail(err error) {
	p.server.drop(p)
	p.mu.Lock()
	waiting := p.pending
	p.pending = nil
	p.close()
	p.mu.Unlock()
	for _, t := range waiting {
		t.done(answer{from: p.server, err: err})
	}
}

// drop makes the next query take another port.
func (s *server) drop(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == p {
		s.current = nil
	}
}
