package dnsproxy

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// namesTTL is how long, in seconds, an asker may keep an answer from Names, which may change at any time.
const namesTTL = 5

// Names are the names that are known here.
type Names interface {
	// Addrs gives the addresses of a name, which is in lower case and has no final dot. known tells that the name
	// is one of these, with addresses or without.
	Addrs(name string) (addrs []netip.Addr, known bool)
	// Reverse gives the names of an address. known tells that nobody else is to be asked.
	Reverse(addr netip.Addr) (names []string, known bool)
}

// Static are names that do not change. The keys are in lower case, without a final dot.
type Static map[string][]netip.Addr

// Addrs implements Names.
func (s Static) Addrs(name string) ([]netip.Addr, bool) {
	addrs, ok := s[name]
	return addrs, ok
}

// Reverse implements Names. Addresses of static names may be anybody's: the resolvers know their names.
func (s Static) Reverse(netip.Addr) ([]string, bool) { return nil, false }

// Query is a message that was understood.
type Query struct {
	Question
	msg []byte
	end int // of the question
	// TCP tells that the answer goes over a connection, where its length has no limit.
	TCP bool
}

// Parse reads a message. For one that is no query both results are nil; for one that cannot be understood, reply is
// what to say to that. The query keeps msg.
func Parse(msg []byte, tcp bool) (q *Query, reply []byte) {
	if !isQuery(msg) {
		return nil, nil
	}
	question, end, ok := parseQuestion(msg)
	if !ok {
		return nil, refusal(msg[:headerSize], dns.RcodeFormatError)
	}
	return &Query{Question: question, msg: msg, end: end, TCP: tcp}, nil
}

// limit is the largest answer that the asker takes.
func (q *Query) limit() int {
	if q.TCP {
		return dns.MaxMsgSize
	}
	return udpSize(q.msg, q.end)
}

// fit cuts a reply down to what the asker takes.
func (q *Query) fit(reply []byte) []byte { return truncate(reply, len(q.wire()), q.limit()) }

// wire is the question as it is in the message.
func (q *Query) wire() []byte { return q.msg[headerSize:q.end] }

// Refuse gives an answer with an error code, such as dns.RcodeNameError.
func (q *Query) Refuse(code byte) []byte { return refusal(q.msg[:q.end], code) }

// Own answers a query from names alone; nil means that they do not know it.
func (q *Query) Own(names Names) []byte {
	if q.Class != dns.ClassINET {
		return nil
	}
	if addrs, known := names.Addrs(q.Name); known {
		return q.addresses(addrs)
	}
	if q.Type != dns.TypePTR && q.Type != dns.TypeANY {
		return nil
	}
	addr, ok := reverseAddr(q.Name)
	if !ok {
		return nil
	}
	ptr, known := names.Reverse(addr)
	if !known {
		return nil
	}
	return q.pointers(ptr)
}

// addresses answers with those of the family asked for, or that there are none.
func (q *Query) addresses(addrs []netip.Addr) []byte {
	return q.reply(dns.RcodeSuccess, func(hdr dns.RR_Header, add func(dns.RR)) {
		for _, a := range addrs {
			switch a = a.Unmap(); {
			case a.Is4() && (q.Type == dns.TypeA || q.Type == dns.TypeANY):
				hdr.Rrtype = dns.TypeA
				add(&dns.A{Hdr: hdr, A: a.AsSlice()})
			case a.Is6() && (q.Type == dns.TypeAAAA || q.Type == dns.TypeANY):
				hdr.Rrtype = dns.TypeAAAA
				add(&dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
			}
		}
	})
}

// pointers answers with the names of an address.
func (q *Query) pointers(names []string) []byte {
	code := dns.RcodeSuccess
	if len(names) == 0 {
		code = dns.RcodeNameError
	}
	return q.reply(code, func(hdr dns.RR_Header, add func(dns.RR)) {
		for _, name := range names {
			hdr.Rrtype = dns.TypePTR
			add(&dns.PTR{Hdr: hdr, Ptr: dns.Fqdn(name)})
		}
	})
}

func (q *Query) reply(code int, fill func(hdr dns.RR_Header, add func(dns.RR))) []byte {
	var in dns.Msg
	if err := in.Unpack(q.msg); err != nil || len(in.Question) != 1 {
		return q.Refuse(dns.RcodeFormatError)
	}
	var out dns.Msg
	out.SetRcode(&in, code)
	out.Authoritative, out.RecursionAvailable = true, true
	if opt := in.IsEdns0(); opt != nil {
		out.SetEdns0(maxEDNS, false)
	}
	fill(dns.RR_Header{Name: in.Question[0].Name, Class: dns.ClassINET, Ttl: namesTTL}, func(rr dns.RR) {
		out.Answer = append(out.Answer, rr)
	})
	out.Truncate(q.limit())
	b, err := out.Pack()
	if err != nil {
		return q.Refuse(dns.RcodeServerFailure)
	}
	return b
}

// maxEDNS is the size of datagrams that we say to take: RFC 9715's, which passes everywhere in one piece.
const maxEDNS = 1232

// reverseAddr reads the name of an address below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
		b.WriteByte(rest[i])
		if n := (62 - i) / 2; n%4 == 3 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// Answer gives the reply to a query: from names, else from the resolvers. It is nil where up has too many queries
// already. It waits for as long as the resolvers may take.
func Answer(ctx context.Context, q *Query, names Names, up *Upstream) []byte {
	if reply := q.Own(names); reply != nil {
		return reply
	}
	release, ok := up.Acquire()
	if !ok {
		return nil
	}
	defer release()
	return up.Resolve(ctx, q)
}
