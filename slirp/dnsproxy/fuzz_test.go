package dnsproxy

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuery takes what a container sends. Whatever it is, an answer is one to it, and fits.
func FuzzQuery(f *testing.F) {
	add := func(m *dns.Msg) {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(new(dns.Msg).SetQuestion("db.", dns.TypeA))
	add(new(dns.Msg).SetQuestion("2.0.89.10.in-addr.arpa.", dns.TypePTR))
	add(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeAAAA).SetEdns0(4096, true))
	names := tableNames{"db": {netip.MustParseAddr("10.89.0.2"), netip.MustParseAddr("fd00::2")}}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tcp := range []bool{false, true} {
			q, reply := Parse(b, tcp)
			if q == nil {
				if reply != nil && (len(reply) != headerSize || [2]byte(reply) != [2]byte(b)) {
					t.Fatalf("reply %x to %x", reply, b)
				}
				continue
			}
			if q.end < headerSize+5 || q.end > len(b) || len(q.Name) > maxName || q.limit() < minUDPSize {
				t.Fatalf("question ends at %d of %d, name of %d, limit %d", q.end, len(b), len(q.Name), q.limit())
			}
			for _, reply := range [][]byte{q.Own(names), q.Refuse(dns.RcodeServerFailure)} {
				if reply != nil && (!answers(reply, q.wire()) && reply[3]&15 == 0 || [2]byte(reply) != [2]byte(b) || len(reply) > q.limit()) {
					t.Fatalf("reply %x to %x", reply, b)
				}
			}
		}
	})
}

// FuzzAnswer takes what a resolver sends to a question.
func FuzzAnswer(f *testing.F) {
	raw, err := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	reply := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA))
	for range 40 {
		reply.Answer = append(reply.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 1}})
	}
	b, err := reply.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		q, _ := Parse(raw, false)
		if !answers(b, q.wire()) {
			return
		}
		settles(b)
		whole := append([]byte(nil), b...)
		if out := truncate(whole, len(q.wire()), minUDPSize); len(b) >= q.end && len(out) > minUDPSize {
			t.Fatalf("%d bytes of %d are left", len(out), len(b))
		}
	})
}
