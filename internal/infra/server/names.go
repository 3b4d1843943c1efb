package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/slirp/dnsproxy"
)

const (
	// maxConns bounds the DNS connections at once.
	maxConns = 128
	dnsIdle  = 10 * time.Second
)

// zone are the names in one network.
type zone struct {
	subnets []netip.Prefix
	addrs   map[string][]netip.Addr
	names   map[netip.Addr][]string
}

// asker is a container as the resolver sees it: the networks that it is on, and who is asked for other names.
type asker struct {
	zones    []*zone
	internal bool // there are no other names
	upstream *dnsproxy.Upstream
}

// directory is all that the resolver knows. It is replaced whole.
type directory map[netip.Addr]*asker

// Addrs implements dnsproxy.Names.
func (a *asker) Addrs(name string) (addrs []netip.Addr, known bool) {
	for _, z := range a.zones {
		found, ok := z.addrs[name]
		addrs, known = append(addrs, found...), known || ok
	}
	// Who has an alias together with others gets his share of the callers.
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs, known
}

// Reverse implements dnsproxy.Names: addresses of the networks are nobody else's.
func (a *asker) Reverse(addr netip.Addr) (names []string, known bool) {
	for _, z := range a.zones {
		for _, p := range z.subnets {
			known = known || p.Contains(addr)
		}
		names = append(names, z.names[addr]...)
	}
	return names, known
}

// rename makes the directory anew, after any change; s.mu is held.
func (s *server) rename() {
	zones := map[string]*zone{}
	for id, n := range s.networks {
		z := &zone{subnets: []netip.Prefix{n.Subnet4}, addrs: map[string][]netip.Addr{}, names: map[netip.Addr][]string{}}
		if n.IPv6() {
			z.subnets = append(z.subnets, n.Subnet6)
		}
		zones[id] = z
	}
	dir := directory{}
	for _, c := range s.members {
		a := &asker{upstream: c.upstream, internal: c.outside() == nil}
		for _, on := range c.on {
			z := zones[on.network.ID]
			z.add(c, on)
			a.zones = append(a.zones, z)
			for _, p := range on.prefixes() {
				dir[p.Addr()] = a
			}
		}
	}
	s.directory.Store(&dir)
}

// add adds a container's names: its own, the beginning of its id, its aliases, and each with the network's name behind.
func (z *zone) add(c *member, on *place) {
	seen := map[string]bool{}
	names := append([]string{c.name, c.id[:12]}, on.endpoint.Aliases...)
	for _, name := range names {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		for _, p := range on.prefixes() {
			for _, full := range []string{name, name + "." + strings.ToLower(on.network.Name)} {
				z.addrs[full] = append(z.addrs[full], p.Addr())
			}
		}
	}
	for _, p := range on.prefixes() {
		z.names[p.Addr()] = append(z.names[p.Addr()], c.name)
	}
}

// serveNames answers on the resolver's address.
func (s *server) serveNames() error {
	at := netip.AddrPortFrom(network.Resolver, 53)
	var udp *net.UDPConn
	var tcp *net.TCPListener
	err := s.thread.do(func() (err error) {
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	go s.answerUDP(udp)
	go s.answerTCP(tcp)
	return nil
}

func (s *server) answerUDP(conn *net.UDPConn) {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // a shortage that passes
			continue
		}
		reply := func(msg []byte) {
			if msg != nil {
				_, _ = conn.WriteToUDPAddrPort(msg, from) // lost, as datagrams may be: the asker asks again
			}
		}
		a := (*s.directory.Load())[from.Addr()]
		if a == nil {
			continue // from no container
		}
		q, answer := dnsproxy.Parse(append([]byte(nil), buf[:n]...), false)
		if q != nil {
			answer = a.own(q)
		}
		if q == nil || answer != nil {
			reply(answer)
			continue
		}
		if release, ok := a.upstream.Acquire(); ok {
			a.upstream.Start(q, func(msg []byte) {
				release()
				reply(msg)
			})
		}
	}
}

// own answers what needs nobody else.
func (a *asker) own(q *dnsproxy.Query) []byte {
	if answer := q.Own(a); answer != nil {
		return answer
	}
	if a.internal {
		// Out of an internal network leads no way: there are no other names.
		return q.Refuse(dns.RcodeNameError)
	}
	return nil
}

func (s *server) answerTCP(l *net.TCPListener) {
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // EMFILE, or who called is gone again
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				s.serveConn(conn)
			}()
		default:
			conn.Close()
		}
	}
}

// serveConn answers the queries of one connection, in their order.
func (s *server) serveConn(conn *net.TCPConn) {
	defer conn.Close()
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	for {
		if err := conn.SetDeadline(time.Now().Add(dnsIdle)); err != nil {
			return
		}
		msg, err := dnsproxy.ReadTCP(conn)
		if err != nil {
			return
		}
		a := (*s.directory.Load())[from]
		if a == nil {
			return
		}
		q, answer := dnsproxy.Parse(msg, true)
		if q != nil {
			if answer = a.own(q); answer == nil {
				answer = a.ask(s, q)
			}
		}
		if answer == nil || dnsproxy.WriteTCP(conn, answer) != nil {
			return
		}
	}
}

// ask asks the resolvers, within the bounds.
func (a *asker) ask(s *server, q *dnsproxy.Query) []byte {
	release, ok := a.upstream.Acquire()
	if !ok {
		return nil
	}
	defer release()
	return a.upstream.Resolve(s.ctx, q)
}
