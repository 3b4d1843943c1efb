package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/jsonlog"
)

// LogFile is the name of a container's log in its directory.
const LogFile = "log"

// direct tells whether the command's standard files are the container's own, so
// that nothing stands between them. That is so for what is removed when it ends
// and is nobody's but the command's: else there is a log, and others may attach.
func (c *container) direct() bool {
	return c.Attached && !c.Terminal && !c.Detach && (c.Record.Remove || c.Log.None)
}

// output passes a container's output on: into the log, and to who is attached.
// A nil output belongs to a container whose files are the command's own.
type output struct {
	log *jsonlog.Writer // nil: none is kept

	mu      sync.Mutex
	clients map[*client]bool
	input   *os.File // where input is to be written: the terminal or a pipe; nil if none is taken
	master  *os.File // the terminal
	readers sync.WaitGroup
	writers sync.WaitGroup
}

func (c *container) openOutput() error {
	if c.direct() {
		return nil
	}
	c.out = &output{clients: map[*client]bool{}}
	if c.Log.None {
		return nil
	}
	var err error
	c.out.log, err = jsonlog.Open(filepath.Join(c.handle.Dir(), LogFile), c.Log.Options)
	return err
}

// streams gives init its standard files.
func (c *container) streams(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdio[0], c.stdio[1], c.stdio[2]
	if c.out == nil {
		return nil
	}
	if c.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, nil, nil // init makes the terminal
	} else {
		if err := c.out.pipes(cmd); err != nil {
			return err
		}
		if c.OpenStdin && !c.Attached {
			r, w, err := os.Pipe()
			if err != nil {
				return fmt.Errorf("input pipe: %w", err)
			}
			cmd.Stdin, c.out.input = r, w
		}
	}
	if c.Attached {
		first := &client{primary: true, conn: c.parent, files: c.stdio}
		if !c.Terminal {
			first.files[0] = nil // it is the container's own
		}
		c.out.clients[first] = true
	}
	return nil
}

// pipes make the container's output come here.
func (o *output) pipes(cmd *exec.Cmd) error {
	for i, file := range []*io.Writer{1: &cmd.Stdout, 2: &cmd.Stderr} {
		if file == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("output pipe: %w", err)
		}
		*file = w
		o.follow(r, i)
	}
	return nil
}

// closeStdio gives up the standard files that are not needed here, so that who
// reads them sees their end when the container ends.
func (c *container) closeStdio(cmd *exec.Cmd) {
	for _, f := range []any{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		if f, ok := f.(*os.File); ok && f != nil {
			f.Close()
		}
	}
	for i, f := range c.stdio {
		if c.out != nil && c.Attached && (c.Terminal || i > 0) {
			continue // the first client's
		}
		f.Close()
	}
}

// terminal takes the master of the container's terminal.
func (o *output) terminal(master *os.File, size *Size) error {
	// A descriptor that does not block is read without a thread of its own.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, master.Close()); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	o.mu.Lock()
	o.master = os.NewFile(uintptr(fd), "terminal")
	o.input = o.master
	o.mu.Unlock()
	o.resize(size)
	o.follow(o.master, 1)
	for c := range o.clients {
		go o.feed(c)
	}
	return nil
}

// resize sets the size of the terminal. The program inside is told by SIGWINCH,
// also when nothing changes: who has just attached wants it to draw.
func (o *output) resize(size *Size) {
	if o == nil || size == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.master == nil {
		return
	}
	raw, err := o.master.SyscallConn()
	if err != nil {
		return // closed: the container has ended
	}
	_ = raw.Control(func(fd uintptr) {
		want := unix.Winsize{Row: size.Rows, Col: size.Columns}
		if now, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil && now.Row == want.Row && now.Col == want.Col {
			near := unix.Winsize{Row: want.Row + 1, Col: want.Col}
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &near)
		}
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &want)
	})
}

// chunkSize is how much output is passed on at a time, in bytes.
const chunkSize = 16 << 10

// follow passes on what comes from r until its end.
func (o *output) follow(r *os.File, stream int) {
	var log *jsonlog.Stream
	if o.log != nil {
		log = o.log.Stream([]string{1: "stdout", 2: "stderr"}[stream])
	}
	o.readers.Add(1)
	go func() {
		defer o.readers.Done()
		defer r.Close()
		buf := make([]byte, chunkSize)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				if log != nil {
					_, _ = log.Write(buf[:n]) // never fails
				}
				if o.send(buf[:n], stream) {
					break // as if this were the reader's pipe
				}
			}
			if err != nil {
				break // EOF, or EIO when a pty's last slave closes
			}
		}
		if log != nil {
			log.Flush()
		}
	}()
}

// feed takes what a client's user types.
func (o *output) feed(c *client) {
	in := c.files[0]
	if in == nil || o.input == nil {
		return
	}
	// Its end says nothing: the client may have left.
	_, _ = io.Copy(o.input, in)
}

// drainTime bounds the wait for output after the container's end: its pid
// namespace is gone, so only what was given to others can hold a pipe open.
const drainTime = time.Second

// close ends the passing on, when all has been passed on.
func (o *output) close() error {
	if o == nil {
		return nil
	}
	within(drainTime, o.readers.Wait)
	o.mu.Lock()
	for c := range o.clients {
		c.end()
	}
	o.mu.Unlock()
	within(drainTime, o.writers.Wait)
	if o.log == nil {
		return nil
	}
	return errors.Join(o.log.Err(), o.log.Close())
}

func within(limit time.Duration, wait func()) {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(limit):
	}
}
