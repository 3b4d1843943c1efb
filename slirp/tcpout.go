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

	mu sync.Mutex
	// syns holds the start of each SYN in work. Its keys are those of the forwarder's own table, which never
	// limits: an entry goes in before the forwarder's and out after it.
	syns map[stack.TransportEndpointID][]byte
}

func newTCPOut(n *Network) *tcpOut {
	t := &tcpOut{n: n, syns: make(map[stack.TransportEndpointID][]byte)}
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
	network := "tcp6"
	if addr.Is4() {
		network = "tcp4"
	}
	// DialContext and not DialTCP: that binds even the zero local address, and a bound port serves one destination
	// where one chosen by connect(2) serves many.
	conn, err := t.dialer.DialContext(t.n.ctx, network, netip.AddrPortFrom(addr, dst.Port()).String())
	if err != nil {
		t.refuse(id, dst.Addr(), err, done)
		return
	}
	host := conn.(*net.TCPConn)
	ep, wq, err := accept(r)
	done(err != nil)
	if err != nil {
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

func accept(r *tcp.ForwarderRequest) (tcpip.Endpoint, *waiter.Queue, error) {
	wq := new(waiter.Queue)
	ep, err := r.CreateEndpoint(wq)
	if err != nil {
		return nil, nil, errors.New(err.String())
	}
	return ep, wq, nil
}

// refuse passes the failure of a dial on: a reset for refused, an ICMP message for unreachable, and silence
// where waiting is the truth, or where the helper is short of something and the next SYN may find it.
func (t *tcpOut) refuse(id stack.TransportEndpointID, dst netip.Addr, err error, done func(bool) []byte) {
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled), !errors.As(err, &errno):
		done(false)
		return
	}
	why := hostUnreachable
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		done(true)
		return
	case unix.ENETUNREACH, unix.EAFNOSUPPORT:
		why = netUnreachable
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.EADDRNOTAVAIL, unix.EINVAL:
	case unix.EACCES, unix.EPERM:
		why = prohibited
	default:
		if errno != unix.ETIMEDOUT {
			t.n.log.Warn("connect", "dst", dst, "err", err)
		}
		done(false)
		return
	}
	src := fromStack(id.RemoteAddress)
	t.n.unreachable(dst, src, why, done(false))
}
