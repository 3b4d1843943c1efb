package slirp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	icmp4EchoRequest = 8
	icmp4EchoReply   = 0
	icmp6EchoRequest = 128
	icmp6EchoReply   = 129

	echoIdle = 20 * time.Second
)

type echoKey struct {
	container, remote netip.Addr
	id                uint16
}

type echoFlow struct {
	key  echoKey
	sock *os.File
	used atomic.Int64
}

// echoFlows passes echo requests on through unprivileged ping sockets (net/ipv4/ping.c): the kernel puts its own
// identifier in and hands back answers to that alone. Where net.ipv4.ping_group_range does not allow this
// process's group, there is no answer; one is never made up.
type echoFlows struct {
	n *Network

	mu     sync.Mutex
	flows  map[echoKey]*echoFlow
	said   bool
	closed bool
}

func newEchoFlows(n *Network) *echoFlows {
	return &echoFlows{n: n, flows: make(map[echoKey]*echoFlow)}
}

// request takes an ICMP message from the container to elsewhere; false leaves it to the stack, which uses what
// is about its connections.
func (e *echoFlows) request(p ipPacket) bool {
	if len(p.payload) < icmpHdrLen {
		return true
	}
	want := byte(icmp4EchoRequest)
	if p.proto == protoICMPv6 {
		want = icmp6EchoRequest
	}
	if p.payload[0] != want {
		return false
	}
	key := echoKey{p.src, p.dst, binary.BigEndian.Uint16(p.payload[4:])}
	f := e.flow(key)
	if f == nil {
		return true
	}
	f.used.Store(time.Now().UnixNano())
	if _, err := f.sock.Write(p.payload); err != nil {
		e.n.log.Debug("send echo request", "dst", p.dst, "err", err)
	}
	return true
}

func (e *echoFlows) flow(key echoKey) *echoFlow {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.flows[key]; f != nil || e.closed || len(e.flows) >= e.n.cfg.MaxEchoFlows {
		return f
	}
	sock, err := pingSocket(key.remote)
	if err != nil {
		if !e.said {
			e.said = true
			e.n.log.Warn("ping is not possible: open ping socket", "err", err, "sysctl", "net.ipv4.ping_group_range")
		}
		return nil
	}
	f := &echoFlow{key: key, sock: sock}
	e.flows[key] = f
	e.n.flows.Go(func() { e.receive(f) })
	return f
}

func pingSocket(remote netip.Addr) (*os.File, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var to unix.Sockaddr
	if remote.Is4() {
		to = &unix.SockaddrInet4{Addr: remote.As4()}
	} else {
		domain, proto, to = unix.AF_INET6, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Addr: remote.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "ping"), nil
}

// receive brings answers into the container until the socket is closed.
func (e *echoFlows) receive(f *echoFlow) {
	bufp := e.n.udp.bufs.get()
	defer e.n.udp.bufs.put(bufp)
	buf := *bufp
	for {
		n, err := f.sock.Read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			// An ICMP error. Ping inside sees no answer; it would need the header of its own request.
			e.n.log.Debug("receive echo reply", "from", f.key.remote, "err", err)
			continue
		}
		want := byte(icmp4EchoReply)
		if !f.key.remote.Is4() {
			want = icmp6EchoReply
		}
		if n < icmpHdrLen || buf[0] != want {
			continue
		}
		rest := [4]byte(buf[4:8])
		binary.BigEndian.PutUint16(rest[:], f.key.id)
		if err := e.n.link.writeFrame(putICMP(f.key.remote, f.key.container, want, 0, rest, buf[icmpHdrLen:n])); err != nil {
			e.n.log.Debug("deliver echo reply", "err", err)
		}
	}
}

func (e *echoFlows) expire(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.flows {
		if now.UnixNano()-f.used.Load() > int64(echoIdle) {
			e.remove(f)
		}
	}
}

func (e *echoFlows) remove(f *echoFlow) {
	delete(e.flows, f.key)
	if err := f.sock.Close(); err != nil {
		e.n.log.Debug("close ping socket", "err", err)
	}
}

func (e *echoFlows) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, f := range e.flows {
		e.remove(f)
	}
}
