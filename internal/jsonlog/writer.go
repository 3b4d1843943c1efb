package jsonlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Line is one line of a log. Log ends with a newline, unless it is a part of a
// line that was too long, or the last of a stream.
type Line struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"` // "stdout" or "stderr"
	Time   time.Time `json:"time"`
	// Attrs are what Options.Attrs was when the line was written.
	Attrs map[string]string `json:"attrs,omitempty"`
}

// Options bound a log.
type Options struct {
	// MaxSize is the size in bytes at which a file is put aside; 0 is no limit.
	MaxSize int64 `json:"maxSize,omitempty"`
	// MaxFiles is how many files are kept, the one written to included; at least 1.
	MaxFiles int `json:"maxFiles,omitempty"`
	// Attrs go with every line: labels and variables of the container.
	Attrs map[string]string `json:"attrs,omitempty"`
}

// maxLine bounds the memory that a line without an end takes, in bytes: longer
// ones are split.
const maxLine = 16 << 10

// Writer appends to a log.
type Writer struct {
	name string
	opt  Options

	mu   sync.Mutex
	file *os.File
	size int64
	err  error
}

// Open opens the log for appending and makes it if it is not there.
func Open(name string, opt Options) (*Writer, error) {
	w := &Writer{name: name, opt: opt}
	if err := w.open(os.O_APPEND); err != nil {
		return nil, err
	}
	if err := w.mend(); err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

func (w *Writer) open(how int) error {
	f, err := os.OpenFile(w.name, os.O_CREATE|os.O_RDWR|how, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	w.file, w.size = f, info.Size()
	return nil
}

// mend cuts off a last line that a crash has torn.
func (w *Writer) mend() error {
	buf := make([]byte, 2*maxLine)
	for end := w.size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := w.file.ReadAt(buf[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read log: %w", err)
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return w.cut(end - n + int64(i) + 1)
		}
		end -= n
	}
	return w.cut(0)
}

func (w *Writer) cut(size int64) error {
	if size == w.size {
		return nil
	}
	if err := w.file.Truncate(size); err != nil {
		return fmt.Errorf("mend log: %w", err)
	}
	w.size = size
	return nil
}

// Write appends a line. A log that can not be written (a full disk) must not
// stop who has something to say: the first error is kept for Err, and the next
// line is tried again.
func (w *Writer) Write(line Line) {
	line.Attrs = w.opt.Attrs
	raw, err := json.Marshal(line)
	if err != nil {
		return // a string and a time of this century always have a JSON form
	}
	raw = append(raw, '\n')
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return
	}
	err = w.rotate(int64(len(raw)))
	if err == nil {
		var n int
		n, err = w.file.Write(raw)
		if err != nil && n > 0 {
			err = errors.Join(err, w.file.Truncate(w.size))
		} else {
			w.size += int64(n)
		}
	}
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("write log: %w", err)
	}
}

// rotate puts the file aside when it would become too large.
func (w *Writer) rotate(more int64) error {
	if w.opt.MaxSize <= 0 || w.size == 0 || w.size+more <= w.opt.MaxSize {
		return nil
	}
	last := max(w.opt.MaxFiles, 1) - 1
	if last == 0 {
		// Removed and made anew: a reader goes on with the new one.
		if err := os.Remove(w.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for i := last; i > 0; i-- {
		if err := os.Rename(aside(w.name, i-1), aside(w.name, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	old := w.file
	if err := w.open(os.O_APPEND); err != nil {
		return err
	}
	return old.Close()
}

// aside is the name of the n-th oldest file; 0 is the one written to.
func aside(name string, n int) string {
	if n == 0 {
		return name
	}
	return fmt.Sprintf("%s.%d", name, n)
}

// Err is the first error of writing.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Close closes the log. What is written later goes nowhere.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	return f.Close()
}

// Stream returns a writer that makes lines of a stream's bytes. Flush ends it.
func (w *Writer) Stream(name string) *Stream { return &Stream{w: w, name: name} }

// Stream cuts one of a container's streams into lines.
type Stream struct {
	w       *Writer
	name    string
	partial []byte
}

// Write takes bytes; whole lines go to the log. It never fails.
func (s *Stream) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		take := i
		if i == 0 {
			take = len(p)
		}
		take = min(take, maxLine-len(s.partial))
		s.partial = append(s.partial, p[:take]...)
		if take == i && i > 0 || len(s.partial) == maxLine {
			s.Flush()
		}
		p = p[take:]
	}
	return n, nil
}

// Flush writes a line that has no end yet.
func (s *Stream) Flush() {
	if len(s.partial) == 0 {
		return
	}
	s.w.Write(Line{Log: string(s.partial), Stream: s.name, Time: time.Now()})
	s.partial = s.partial[:0]
}
