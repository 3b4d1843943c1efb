package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
)

// streams are the standard files of a container in the foreground.
//
// A file or pipe of the command's is given to the container as it is: nothing
// stands between them, so nothing is lost or slow. A terminal is not, or the
// container could write into its input or change its settings: what goes to
// or comes from one passes through a pipe. With -t the container has a
// terminal of its own.
type streams struct {
	files  [3]*os.File // for the container
	owned  []*os.File  // to be closed here when the container has got them
	stdin  *os.File    // where the command's terminal input is to be written
	copies sync.WaitGroup
	raw    *term.State
	// signals for the container are caught from before it starts: none may
	// find the command without a handler once there is something to signal.
	signals chan os.Signal
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func newStreams(c *spec.Container) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, null)
	s.files = [3]*os.File{null, null, null}
	s.signals = make(chan os.Signal, 64)
	if c.SigProxy && !c.Detach {
		notifyAll(s.signals)
	}
	if c.Detach || c.TTY {
		return s, nil
	}
	if c.Interactive {
		if s.files[0], err = s.input(os.Stdin); err != nil {
			return nil, err
		}
	}
	for i, f := range []*os.File{os.Stdout, os.Stderr} {
		if s.files[i+1], err = s.output(f); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *streams) input(f *os.File) (*os.File, error) {
	if !isTerminal(f) {
		return f, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.owned, s.stdin = append(s.owned, r), w
	return r, nil
}

func (s *streams) output(f *os.File) (*os.File, error) {
	if !isTerminal(f) {
		return f, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, w)
	s.copies.Add(1)
	go func() {
		defer s.copies.Done()
		defer r.Close()
		// The terminal may be gone; the container's output then goes nowhere.
		_, _ = io.Copy(f, r)
	}()
	return w, nil
}

// donated closes what only the container needs now.
func (s *streams) donated() {
	for _, f := range s.owned {
		f.Close()
	}
	s.owned = nil
}

func (s *streams) close() {
	s.donated()
	if s.raw != nil {
		_ = term.Restore(int(os.Stdin.Fd()), s.raw)
	}
}

// attach stays with the container until its end and returns its exit status as
// an error, if it is not 0.
func (s *streams) attach(app *App, c *spec.Container, session *launch.Session) error {
	go proxy(s.signals, session)
	exited, err := session.AwaitStart()
	if err != nil {
		return err
	}
	if exited != nil {
		return status(app, exited)
	}
	notices(app, c, session)
	if session.Master != nil {
		if err := s.terminal(c, session.Master); err != nil {
			return errors.Join(err, session.Leave())
		}
	}
	if s.stdin != nil {
		go func() {
			_, _ = io.Copy(s.stdin, os.Stdin)
			s.stdin.Close()
		}()
	}
	exited, err = session.AwaitExit()
	if errors.Is(err, launch.ErrMonitorGone) {
		// What the killed monitor left is cleaned up at once rather than by
		// whoever comes next.
		_, cerr := app.Containers()
		err = errors.Join(err, cerr)
	}
	s.drain()
	s.close()
	if err != nil {
		return err
	}
	return status(app, exited)
}

// drainTime bounds the wait for output after the container's end.
const drainTime = 2 * time.Second

// drain waits until all output has been written.
func (s *streams) drain() {
	done := make(chan struct{})
	go func() { s.copies.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

func status(app *App, exited *monitor.Exited) error {
	if exited.Error != "" {
		fmt.Fprintf(app.Stderr, "urun: %s\n", exited.Error)
	}
	if exited.Code != 0 {
		return exitStatus(exited.Code)
	}
	return nil
}

// terminal connects the command's terminal with the container's.
func (s *streams) terminal(c *spec.Container, master *os.File) error {
	resize := func() {
		if ws, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ); err == nil {
			// The container may be gone, and its terminal with it.
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, ws)
		}
	}
	resize()
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	go func() {
		for range winch {
			resize()
		}
	}()
	if c.Interactive {
		if isTerminal(os.Stdin) {
			old, err := term.MakeRaw(int(os.Stdin.Fd()))
			if err != nil {
				return fmt.Errorf("set terminal to raw mode: %w", err)
			}
			s.raw = old
		}
		go feed(master)
	}
	s.copies.Add(1)
	go func() {
		defer s.copies.Done()
		// EIO: the last process closed the terminal.
		_, _ = io.Copy(os.Stdout, master)
	}()
	return nil
}

// feed writes standard input to the container's terminal. At its end the
// container's program reads an end of file, as by ctrl-D.
func feed(master *os.File) {
	if _, err := io.Copy(master, os.Stdin); err != nil {
		return
	}
	_, _ = master.Write([]byte{4})
}

// notifyAll asks for the signals that are passed on to the container.
func notifyAll(ch chan os.Signal) {
	for n := syscall.Signal(1); n < 65; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG, unix.SIGWINCH,
			unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
			unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGPROF:
			continue // ours, or about this process
		}
		signal.Notify(ch, n)
	}
}

func proxy(signals <-chan os.Signal, session *launch.Session) {
	for sig := range signals {
		if n, ok := sig.(syscall.Signal); ok {
			// The container may have ended; its status is then on its way.
			_ = session.Signal(n)
		}
	}
}

func accessWrite(dir string) error { return unix.Access(dir, unix.W_OK) }
