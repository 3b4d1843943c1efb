package slirp

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// synRetries lets a connect that nobody answers fail after 63 s: while the container still waits (tcp_syn_retries is 6), its next SYN
// begins another, and when it has given up, nothing is kept for long.
const synRetries = 5

// kdial is a connection between its SYN and its acceptance. All that happens to it happens on the worker that reads the TUN: to hand it to
// another would cost more than the rest.
type kdial struct {
	k     *kernelTCP
	key   tcpKey
	to    netip.AddrPort // on the host
	frame []byte         // the SYN, with its vnet header
	hdr   int            // bytes of the SYN's IP header

	fd   int
	slot handle

	offered   bool // guarded by the driver's lock, as the next two
	offers    int
	offeredAt time.Time
}

// start connects on the host. To a port of the host itself that is done within the system call.
func (d *kdial) start() {
	fd, err := socketFD(addrFamily(d.to.Addr()))
	if err != nil {
		d.k.n.log.Warn("open tcp socket", "err", err)
		d.k.forget(d) // the next SYN may find a descriptor
		return
	}
	d.fd = fd
	// If this process is killed, the host is to learn that something was lost: a reset, no FIN.
	linger(fd, true)
	if err = d.connect(); err == unix.EINPROGRESS {
		err = d.connect()
	}
	if err != unix.EALREADY {
		d.connected(err)
		return
	}
	// That it cannot be set means a socket that failed, which connect says.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, synRetries)
	w := d.k.worker()
	slot, ok := w.add(d)
	if !ok {
		return // the end: close takes what is pending
	}
	d.slot = slot
	if err := w.watch(fd, reading|writing, slot, outer); err != nil {
		w.remove(slot)
		d.connected(err)
	}
}

// connect asks for the connection, or what became of it: nil, EALREADY or why it failed (connect(2)).
func (d *kdial) connect() error {
	for {
		err := connectFD(d.fd, d.to)
		if err == unix.EISCONN {
			return nil
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// ready implements pollable: something happened to the connect.
func (d *kdial) ready(w *worker, _, _ uint32) {
	err := d.connect()
	if err == unix.EALREADY || err == unix.EINPROGRESS {
		return
	}
	w.forget(d.fd)
	w.remove(d.slot)
	d.connected(err)
}

// end implements pollable; close takes what is pending.
func (d *kdial) end(*worker) {}

// connected goes on with the outcome.
func (d *kdial) connected(err error) {
	k := d.k
	if err == nil {
		k.offer(d)
		return
	}
	if !k.forget(d) {
		return // the end: close has it
	}
	closeSocket(d.fd, false)
	d.refuse(err)
}

// refuse answers the SYN as the destination or its network did.
func (d *kdial) refuse(err error) {
	n := d.k.n
	answer, why := answerTo(err)
	switch answer {
	case refuseReset:
		tcp := d.frame[vnetHdrLen+d.hdr:]
		data := len(tcp) - int(tcp[12]>>4)*4
		if err := n.link.writeFrame(putReset(d.key.remote, d.key.container, tcp, max(0, data))); err != nil {
			n.log.Debug("refuse connection", "err", err)
		}
	case refuseUnreachable:
		n.unreachable(d.key.remote.Addr(), d.key.container.Addr(), why, d.frame[vnetHdrLen:])
	case refuseSilently:
		if !silence(err) {
			n.log.Warn("connect", "dst", d.key.remote, "err", err)
		}
	}
}

// listenerWatch is a listener in the epoll instance of the worker that makes offers. Mostly it is that which accepts, right after an offer.
type listenerWatch struct {
	k       *kernelTCP
	which   int
	slot    handle
	stopped atomic.Bool // there was no descriptor left
}

func (k *kernelTCP) watchListener(which int) error {
	l := &listenerWatch{k: k, which: which}
	l.slot, _ = k.worker().add(l)
	k.watches = append(k.watches, l)
	return k.worker().watch(k.listeners[which], unix.EPOLLIN, l.slot, 0)
}

// pause and resume: a listener on which nothing can be accepted is not to be reported all the time.
func (l *listenerWatch) pause() {
	l.stopped.Store(true)
	l.set(0)
}

func (l *listenerWatch) resume() {
	if l.stopped.Swap(false) {
		l.set(unix.EPOLLIN)
	}
}

// stop: one that has been shut down would always be reported.
func (l *listenerWatch) stop() {
	if !l.stopped.Swap(true) {
		l.k.worker().forget(l.k.listeners[l.which])
	}
}

func (l *listenerWatch) set(events uint32) {
	if err := l.k.worker().rewatch(l.k.listeners[l.which], events, l.slot, 0); err != nil {
		l.k.n.log.Warn("relay: watch listener", "err", err)
	}
}

// ready implements pollable.
func (l *listenerWatch) ready(*worker, uint32, uint32) {
	const turn = 64
	for range turn {
		if !l.k.accept(l.which) {
			return
		}
	}
}

// end implements pollable; the driver closes its listeners.
func (l *listenerWatch) end(*worker) {}

// accept takes one connection that has arrived at a listener; false if there was none.
func (k *kernelTCP) accept(which int) bool {
	for {
		fd, peer, err := acceptFD(k.listeners[which])
		switch {
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err == unix.EAGAIN:
			return false
		case k.off.Load(): // the listener has been shut down
			if err == nil {
				closeSocket(fd, true)
			}
			k.watches[which].stop()
			return false
		case err != nil:
			k.n.log.Warn("accept redirected connection", "err", err)
			k.watches[which].pause() // until sweep
			return false
		}
		k.accepted(fd, peer)
		return true
	}
}

// accepted joins a connection with the one on the host that was made for it. What was not redirected, or not offered, is refused.
func (k *kernelTCP) accepted(fd int, from netip.AddrPort) {
	to, err := originalDst(fd, from.Addr().Is4())
	if err != nil {
		// It was reset before it was accepted, so that nobody tracks it any more: the other side is to see that.
		if d := k.takeFrom(from); d != nil {
			closeSocket(d.fd, true)
		}
		closeSocket(fd, true)
		return
	}
	k.n.tcp.sending.Add(1) // before it is no longer offered: see offering
	d := k.take(tcpKey{from, to})
	if d == nil {
		k.n.tcp.sending.Add(-1)
		closeSocket(fd, true)
		return
	}
	k.inVain = 0
	k.n.tcp.flows.Add(1)
	f := &kflow{fds: [2]int{inner: fd, outer: d.fd}, tcp: k.n.tcp}
	// A flow that comes to move much goes where there is room.
	k.worker().addFlow(f)
	k.worker().young = append(k.worker().young, f)
}

// takeFrom finds what was offered to a socket of the container, as far as that is known: see take.
func (k *kernelTCP) takeFrom(container netip.AddrPort) *kdial {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, d := range k.pending {
		if key.container == container && d.offered {
			delete(k.pending, key)
			return d
		}
	}
	return nil
}

// take finds what was offered as key. Two connections from one port of the container to different destinations become one
// four-tuple at the listener, and the kernel then gives the second another source port: it is known by its destination.
func (k *kernelTCP) take(key tcpKey) *kdial {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.pending[key]
	if d == nil || !d.offered {
		d = nil
		for other, o := range k.pending {
			if other.remote == key.remote && o.offered {
				d = o
				break
			}
		}
	}
	if d != nil {
		delete(k.pending, d.key)
	}
	return d
}

// originalDst is where a redirected connection was going to (SO_ORIGINAL_DST of linux/netfilter_ipv4.h, and its like for IPv6).
func originalDst(fd int, is4 bool) (netip.AddrPort, error) {
	var sa rawSockaddr
	size := uint32(len(sa))
	level := uintptr(unix.SOL_IPV6)
	if is4 {
		level = unix.SOL_IP
	}
	const soOriginalDst = 80
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, soOriginalDst, uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, errno
	}
	return sa.addrPort(), nil
}

// keepSocketAlive finds out in time that the other end is gone without a word.
func keepSocketAlive(fd int) {
	// A socket on which they cannot be set has failed, and says so when it is read.
	_ = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle/time.Second)),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveStep/time.Second)),
	)
}
