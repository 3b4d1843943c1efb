package slirp

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// RFC 4787 asks for two minutes, and allows less where a protocol is known to need less: a flow that has
	// had no answer, and DNS.
	udpIdle       = 2 * time.Minute
	udpIdleOneWay = 30 * time.Second
	udpSweep      = 5 * time.Second
	maxDatagram   = 65535
)

// udpKey is a flow as the container sees it.
type udpKey struct{ container, remote netip.AddrPort }

// udpFlow is a UDP conversation with one remote address: with a connected socket of its own if the container
// began it, through a published port's socket if a client did.
type udpFlow struct {
	key  udpKey
	used atomic.Int64 // unix nanoseconds of the last datagram
	both atomic.Bool  // datagrams went both ways

	conn *net.UDPConn // connected; nil for a published port
	// head is the start of the container's last datagram, for an ICMP error about it.
	mu   sync.Mutex
	head [synHead]byte
	hlen int

	via    *net.UDPConn   // the published port's socket
	client netip.AddrPort // and who is there
	oob    []byte         // control message that makes answers come from the address that the client used
}

// udpFlows holds the UDP flows of both directions: an answer from a published port is found like any other
// datagram of the container.
type udpFlows struct {
	n    *Network
	bufs *bytePool

	mu      sync.Mutex
	flows   map[udpKey]*udpFlow
	clients map[udpClient]*udpFlow
	closed  bool
}

func newUDPFlows(n *Network) *udpFlows {
	return &udpFlows{
		n: n, bufs: newBytePool(udpHeadroom + maxDatagram),
		flows: make(map[udpKey]*udpFlow), clients: make(map[udpClient]*udpFlow),
	}
}

// datagram takes a UDP packet from the container, which check has let pass.
func (n *Network) datagram(p ipPacket, head []byte) {
	if len(p.payload) < udpHdrLen {
		return
	}
	length := int(binary.BigEndian.Uint16(p.payload[4:]))
	if length < udpHdrLen || length > len(p.payload) {
		return
	}
	key := udpKey{
		netip.AddrPortFrom(p.src, binary.BigEndian.Uint16(p.payload)),
		netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(p.payload[2:])),
	}
	data := p.payload[udpHdrLen:length]
	if key.remote.Port() == 53 && (p.dst == n.policy.dns4 || p.dst == n.policy.dns6) {
		n.dns.query(key, data)
		return
	}
	n.udp.send(key, data, head)
}

// send passes a datagram on to the host's network, beginning a flow if there is none.
func (u *udpFlows) send(key udpKey, data, head []byte) {
	u.mu.Lock()
	f := u.flows[key]
	if f == nil && !u.closed {
		var why reason
		var err error
		if f, why, err = u.open(key); err != nil {
			u.mu.Unlock()
			u.n.log.Debug("open udp flow", "dst", key.remote, "err", err)
			u.n.unreachable(key.remote.Addr(), key.container.Addr(), why, head)
			return
		}
	}
	u.mu.Unlock()
	if f == nil {
		return
	}
	now := time.Now().UnixNano()
	f.used.Store(now)
	if f.conn == nil {
		f.both.Store(true)
		if _, _, err := f.via.WriteMsgUDPAddrPort(data, f.oob, f.client); err != nil {
			u.n.log.Debug("answer udp client", "client", f.client, "err", err)
		}
		return
	}
	f.mu.Lock()
	f.hlen = copy(f.head[:], head)
	f.mu.Unlock()
	if _, err := f.conn.Write(data); err != nil {
		u.failed(f, err)
	}
}

var errBusy = errors.New("too many flows")

// open makes a flow that the container begins; u.mu is held.
func (u *udpFlows) open(key udpKey) (*udpFlow, reason, error) {
	addr, ok := u.n.policy.target(key.remote.Addr())
	if !ok {
		return nil, portUnreachable, unix.ECONNREFUSED
	}
	if len(u.flows) >= u.n.cfg.MaxUDPFlows && !u.evict() {
		return nil, prohibited, errBusy
	}
	network := "udp6"
	if addr.Is4() {
		network = "udp4"
	}
	conn, err := net.DialUDP(network, nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, key.remote.Port())))
	if err != nil {
		return nil, unreachableReason(err), err
	}
	f := &udpFlow{key: key, conn: conn}
	f.used.Store(time.Now().UnixNano())
	u.flows[key] = f
	u.n.flows.Go(func() { u.receive(f) })
	return f, 0, nil
}

// receive brings answers into the container until the flow's socket is closed.
func (u *udpFlows) receive(f *udpFlow) {
	raw, err := f.conn.SyscallConn()
	if err != nil {
		u.n.log.Warn("use udp socket", "err", err)
		return
	}
	for {
		var buf *[]byte
		var n int
		var serr error
		// A buffer is held only while there is something to read: an idle flow has none.
		err := raw.Read(func(fd uintptr) bool {
			buf = u.bufs.get()
			n, serr = unix.Read(int(fd), (*buf)[udpHeadroom:])
			if serr == unix.EAGAIN || serr == unix.EINTR {
				u.bufs.put(buf)
				return serr == unix.EINTR
			}
			return true
		})
		switch {
		case err != nil:
			return
		case serr == unix.EINTR:
			continue
		case serr != nil:
			u.failed(f, serr)
		default:
			f.used.Store(time.Now().UnixNano())
			f.both.Store(true)
			u.n.deliver(buf, f.key.remote, f.key.container, n)
		}
		u.bufs.put(buf)
	}
}

// deliver sends the n bytes at buf[udpHeadroom:] into the container.
func (n *Network) deliver(buf *[]byte, src, dst netip.AddrPort, size int) {
	if size > maxDatagram-ipv4HdrLen-udpHdrLen {
		return // cannot be written as one IPv4 packet, and no IPv4 host could have sent it
	}
	if err := n.link.writeFrame(putUDP(*buf, src, dst, size)); err != nil {
		n.log.Debug("deliver datagram", "err", err)
	}
}

// failed passes on an ICMP error that the host's socket reports.
func (u *udpFlows) failed(f *udpFlow, err error) {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
		return // lost, as datagrams may be
	}
	f.mu.Lock()
	head := f.head[:f.hlen]
	frame := putUnreachable(f.key.remote.Addr(), f.key.container.Addr(), unreachableReason(err), head)
	f.mu.Unlock()
	if err := u.n.link.writeFrame(frame); err != nil {
		u.n.log.Debug("send unreachable", "err", err)
	}
}

func unreachableReason(err error) reason {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case unix.ECONNREFUSED:
			return portUnreachable
		case unix.ENETUNREACH, unix.EAFNOSUPPORT:
			return netUnreachable
		case unix.EACCES, unix.EPERM:
			return prohibited
		}
	}
	return hostUnreachable
}

// sweep ends idle flows until ctx does.
func (u *udpFlows) sweep(ctx context.Context) {
	tick := time.NewTicker(udpSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			u.mu.Lock()
			for _, f := range u.flows {
				if f.idle(now) {
					u.remove(f)
				}
			}
			u.mu.Unlock()
			u.n.echo.expire(now)
		}
	}
}

func (f *udpFlow) idle(now time.Time) bool {
	limit := udpIdleOneWay
	if f.both.Load() {
		limit = udpIdle
	}
	return now.UnixNano()-f.used.Load() > int64(limit)
}

// evict ends the flow that has been idle longest, of a few: map iteration begins at a random one. u.mu is held.
func (u *udpFlows) evict() bool {
	var oldest *udpFlow
	seen := 0
	for _, f := range u.flows {
		if oldest == nil || f.used.Load() < oldest.used.Load() {
			oldest = f
		}
		if seen++; seen == 16 {
			break
		}
	}
	if oldest == nil || time.Now().UnixNano()-oldest.used.Load() < int64(time.Second) {
		return false
	}
	u.remove(oldest)
	return true
}

// remove forgets a flow and closes its socket; u.mu is held.
func (u *udpFlows) remove(f *udpFlow) {
	delete(u.flows, f.key)
	if f.conn == nil {
		delete(u.clients, f.udpClient())
		return
	}
	if err := f.conn.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		u.n.log.Debug("close udp socket", "err", err)
	}
}

func (u *udpFlows) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for _, f := range u.flows {
		u.remove(f)
	}
}
