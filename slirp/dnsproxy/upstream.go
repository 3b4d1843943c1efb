package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// hedgeAfter: a server that is silent for so long is no longer waited for alone.
	hedgeAfter = 800 * time.Millisecond
	// resendAfter: where no other server is left, a query is sent again, since a datagram may be lost.
	resendAfter = 1500 * time.Millisecond
	// giveUp, after hedgeAfter, is less than the 5 s after which stub resolvers ask again (resolv.conf(5), timeout).
	giveUp = 3600 * time.Millisecond
	// suspectFor: a server that was silent is asked last for so long, then tried beside another.
	suspectFor = 10 * time.Second
)

// Config says whom an Upstream asks.
type Config struct {
	// Servers are asked in this order; empty means those of ResolvConf.
	Servers []netip.AddrPort
	// ResolvConf is a file in the form of resolv.conf(5).
	ResolvConf string
	// MaxQueries bounds the queries at once; 0 means 512.
	MaxQueries int
	// Watcher, if there is one, watches the sockets; else a goroutine waits for each.
	Watcher Watcher
}

// Watcher is an event loop of somebody else's.
type Watcher interface {
	// Watch has ready called, on whatever thread, whenever there may be something to read from fd; sometimes for nothing. stop ends
	// that before fd is closed; a call that is under way may come after.
	Watch(fd int, ready func()) (stop func(), err error)
}

// Upstream asks resolvers. Its methods may be called concurrently.
type Upstream struct {
	conf    *resolvers
	watcher Watcher
	slots   chan struct{}
	bufs    sync.Pool // of *[dns.MaxMsgSize]byte
	waiting waiting
	cache   cache

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	life   sync.Mutex // innermost of the locks
	closed bool
	wg     sync.WaitGroup // readers of sockets, and queries that take longer

	mu      sync.Mutex // before that of a server
	servers map[netip.AddrPort]*server
}

// NewUpstream makes an Upstream. Nothing is opened before the first query.
func NewUpstream(cfg Config) *Upstream {
	if cfg.MaxQueries == 0 {
		cfg.MaxQueries = 512
	}
	u := &Upstream{
		bufs:    sync.Pool{New: func() any { return new([dns.MaxMsgSize]byte) }},
		watcher: cfg.Watcher,
		conf:    &resolvers{path: cfg.ResolvConf, fixed: cfg.Servers},
		slots:   make(chan struct{}, cfg.MaxQueries),
		servers: map[netip.AddrPort]*server{},
	}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u
}

// Acquire takes one of MaxQueries places; ok is false if there is none. release gives it back.
func (u *Upstream) Acquire() (release func(), ok bool) {
	select {
	case u.slots <- struct{}{}:
		return u.release, true
	default:
		return nil, false
	}
}

func (u *Upstream) release() { <-u.slots }

// Close closes all sockets and waits for what uses them; queries that wait fail.
func (u *Upstream) Close() {
	u.cancel()
	u.life.Lock()
	u.closed = true
	u.life.Unlock()
	u.waiting.stop()
	u.mu.Lock()
	servers := slices.Collect(maps.Values(u.servers))
	u.mu.Unlock()
	for _, s := range servers {
		s.close()
	}
	u.wg.Wait()
}

// start runs f in the background; false means that everything is being closed.
func (u *Upstream) start(f func()) bool {
	u.life.Lock()
	defer u.life.Unlock()
	if !u.closed {
		u.wg.Go(f)
	}
	return !u.closed
}

// Resolve asks the resolvers and gives the reply, which says "server failure" if none of them did better.
func (u *Upstream) Resolve(ctx context.Context, q *Query) []byte {
	_, version := u.conf.list()
	if kept := u.cache.get(q, version); kept != nil {
		return q.fit(kept)
	}
	reply, err := u.exchange(ctx, q)
	if err != nil {
		return q.Refuse(dns.RcodeServerFailure)
	}
	u.cache.put(q, reply, version)
	return q.fit(reply)
}

// slowly goes through all that may be tried.
func (u *Upstream) slowly(q *Query, done func([]byte)) {
	if !u.start(func() { done(u.Resolve(u.ctx, q)) }) {
		done(q.Refuse(dns.RcodeServerFailure))
	}
}

// first is the server to ask, if the first one is healthy and no other wants a probe, and the version of the list it is from.
func (u *Upstream) first() (*server, uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	addrs, version := u.conf.list()
	if len(u.servers) != len(addrs) {
		return nil, version // servers come or go
	}
	if s := u.servers[addrs[0]]; s != nil && !s.bad.Load() {
		return s, version
	}
	return nil, version
}

// order gives the servers as they are to be asked: suspect ones last. probe is a suspect one that is to be asked
// at once beside the first, if it is time for that.
func (u *Upstream) order() (list []*server, probe *server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	addrs, _ := u.conf.list()
	now := time.Now()
	var suspect []*server
	for _, a := range addrs {
		s := u.servers[a]
		if s == nil {
			s = &server{addr: a, u: u}
			u.servers[a] = s
		}
		switch s.state(now) {
		case healthy:
			list = append(list, s)
		case worthAProbe:
			probe = s
			fallthrough
		case silent:
			suspect = append(suspect, s)
		}
	}
	u.forget(addrs)
	if len(list) == 0 {
		probe = nil // it is asked first anyhow
	}
	return append(list, suspect...), probe
}

// forget closes servers that are no longer configured; u.mu is held.
func (u *Upstream) forget(current []netip.AddrPort) {
	if len(u.servers) <= len(current) {
		return
	}
	for a, s := range u.servers {
		used := false
		for _, c := range current {
			used = used || a == c
		}
		if !used {
			s.close()
			delete(u.servers, a)
		}
	}
}

// answer is what came of asking one server.
type answer struct {
	from *server
	msg  []byte
	err  error
}

// exchange is one query on its way through the servers.
func (u *Upstream) exchange(ctx context.Context, q *Query) ([]byte, error) {
	list, probe := u.order()
	x := &exchange{q: q, answers: make(chan answer, len(list)+3)}
	defer x.end()
	if probe != nil {
		x.ask(probe)
	}
	// Once through the list, and the first again.
	todo := append(list, list[0])
	x.ask(todo[0])
	todo = todo[1:]
	deadline := time.NewTimer(giveUp)
	defer deadline.Stop()
	next := time.NewTimer(wait(todo))
	defer next.Stop()
	for {
		advance := false
		select {
		case a := <-x.answers:
			if done, err := x.take(ctx, a); done {
				return x.best, err
			}
			// Whoever fails at once is not worth a wait for the next, nor, alone, a second try.
			advance = len(todo) > 1
			if x.waiting == 0 && !advance {
				return x.result()
			}
		case <-next.C:
			x.suspect()
			advance = len(todo) > 0
		case <-deadline.C:
			x.suspect()
			return x.result()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if advance {
			x.ask(todo[0])
			todo = todo[1:]
			next.Reset(wait(todo))
		}
	}
}

// wait is how long the query sent last is waited for alone; todo are those still to be asked.
func wait(todo []*server) time.Duration {
	switch len(todo) {
	case 0:
		return giveUp
	case 1:
		return resendAfter
	}
	return hedgeAfter
}

type exchange struct {
	q       *Query
	answers chan answer
	asked   []*ticket
	waiting int    // of asked, those that said nothing yet
	best    []byte // an answer that settles nothing, better than none
	errs    []error
}

// ask sends the query to one server.
func (x *exchange) ask(s *server) {
	t, err := s.send(x.q, func(a answer) { x.answers <- a })
	x.waiting++
	if err != nil {
		x.answers <- answer{from: s, err: err}
		return
	}
	x.asked = append(x.asked, t)
}

// take takes an answer; done tells that it settles the question.
func (x *exchange) take(ctx context.Context, a answer) (done bool, err error) {
	x.waiting--
	if a.err != nil {
		x.errs = append(x.errs, fmt.Errorf("ask resolver %s: %w", a.from.addr, a.err))
		return false, nil
	}
	if a.msg[2]&2 != 0 {
		// Truncated. The asker's own limit may be higher than what came through; and who takes no more than this
		// gets as many records as fit.
		if full, terr := askTCP(ctx, a.from.addr, x.q); terr == nil {
			a.msg = full
		}
	}
	if x.best == nil || settles(a.msg) {
		x.best = a.msg
	}
	return settles(a.msg), nil
}

func (x *exchange) result() ([]byte, error) {
	if x.best != nil {
		return x.best, nil
	}
	return nil, errors.Join(append(x.errs, errSilent)...)
}

var errSilent = errors.New("no resolver answered")

// suspect marks the servers that are silent still.
func (x *exchange) suspect() {
	now := time.Now()
	for _, t := range x.asked {
		if t.pending() {
			t.port.server.silentSince(now)
		}
	}
}

func (x *exchange) end() {
	for _, t := range x.asked {
		t.cancel()
	}
}
