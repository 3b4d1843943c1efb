package slirp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// serve starts a goroutine for each listener.
func (l *Listeners) serve(n *Network) {
	for _, t := range l.tcp {
		n.flows.Go(func() { n.acceptLoop(t) })
	}
	for _, u := range l.udp {
		n.flows.Go(func() { n.udp.publish(u) })
	}
}

// acceptLoop takes connections to a published port until its listener is closed. An error such as EMFILE passes:
// it waits and goes on, for a listener that stopped would be lost to the container for ever.
func (n *Network) acceptLoop(l tcpListener) {
	const maxDelay = time.Second
	delay := time.Millisecond
	for {
		host, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			n.log.Warn("accept on published port", "addr", l.Addr(), "err", err)
			select {
			case <-time.After(delay):
			case <-n.ctx.Done():
				return
			}
			delay = min(2*delay, maxDelay)
			continue
		}
		delay = time.Millisecond
		if n.tcp.flows.Add(1) > int64(n.cfg.MaxTCPFlows) {
			n.tcp.flows.Add(-1)
			n.log.Warn("too many tcp flows", "max", n.cfg.MaxTCPFlows)
			abortHost(host, n.log)
			continue
		}
		client := host.RemoteAddr().(*net.TCPAddr).AddrPort()
		dst, src := n.policy.inside(client.Addr(), l.only4)
		from, to := netip.AddrPortFrom(src, client.Port()), netip.AddrPortFrom(dst, l.containerPort)
		if n.kernel != nil && n.kernel.publish(host, from, to) {
			n.tcp.flows.Add(-1) // it counts its own
			continue
		}
		n.flows.Go(func() {
			defer n.tcp.flows.Add(-1)
			n.publishTCP(host, from, to)
		})
	}
}

// publishTCP connects one client into the container. If nobody listens there, the client gets a reset.
func (n *Network) publishTCP(host *net.TCPConn, src, dst netip.AddrPort) {
	wq := new(waiter.Queue)
	ep, err := n.dialInside(wq, src, dst)
	if err != nil {
		n.log.Debug("connect into container", "client", src, "err", err)
		abortHost(host, n.log)
		return
	}
	n.tcp.sending.Add(1)
	n.splice(ep, wq, host)
}

// dialInside connects from src to the container. Where src is taken, by a connection from the same client to
// another published port or by one that is in TIME_WAIT, another port of the same address is used.
func (n *Network) dialInside(wq *waiter.Queue, src, dst netip.AddrPort) (tcpip.Endpoint, error) {
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, netProto(dst.Addr()), wq)
	if terr != nil {
		return nil, fmt.Errorf("make tcp endpoint: %s", terr)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	local := tcpip.FullAddress{NIC: nicID, Addr: toStack(src.Addr()), Port: src.Port()}
	if terr = ep.Bind(local); terr != nil {
		local.Port = 0
		terr = ep.Bind(local)
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("bind %s: %s", src, terr)
	}
	terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toStack(dst.Addr()), Port: dst.Port()})
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		ctx, cancel := context.WithTimeout(n.ctx, insideTimeout)
		defer cancel()
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, fmt.Errorf("connect to %s: %w", dst, ctx.Err())
		case <-connected:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return nil, fmt.Errorf("connect to %s: %s", dst, terr)
	}
	return ep, nil
}
