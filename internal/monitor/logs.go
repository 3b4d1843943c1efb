package monitor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// LogFile is the name of a container's log in its directory: docker's
// json-file format, an object a line.
const LogFile = "log"

// LogLine is one line of the log.
type LogLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// maxLogLine bounds the memory that a line without an end takes: longer ones
// are split.
const maxLogLine = 16 << 10

// logWriter writes a detached container's output. A nil logWriter belongs to a
// container in the foreground and does nothing.
type logWriter struct {
	mu   sync.Mutex
	file *os.File
	err  error
	done sync.WaitGroup
}

func (c *container) openLog() error {
	if !c.Detach {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(c.handle.Dir(), LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	c.log = &logWriter{file: f}
	return nil
}

// redirect makes the command's output go into the log.
func (l *logWriter) redirect(cmd *exec.Cmd) error {
	if l == nil {
		return nil
	}
	for _, out := range []struct {
		stream string
		file   *io.Writer
	}{{"stdout", &cmd.Stdout}, {"stderr", &cmd.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("log pipe: %w", err)
		}
		*out.file = w
		l.follow(r, out.stream)
	}
	return nil
}

// follow copies what comes from r into the log until its end.
func (l *logWriter) follow(r *os.File, stream string) {
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		defer r.Close()
		br := bufio.NewReaderSize(r, maxLogLine)
		for {
			line, err := br.ReadSlice('\n')
			if len(line) > 0 {
				l.write(LogLine{Log: string(line), Stream: stream, Time: time.Now()})
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return // EOF, or EIO when a pty's last slave closes
			}
		}
	}()
}

// write appends a line. A log that can not be written (a full disk) does not
// stop the container: its output is read on and the error is kept for the record.
func (l *logWriter) write(line LogLine) {
	raw, err := json.Marshal(line)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		_, err = l.file.Write(append(raw, '\n'))
	}
	if err != nil && l.err == nil {
		l.err = err
	}
}

// drainTime bounds the wait for output after the container's end: its pid
// namespace is gone, so only what was given to others can hold a pipe open.
const drainTime = time.Second

func (l *logWriter) close() {
	if l == nil {
		return
	}
	drained := make(chan struct{})
	go func() { l.done.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(drainTime):
	}
	l.file.Close()
}
