package events

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	logFile  = "log"
	oldFile  = "log.1"
	lockFile = "lock"
	// limit is how large the log gets, in bytes, before it becomes the old one:
	// some 3000 events are kept at least.
	limit = 1 << 20
)

// Event is one thing that happened, in the form of docker's API.
type Event struct {
	// Status, ID and From are what the API had before it had Actor; scripts
	// still read them.
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`

	Type     string `json:"Type"` // container, image, volume or network
	Action   string `json:"Action"`
	Actor    Actor  `json:"Actor"`
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

// Actor is what it happened to.
type Actor struct {
	ID         string            `json:"ID"`
	Attributes map[string]string `json:"Attributes"`
}

// When is the event's time.
func (e Event) When() time.Time { return time.Unix(0, e.TimeNano) }

func dir(root string) string { return filepath.Join(root, "events") }

// Append adds an event to the log of the store at root. Scope and time are set
// here, so that the order of the log is that of the times.
func Append(root string, e Event) error {
	if err := os.MkdirAll(dir(root), 0o700); err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir(root), lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	defer lock.Close()
	if err := flock(lock); err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	now := time.Now()
	e.Scope, e.Time, e.TimeNano = "local", now.Unix(), now.UnixNano()
	if e.Actor.Attributes == nil {
		e.Actor.Attributes = map[string]string{}
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if err := write(root, append(line, '\n')); err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	return nil
}

func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// write appends a line, or nothing.
func write(root string, line []byte) error {
	name := filepath.Join(dir(root), logFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if _, err = f.Write(line); err != nil {
		// A disk that is full may have taken a part.
		return errors.Join(err, f.Truncate(info.Size()), f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if info.Size()+int64(len(line)) < limit {
		return nil
	}
	return os.Rename(name, filepath.Join(dir(root), oldFile))
}

// Read calls f for each event of the log in their order, until it returns an error.
func Read(root string, f func(Event) error) error {
	r := &reader{root: root}
	defer r.close()
	return r.all(f)
}

// reader reads the log and goes on where it left off.
type reader struct {
	root string
	file *os.File
	buf  *bufio.Reader
	part []byte
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.buf, r.part = nil, nil, nil
}

// all reads from the old log's beginning to the end of the present one.
func (r *reader) all(f func(Event) error) error {
	if err := r.open(logFile); err != nil {
		return err
	}
	old := &reader{root: r.root}
	defer old.close()
	if err := old.open(oldFile); err != nil {
		return err
	}
	// The present one may have become the old one between the two.
	if !r.same(old.file) {
		if err := old.rest(f); err != nil {
			return err
		}
	}
	return r.rest(f)
}

func (r *reader) open(name string) error {
	r.close()
	f, err := os.Open(filepath.Join(dir(r.root), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	r.file, r.buf = f, bufio.NewReader(f)
	return nil
}

func (r *reader) same(other *os.File) bool {
	if r.file == nil || other == nil {
		return false
	}
	a, aerr := r.file.Stat()
	b, berr := other.Stat()
	return aerr == nil && berr == nil && os.SameFile(a, b)
}

// rest reads what has come since.
func (r *reader) rest(f func(Event) error) error {
	if r.file == nil {
		return nil
	}
	for {
		line, err := r.buf.ReadBytes('\n')
		r.part = append(r.part, line...)
		if errors.Is(err, io.EOF) {
			return nil // the rest of the line is still to come
		}
		if err != nil {
			return fmt.Errorf("event log: %w", err)
		}
		var e Event
		if json.Unmarshal(r.part, &e) == nil {
			if err := f(e); err != nil {
				return err
			}
		}
		// A line that is not an event is what a crash of the machine left.
		r.part = nil
	}
}

// replaced tells whether the log that is read has become the old one.
func (r *reader) replaced() bool {
	now, err := os.Stat(filepath.Join(dir(r.root), logFile))
	if err != nil {
		return false
	}
	if r.file == nil {
		return true
	}
	mine, err := r.file.Stat()
	return err != nil || !os.SameFile(now, mine)
}
