package slirp

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// udpClient is a flow of a published port as the host sees it.
type udpClient struct {
	via    *net.UDPConn
	client netip.AddrPort
}

func (f *udpFlow) udpClient() udpClient { return udpClient{f.via, f.client} }

// publish brings the datagrams of one published port into the container until the socket is closed.
func (u *udpFlows) publish(l udpListener) {
	buf := u.bufs.get()
	defer u.bufs.put(buf)
	oob := make([]byte, 128)
	for {
		n, oobn, _, client, err := l.ReadMsgUDPAddrPort((*buf)[udpHeadroom:], oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// An ICMP error about an earlier answer, or a shortage that passes.
			u.n.log.Debug("read published port", "addr", l.LocalAddr(), "err", err)
			if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
				time.Sleep(10 * time.Millisecond)
			}
			continue
		}
		if f := u.client(l, client, oob[:oobn]); f != nil {
			f.used.Store(time.Now().UnixNano())
			u.n.deliver(buf, f.key.remote, f.key.container, n)
		}
	}
}

// client finds or makes the flow of one client of a published port; nil if there are too many.
func (u *udpFlows) client(l udpListener, client netip.AddrPort, oob []byte) *udpFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.clients[udpClient{l.UDPConn, client}]; f != nil {
		return f
	}
	if u.closed || len(u.flows) >= u.n.cfg.MaxUDPFlows && !u.evict() {
		return nil
	}
	dst, src := u.n.policy.inside(client.Addr(), l.only4)
	key := udpKey{netip.AddrPortFrom(dst, l.containerPort), netip.AddrPortFrom(src, client.Port())}
	// Where another client already appears under this address, the port gives way.
	for u.flows[key] != nil {
		port := key.remote.Port() + 1
		if port == 0 {
			port = 1024
		}
		if port == client.Port() {
			return nil
		}
		key.remote = netip.AddrPortFrom(src, port)
	}
	f := &udpFlow{key: key, via: l.UDPConn, client: client, oob: replyControl(oob)}
	f.used.Store(time.Now().UnixNano())
	u.flows[key] = f
	u.clients[f.udpClient()] = f
	return f
}

// replyControl makes of the control message of a received datagram one that sends from the address which that
// was sent to. The interface is left to routing.
func replyControl(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var info unix.Inet4Pktinfo
			copy(info.Spec_dst[:], m.Data[8:12]) // ipi_addr: where the datagram went
			return unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var info unix.Inet6Pktinfo
			copy(info.Addr[:], m.Data[:16])
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
