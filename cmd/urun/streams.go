package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
)

// streams are the standard files of a command that stays with a container.
//
// A file or pipe of the command's is given away as it is: nothing stands between
// it and the container, or the container's monitor, so nothing is lost or slow. A
// terminal is not, or the container could write into its input or change its
// settings: what goes to or comes from one passes through a pipe. A container
// with a terminal of its own never gets the input itself: the keys by which
// the user leaves it are looked for on the way.
type streams struct {
	want   wanted
	files  [3]*os.File // to be given away
	owned  []*os.File  // to be closed here when they have been
	stdin  *os.File    // where the command's input is to be written; nil: it has been given away
	copies sync.WaitGroup
	raw    *term.State
	left   chan struct{} // closed when the user has typed the detach keys
	// connected is closed by connect, or at the end. Output for a terminal waits
	// for it: until then, the terminal still edits lines and would write a carriage return more
	// at the end of each than the container's own terminal has written.
	connected    chan struct{}
	letOutputOut func() // closes connected, once
	// signals for the container are caught from before it starts: none may
	// find the command without a handler once there is something to signal.
	signals chan os.Signal
}

// wanted is what a command wants of a container's streams.
type wanted struct {
	none     bool     // nothing: it is detached
	stdin    bool     // input
	tty      bool     // the container has a terminal
	sigProxy bool     // signals are for the container
	keys     []byte   // that leave the container
	only     []string // of stdin, stdout and stderr; nil for all
}

// wants tells whether a stream is wanted.
func (w wanted) wants(stream string) bool { return w.only == nil || slices.Contains(w.only, stream) }

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func newStreams(want wanted) (_ *streams, err error) {
	s := &streams{want: want, left: make(chan struct{}), connected: make(chan struct{}), signals: make(chan os.Signal, 64)}
	s.letOutputOut = sync.OnceFunc(func() { close(s.connected) })
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	want.stdin = want.stdin && want.wants("stdin")
	s.want = want
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s.owned = append(s.owned, null)
	s.files = [3]*os.File{null, null, null}
	if want.sigProxy && !want.none {
		notifyAll(s.signals)
	}
	if want.none {
		return s, nil
	}
	if want.stdin {
		if s.files[0], err = s.input(os.Stdin); err != nil {
			return nil, err
		}
	}
	for i, f := range []*os.File{os.Stdout, os.Stderr} {
		if !want.wants([]string{"stdout", "stderr"}[i]) {
			continue
		}
		if s.files[i+1], err = s.output(f); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *streams) input(f *os.File) (*os.File, error) {
	if !s.want.tty && !isTerminal(f) {
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
		<-s.connected
		// The terminal may be gone; the container's output then goes nowhere.
		_, _ = io.Copy(f, r)
	}()
	return w, nil
}

// size is that of the command's terminal, nil if it has none or wants none.
func (s *streams) size() *monitor.Size {
	if !s.want.tty || s.want.none {
		return nil
	}
	for _, f := range []*os.File{os.Stdout, os.Stdin} {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			return &monitor.Size{Rows: ws.Row, Columns: ws.Col}
		}
	}
	return nil
}

// donated closes what only the container needs now.
func (s *streams) donated() {
	for _, f := range s.owned {
		f.Close()
	}
	s.owned = nil
}

func (s *streams) close() {
	s.letOutputOut()
	s.donated()
	if s.raw != nil {
		_ = term.Restore(int(os.Stdin.Fd()), s.raw)
		s.raw = nil
	}
}

// attach stays with the container, or with a command in it, until its end, and
// returns its exit status as an error, if it is not 0. Begun is called when it runs.
func (s *streams) attach(app *App, session *launch.Session, begun func()) error {
	if s.want.sigProxy {
		go proxy(s.signals, session)
	}
	exited, err := session.AwaitStart()
	if err != nil {
		return err
	}
	if exited != nil {
		s.drain()
		return status(app, exited)
	}
	begun()
	if err := s.connect(session); err != nil {
		return errors.Join(err, session.Leave())
	}
	type end struct {
		exited *monitor.Exited
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		exited, err := session.AwaitExit()
		ended <- end{exited, err}
	}()
	select {
	case <-s.left:
		err := session.Detach()
		s.close()
		return err
	case <-jobEnd():
		// As the batch system would end this command, if it were to look for it: the container has a moment, and ends with the command.
		err := errors.Join(errors.New("the batch job's shell is gone, and the container ends with it"), session.Signal(unix.SIGTERM))
		select {
		case <-ended:
		case <-time.After(jobGrace):
		}
		return errors.Join(err, session.Leave())
	case e := <-ended:
		exited, err = e.exited, e.err
	}
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

// jobGrace is what a container has to end by itself when its job has.
const jobGrace = 5 * time.Second

// jobEnd is closed when the shell of this process's batch job ends, if it is in a job.
func jobEnd() <-chan struct{} {
	shell := launch.JobShell()
	if shell.PID == 0 {
		return nil
	}
	gone := make(chan struct{})
	go func() {
		if shell.Await() == nil {
			close(gone)
		}
	}()
	return gone
}

// drainTime bounds the wait for output after the container's end.
const drainTime = 2 * time.Second

// drain waits until all output has been written.
func (s *streams) drain() {
	s.letOutputOut()
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

// connect begins to pass on what is not passed on by itself: the input of a
// terminal, its size, and the terminal of a command in the container.
func (s *streams) connect(session *launch.Session) error {
	if s.want.tty {
		s.watchSize(session)
		if s.want.stdin && isTerminal(os.Stdin) {
			old, err := term.MakeRaw(int(os.Stdin.Fd()))
			if err != nil {
				return fmt.Errorf("set terminal to raw mode: %w", err)
			}
			s.raw = old
		}
	}
	s.letOutputOut()
	if session.Master != nil {
		s.copies.Add(1)
		go func() {
			defer s.copies.Done()
			// EIO: the last process closed the terminal.
			_, _ = io.Copy(os.Stdout, session.Master)
		}()
		if s.want.stdin {
			go s.feed(session.Master)
		}
		return nil
	}
	if s.stdin != nil {
		go func() {
			s.feed(s.stdin)
			s.stdin.Close()
		}()
	}
	return nil
}

// feed writes standard input to w until the detach keys are typed. A terminal's
// program reads an end of file at its end, as by ctrl-D.
func (s *streams) feed(w *os.File) {
	var in io.Reader = os.Stdin
	if s.want.tty && len(s.want.keys) > 0 {
		in = &keyReader{r: os.Stdin, keys: s.want.keys}
	}
	_, err := io.Copy(w, in)
	if errors.Is(err, errDetach) {
		close(s.left)
		return
	}
	if err == nil && s.want.tty {
		_, _ = w.Write([]byte{4})
	}
}

// watchSize passes on the size of the command's terminal.
func (s *streams) watchSize(session *launch.Session) {
	resize := func() {
		size := s.size()
		if size == nil {
			return
		}
		// The container may be gone, and its terminal with it.
		if session.Master != nil {
			ws := unix.Winsize{Row: size.Rows, Col: size.Columns}
			_ = unix.IoctlSetWinsize(int(session.Master.Fd()), unix.TIOCSWINSZ, &ws)
		} else {
			_ = session.Resize(*size)
		}
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	go func() {
		for range winch {
			resize()
		}
	}()
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
