package image

import (
	"io"
	"sync"
)

const (
	aheadBlock = 256 << 10
	aheadCount = 8
)

// readAhead reads from another goroutine, some blocks ahead, so that the two sides work at the same time.
type readAhead struct {
	full chan block
	free chan []byte
	stop chan struct{}
	once sync.Once
	done chan struct{}

	cur block
	pos int
}

type block struct {
	data []byte
	buf  []byte
	err  error // after data
}

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan block, aheadCount),
		free: make(chan []byte, aheadCount),
		stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	for range aheadCount {
		a.free <- nil // made when first used: most layers are small
	}
	go a.run(r)
	return a
}

func (a *readAhead) run(r io.Reader) {
	defer close(a.done)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, aheadBlock)
		}
		n, err := readFull(r, buf)
		select {
		case a.full <- block{data: buf[:n], buf: buf, err: err}:
		case <-a.stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// readFull fills buf unless r ends or fails; unlike io.ReadFull it keeps r's error as it is.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (a *readAhead) next() error {
	for a.pos == len(a.cur.data) {
		if a.cur.err != nil {
			return a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur, a.pos = <-a.full, 0
	}
	return nil
}

func (a *readAhead) Read(p []byte) (int, error) {
	if err := a.next(); err != nil {
		return 0, err
	}
	n := copy(p, a.cur.data[a.pos:])
	a.pos += n
	return n, nil
}

// WriteTo hands the blocks on without a copy.
func (a *readAhead) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if err := a.next(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(a.cur.data[a.pos:])
		a.pos += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// Close stops reading and waits for the goroutine; whatever it blocks in must be interrupted by the caller first.
func (a *readAhead) Close() {
	a.once.Do(func() { close(a.stop) })
	<-a.done
}
