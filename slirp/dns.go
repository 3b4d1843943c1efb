package slirp

import (
	"net/netip"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/urun-dev/urun/slirp/dnsproxy"
)

// dnsTCPIdle: RFC 7766 wants idle connections kept for a few seconds.
const dnsTCPIdle = 10 * time.Second

// hostNames resolve to the gateway where that stands for the host's loopback.
var hostNames = [...]string{"host.containers.internal", "host.docker.internal"}

// forwarder is the resolver that the container sees. It answers the configured names itself and hands everything
// else on to the host's resolvers, message for message.
type forwarder struct {
	n        *Network
	names    dnsproxy.Static
	upstream *dnsproxy.Upstream
}

func newForwarder(n *Network) *forwarder {
	f := &forwarder{
		n:     n,
		names: make(dnsproxy.Static, len(n.cfg.Hosts)+len(hostNames)),
	}
	f.ask(nil)
	if n.cfg.AllowHostLoopback {
		gws := []netip.Addr{n.cfg.Gateway4}
		if !n.cfg.NoIPv6 {
			gws = append(gws, n.cfg.Gateway6)
		}
		for _, name := range hostNames {
			f.names[name] = gws
		}
	}
	for name, addrs := range n.cfg.Hosts {
		f.names[strings.ToLower(strings.TrimSuffix(name, "."))] = addrs
	}
	return f
}

// ask chooses who watches the sockets to the resolvers, before the first query.
func (f *forwarder) ask(w dnsproxy.Watcher) {
	c := f.n.cfg
	f.upstream = dnsproxy.NewUpstream(dnsproxy.Config{Servers: c.Resolvers, ResolvConf: c.ResolvConf, MaxQueries: c.MaxQueries, Watcher: w})
}

// query answers one datagram. Over MaxQueries at once it is dropped: the container asks again.
func (f *forwarder) query(key udpKey, msg []byte) {
	q, reply := dnsproxy.Parse(append([]byte(nil), msg...), false)
	if q != nil {
		reply = q.Own(f.names)
	}
	if reply != nil || q == nil {
		f.reply(key, reply)
		return
	}
	release, ok := f.upstream.Acquire()
	if !ok {
		return
	}
	f.upstream.Start(q, func(reply []byte) {
		release()
		f.reply(key, reply)
	})
}

func (f *forwarder) reply(key udpKey, reply []byte) {
	if reply == nil || len(reply) > maxDatagram {
		return
	}
	buf := f.n.udp.bufs.get()
	defer f.n.udp.bufs.put(buf)
	f.n.deliver(buf, key.remote, key.container, copy((*buf)[udpHeadroom:], reply))
}

// serveTCP answers the queries of one connection, in their order.
func (f *forwarder) serveTCP(ep tcpip.Endpoint, wq *waiter.Queue) {
	conn := gonet.NewTCPConn(wq, ep)
	defer conn.Close()
	for f.n.ctx.Err() == nil {
		if err := conn.SetDeadline(time.Now().Add(dnsTCPIdle)); err != nil {
			return
		}
		msg, err := dnsproxy.ReadTCP(conn)
		if err != nil {
			return
		}
		q, reply := dnsproxy.Parse(msg, true)
		if q != nil {
			reply = dnsproxy.Answer(f.n.ctx, q, f.names, f.upstream)
		}
		if reply == nil || dnsproxy.WriteTCP(conn, reply) != nil {
			return
		}
	}
}

// close ends what waits for the host's resolvers.
func (f *forwarder) close() { f.upstream.Close() }
