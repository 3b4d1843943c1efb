package fuseunion

import (
	"sync"
	"sync/atomic"
	"time"
)

// The requests of a program that waits for each answer are best answered by one loop. Where two wait for them
// the kernel wakes the two by turns, so that each finds the caches of another CPU, and where as many are in system
// calls as the Go scheduler has processors its monitor takes these back every 20 us: a fifth to a third of all CPU time.
// So there is one, and others help it as long as requests have to wait: behind each other, or behind one that takes long.
const (
	// A read of the device that took no longer found a request that had been waiting.
	foundWaiting = 3 * time.Microsecond
	helpAfter    = 16 // requests in a row that a loop found waiting, until another one helps
	endAfter     = 16 // requests in a row that it waited for, until one of several ends
	// A loop that is in one request for so long is replaced meanwhile; it is looked at as often.
	takesLong = 2 * time.Millisecond
	// Without requests for so long nobody looks.
	watchLasts = 25 * takesLong
)

// server is the loops that answer the requests of a mount.
type server struct {
	protocol
	fd      int
	stopped atomic.Bool
	quiesce []func() // end what writes to the device besides the loops

	wg     sync.WaitGroup
	epoch  time.Time
	most   int32
	want   atomic.Int32 // loops that there should be: 1 to most
	active atomic.Int32 // loops that are not in a request that takes long
	asleep atomic.Bool  // watch waits for wake
	wake   chan struct{}
	ended  chan struct{}

	mu    sync.Mutex
	loops map[*loopState]struct{}
	errs  []error
}

// loopState is what is known of a loop.
type loopState struct {
	found, awaited int          // requests in a row
	began          atomic.Int64 // when it began its last request, by server.now
	busy           atomic.Bool  // it is in that
	replaced       atomic.Bool  // another has taken its place for the time of it
}

func newServer(fd int, p protocol, most int) *server {
	s := &server{
		protocol: p, fd: fd, most: int32(most), epoch: time.Now(),
		loops: map[*loopState]struct{}{}, wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	s.want.Store(1)
	return s
}

// now is the time since the server was started.
func (s *server) now() time.Duration { return time.Since(s.epoch) }

// run answers requests until all loops have ended.
func (s *server) run() {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watch()
	}()
	s.start()
	s.wg.Wait()
	close(s.ended)
	<-watched
}

// start starts a loop.
func (s *server) start() {
	s.active.Add(1)
	s.wg.Go(func() {
		if err := s.loop(); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.errs = append(s.errs, err)
		}
	})
}

func (s *server) enter() *loopState {
	l := &loopState{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loops[l] = struct{}{}
	return l
}

func (s *server) exit(l *loopState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.loops, l)
}

// begin is called by a loop that has read a request, after it has waited for it.
func (s *server) begin(l *loopState, now, waited time.Duration) {
	l.began.Store(int64(now))
	l.busy.Store(true)
	if s.asleep.Load() && s.asleep.Swap(false) {
		s.wake <- struct{}{}
	}
	if waited > foundWaiting {
		l.found = 0
		if l.awaited++; l.awaited == endAfter {
			l.awaited = 0
			s.fewer()
		}
		return
	}
	l.awaited = 0
	if l.found++; l.found == helpAfter {
		l.found = 0
		s.more()
	}
}

// done is called by it when the request is answered.
func (s *server) done(l *loopState) {
	l.busy.Store(false)
	if l.replaced.Load() && l.replaced.Swap(false) {
		s.active.Add(1)
	}
}

// more starts another loop, if there may be more.
func (s *server) more() {
	for {
		w := s.want.Load()
		if w >= s.most {
			return
		}
		if s.want.CompareAndSwap(w, w+1) {
			s.start()
			return
		}
	}
}

// fewer has a loop end, if there are several: the next one to look.
func (s *server) fewer() {
	for {
		w := s.want.Load()
		if w <= 1 || s.want.CompareAndSwap(w, w-1) {
			return
		}
	}
}

// surplus tells a loop that there are enough others.
func (s *server) surplus() bool {
	if s.active.Add(-1) >= s.want.Load() {
		return true
	}
	s.active.Add(1)
	return false
}

// enterSlow is called by a loop before something that takes long for certain. Another loop
// takes its place until the returned function is called, so that the requests of
// others do not wait.
func (s *server) enterSlow() (leave func()) {
	if s.active.Add(-1) < s.want.Load() {
		s.start()
	}
	return func() { s.active.Add(1) }
}

// watch replaces loops that are in a request that happens to take long: the disk is slow,
// or has too much to write. It looks only as long as there are requests.
func (s *server) watch() {
	tick := time.NewTicker(takesLong)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		if s.look(s.now()) {
			continue
		}
		s.asleep.Store(true)
		if s.look(s.now()) && s.asleep.Swap(false) {
			continue
		}
		tick.Stop()
		select {
		case <-s.ended:
			return
		case <-s.wake:
		}
		tick.Reset(takesLong)
	}
}

// look tells whether there were requests of late.
func (s *server) look(now time.Duration) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.loops {
		began, busy := time.Duration(l.began.Load()), l.busy.Load()
		if l.replaced.Load() {
			continue
		}
		any = any || busy || began > 0 && now-began < watchLasts
		if !busy || now-began < takesLong {
			continue
		}
		l.replaced.Store(true)
		if s.active.Add(-1) < s.want.Load() {
			s.start()
		}
	}
	return any
}
