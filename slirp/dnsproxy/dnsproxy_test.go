package dnsproxy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/slirp/dnsproxy/dnstest"
)

// address answers every question with one address and counts the questions.
func address(a string, count *atomic.Int64) dns.HandlerFunc {
	answer := dnstest.Addresses(a, 1)
	return func(w dns.ResponseWriter, r *dns.Msg) {
		count.Add(1)
		answer(w, r)
	}
}

func upstream(t testing.TB, servers ...netip.AddrPort) *Upstream {
	u := NewUpstream(Config{Servers: servers})
	t.Cleanup(u.Close)
	return u
}

func servers(r *resolvers) []netip.AddrPort {
	list, _ := r.list()
	return list
}

// ask asks for the address of a name.
func ask(t testing.TB, names Names, u *Upstream, name string, typ uint16) *dns.Msg {
	t.Helper()
	raw, err := new(dns.Msg).SetQuestion(name, typ).Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, reply := Parse(raw, false)
	if q == nil {
		t.Fatalf("query not understood: %x", reply)
	}
	var m dns.Msg
	if reply = q.Own(names); reply == nil {
		got := make(chan []byte, 1)
		u.Start(q, func(b []byte) { got <- b })
		reply = <-got
	}
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	return &m
}

func TestASilentServerIsAskedLastUntilItIsBack(t *testing.T) {
	var first, second atomic.Int64
	var alive atomic.Bool
	flaky := dnstest.Serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		if alive.Load() {
			address("192.0.2.1", &first)(w, r)
		}
	})
	u := upstream(t, flaky, dnstest.Serve(t, address("192.0.2.2", &second)))
	start := time.Now()
	ask(t, noNames, u, "a.example.", dns.TypeA)
	if d := time.Since(start); d < hedgeAfter || d > hedgeAfter+time.Second {
		t.Errorf("the first question took %v", d)
	}
	start = time.Now()
	for i := range 20 {
		ask(t, noNames, u, fmt.Sprintf("b%d.example.", i), dns.TypeA)
	}
	if d := time.Since(start); d > hedgeAfter {
		t.Errorf("20 questions past a silent server took %v", d)
	}
	alive.Store(true)
	for _, s := range u.servers {
		s.mu.Lock()
		s.retry = time.Time{}
		s.mu.Unlock()
	}
	for i, end := 0, time.Now().Add(10*time.Second); ; i++ {
		if got := ask(t, noNames, u, fmt.Sprintf("c%d.example.", i), dns.TypeA); strings.Contains(got.String(), "192.0.2.1") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the first server is back and not asked")
		}
	}
	if second.Load() < 21 {
		t.Errorf("the second server was asked %d times", second.Load())
	}
}

func TestRefusedAndFailingServersArePassedOver(t *testing.T) {
	closed := dnstest.Absent(t)
	refuses := dnstest.Serve(t, dnstest.Code(dns.RcodeRefused))
	var n atomic.Int64
	u := upstream(t, closed, refuses, dnstest.Serve(t, address("192.0.2.3", &n)))
	start := time.Now()
	if m := ask(t, noNames, u, "x.example.", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
	if d := time.Since(start); d > hedgeAfter {
		t.Errorf("took %v", d)
	}
	// The only server's refusal is what the asker gets.
	if m := ask(t, noNames, upstream(t, refuses), "x.example.", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("%v", m)
	}
	start = time.Now()
	if m := ask(t, noNames, upstream(t, closed), "x.example.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if d := time.Since(start); d > hedgeAfter {
		t.Errorf("a server that is not there took %v", d)
	}
}

func TestNamesOfNamedAddresses(t *testing.T) {
	names := tableNames{
		"db":   {netip.MustParseAddr("10.89.0.2"), netip.MustParseAddr("fd00::2")},
		"none": nil,
	}
	var n atomic.Int64
	u := upstream(t, dnstest.Serve(t, address("192.0.2.3", &n)))
	for _, tt := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"db.", dns.TypeA, "10.89.0.2"},
		{"DB.", dns.TypeAAAA, "fd00::2"},
		{"db.", dns.TypeMX, ""},
		{"none.", dns.TypeA, ""},
		{"2.0.89.10.in-addr.arpa.", dns.TypePTR, "db."},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "db."},
		{"else.", dns.TypeA, "192.0.2.3"},
	} {
		m := ask(t, names, u, tt.name, tt.typ)
		got := ""
		for _, rr := range m.Answer {
			got = strings.TrimPrefix(rr.String(), rr.Header().String())
		}
		if got != tt.want || m.Rcode != dns.RcodeSuccess {
			t.Errorf("%s %d: %q (%s), want %q", tt.name, tt.typ, got, dns.RcodeToString[m.Rcode], tt.want)
		}
	}
	if n.Load() != 1 {
		t.Errorf("the resolver was asked %d times, want once", n.Load())
	}
	if _, ok := reverseAddr("x.0.89.10.in-addr.arpa"); ok {
		t.Error("a name that is no address was taken for one")
	}
}

var noNames = Static{}

type tableNames map[string][]netip.Addr

func (n tableNames) Addrs(name string) ([]netip.Addr, bool) { a, ok := n[name]; return a, ok }

func (n tableNames) Reverse(a netip.Addr) (names []string, known bool) {
	for name, addrs := range n {
		for _, b := range addrs {
			if a == b {
				return []string{name}, true
			}
		}
	}
	return nil, false
}

// Names are bytes, of which only ASCII's letters have two cases (RFC 4343).
func TestNamesAreBytes(t *testing.T) {
	query := func(label string) []byte {
		b := append(make([]byte, headerSize), byte(len(label)))
		b[5] = 1
		return append(append(b, label...), 0, 0, byte(dns.TypeA), 0, dns.ClassINET)
	}
	answer := func(q []byte) []byte {
		b := slices.Clone(q)
		b[2] |= 0x80
		return b
	}
	for _, tt := range []struct {
		asked, answered string
		same            bool
	}{
		{"db", "DB", true},
		{"db", "da", false},
		{"\xff", "\xff", true},
		{"\xff", "\xfe", false}, // neither is UTF-8
		{"\xc3\x84", "\xc3\xa4", false},
		{"[", "{", false},
	} {
		q, _, ok := parseQuestion(query(tt.asked))
		if !ok || q.Name != tt.asked {
			t.Errorf("%q is read as %q, %v", tt.asked, q.Name, ok)
		}
		if got := answers(answer(query(tt.answered)), query(tt.asked)[headerSize:]); got != tt.same {
			t.Errorf("an answer to %q is one to %q: %v", tt.answered, tt.asked, got)
		}
	}
}

func TestSocketsAreClosed(t *testing.T) {
	var n atomic.Int64
	u := NewUpstream(Config{Servers: []netip.AddrPort{dnstest.Serve(t, address("192.0.2.1", &n)), dnstest.Deaf(t)}})
	before := descriptors(t)
	done := make(chan bool)
	for i := range 8 {
		go func() {
			for j := range 200 {
				ask(t, noNames, u, fmt.Sprintf("x%d-%d.example.", i, j), dns.TypeA)
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
	if open := descriptors(t) - before; open > 4 {
		t.Errorf("%d sockets are open after 1600 questions", open)
	}
	u.Close()
	for end := time.Now().Add(10 * time.Second); descriptors(t) > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors more than before", descriptors(t)-before)
		}
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("# comment\nsearch a b\nnameserver 127.0.0.53\nnameserver fe80::1%lo\noptions edns0\n")
	r := &resolvers{path: path}
	if got := fmt.Sprint(servers(r)); got != "[127.0.0.53:53 [fe80::1%lo]:53]" {
		t.Errorf("got %s", got)
	}
	write("nameserver 192.0.2.53\n")
	for end := time.Now().Add(10 * time.Second); fmt.Sprint(servers(r)) != "[192.0.2.53:53]"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new resolver is not asked")
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.checked = time.Time{}
	if got := fmt.Sprint(servers(r)); got != "[192.0.2.53:53]" {
		t.Errorf("without the file: %s", got)
	}
	if got := fmt.Sprint(servers(&resolvers{path: path})); got != "[127.0.0.1:53]" {
		t.Errorf("with no file at all: %s", got)
	}
}

// polls is a Watcher.
type polls struct{}

func (polls) Watch(fd int, ready func()) (func(), error) {
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				return
			default:
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if n, err := unix.Poll(fds, 20); n > 0 && err == nil {
					ready()
				}
			}
		}
	}()
	return sync.OnceFunc(func() { close(ended) }), nil
}

func TestSocketsWatchedBySomebodyElse(t *testing.T) {
	var n atomic.Int64
	before := descriptors(t)
	u := NewUpstream(Config{Servers: []netip.AddrPort{dnstest.Deaf(t), dnstest.Serve(t, address("192.0.2.1", &n))}, Watcher: polls{}})
	ask(t, noNames, u, "a.example.", dns.TypeA) // the first server is silent: later ones go to the other at once
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				if m := ask(t, noNames, u, fmt.Sprintf("x%d-%d.example.", i, j), dns.TypeA); len(m.Answer) != 1 {
					t.Errorf("%v", m)
				}
			}
		})
	}
	wg.Wait()
	absent := NewUpstream(Config{Servers: []netip.AddrPort{dnstest.Absent(t)}, Watcher: polls{}})
	if m := ask(t, noNames, absent, "x.example.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	absent.Close()
	u.Close()
	for end := time.Now().Add(30 * time.Second); descriptors(t) > before+3; time.Sleep(5 * time.Millisecond) { // the resolvers' own
		if time.Now().After(end) {
			t.Fatalf("%d descriptors more than before", descriptors(t)-before)
		}
	}
}
