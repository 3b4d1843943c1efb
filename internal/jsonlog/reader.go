package jsonlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Query says which lines of a log are wanted.
type Query struct {
	Since, Until time.Time // zero: no bound
	Tail         int       // the last so many lines before Since and Until count; negative: all
	// Follow goes on at the end of the log until Ended says that nothing will be
	// added, or a line is younger than Until.
	Follow bool
	Ended  func() (bool, error)
}

// Read gives the lines of a log to emit, oldest first. It returns fs.ErrNotExist
// when there is no log, and the first error of emit.
func Read(name string, q Query, emit func(Line) error) error {
	files, err := openAll(name)
	if err != nil {
		return err
	}
	r := &reader{name: name, q: q, emit: emit, files: files}
	defer r.close()
	if err := r.skipToTail(); err != nil {
		return err
	}
	if !q.Follow {
		return r.drain()
	}
	w := watch(name)
	defer w.close()
	return r.follow(w)
}

// openAll opens the files of a log, oldest first. The newest is opened first:
// when the log is rotated meanwhile, a file is met twice and never missed.
func openAll(name string) ([]*os.File, error) {
	var files []*os.File
	var seen []os.FileInfo
	for n := 0; ; n++ {
		f, err := os.Open(aside(name, n))
		if errors.Is(err, fs.ErrNotExist) && n > 0 {
			break
		}
		if err == nil {
			var info os.FileInfo
			if info, err = f.Stat(); err == nil {
				if slices.ContainsFunc(seen, func(o os.FileInfo) bool { return os.SameFile(o, info) }) {
					f.Close()
					continue
				}
				files, seen = append(files, f), append(seen, info)
			}
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("read log: %w", err)
		}
	}
	slices.Reverse(files)
	return files, nil
}

type reader struct {
	name  string
	q     Query
	emit  func(Line) error
	files []*os.File // being read is the first; the last is, or was, the newest
	buf   *bufio.Reader
	part  []byte // of a line that is just being written
	done  bool   // a line younger than Until was met
}

func (r *reader) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// skipToTail sets the files' offsets to where the last lines begin.
func (r *reader) skipToTail() error {
	if r.q.Tail < 0 {
		return nil
	}
	left := r.q.Tail
	for i := len(r.files) - 1; i >= 0; i-- {
		at, lines, err := tailOffset(r.files[i], left)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if _, err := r.files[i].Seek(at, io.SeekStart); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		left -= lines
	}
	return nil
}

// tailOffset finds where the last n lines of a file begin, and how many it has of them.
func tailOffset(f *os.File, n int) (at int64, lines int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	buf := make([]byte, 64<<10)
	for at = end; at > 0; {
		size := min(at, int64(len(buf)))
		if _, err := f.ReadAt(buf[:size], at-size); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at-size+i == end-1 {
				continue
			}
			if lines++; lines == n {
				return at - size + i + 1, lines, nil
			}
		}
		at -= size
	}
	if end > 0 {
		lines++ // the first line has no newline before it
	}
	return 0, lines, nil
}

// drain emits what the files have now. All but the last are given up when read.
func (r *reader) drain() error {
	for !r.done {
		if r.buf == nil {
			r.buf = bufio.NewReaderSize(r.files[0], 64<<10)
		}
		raw, err := r.buf.ReadSlice('\n')
		r.part = append(r.part, raw...)
		switch {
		case err == nil:
			if err := r.line(); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read log: %w", err)
		case len(r.files) == 1:
			return nil
		default:
			r.files[0].Close()
			r.files, r.buf, r.part = r.files[1:], nil, r.part[:0]
		}
	}
	return nil
}

func (r *reader) line() error {
	var l Line
	err := json.Unmarshal(bytes.TrimSpace(r.part), &l)
	r.part = r.part[:0]
	if err != nil {
		return nil // torn by a crash of the machine
	}
	if !r.q.Until.IsZero() && l.Time.After(r.q.Until) {
		r.done = true
		return nil
	}
	if l.Time.Before(r.q.Since) {
		return nil
	}
	return r.emit(l)
}

// follow emits lines as they come.
func (r *reader) follow(w *watcher) error {
	for {
		ended, err := r.q.Ended()
		if err != nil {
			return err
		}
		// Asked before reading: what is written before the end is not missed.
		if err := r.drain(); err != nil || r.done {
			return err
		}
		more, err := r.successors()
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if ended || !r.q.Until.IsZero() && time.Now().After(r.q.Until) {
			return nil
		}
		w.wait()
	}
}

// successors takes up the files that have come after the one being read, and
// tells whether there are any.
func (r *reader) successors() (bool, error) {
	now, err := os.Stat(r.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // between two renames, or removed with the container
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	current, err := r.files[0].Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	if os.SameFile(now, current) {
		return false, nil
	}
	files, err := openAll(r.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for i, f := range files {
		// Those before the current one have been read. When it is not among them,
		// it was rotated away, and all are new.
		if info, err := f.Stat(); err == nil && os.SameFile(info, current) {
			for _, old := range files[:i+1] {
				old.Close()
			}
			files = files[i+1:]
			break
		}
	}
	if len(files) == 0 {
		return false, nil
	}
	// The current one may have got more between its last read and its rotation.
	if err := r.drain(); err != nil {
		return false, err
	}
	r.files[0].Close()
	r.files, r.buf, r.part = files, nil, r.part[:0]
	return true, nil
}
