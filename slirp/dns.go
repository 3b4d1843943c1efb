package slirp

import (
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	hostsTTL = 10 // seconds
	// dnsTCPIdle: RFC 7766 wants idle connections kept for a few seconds.
	dnsTCPIdle = 10 * time.Second
	minUDPSize = 512
)

// hostNames resolve to the gateway where that stands for the host's loopback.
var hostNames = [...]string{"host.containers.internal", "host.docker.internal"}

// forwarder is the resolver that the container sees. It answers the configured names itself and hands everything
// else on to the host's resolvers, message for message.
type forwarder struct {
	n        *Network
	hosts    map[string][]netip.Addr
	upstream *upstream
	slots    chan struct{}
}

func newForwarder(n *Network) *forwarder {
	f := &forwarder{
		n:        n,
		hosts:    make(map[string][]netip.Addr, len(n.cfg.Hosts)+len(hostNames)),
		upstream: newUpstream(n),
		slots:    make(chan struct{}, n.cfg.MaxQueries),
	}
	if n.cfg.AllowHostLoopback {
		gws := []netip.Addr{n.cfg.Gateway4}
		if !n.cfg.NoIPv6 {
			gws = append(gws, n.cfg.Gateway6)
		}
		for _, name := range hostNames {
			f.hosts[name] = gws
		}
	}
	for name, addrs := range n.cfg.Hosts {
		f.hosts[strings.ToLower(strings.TrimSuffix(name, "."))] = addrs
	}
	return f
}

// query answers one datagram. Over MaxQueries at once it is dropped: the container asks again.
func (f *forwarder) query(key udpKey, msg []byte) {
	select {
	case f.slots <- struct{}{}:
	default:
		return
	}
	msg = append([]byte(nil), msg...)
	f.n.flows.Go(func() {
		defer func() { <-f.slots }()
		reply := f.answer(msg, false)
		if reply == nil {
			return
		}
		buf := f.n.udp.bufs.get()
		defer f.n.udp.bufs.put(buf)
		f.n.deliver(buf, key.remote, key.container, copy((*buf)[udpHeadroom:], reply))
	})
}

// serveTCP answers the queries of one connection, in their order.
func (f *forwarder) serveTCP(ep tcpip.Endpoint, wq *waiter.Queue) {
	conn := gonet.NewTCPConn(wq, ep)
	defer conn.Close()
	for f.n.ctx.Err() == nil {
		if err := conn.SetDeadline(time.Now().Add(dnsTCPIdle)); err != nil {
			return
		}
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		reply := f.answer(msg, true)
		if reply == nil {
			return
		}
		out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply)))
		if _, err := conn.Write(append(out, reply...)); err != nil {
			return
		}
	}
}

// answer gives the reply to a query, or nil for what is none.
func (f *forwarder) answer(msg []byte, tcp bool) []byte {
	if len(msg) < 12 || msg[2]&0x80 != 0 {
		return nil
	}
	q, end, ok := parseQuestion(msg)
	if !ok {
		return refusal(msg[:12], dns.RcodeFormatError)
	}
	if addrs, ok := f.hosts[q.name]; ok && q.class == dns.ClassINET {
		return f.answerHosts(msg, q, addrs)
	}
	return f.ask(msg, end, tcp)
}

func (f *forwarder) ask(msg []byte, end int, tcp bool) []byte {
	limit := dns.MaxMsgSize
	if !tcp {
		limit = udpSize(msg)
	}
	reply, err := f.upstream.exchange(f.n.ctx, msg, msg[12:end], tcp, limit)
	if err != nil {
		f.n.log.Debug("resolve", "err", err)
		return refusal(msg[:end], dns.RcodeServerFailure)
	}
	return reply
}

// answerHosts answers for a configured name: its addresses of the family asked for, or that there are none.
func (f *forwarder) answerHosts(msg []byte, q question, addrs []netip.Addr) []byte {
	var in dns.Msg
	if err := in.Unpack(msg); err != nil || len(in.Question) != 1 {
		return nil
	}
	var out dns.Msg
	out.SetReply(&in)
	out.Authoritative, out.RecursionAvailable = true, true
	hdr := dns.RR_Header{Name: in.Question[0].Name, Class: dns.ClassINET, Ttl: hostsTTL}
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4() && (q.typ == dns.TypeA || q.typ == dns.TypeANY):
			hdr.Rrtype = dns.TypeA
			out.Answer = append(out.Answer, &dns.A{Hdr: hdr, A: a.AsSlice()})
		case a.Is6() && (q.typ == dns.TypeAAAA || q.typ == dns.TypeANY):
			hdr.Rrtype = dns.TypeAAAA
			out.Answer = append(out.Answer, &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
		}
	}
	b, err := out.Pack()
	if err != nil {
		return refusal(msg[:12], dns.RcodeServerFailure)
	}
	return b
}

// question is the one question of a query.
type question struct {
	name       string // lower case, no final dot
	typ, class uint16
}

// parseQuestion reads the question of a query without the rest; end is where it ends. ok is false for a message
// that does not have exactly one, well formed and uncompressed.
func parseQuestion(msg []byte) (q question, end int, ok bool) {
	if len(msg) < 12 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return q, 0, false
	}
	var name []byte
	i := 12
	for {
		if i >= len(msg) {
			return q, 0, false
		}
		n := int(msg[i])
		i++
		if n == 0 {
			break
		}
		if n > 63 || i+n > len(msg) || len(name)+n > 254 {
			return q, 0, false
		}
		if len(name) > 0 {
			name = append(name, '.')
		}
		name = append(name, msg[i:i+n]...)
		i += n
	}
	if i+4 > len(msg) {
		return q, 0, false
	}
	q.name = strings.ToLower(string(name))
	q.typ, q.class = binary.BigEndian.Uint16(msg[i:]), binary.BigEndian.Uint16(msg[i+2:])
	return q, i + 4, true
}

// udpSize is the largest answer that the asker takes in a datagram: 512, or what its EDNS option says.
func udpSize(msg []byte) int {
	var m dns.Msg
	if binary.BigEndian.Uint16(msg[10:]) == 0 || m.Unpack(msg) != nil {
		return minUDPSize
	}
	if opt := m.IsEdns0(); opt != nil {
		return max(int(opt.UDPSize()), minUDPSize)
	}
	return minUDPSize
}

// refusal is an answer with an error code; msg is the header of the query, and the question if it was understood.
func refusal(msg []byte, code byte) []byte {
	out := append([]byte(nil), msg...)
	out[2] = out[2]&0x79 | 0x80 // QR beside opcode and RD
	out[3] = 0x80 | code
	clear(out[6:12])
	if len(out) == 12 {
		clear(out[4:6])
	}
	return out
}
