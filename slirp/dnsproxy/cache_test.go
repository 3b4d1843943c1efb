package dnsproxy

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/urun-dev/urun/slirp/dnsproxy/dnstest"
)

func TestTheSameQuestionIsAskedOnceInAMoment(t *testing.T) {
	var n atomic.Int64
	u := upstream(t, dnstest.Serve(t, address("192.0.2.1", &n)))
	start := time.Now()
	var ids [2]uint16
	for i := range 50 {
		m := ask(t, noNames, u, "a.example.", dns.TypeA) // each with an identifier of its own
		if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
			t.Fatal(m)
		}
		ids[i%2] = m.Id
	}
	if took := time.Since(start); n.Load() > 1+int64(took/keepFor) {
		t.Errorf("asked %d times in %v", n.Load(), took)
	}
	if ids[0] == ids[1] {
		t.Error("an answer has the identifier of another query")
	}
	asked := n.Load()
	ask(t, noNames, u, "A.example.", dns.TypeA) // the asker may check the case of letters
	ask(t, noNames, u, "a.example.", dns.TypeAAAA)
	if n.Load() != asked+2 {
		t.Errorf("of two other questions %d were asked", n.Load()-asked)
	}
	time.Sleep(keepFor)
	if ask(t, noNames, u, "a.example.", dns.TypeA); n.Load() != asked+3 {
		t.Error("an old answer was given")
	}
}

func TestOtherResolversMeanOtherAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var c cache
	q, answer := exampleAnswer(t, func(*dns.Msg) {})
	r := &resolvers{path: path}
	_, before := r.list()
	c.put(q, answer, before)
	if c.get(q, before) == nil {
		t.Fatal("not kept")
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.checked = time.Time{}
	_, after := r.list()
	if c.get(q, after) != nil {
		t.Error("the answer of another resolver")
	}
	c.put(q, answer, after)
	if c.get(q, after) == nil || c.get(q, before) != nil {
		t.Error("an answer is not kept with its resolvers")
	}
}

func TestWhatIsKeptHasABound(t *testing.T) {
	var c cache
	_, answer := exampleAnswer(t, func(*dns.Msg) {})
	for i := range 4 * keepBytes / len(answer) {
		raw, err := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		q, _ := Parse(raw, false)
		c.put(q, answer, 0)
	}
	bytes := 0
	for _, m := range []map[string]kept{c.now, c.older} {
		for q, k := range m {
			bytes += len(q) + len(k.answer)
		}
	}
	if bytes == 0 || bytes > 2*keepBytes {
		t.Errorf("%d bytes are kept", bytes)
	}
}

func TestWhichAnswersAreKept(t *testing.T) {
	soa := func(ttl uint32) *dns.SOA {
		return &dns.SOA{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl}, Ns: "ns.example.", Mbox: "m.example."}
	}
	for name, tt := range map[string]struct {
		change func(*dns.Msg)
		want   bool
	}{
		"an address":               {func(*dns.Msg) {}, true},
		"with an SOA besides":      {func(m *dns.Msg) { m.Ns = append(m.Ns, soa(60)) }, true},
		"that lives for no time":   {func(m *dns.Msg) { m.Answer[0].Header().Ttl = 0 }, false},
		"the authority's for none": {func(m *dns.Msg) { m.Ns = append(m.Ns, soa(0)) }, false},
		"cut":                      {func(m *dns.Msg) { m.Truncated = true }, false},
		"no such name":             {func(m *dns.Msg) { m.Rcode, m.Answer, m.Ns = dns.RcodeNameError, nil, []dns.RR{soa(60)} }, true},
		"no such name, without":    {func(m *dns.Msg) { m.Rcode, m.Answer = dns.RcodeNameError, nil }, false},
		"no such type, without":    {func(m *dns.Msg) { m.Answer = nil }, false},
		"a failure":                {func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, false},
		"refused":                  {func(m *dns.Msg) { m.Rcode, m.Answer = dns.RcodeRefused, nil }, false},
		"EDNS":                     {func(m *dns.Msg) { m.SetEdns0(1232, false) }, true},
	} {
		for _, compress := range []bool{false, true} {
			_, answer := exampleAnswer(t, func(m *dns.Msg) { tt.change(m); m.Compress = compress })
			if got := lasts(answer); got != tt.want {
				t.Errorf("%s, compressed %t: %t", name, compress, got)
			}
			for cut := headerSize; cut < len(answer); cut++ {
				if lasts(answer[:cut]) && name != "EDNS" { // whose record says nothing of lifetimes
					t.Errorf("%s, the first %d bytes are kept", name, cut)
				}
			}
		}
	}
}

// exampleAnswer is a query and an answer to it, with what change does.
func exampleAnswer(t *testing.T, change func(*dns.Msg)) (*Query, []byte) {
	t.Helper()
	in := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
	raw, err := in.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, _ := Parse(raw, false)
	out := new(dns.Msg).SetReply(in)
	out.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "www.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: []byte{192, 0, 2, 1}}}
	change(out)
	answer, err := out.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return q, answer
}
