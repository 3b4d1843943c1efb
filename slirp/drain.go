package slirp

import (
	"time"

	"golang.org/x/sys/unix"
)

// drainStep is how often Drain looks.
const drainStep = 2 * time.Millisecond

// Drain is for the time after the container's processes have ended. What they had sent by then is on its way, as it would be from processes of
// the host, whose kernel delivers it; here part of it still has to pass through the helper. Drain returns when the host's kernel has all of it,
// or none of it was taken for so long as stalled, and then Serve returns. Published TCP ports are given up at once.
func (n *Network) Drain(stalled time.Duration) {
	defer func() {
		n.drained.Store(true)
		n.cancel()
	}()
	if err := n.ports.closeTCP(); err != nil {
		n.log.Debug("close published ports", "err", err)
	}
	tick := time.NewTicker(drainStep)
	defer tick.Stop()
	moved, since := n.tcp.moved.Load(), time.Now()
	for n.undelivered() {
		select {
		case <-n.ctx.Done():
			return
		case now := <-tick.C:
			if m := n.tcp.moved.Load(); m != moved {
				moved, since = m, now
			} else if now.Sub(since) > stalled {
				return
			}
		}
	}
}

// undelivered tells whether there is something from the container that the host's kernel does not have.
func (n *Network) undelivered() bool {
	if n.tcp.sending.Load() > 0 || n.kernel != nil && n.kernel.offering() {
		return true
	}
	waiting := 0
	if err := n.link.raw.Control(func(fd uintptr) {
		// An error means the same as nothing.
		waiting, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	}); err != nil {
		return false
	}
	return waiting > 0
}

// offering tells whether a connection has been offered that may be there and was not accepted yet. Those that are taken are so
// within the offer, or soon after.
func (k *kernelTCP) offering() bool {
	const soon = 100 * time.Millisecond
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.pending {
		if d.offered && time.Since(d.offeredAt) < soon {
			return true
		}
	}
	return false
}

// WorthDelivering tells of the first packet of a container that has ended meanwhile, as AwaitTraffic returned it, whether somebody is to get it all the same:
// a datagram is all that its sender wanted, but a SYN or a question to the resolver nobody waits for any more.
func WorthDelivering(cfg Config, frame []byte) bool {
	cfg, err := cfg.WithDefaults()
	if err != nil || len(frame) < vnetHdrLen {
		return false
	}
	packet := frame[vnetHdrLen:]
	p, err := parseIP(packet, len(packet))
	return err == nil && p.proto != protoTCP && p.dst != cfg.DNS4 && p.dst != cfg.DNS6
}
