package dnsproxy

import (
	"sync"
	"time"
)

// Start is Resolve without waiting: done gets the reply, once, on whatever goroutine has it.
func (u *Upstream) Start(q *Query, done func(reply []byte)) {
	s, version := u.first()
	if kept := u.cache.get(q, version); kept != nil {
		done(q.fit(kept))
		return
	}
	if s == nil {
		u.slowly(q, done)
		return
	}
	w := &quick{u: u, q: q, version: version, done: done, sent: time.Now()}
	// Nothing looks at the ticket before it is there: the answer is held back by the lock.
	w.mu.Lock()
	defer w.mu.Unlock()
	u.waiting.add(w)
	t, err := s.send(q, w.take)
	if err != nil {
		u.waiting.remove(w)
		u.slowly(q, done)
		return
	}
	w.ticket = t
}

// quick is a query as nearly all of them go: one server is asked and answers. No goroutine waits for that, and no timer of its own.
type quick struct {
	u    *Upstream
	q    *Query
	done func([]byte)
	sent time.Time

	version uint64 // of the resolvers

	before, after *quick // in waiting, guarded by its lock

	mu     sync.Mutex // before that of waiting and of a port
	ticket *ticket
}

func (w *quick) take(a answer) {
	w.u.waiting.remove(w)
	if a.err != nil || a.msg[2]&2 != 0 || !settles(a.msg) {
		w.u.slowly(w.q, w.done)
		return
	}
	w.u.cache.put(w.q, a.msg, w.version)
	w.done(w.q.fit(a.msg))
}

// late gives up on the server and asks another.
func (w *quick) late() {
	w.mu.Lock()
	t := w.ticket
	w.mu.Unlock()
	if t != nil && t.cancel() {
		t.port.server.silentSince(time.Now())
		w.u.slowly(w.q, w.done)
	}
}

// waiting are the quick queries without an answer, oldest first, and one timer for all of them.
type waiting struct {
	mu           sync.Mutex
	oldest, last *quick
	timer        *time.Timer
	armed, ended bool
}

func (l *waiting) add(w *quick) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.before = l.last; l.last != nil {
		l.last.after = w
	} else {
		l.oldest = w
	}
	l.last = w
	if !l.armed && !l.ended {
		l.armed = true
		l.timer = time.AfterFunc(hedgeAfter, l.expire)
	}
}

func (l *waiting) remove(w *quick) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlink(w)
}

// unlink may be called again; l.mu is held.
func (l *waiting) unlink(w *quick) {
	if w.before == nil && l.oldest != w {
		return
	}
	if w.before != nil {
		w.before.after = w.after
	} else {
		l.oldest = w.after
	}
	if w.after != nil {
		w.after.before = w.before
	} else {
		l.last = w.before
	}
	w.before, w.after = nil, nil
}

// expire is the timer's: it ends the wait of those that have waited long enough, and sets the timer for the next.
func (l *waiting) expire() {
	var late []*quick
	l.mu.Lock()
	now := time.Now()
	for l.oldest != nil && now.Sub(l.oldest.sent) >= hedgeAfter {
		late = append(late, l.oldest)
		l.unlink(l.oldest)
	}
	l.armed = l.oldest != nil && !l.ended
	if l.armed {
		l.timer.Reset(l.oldest.sent.Add(hedgeAfter).Sub(now))
	}
	l.mu.Unlock()
	for _, w := range late {
		w.late()
	}
}

func (l *waiting) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.timer != nil {
		l.timer.Stop()
	}
}
