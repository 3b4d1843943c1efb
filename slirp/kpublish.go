package slirp

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// kclient is a client of a published port whose connection inside is not made yet.
type kclient struct {
	k      *kernelTCP
	host   int // the client's connection
	fd     int // the socket inside
	to     netip.AddrPort
	slot   handle
	expiry *time.Timer
}

// publish connects a client of a published port into the container by a kernel socket; false leaves it to the stack.
func (k *kernelTCP) publish(host *net.TCPConn, src, dst netip.AddrPort) bool {
	if k.pool == nil {
		return false
	}
	fd := k.pool.take(dst.Addr())
	if fd < 0 {
		return false
	}
	err := bindAs(fd, src)
	c := &kclient{k: k, fd: fd, host: -1, to: dst}
	if err == nil {
		c.host, err = detach(host)
	}
	if err != nil {
		k.n.log.Debug("connect into container", "client", src, "err", err)
		closeSocket(fd, false)
		return false
	}
	k.n.tcp.flows.Add(1)
	k.n.tcp.sending.Add(1)
	if err = c.connect(); err == unix.EINPROGRESS {
		err = c.connect()
	}
	if err != unix.EALREADY {
		c.connected(err)
		return true
	}
	// The container is stopped, or its server's queue is full.
	w := k.relay.pick()
	c.expiry = time.AfterFunc(insideTimeout, func() { _ = unix.Shutdown(c.host, unix.SHUT_RDWR) })
	slot, ok := w.add(c)
	if !ok {
		c.end(w)
		return true
	}
	c.slot = slot
	if err := errors.Join(w.watch(fd, reading|writing, slot, inner), w.watch(c.host, reading, slot, outer)); err != nil {
		w.remove(slot)
		c.connected(err)
	}
	return true
}

// bindAs binds the client's address, or another port of it where that is taken: by a connection of the same client to another
// port of the container, or by one in TIME_WAIT.
func bindAs(fd int, src netip.AddrPort) error {
	err := unix.Bind(fd, sockaddrOf(src))
	if err == unix.EADDRINUSE {
		err = unix.Bind(fd, sockaddrOf(netip.AddrPortFrom(src.Addr(), 0)))
	}
	return err
}

// detach takes a connection from the runtime's poller.
func detach(c *net.TCPConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(s uintptr) { fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, dupErr
	}
	return fd, c.Close()
}

func (c *kclient) connect() error {
	for {
		err := connectFD(c.fd, c.to)
		if err == unix.EISCONN {
			return nil
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// ready implements pollable.
func (c *kclient) ready(w *worker, which, events uint32) {
	if which == outer {
		if events&(unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			return
		}
		// The client gave up, or waited too long.
		w.remove(c.slot)
		c.end(w)
		return
	}
	err := c.connect()
	if err == unix.EALREADY || err == unix.EINPROGRESS {
		return
	}
	w.forget(c.fd)
	w.forget(c.host)
	w.remove(c.slot)
	c.connected(err)
}

// connected goes on with the outcome: a client to whom nobody listens gets a reset.
func (c *kclient) connected(err error) {
	if err != nil {
		c.k.n.log.Debug("connect into container", "to", c.to, "err", err)
		c.end(nil)
		return
	}
	c.stopTimer()
	linger(c.host, true)
	// The net package has set what short connections are spared elsewhere (sent).
	f := &kflow{fds: [2]int{inner: c.fd, outer: c.host}, tcp: c.k.n.tcp, sent: 2}
	f.notifyAll()
	c.k.relay.pick().addFlow(f)
}

func (c *kclient) stopTimer() {
	if c.expiry != nil {
		c.expiry.Stop()
	}
}

// end implements pollable.
func (c *kclient) end(*worker) {
	c.stopTimer()
	closeSocket(c.fd, true)
	closeSocket(c.host, true)
	c.k.n.tcp.flows.Add(-1)
	c.k.n.tcp.sending.Add(-1)
}
