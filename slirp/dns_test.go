package slirp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/urun-dev/urun/slirp/dnsproxy/dnstest"
)

// ask sends a query from inside.
func (s *space) ask(t testing.TB, network, server string, q *dns.Msg) (*dns.Msg, error) {
	t.Helper()
	conn, err := s.dial(network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn, UDPSize: 65535}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	r, err := c.ReadMsg()
	if err == nil && r.Id != q.Id {
		return nil, fmt.Errorf("id %d for %d", r.Id, q.Id)
	}
	return r, err
}

func queryA(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func TestDNS(t *testing.T) { withEachDriver(t, dnsAnswers) }

func dnsAnswers(t *testing.T, newSpace spaceMaker) {
	up := dnstest.Serve(t, dnstest.Addresses("192.0.2.1", 1))
	s := newSpace(t, Config{
		AllowHostLoopback: true,
		Resolvers:         []netip.AddrPort{up},
		Hosts:             map[string][]netip.Addr{"Web.": {netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("2001:db8::9")}},
	})
	for _, tt := range []struct {
		name string
		typ  uint16
		want []string
	}{
		{"example.org.", dns.TypeA, []string{"192.0.2.1"}},
		{"ExAmPlE.org.", dns.TypeA, []string{"192.0.2.1"}},
		{"web.", dns.TypeA, []string{"10.9.9.9"}},
		{"WEB.", dns.TypeAAAA, []string{"2001:db8::9"}},
		{"web.", dns.TypeMX, nil},
		{"host.containers.internal.", dns.TypeA, []string{"10.0.2.2"}},
		{"host.docker.internal.", dns.TypeAAAA, []string{"fd75:7275:6e00::2"}},
	} {
		for _, network := range []string{"udp", "tcp"} {
			for _, server := range []string{"10.0.2.3:53", "[fd75:7275:6e00::3]:53"} {
				r, err := s.ask(t, network, server, new(dns.Msg).SetQuestion(tt.name, tt.typ))
				if err != nil {
					t.Errorf("%s %s of %s: %v", network, tt.name, server, err)
					continue
				}
				var got []string
				for _, rr := range r.Answer {
					switch rr := rr.(type) {
					case *dns.A:
						got = append(got, rr.A.String())
					case *dns.AAAA:
						got = append(got, rr.AAAA.String())
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(tt.want) || r.Rcode != dns.RcodeSuccess {
					t.Errorf("%s %s %d of %s: %v, want %v", network, tt.name, tt.typ, server, got, tt.want)
				}
			}
		}
	}
}

func TestHostNamesNeedAllowHostLoopback(t *testing.T) {
	withEachDriver(t, hostNamesNeedAllowHostLoopback)
}

func hostNamesNeedAllowHostLoopback(t *testing.T, newSpace spaceMaker) {
	up := dnstest.Serve(t, dnstest.Code(dns.RcodeNameError))
	s := newSpace(t, Config{Resolvers: []netip.AddrPort{up}})
	r, err := s.ask(t, "udp", "10.0.2.3:53", queryA("host.containers.internal."))
	if err != nil || r.Rcode != dns.RcodeNameError {
		t.Errorf("%v, %v", r, err)
	}
}

func TestDNSFailsOverWithinASecond(t *testing.T) { withEachDriver(t, dnsFailsOverWithinASecond) }

func dnsFailsOverWithinASecond(t *testing.T, newSpace spaceMaker) {
	up := dnstest.Serve(t, dnstest.Addresses("192.0.2.1", 1))
	servfail := dnstest.Serve(t, dnstest.Code(dns.RcodeServerFailure))
	for name, first := range map[string]netip.AddrPort{"silent": dnstest.Deaf(t), "failing": servfail, "absent": dnstest.Absent(t)} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t, Config{Resolvers: []netip.AddrPort{first, up}})
			start := time.Now()
			r, err := s.ask(t, "udp", "10.0.2.3:53", queryA("example.org."))
			if err != nil || len(r.Answer) != 1 {
				t.Fatalf("%v, %v", r, err)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestDNSWithoutResolversFails(t *testing.T) { withEachDriver(t, dnsWithoutResolversFails) }

func dnsWithoutResolversFails(t *testing.T, newSpace spaceMaker) {
	s := newSpace(t, Config{Resolvers: []netip.AddrPort{dnstest.Deaf(t)}})
	r, err := s.ask(t, "udp", "10.0.2.3:53", queryA("example.org."))
	if err != nil || r.Rcode != dns.RcodeServerFailure || len(r.Question) != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestDNSTruncation(t *testing.T) { withEachDriver(t, dnsTruncation) }

func dnsTruncation(t *testing.T, newSpace spaceMaker) {
	up := dnstest.Serve(t, dnstest.Addresses("192.0.2.1", 100))
	s := newSpace(t, Config{Resolvers: []netip.AddrPort{up}})
	ask := func(network string, edns uint16) *dns.Msg {
		q := queryA("many.example.")
		if edns != 0 {
			q.SetEdns0(edns, false)
		}
		r, err := s.ask(t, network, "10.0.2.3:53", q)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := ask("udp", 0)
	r.Compress = true // as it came
	if !r.Truncated || len(r.Answer) == 0 || r.Len() > 512 {
		t.Errorf("without EDNS: truncated %v, %d answers, %d bytes: want what fits", r.Truncated, len(r.Answer), r.Len())
	}
	if r := ask("udp", 4096); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("with room for 4096 bytes: truncated %v, %d answers", r.Truncated, len(r.Answer))
	}
	if r := ask("tcp", 0); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("over TCP: truncated %v, %d answers", r.Truncated, len(r.Answer))
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) { withEachDriver(t, forgedAnswersAreIgnored) }

func forgedAnswersAreIgnored(t *testing.T, newSpace spaceMaker) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 1500)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dns.Msg
		if q.Unpack(buf[:n]) != nil {
			return
		}
		send := func(id uint16, name string) {
			m := new(dns.Msg).SetReply(&q)
			m.Id, m.Question[0].Name = id, name
			b, _ := m.Pack()
			pc.WriteTo(b, from)
		}
		send(q.Id+1, "example.org.")
		send(q.Id, "other.org.")
		send(q.Id, "EXAMPLE.org.")
	}()
	s := newSpace(t, Config{Resolvers: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}})
	r, err := s.ask(t, "udp", "10.0.2.3:53", queryA("example.org."))
	if err != nil || r.Question[0].Name != "EXAMPLE.org." {
		t.Errorf("%v, %v", r, err)
	}
}

func TestQueriesAreBounded(t *testing.T) { withEachDriver(t, queriesAreBounded) }

func queriesAreBounded(t *testing.T, newSpace spaceMaker) {
	var most, now atomic.Int64
	up := dnstest.Serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(100 * time.Millisecond)
		now.Add(-1)
		w.WriteMsg(new(dns.Msg).SetReply(r))
	})
	s := newSpace(t, Config{Resolvers: []netip.AddrPort{up}, MaxQueries: 8})
	conn, err := s.dial("udp", "10.0.2.3:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, err := queryA("example.org.").Pack()
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	if most.Load() != 8 {
		t.Errorf("%d queries at once, want 8", most.Load())
	}
}
