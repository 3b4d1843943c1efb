package slirp

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// relay moves bytes between pairs of kernel sockets. It has its own event loops rather than goroutines on the runtime's poller: a
// round trip is then one epoll_wait, one read and one write in each direction, with no scheduling in between, and an
// idle connection costs two table entries.
type relay struct {
	workers []*worker
	next    atomic.Uint32
	log     *slog.Logger
	wg      sync.WaitGroup
}

// worker is one event loop: an epoll instance and the flows that belong to it. A flow is only touched by its worker once it
// has been added.
type worker struct {
	r      *relay
	epoll  int
	wake   int // eventfd
	pipes  pipePool
	buf    []byte
	queued []*kflow // those that have used up their turn

	mu     sync.Mutex
	slots  []pollable
	free   []uint32
	closed bool
}

// pollable is what a worker's epoll instance watches: one end of a flow, or a connect in progress.
type pollable interface {
	// ready is called with the epoll events of one of its descriptors.
	ready(w *worker, which uint32, events uint32)
	// end closes it at once.
	end(w *worker)
}

// maxWorkers: more would only fight for the CPU with those who send and receive.
const maxWorkers = 4

func newRelay(log *slog.Logger) (*relay, error) {
	r := &relay{log: log}
	for range max(1, min(runtime.NumCPU(), maxWorkers)) {
		w, err := newWorker(r)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.workers = append(r.workers, w)
		r.wg.Go(w.loop)
	}
	return r, nil
}

func newWorker(r *relay) (*worker, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make eventfd: %w", err), unix.Close(ep))
	}
	w := &worker{r: r, epoll: ep, wake: wake, buf: make([]byte, copyBuffer)}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch eventfd: %w", err), unix.Close(ep), unix.Close(wake))
	}
	return w, nil
}

// pick gives the worker of the next flow.
func (r *relay) pick() *worker {
	return r.workers[int(r.next.Add(1))%len(r.workers)]
}

// idlest gives the worker with the fewest flows that move much.
func (r *relay) idlest() *worker {
	best := r.workers[0]
	for _, w := range r.workers[1:] {
		if w.pipes.used.Load() < best.pipes.used.Load() {
			best = w
		}
	}
	return best
}

// close ends all flows and waits for the workers.
func (r *relay) close() error {
	var errs []error
	for _, w := range r.workers {
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		if _, err := unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			errs = append(errs, fmt.Errorf("wake relay: %w", err))
		}
	}
	r.wg.Wait()
	return errors.Join(errs...)
}

// add gives p a slot, under which its descriptors are watched; false if the worker has been closed.
func (w *worker) add(p pollable) (slot uint32, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, false
	}
	if n := len(w.free); n > 0 {
		slot = w.free[n-1]
		w.free = w.free[:n-1]
		w.slots[slot] = p
		return slot, true
	}
	w.slots = append(w.slots, p)
	return uint32(len(w.slots) - 1), true
}

func (w *worker) remove(slot uint32) {
	w.mu.Lock()
	w.slots[slot] = nil
	w.free = append(w.free, slot)
	w.mu.Unlock()
}

func (w *worker) at(slot uint32) pollable {
	w.mu.Lock()
	defer w.mu.Unlock()
	if int(slot) >= len(w.slots) {
		return nil
	}
	return w.slots[slot]
}

// watch reports all that happens to fd, once for each change (edge triggered): what is left over is the flow's to remember.
func (w *worker) watch(fd int, slot, which uint32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(slot), Pad: int32(which)}
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &ev)
}

func (w *worker) loop() {
	defer w.shut()
	events := make([]unix.EpollEvent, 128)
	for {
		timeout := -1
		if len(w.queued) > 0 {
			timeout = 0
		}
		n, err := unix.EpollWait(w.epoll, events, timeout)
		if err != nil && err != unix.EINTR {
			w.r.log.Error("relay: epoll_wait", "err", err)
			return
		}
		for _, ev := range events[:max(0, n)] {
			if ev.Fd < 0 {
				return // woken to end
			}
			if p := w.at(uint32(ev.Fd)); p != nil {
				p.ready(w, uint32(ev.Pad), ev.Events)
			}
		}
		turn := w.queued
		w.queued = nil
		for _, f := range turn {
			f.queued = false
			f.pump(w)
		}
	}
}

func (w *worker) shut() {
	w.mu.Lock()
	w.closed = true
	slots := w.slots
	w.mu.Unlock()
	for _, p := range slots {
		if p != nil {
			p.end(w)
		}
	}
	w.pipes.close()
	// Nobody could do anything about a failure here, and nothing else holds them.
	_, _ = unix.Close(w.epoll), unix.Close(w.wake)
}
