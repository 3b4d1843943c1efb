package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// kernelTCP is the driver "kernel": the container's outgoing TCP connections end at sockets of its own kernel, and the helper
// moves the bytes between those and sockets of the host's network namespace. No TCP is spoken in user mode.
//
//	connect(2) inside -> SYN -> TUN -> helper: connect(2) on the host, and wait
//	                                     refused, unreachable: the helper answers as the destination would
//	                                     connected: the same SYN goes back into the TUN
//	  -> nftables: dnat to the listener inside -> the kernel completes the handshake -> accept(2) in the helper
//
// So the container sees a connection only when there is one, and its errors as they are outside. All packets after the first stay in
// the container's kernel, where connection tracking rewrites them between the socket and the relay's.
//
// Without the rules (a container with CAP_NET_ADMIN may remove them) a SYN that goes back into the TUN is lost. The helper is told
// of the removal and gives all that have not been accepted, and every later one, to the stack: the driver "netstack".
type kernelTCP struct {
	n         *Network
	relay     *relay
	listeners []int // IPv4, IPv6
	watches   []*listenerWatch
	events    *os.File
	owner     *os.File // of the rules, kept as long as they are used
	pool      *socketPool
	off       atomic.Bool
	offerFor  time.Duration
	most      int64 // flows; over it connections take the stack

	inVain int // offers one after the other that nobody took; the worker's

	mu      sync.Mutex
	pending map[tcpKey]*kdial
}

// tcpKey is a connection as the container sees it.
type tcpKey struct{ container, remote netip.AddrPort }

const (
	// offerTimeout: a connection that was offered and not accepted for so long has been given up inside. It is longer than
	// the first repetitions of a SYN, each of which is offered again.
	offerTimeout = 10 * time.Second
	kernelSweep  = time.Second
	// mostOffers: a SYN is repeated after 1 s and 3 s, and a busy kernel may take one for so long.
	mostOffers = 2
	mostInVain = 3
)

// UseKernel makes the driver "kernel" carry the container's outgoing TCP, by what PrepareKernel has made; it takes over the files. It
// must be called before Serve.
func (n *Network) UseKernel(r *Redirect) error {
	if err := r.check(); err != nil {
		return errors.Join(fmt.Errorf("use kernel driver: %w", err), r.Close())
	}
	rl, err := newRelay(n.log)
	if err != nil {
		return errors.Join(err, r.Close())
	}
	k := &kernelTCP{n: n, relay: rl, offerFor: offerTimeout, most: mostFlows(), pending: make(map[tcpKey]*kdial)}
	if err := k.takeFiles(r); err != nil {
		return errors.Join(fmt.Errorf("use kernel driver: %w", err), r.Close(), k.close())
	}
	n.kernel = k
	// Queries come from the TUN: who reads that sends them on, and takes the answers.
	n.dns.ask(k.worker())
	return r.Close()
}

// mostFlows is a quarter of the descriptors: a flow takes two of them here and one in the stack, which has the rest.
func mostFlows() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt64 // as if there were no limit, which an error then tells
	}
	return int64(min(l.Cur/4, math.MaxInt64))
}

// OnFallback has f called when the driver has to be changed; it must be called before Serve.
func (n *Network) OnFallback(f func(driver, reason string)) { n.onFallback = f }

// takeFiles duplicates the files. One that was received blocks until it is told not to, and is the runtime's to poll only if
// made afterwards.
func (k *kernelTCP) takeFiles(r *Redirect) error {
	var fds []int
	for _, f := range r.Files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, fd)
			err = unix.SetNonblock(fd, true)
		}
		if err != nil {
			closeAll(fds)
			return err
		}
	}
	n := r.listeners()
	k.listeners = fds[:n]
	k.events, k.owner = os.NewFile(uintptr(fds[n]), "nftables events"), os.NewFile(uintptr(fds[n+1]), "nftables owner")
	for i := range k.listeners {
		if err := k.watchListener(i); err != nil {
			return err
		}
	}
	if len(fds) == n+2 {
		return nil
	}
	sockets := os.NewFile(uintptr(fds[n+2]), "sockets")
	pool, err := newSocketPool(sockets)
	k.pool = pool
	return errors.Join(err, sockets.Close())
}

// worker is the one that reads the TUN and makes all connections, on the host and inside.
func (k *kernelTCP) worker() *worker { return k.relay.workers[0] }

// serve carries packets until ctx ends or the TUN is gone.
func (k *kernelTCP) serve() error {
	if k.pool != nil {
		k.n.flows.Go(func() { k.pool.fill([]byte{'4', '6'}[:len(k.listeners)]...) })
	}
	k.n.flows.Go(k.watchRules)
	k.n.flows.Go(k.sweepLoop)
	tun := &tunWatch{link: k.n.link, ended: make(chan error, 1)}
	err := tun.start(k.worker())
	if err == nil {
		select {
		case err = <-tun.ended:
		case <-k.n.ctx.Done():
		}
	}
	// No descriptor that a worker watches may be closed before the workers have ended.
	err = errors.Join(err, k.relay.close(), k.events.Close())
	if k.pool != nil {
		err = errors.Join(err, k.pool.close())
	}
	return err
}

// tunWatch is the TUN in a worker's epoll instance.
type tunWatch struct {
	link    *link
	r       packetReader
	fd      int
	slot    handle
	started bool
	single  int  // packets that came alone, as far as it was looked
	more    bool // there was more than one packet, the last time
	ended   chan error
}

func (t *tunWatch) start(w *worker) error {
	if cerr := t.link.raw.Control(func(fd uintptr) { t.fd = int(fd) }); cerr != nil {
		return fmt.Errorf("use tun: %w", cerr)
	}
	t.slot, _ = w.add(t)
	// Level triggered: what a turn leaves is reported again. A TUN can always be written to: that calls ready at once.
	if err := w.watch(t.fd, unix.EPOLLIN|writing, t.slot, 0); err != nil {
		return fmt.Errorf("watch tun: %w", err)
	}
	return nil
}

// ready implements pollable.
func (t *tunWatch) ready(w *worker, _, _ uint32) {
	if !t.started {
		t.started = true
		if err := w.rewatch(t.fd, unix.EPOLLIN, t.slot, 0); err != nil {
			t.ended <- fmt.Errorf("watch tun: %w", err)
			return
		}
		t.link.replayAll(&t.r)
	}
	const turn = 64
	for i := range turn {
		switch err := t.link.readPacket(&t.r, uintptr(t.fd)); err {
		case nil:
			// One is the rule where connections are made, many where datagrams are sent. If there is another it is reported again.
			if i == 0 && !t.more {
				if t.single++; t.single%8 != 0 {
					return
				}
			}
		case unix.EAGAIN:
			t.more = i > 1
			return
		default:
			w.forget(t.fd)
			t.ended <- err
			return
		}
	}
}

// end implements pollable.
func (t *tunWatch) end(*worker) { t.r.release() }

// close ends everything. Serve's other goroutines have ended.
func (k *kernelTCP) close() error {
	var errs []error
	k.mu.Lock()
	for key, d := range k.pending {
		delete(k.pending, key)
		closeSocket(d.fd, true)
	}
	k.mu.Unlock()
	for _, l := range k.listeners {
		errs = append(errs, unix.Close(l))
	}
	if k.owner != nil {
		errs = append(errs, k.owner.Close())
	}
	return errors.Join(errs...)
}

// syn takes the first packet of a connection; false leaves the packet to the stack.
func (k *kernelTCP) syn(p ipPacket, vnet, packet []byte) bool {
	if len(p.payload) < tcpHdrLen || p.payload[13]&(tcpFIN|tcpSYN|tcpRST|tcpACK) != tcpSYN || k.off.Load() || k.n.ctx.Err() != nil {
		return false
	}
	key := tcpKey{
		netip.AddrPortFrom(p.src, binary.BigEndian.Uint16(p.payload)),
		netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(p.payload[2:])),
	}
	addr, ok := k.n.policy.target(p.dst)
	if !ok || k.family(p.dst) < 0 {
		return false
	}
	k.mu.Lock()
	d := k.pending[key]
	if d != nil {
		again, refused := d.offered, d.offers >= mostOffers
		if again {
			// The container's kernel repeats itself, or has given up and begins anew from the same port.
			d.frame = append(append(make([]byte, 0, len(vnet)+len(packet)), vnet...), packet...)
		}
		k.mu.Unlock()
		switch {
		case again && refused:
			k.untaken(d)
		case again:
			k.offer(d)
		}
		return true
	}
	if len(k.pending) >= k.n.cfg.MaxHalfOpen || k.n.tcp.flows.Load() >= int64(k.n.cfg.MaxTCPFlows) {
		k.mu.Unlock()
		return true // the container will ask again
	}
	if k.n.tcp.flows.Load() >= k.most {
		k.mu.Unlock()
		return false
	}
	d = &kdial{k: k, key: key, to: netip.AddrPortFrom(addr, key.remote.Port()), hdr: p.hdr, fd: -1}
	d.frame = append(append(make([]byte, 0, len(vnet)+len(packet)), vnet...), packet...)
	k.pending[key] = d
	k.mu.Unlock()
	d.start()
	return true
}

// family is the index of the listener for an address, or -1.
func (k *kernelTCP) family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	if len(k.listeners) > 1 {
		return 1
	}
	return -1
}

// forget takes d out of pending; false if it was not there any more.
func (k *kernelTCP) forget(d *kdial) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending[d.key] != d {
		return false
	}
	delete(k.pending, d.key)
	return true
}

// offer gives the SYN back to the container's kernel, which completes the handshake within the write unless it is busy, and
// accepts.
func (k *kernelTCP) offer(d *kdial) {
	k.mu.Lock()
	if !d.offered {
		d.offered, d.offeredAt = true, time.Now()
	}
	d.offers++
	k.mu.Unlock()
	if err := k.n.link.writeFrame(d.frame); err != nil {
		k.n.log.Debug("offer connection", "dst", d.key.remote, "err", err)
	}
	if k.off.Load() {
		k.hand(d)
		return
	}
	k.accept(k.family(d.key.remote.Addr())) // or the listener's watch does
}

// untaken gives a connection to the stack that the container's kernel would not take: its socket may be bound to the TUN (SO_BINDTODEVICE) and so get nothing
// from loopback, or connection tracking has no room. If that is so for one after the other, root has changed something that the driver needs, routes
// perhaps, and it is the stack for all.
func (k *kernelTCP) untaken(d *kdial) {
	k.hand(d)
	if k.inVain++; k.inVain == mostInVain && !k.off.Load() {
		k.fall("the container's kernel takes no connections")
	}
}

// hand gives a connection that was offered in vain to the stack.
func (k *kernelTCP) hand(d *kdial) {
	if !k.forget(d) {
		return
	}
	f := os.NewFile(uintptr(d.fd), "tcp")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		k.n.log.Warn("hand connection to the stack", "err", err)
		return
	}
	id := stack.TransportEndpointID{
		LocalAddress: toStack(d.key.remote.Addr()), LocalPort: d.key.remote.Port(),
		RemoteAddress: toStack(d.key.container.Addr()), RemotePort: d.key.container.Port(),
	}
	k.n.tcp.adopt(id, conn.(*net.TCPConn))
	var r packetReader
	k.n.link.replay(&r, d.frame)
	r.release()
	time.AfterFunc(kernelSweep, func() { k.n.tcp.disown(id) })
}

// watchRules waits for the rules to be touched, then turns the driver off.
func (k *kernelTCP) watchRules() {
	buf := make([]byte, 64<<10)
	for {
		n, err := k.events.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err == nil && !rulesTouched(buf[:n]):
			continue
		}
		// Or news were lost (ENOBUFS).
		k.fall("the container's nftables rules were removed")
		return
	}
}

// fall turns the driver off. Flows that were accepted go on: connection tracking knows them without the rules.
func (k *kernelTCP) fall(reason string) {
	if k.off.Swap(true) {
		return
	}
	if k.n.onFallback != nil {
		k.n.onFallback(DriverNetstack, reason)
	}
	var offered []*kdial
	k.mu.Lock()
	for _, d := range k.pending {
		if d.offered {
			offered = append(offered, d)
		}
	}
	k.mu.Unlock()
	// Refuses from now on; it is closed at the end, when nobody can be using the descriptor.
	for _, l := range k.listeners {
		_ = unix.Shutdown(l, unix.SHUT_RDWR)
	}
	for _, d := range offered {
		k.hand(d)
	}
}

// sweepLoop ends offers that nobody wanted.
func (k *kernelTCP) sweepLoop() {
	tick := time.NewTicker(kernelSweep)
	defer tick.Stop()
	for {
		select {
		case <-k.n.ctx.Done():
			return
		case now := <-tick.C:
			k.sweep(now)
		}
	}
}

func (k *kernelTCP) sweep(now time.Time) {
	// A connection that could not be accepted for want of a descriptor is still in the queue.
	if !k.off.Load() {
		for _, l := range k.watches {
			l.resume()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, d := range k.pending {
		if d.offered && now.Sub(d.offeredAt) > k.offerFor {
			delete(k.pending, key)
			closeSocket(d.fd, true)
		}
	}
}
