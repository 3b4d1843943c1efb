package slirp

import "golang.org/x/sys/unix"

const (
	// copyBuffer is what one read takes at most while a flow moves little. A read that fills it is the sign of much to come:
	// the flow then changes to pipes, through which pages are moved instead of bytes.
	copyBuffer = 64 << 10
	// turnBytes is how much one direction may move before the others have their turn.
	turnBytes = 4 << 20
)

// The two ends of a flow, and the numbers under which their descriptors are watched.
const (
	inner uint32 = iota // accepted in the container's network namespace
	outer               // connected on the host
)

// kflow joins two connected kernel sockets: what is read from one is written to the other. It holds nothing of its own while
// it is idle, and at most one buffer or pipe for each direction when the reader is slow; what is beyond waits
// in the sender's socket, whose window closes. A FIN is passed on as a FIN, a RST as a RST.
type kflow struct {
	fds    [2]int
	slot   handle
	halves [2]half // halves[i] reads from fds[i]
	queued bool
	done   bool
	// crowded: it moves much, and so does another of its worker's.
	crowded bool
	tcp     *tcpOut // which counts it
	sent    int     // pieces to the host, up to two: the first is not held up by Nagle's algorithm, and the container has done its work
}

// half is one direction.
type half struct {
	readable bool // a read may find something
	full     bool // the other end takes nothing now
	notify   bool // epoll tells when it does again
	hup      bool // the sender has closed or failed: reads go on to the end
	eof      bool // the FIN has been read
	finished bool // and passed on
	pipe     *pipe
	held     []byte // what could not be written
	off      int
}

// addFlow starts to move bytes between the two sockets, which it takes over. Both are set to close with a reset (linger): if this
// process is killed, the ends are to learn that something was lost.
func (w *worker) addFlow(f *kflow) {
	slot, ok := w.add(f)
	if !ok {
		f.done = true
		f.close(true)
		return
	}
	f.slot = slot
	if err := w.watchFlow(f); err != nil {
		w.r.log.Warn("relay: watch socket", "err", err)
		w.abort(f)
	}
}

// watchFlow begins to report on the flow's sockets, at once with what is there already. If it succeeds, the flow is the worker's.
func (w *worker) watchFlow(f *kflow) error {
	slot, fds := f.slot, f.fds
	events := [2]uint32{reading, reading}
	for which := range events {
		if f.halves[1-which].notify {
			events[which] |= writing
		}
	}
	for which, fd := range fds {
		if err := w.watch(fd, events[which], slot, uint32(which)); err != nil {
			return err
		}
	}
	return nil
}

// wait has epoll tell when the end to which halves[i] writes takes more. Most never need it.
func (f *kflow) wait(w *worker, i int) bool {
	h := &f.halves[i]
	h.full = true
	if h.notify {
		return true
	}
	h.notify = true
	err := w.rewatch(f.fds[1-i], reading|writing, f.slot, uint32(1-i))
	if err != nil {
		w.r.log.Warn("relay: watch socket", "err", err)
	}
	return err == nil
}

// notifyAll is for a flow that another thread than its worker's adds: as soon as its first socket is watched the worker may want to
// wait for the second, which is not watched yet.
func (f *kflow) notifyAll() { f.halves[inner].notify, f.halves[outer].notify = true, true }

// migrate gives a flow to another worker.
func (w *worker) migrate(f *kflow, to *worker) {
	f.crowded = false
	for _, fd := range f.fds {
		w.forget(fd)
	}
	w.remove(f.slot)
	f.notifyAll()
	slot, ok := to.add(f)
	if !ok { // the end
		f.done = true
		f.close(true)
		return
	}
	f.slot = slot
	if err := to.watchFlow(f); err != nil {
		to.abort(f)
	}
}

// ready implements pollable.
func (f *kflow) ready(w *worker, which, events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.halves[which].readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.halves[which].hup = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.halves[1-which].full = false
	}
	f.pump(w)
	if events&unix.EPOLLERR != 0 && !f.done {
		// What had arrived before has been passed on as far as the other side took it.
		if n, err := unix.GetsockoptInt(f.fds[which], unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
			w.abort(f)
		}
	}
}

// end implements pollable. What the container has sent to its end is with the host's kernel, which goes on without us.
func (f *kflow) end(w *worker) { w.endFlow(f, !f.halves[inner].finished) }

// pump moves what can be moved.
func (f *kflow) pump(w *worker) {
	if f.done {
		return
	}
	more := false
	for i := range f.halves {
		again, ok := f.move(w, i)
		if !ok {
			w.abort(f)
			return
		}
		more = more || again
	}
	if f.halves[inner].finished && f.halves[outer].finished {
		w.finish(f)
		return
	}
	if f.crowded && !f.queued && !f.halves[inner].holds() && !f.halves[outer].holds() {
		w.migrate(f, w.r.idlest())
		return
	}
	if more && !f.queued {
		f.queued = true
		w.queued = append(w.queued, f)
	}
}

// holds tells whether anything of the worker's, or of the flow's bytes, is with this half.
func (h *half) holds() bool { return h.pipe != nil || h.pending() }

// move serves one direction until nothing more can be done, or its turn is over (again). It returns false if either socket
// has failed.
func (f *kflow) move(w *worker, i int) (again, ok bool) {
	h, src, dst := &f.halves[i], f.fds[i], f.fds[1-i]
	for moved := 0; ; {
		if !h.full && h.pending() {
			n, err := h.drain(dst)
			moved += n
			f.note(i, n)
			if err != nil && (err != unix.EAGAIN || !f.wait(w, i)) {
				return false, false
			}
		}
		if h.pending() {
			return false, true // until the other end can be written to
		}
		if h.eof {
			return false, f.finish(w, i)
		}
		if !h.readable {
			h.rest(w)
			return false, true
		}
		if moved >= turnBytes {
			return true, true
		}
		n, err := h.fill(w, src)
		switch {
		case err == unix.EAGAIN:
			h.readable = false
		case err != nil:
			return false, false
		case n == 0:
			h.eof = true
		default:
			// Sent from the shared buffer at once: it is another flow's in the next moment.
			if h.pipe == nil && n == len(w.buf) {
				f.bulk(w, h)
			}
			if !f.send(w, i, n) {
				return false, false
			}
			moved += n
			f.note(i, n)
		}
	}
}

// note counts what fds[i] has sent.
func (f *kflow) note(i, n int) {
	if uint32(i) == inner && n > 0 {
		f.tcp.moved.Add(1)
	}
}

// fill reads: n bytes into the worker's buffer, or into the half's pipe.
func (h *half) fill(w *worker, src int) (int, error) {
	if h.pipe != nil {
		n, err := spliceFD(src, h.pipe.w, pipeSize)
		if err == nil {
			h.pipe.n += n
		}
		return n, err
	}
	return recvFD(src, w.buf)
}

// bulk prepares for much to come: a read has filled the buffer.
func (f *kflow) bulk(w *worker, h *half) {
	if w.pipes.used.Load() > 0 && w.r.idlest() != w {
		f.crowded = true
		return
	}
	h.pipe = w.pipes.get() // from the next read on; nil if there are enough
}

// send passes on what fill has put into the worker's buffer. What is not taken is copied out of it.
func (f *kflow) send(w *worker, i, n int) bool {
	h, dst := &f.halves[i], f.fds[1-i]
	if uint32(i) == inner && f.sent < 2 {
		if f.sent++; f.sent == 2 {
			noDelay(dst)
		}
	}
	if h.pipe != nil && h.pipe.n > 0 {
		return true // move drains it
	}
	p := w.buf[:n]
	if n < len(w.buf) {
		// The queue is empty: what comes next is a new edge (epoll(7)), and so is a FIN.
		h.readable = h.hup
	}
	for len(p) > 0 {
		m, err := sendFD(dst, p)
		if err == unix.EAGAIN {
			h.held, h.off = append([]byte(nil), p...), 0
			return f.wait(w, i)
		}
		if err != nil {
			return false
		}
		p = p[m:]
	}
	return true
}

func (h *half) pending() bool { return h.off < len(h.held) || h.pipe != nil && h.pipe.n > 0 }

// drain writes what is held from earlier.
func (h *half) drain(dst int) (moved int, err error) {
	for h.off < len(h.held) {
		n, err := sendFD(dst, h.held[h.off:])
		if err != nil {
			return moved, err
		}
		h.off += n
		moved += n
	}
	h.held, h.off = nil, 0
	for h.pipe != nil && h.pipe.n > 0 {
		n, err := spliceFD(h.pipe.r, dst, h.pipe.n)
		if err != nil {
			return moved, err
		}
		h.pipe.n -= n
		moved += n
	}
	return moved, nil
}

// rest gives the pipe back while there is nothing to move.
func (h *half) rest(w *worker) {
	if h.pipe != nil {
		w.pipes.put(h.pipe)
		h.pipe = nil
	}
}

// finish passes the FIN of fds[i] on.
func (f *kflow) finish(w *worker, i int) bool {
	h := &f.halves[i]
	if h.finished {
		return true
	}
	h.finished = true
	h.rest(w)
	err := unix.Shutdown(f.fds[1-i], unix.SHUT_WR)
	if uint32(i) == inner {
		f.tcp.sending.Add(-1)
	}
	return err == nil
}

// abort ends a flow with a reset on both sides.
func (w *worker) abort(f *kflow) { w.endFlow(f, true) }

// finish ends a flow whose two ends have been closed.
func (w *worker) finish(f *kflow) { w.endFlow(f, false) }

func (w *worker) endFlow(f *kflow, reset bool) {
	if f.done {
		return
	}
	f.done = true
	for i := range f.halves {
		h := &f.halves[i]
		if h.pipe != nil {
			w.pipes.discard(h.pipe)
			h.pipe = nil
		}
		h.held = nil
	}
	// Not before the descriptors are closed: events of theirs must find the flow or nothing.
	f.close(reset)
	w.remove(f.slot)
}

// close closes the sockets; closing takes them out of the epoll instance.
func (f *kflow) close(reset bool) {
	for _, fd := range f.fds {
		if !reset {
			linger(fd, false)
		}
		closeFD(fd)
	}
	if !f.halves[inner].finished {
		f.tcp.sending.Add(-1)
	}
	f.tcp.flows.Add(-1)
}
