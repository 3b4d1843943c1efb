package slirp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
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
	// keepP: a worker may wait without the scheduler's knowledge (worker.wait).
	keepP bool
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
	young  []*kflow // those that settle has not seen
	busy   bool     // the last wait was a short one

	mu     sync.Mutex
	slots  []slot
	free   []uint32
	closed bool
}

// slot is a place in a worker's table. What is reported of a descriptor carries its generation: of one that was closed a moment ago
// there may be a report still, and the place may be another's already.
type slot struct {
	p          pollable
	generation uint32
}

// handle names a place of one generation.
type handle struct{ slot, generation uint32 }

// pollable is what a worker's epoll instance watches: one end of a flow, or a connect in progress.
type pollable interface {
	// ready is called with the epoll events of one of its descriptors.
	ready(w *worker, which uint32, events uint32)
	// end closes it at once.
	end(w *worker)
}

// maxWorkers: more would only fight for the CPU with those who send and receive.
const maxWorkers = 4

func workerCount() int { return max(1, min(runtime.NumCPU(), maxWorkers)) }

// WantedProcs is what GOMAXPROCS should be, before UseKernel, in a process that serves a Network with the given driver and little else. The event loops of
// DriverKernel keep a place each while they are busy, as threads of a program in C would, if that leaves places for all else. With the default they do
// without, and each of their waits costs two or three changes of threads. With DriverNetstack a packet goes through three goroutines, which wake a thread each where
// there are places for all; those who send and receive have the rest of the CPUs.
func WantedProcs(driver string) int {
	if driver == DriverKernel {
		return runtime.NumCPU() + workerCount()
	}
	return max(1, runtime.NumCPU()/2)
}

func newRelay(log *slog.Logger) (*relay, error) {
	n := workerCount()
	r := &relay{log: log, keepP: runtime.GOMAXPROCS(0) > n}
	for range n {
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

// add gives p a place, under which its descriptors are watched; false if the worker has been closed.
func (w *worker) add(p pollable) (h handle, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return h, false
	}
	n := len(w.free)
	if n == 0 {
		w.slots = append(w.slots, slot{p: p})
		return handle{slot: uint32(len(w.slots) - 1)}, true
	}
	i := w.free[n-1]
	w.free = w.free[:n-1]
	w.slots[i].p = p
	return handle{i, w.slots[i].generation}, true
}

func (w *worker) remove(h handle) {
	w.mu.Lock()
	w.slots[h.slot] = slot{generation: (h.generation + 1) & generations}
	w.free = append(w.free, h.slot)
	w.mu.Unlock()
}

func (w *worker) at(h handle) pollable {
	w.mu.Lock()
	defer w.mu.Unlock()
	if int(h.slot) >= len(w.slots) || w.slots[h.slot].generation != h.generation {
		return nil
	}
	return w.slots[h.slot].p
}

// What is reported of a socket, once for each change (edge triggered): what is left over is the flow's to remember.
const (
	reading = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET
	writing = unix.EPOLLOUT
)

// generations is their mask: what fits beside which.
const generations = 1<<31 - 1

// event is what the kernel keeps: Fd and Pad are together the 64 bits that it hands back.
func (h handle) event(events, which uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events, Fd: int32(h.slot), Pad: int32(h.generation<<1 | which)}
}

// watch reports what happens to fd.
func (w *worker) watch(fd int, events uint32, h handle, which uint32) error {
	return epollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, h.event(events, which))
}

// rewatch changes what is reported of fd, and reports at once what is there already.
func (w *worker) rewatch(fd int, events uint32, h handle, which uint32) error {
	return epollCtl(w.epoll, unix.EPOLL_CTL_MOD, fd, h.event(events, which))
}

func (w *worker) forget(fd int) {
	if err := epollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, unix.EpollEvent{}); err != nil {
		w.r.log.Debug("relay: forget socket", "err", err)
	}
}

// readable is what a worker does when there is something to read from a socket of dnsproxy's.
type readable func()

func (f readable) ready(*worker, uint32, uint32) { f() }
func (f readable) end(*worker)                   {} // the socket has its owner

// Watch implements dnsproxy.Watcher.
func (w *worker) Watch(fd int, ready func()) (stop func(), err error) {
	h, ok := w.add(readable(ready))
	if !ok {
		return nil, net.ErrClosed
	}
	if err := w.watch(fd, unix.EPOLLIN, h, 0); err != nil {
		w.remove(h)
		return nil, fmt.Errorf("watch socket: %w", err)
	}
	return func() {
		w.mu.Lock()
		closed := w.closed
		if !closed { // else its epoll instance may be somebody else's descriptor by now
			w.forget(fd)
		}
		w.mu.Unlock()
		if !closed {
			w.remove(h)
		}
	}, nil
}

func (w *worker) loop() {
	defer w.shut()
	events := make([]unix.EpollEvent, 128)
	for {
		timeout := -1
		if len(w.queued) > 0 {
			timeout = 0
		}
		n, err := w.wait(events, timeout)
		if err != nil && err != unix.EINTR {
			w.r.log.Error("relay: epoll_wait", "err", err)
			return
		}
		if n == 0 && timeout < 0 || len(w.young) >= manyYoung {
			w.settle()
		}
		for _, ev := range events[:max(0, n)] {
			if ev.Fd < 0 {
				return // woken to end
			}
			if p := w.at(handle{uint32(ev.Fd), uint32(ev.Pad) >> 1}); p != nil {
				p.ready(w, uint32(ev.Pad)&1, ev.Events)
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

// busyWait is how long, in milliseconds, a worker that has just had something to do waits for more before it says so. The scheduler's watchdog
// ends it sooner, after about 10 ms. It is longer than a tick of the kernel's clock: a shorter wait makes the kernel set its timer, which in a
// virtual machine costs as much as the rest of the wait.
const busyWait = 20

// wait is epoll_wait(2). Where something happens every moment, it is called without telling the runtime, which would give the
// worker's place (its P) to another thread after 20 us, wake that to look for work, and wake a third to watch: more than half of what a
// round trip costs. That needs other places for everybody else (keepP). A signal ends such a wait: that is how the
// runtime stops threads for the garbage collector (runtime.preemptone), and asks again every 100 us until it has.
func (w *worker) wait(events []unix.EpollEvent, timeout int) (int, error) {
	if timeout == 0 || w.busy {
		short := busyWait
		if timeout == 0 {
			short = 0
		}
		n, err := epollWait(w.epoll, events, short)
		if err == unix.EINTR { // quiet for long, or the garbage collector is waiting
			w.busy = false
		}
		if n != 0 || err != nil || timeout == 0 {
			return n, err
		}
	}
	w.busy = false
	if len(w.young) > 0 {
		timeout = settleAfter
	}
	n, err := unix.EpollWait(w.epoll, events, timeout)
	w.busy = w.r.keepP
	return n, err
}

const (
	// settleAfter, in milliseconds, of quiet, or with so many new flows, those that are still there are expected to stay.
	settleAfter = 30_000
	manyYoung   = 512
)

// settle sets on flows that stay what a short one is spared: each system call is a part of what a connection costs.
func (w *worker) settle() {
	for _, f := range w.young {
		if !f.done {
			keepSocketAlive(f.fds[outer])
		}
	}
	clear(w.young)
	w.young = w.young[:0]
}

func (w *worker) shut() {
	w.mu.Lock()
	w.closed = true
	slots := w.slots
	w.mu.Unlock()
	for _, s := range slots {
		if s.p != nil {
			s.p.end(w)
		}
	}
	w.pipes.close()
	// Nobody could do anything about a failure here, and nothing else holds them.
	_, _ = unix.Close(w.epoll), unix.Close(w.wake)
}
