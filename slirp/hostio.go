package slirp

import (
	"io"

	"golang.org/x/sys/unix"
)

// hostWriter takes segments from the stack, under the lock of their connection, and so must not wait. It gathers
// small pieces and writes large ones from where they are.
type hostWriter struct {
	fd   int
	pool *bytePool
	buf  *[]byte // gathered and not yet written
	off  int     // of buf, written already
	err  error
	iovs [2][]byte
}

// Write implements io.Writer for tcpip.Endpoint.Read. A short count comes with an error.
func (w *hostWriter) Write(p []byte) (int, error) {
	if len(p) < gather/4 {
		if w.buf == nil {
			w.buf = w.pool.get()
			*w.buf = (*w.buf)[:0]
		}
		if len(*w.buf)+len(p) <= cap(*w.buf) {
			*w.buf = append(*w.buf, p...)
			return len(p), nil
		}
	}
	held := w.held()
	w.iovs = [2][]byte{held, p}
	iovs := w.iovs[:]
	if len(held) == 0 {
		iovs = iovs[1:]
	}
	n, err := writev(w.fd, iovs)
	if err != nil {
		w.err = err
		return 0, err
	}
	if n < len(held) {
		w.off += n
		w.err = errAgain
		return 0, errAgain
	}
	w.reset()
	if n -= len(held); n < len(p) {
		w.err = errAgain
		return n, errAgain
	}
	return n, nil
}

func (w *hostWriter) held() []byte {
	if w.buf == nil {
		return nil
	}
	return (*w.buf)[w.off:]
}

func (w *hostWriter) reset() {
	if w.buf != nil {
		*w.buf = (*w.buf)[:0]
	}
	w.off = 0
}

// flush writes what is gathered.
func (w *hostWriter) flush() error {
	for held := w.held(); len(held) > 0; held = w.held() {
		n, err := writev(w.fd, [][]byte{held})
		if err != nil {
			return err
		}
		w.off += n
	}
	w.reset()
	return nil
}

func (w *hostWriter) failure() error {
	if w.err == errAgain {
		return nil
	}
	return w.err
}

// release gives the gather buffer back while the flow is idle.
func (w *hostWriter) release() {
	if w.buf != nil {
		w.reset()
		w.pool.put(w.buf)
		w.buf = nil
	}
}

func writev(fd int, iovs [][]byte) (int, error) {
	for {
		n, err := unix.Writev(fd, iovs)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, errAgain
		default:
			return 0, err
		}
	}
}

// hostReader gives the stack what is in the receive queue of a host socket. The stack reads straight into the
// buffers that it sends from, but wants to know beforehand how much will come.
type hostReader struct {
	fd  int
	n   int // queued and not yet read
	err error
}

// fill asks how much there is; err becomes errAgain, io.EOF or the socket's error if there is nothing.
func (r *hostReader) fill() {
	var n int
	if n, r.err = unix.IoctlGetInt(r.fd, unix.SIOCINQ); r.err != nil {
		return
	}
	if r.n = min(n, chunk); r.n > 0 {
		return
	}
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(r.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			r.err = errAgain
		case err != nil:
			r.err = err
		case n == 0:
			r.err = io.EOF
		default:
			r.n = n
		}
		return
	}
}

// Len implements tcpip.Payloader.
func (r *hostReader) Len() int { return r.n }

// Read implements io.Reader. Only this goroutine reads the socket, so that what was counted is there.
func (r *hostReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.Read(r.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			r.err = err
			return 0, err
		case n == 0:
			r.err = io.ErrUnexpectedEOF
			return 0, r.err
		default:
			r.n -= n
			return n, nil
		}
	}
}
