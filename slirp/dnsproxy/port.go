package dnsproxy

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
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

	mu      sync.Mutex
	current *port // takes new queries
	closed  bool
	bad     bool
	retry   time.Time // when to see whether it is back
}

func (s *server) isHealthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.bad
}

func (s *server) state(now time.Time) health {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.bad:
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
	if !s.bad {
		s.bad, s.retry = true, now.Add(suspectFor)
	}
}

// answered notes that the server is there.
func (s *server) answered() {
	s.mu.Lock()
	s.bad = false
	s.mu.Unlock()
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
	if !p.register(t) {
		return nil, errBusy
	}
	out := binary.BigEndian.AppendUint16(make([]byte, 0, len(q.msg)), t.id)
	if _, err := p.conn.Write(append(out, q.msg[2:]...)); err != nil {
		if !t.cancel() {
			return t, nil // the socket's end came first, and was told
		}
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
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		return nil, err
	}
	p := &port{server: s, conn: conn, born: now, uses: 1, pending: map[uint16]*ticket{}}
	// Longer than anybody waits for an answer.
	if err := conn.SetReadDeadline(now.Add(portLife + giveUp + time.Second)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if s.current != nil {
		s.current.retire()
	}
	if !s.u.start(p.read) {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	s.current = p
	return p, nil
}

// port is a UDP socket connected to one server, with the queries that wait for an answer on it.
type port struct {
	server *server
	conn   *net.UDPConn
	born   time.Time

	mu      sync.Mutex
	uses    int
	pending map[uint16]*ticket
	retired bool
	closed  bool
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

func (p *port) register(t *ticket) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.pending) >= maxPending {
		return false
	}
	for t.id = randomID(); p.pending[t.id] != nil; t.id = randomID() {
	}
	p.pending[t.id] = t
	return true
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
	if p.retired && len(p.pending) == 0 && !p.closed {
		p.closed = true
		_ = p.conn.Close() // nothing is lost with it
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

// read takes answers until the port is closed.
func (p *port) read() {
	buf := p.server.u.bufs.Get().(*[dns.MaxMsgSize]byte)
	defer p.server.u.bufs.Put(buf)
	for {
		n, err := p.conn.Read(buf[:])
		if err != nil {
			// An ICMP error, the deadline, or the end. Whoever waits asks somebody else.
			p.fail(err)
			return
		}
		p.deliver(buf[:n])
	}
}

// deliver hands an answer to who waits for it. What nobody waits for is late or forged.
func (p *port) deliver(in []byte) {
	if len(in) < headerSize || in[2]&0x80 == 0 {
		return
	}
	p.server.answered() // if late, it is there
	id := binary.BigEndian.Uint16(in)
	p.mu.Lock()
	t := p.pending[id]
	if t == nil || !answers(in, t.q.wire()) {
		p.mu.Unlock()
		return
	}
	delete(p.pending, id)
	p.closeIfDone()
	p.mu.Unlock()
	reply := append([]byte(nil), in...)
	copy(reply, t.q.msg[:2])
	t.done(answer{from: p.server, msg: reply})
}

// fail ends the port and everything that waits on it.
func (p *port) fail(err error) {
	p.server.drop(p)
	p.mu.Lock()
	waiting := p.pending
	p.pending = nil
	if !p.closed {
		p.closed = true
		_ = p.conn.Close() // nothing is lost with it
	}
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
