package slirp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// dialTimeout: the container's kernel repeats a SYN for about two minutes; a dial that ends sooner is
	// started again by the next SYN.
	dialTimeout = 60 * time.Second
	// synHead is as much of a SYN as an ICMP error about it quotes.
	synHead = 128
)

// tcpOut connects the container's outgoing TCP. A SYN waits until the host side is connected: only then does
// the stack answer it, so that the container sees refused and unreachable as they are.
type tcpOut struct {
	n      *Network
	fwd    *tcp.Forwarder
	dialer net.Dialer
	flows  atomic.Int64
	// sending are the flows on which the container may still send: its FIN has not been passed on.
	sending atomic.Int64
	moved   atomic.Int64 // pieces that came from the container and were passed on

	mu sync.Mutex
	// syns holds the start of each SYN in work. Its keys are those of the forwarder's own table, which never
	// limits: an entry goes in before the forwarder's and out after it.
	syns map[stack.TransportEndpointID][]byte
	// connected are host sockets for SYNs that come here after the driver "kernel" has made the connection.
	connected map[stack.TransportEndpointID]*net.TCPConn
}

func newTCPOut(n *Network) *tcpOut {
	t := &tcpOut{n: n, syns: make(map[stack.TransportEndpointID][]byte), connected: make(map[stack.TransportEndpointID]*net.TCPConn)}
	// Keepalive is set with the other options in newFlow.
	t.dialer = net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	t.fwd = tcp.NewForwarder(n.stack, 0, 2*n.cfg.MaxHalfOpen, t.connect)
	return t
}

// handlePacket sees TCP packets that belong to no flow.
func (t *tcpOut) handlePacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	hdr := header.TCP(pkt.TransportHeader().Slice())
	if hdr.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	if t.n.ctx.Err() != nil {
		return true
	}
	head := append(append(make([]byte, 0, synHead), pkt.NetworkHeader().Slice()...), hdr...)
	t.mu.Lock()
	_, busy := t.syns[id]
	if busy || len(t.syns) >= t.n.cfg.MaxHalfOpen {
		t.mu.Unlock()
		return true // the container will ask again
	}
	t.syns[id] = head
	t.mu.Unlock()
	if !t.fwd.HandlePacket(id, pkt) {
		t.forget(id)
		return false
	}
	return true
}

func (t *tcpOut) forget(id stack.TransportEndpointID) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	head := t.syns[id]
	delete(t.syns, id)
	return head
}

// connect answers one SYN. It runs in a goroutine of the forwarder.
func (t *tcpOut) connect(r *tcp.ForwarderRequest) {
	id := r.ID()
	dst := netip.AddrPortFrom(fromStack(id.LocalAddress), id.LocalPort)
	done := func(reset bool) []byte {
		r.Complete(reset)
		return t.forget(id)
	}
	if dst.Port() == 53 && (dst.Addr() == t.n.policy.dns4 || dst.Addr() == t.n.policy.dns6) {
		ep, wq, err := accept(r)
		done(err != nil)
		if err == nil {
			t.n.flows.Go(func() { t.n.dns.serveTCP(ep, wq) })
		}
		return
	}
	addr, ok := t.n.policy.target(dst.Addr())
	if !ok {
		done(true)
		return
	}
	if t.flows.Load() >= int64(t.n.cfg.MaxTCPFlows) {
		t.n.log.Warn("too many tcp flows", "max", t.n.cfg.MaxTCPFlows)
		done(false)
		return
	}
	host, err := t.dial(id, netip.AddrPortFrom(addr, dst.Port()))
	if err != nil {
		t.refuse(id, dst.Addr(), err, done)
		return
	}
	t.sending.Add(1) // before the container can send
	ep, wq, err := accept(r)
	done(err != nil)
	if err != nil {
		t.sending.Add(-1)
		// The container gave up while the host was connecting: so does the host.
		abortHost(host, t.n.log)
		return
	}
	t.flows.Add(1)
	t.n.flows.Go(func() {
		defer t.flows.Add(-1)
		t.n.splice(ep, wq, host)
	})
}

// dial makes the host's side of a connection, unless it is there already.
func (t *tcpOut) dial(id stack.TransportEndpointID, to netip.AddrPort) (*net.TCPConn, error) {
	t.mu.Lock()
	host := t.connected[id]
	delete(t.connected, id)
	t.mu.Unlock()
	if host != nil {
		return host, nil
	}
	network := "tcp6"
	if to.Addr().Is4() {
		network = "tcp4"
	}
	// DialContext and not DialTCP: that binds even the zero local address, and a bound port serves one destination
	// where one chosen by connect(2) serves many.
	conn, err := t.dialer.DialContext(t.n.ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// adopt keeps a connected host socket for the SYN that is about to be delivered to the stack.
func (t *tcpOut) adopt(id stack.TransportEndpointID, host *net.TCPConn) {
	t.mu.Lock()
	t.connected[id] = host
	t.mu.Unlock()
}

// disown closes what adopt has kept and the SYN did not come for.
func (t *tcpOut) disown(id stack.TransportEndpointID) {
	t.mu.Lock()
	host := t.connected[id]
	delete(t.connected, id)
	t.mu.Unlock()
	if host != nil {
		abortHost(host, t.n.log)
	}
}

func accept(r *tcp.ForwarderRequest) (tcpip.Endpoint, *waiter.Queue, error) {
	wq := new(waiter.Queue)
	ep, err := r.CreateEndpoint(wq)
	if err != nil {
		return nil, nil, errors.New(err.String())
	}
	return ep, wq, nil
}

// refuse passes the failure of a dial on.
func (t *tcpOut) refuse(id stack.TransportEndpointID, dst netip.Addr, err error, done func(bool) []byte) {
	answer, why := answerTo(err)
	switch answer {
	case refuseReset:
		done(true)
	case refuseUnreachable:
		t.n.unreachable(dst, fromStack(id.RemoteAddress), why, done(false))
	case refuseSilently:
		if !silence(err) {
			t.n.log.Warn("connect", "dst", dst, "err", err)
		}
		done(false)
	}
}

// answer is how the failure of a connect on the host is told inside.
type answer uint8

const (
	refuseReset       answer = iota // ECONNREFUSED
	refuseUnreachable               // an ICMP message
	// refuseSilently: waiting is the truth, or the helper is short of something and the next SYN may find it.
	refuseSilently
)

func answerTo(err error) (answer, reason) {
	var errno syscall.Errno
	if silence(err) || !errors.As(err, &errno) {
		return refuseSilently, 0
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return refuseReset, 0
	case unix.ENETUNREACH, unix.EAFNOSUPPORT:
		return refuseUnreachable, netUnreachable
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.EADDRNOTAVAIL, unix.EINVAL:
		return refuseUnreachable, hostUnreachable
	case unix.EACCES, unix.EPERM:
		return refuseUnreachable, prohibited
	}
	return refuseSilently, 0
}

// silence tells whether nobody answered, or this process is about to end.
func silence(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, unix.ETIMEDOUT)
}
