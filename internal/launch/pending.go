package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/userns"
)

// Pending is a monitor that is being started. Starting one takes a few
// milliseconds, most of them for newuidmap: the command finds out meanwhile what
// to ask it for.
type Pending struct {
	done chan struct{}
	cmd  *exec.Cmd // nil for one that another monitor started
	pid  int
	conn *handoff.Conn
	err  error
}

// Begin starts a monitor in a new user namespace with the map m and in a new
// mount namespace. Exe is this binary. Stderr is where the monitor may complain;
// nil for that of a detached container, whose caller may wait for the end of its own.
func Begin(exe string, m userns.Map, stderr *os.File) *Pending {
	p := &Pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.start(exe, m, stderr)
	}()
	return p
}

func (p *Pending) start(exe string, m userns.Map, stderr *os.File) error {
	cmd, conn, err := handoff.Command(exe, handoff.Monitor)
	if err != nil {
		return err
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	// A terminal's signals are for the command, which passes them on.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := userns.Start(cmd, m, unix.CLONE_NEWNS); err != nil {
		return errors.Join(err, conn.Close())
	}
	handoff.Donated(cmd)
	p.cmd, p.pid, p.conn = cmd, cmd.Process.Pid, conn
	return nil
}

// BeginBeside starts a monitor in the user namespace of a running container,
// whose directory is dir.
func BeginBeside(dir string) *Pending {
	p := &Pending{done: make(chan struct{})}
	defer close(p.done)
	ours, theirs, err := handoff.Pair()
	if err != nil {
		p.err = err
		return p
	}
	defer theirs.Close()
	if p.pid, p.err = monitor.Spawn(dir, theirs); p.err != nil {
		ours.Close()
		return p
	}
	p.conn = ours
	return p
}

// PID waits for the monitor and returns its pid.
func (p *Pending) PID() (int, error) {
	<-p.done
	if p.err != nil {
		return 0, p.err
	}
	return p.pid, nil
}

// Cancel ends a monitor that was not asked for anything.
func (p *Pending) Cancel() {
	<-p.done
	if p.err == nil {
		// It ends at the end of the channel.
		_ = (&Session{cmd: p.cmd, conn: p.conn}).end()
	}
}

// Run asks the monitor for a container and returns when the container's
// command runs. On an error nothing of the container is left.
func (p *Pending) Run(req monitor.Request, files []*os.File) (*Session, error) {
	<-p.done
	if p.err != nil {
		return nil, p.err
	}
	s := &Session{cmd: p.cmd, conn: p.conn}
	if err := p.conn.Send(monitor.KindRequest, req, files...); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// Session is the connection of the command to a container's monitor.
type Session struct {
	cmd  *exec.Cmd
	conn *handoff.Conn
	// Started is what the monitor said of the running container.
	Started monitor.Started
	// Master is the container's terminal, nil without one.
	Master *os.File
}

// ErrMonitorGone says that the container's monitor ended without a word.
var ErrMonitorGone = errors.New("the container's monitor was killed")

// Error is a failure that another process of the container reported, with the
// exit status that it calls for.
type Error struct{ stage.Failed }

func (e *Error) Error() string { return e.Failed.Error }
func (e *Error) Hint() string  { return e.Failed.Hint }
func (e *Error) ExitCode() int { return e.Code }

// AwaitStart waits until the container's command runs. When the container
// ended before, exited is not nil.
func (s *Session) AwaitStart() (exited *monitor.Exited, err error) {
	m, err := s.conn.Recv()
	if err != nil {
		return nil, errors.Join(gone(err), s.end())
	}
	switch m.Kind {
	case monitor.KindStarted:
		if err := m.Decode(&s.Started); err != nil {
			return nil, err
		}
		if s.Started.HasTTY {
			if len(m.Files) != 1 {
				return nil, fmt.Errorf("start container: got %d files", len(m.Files))
			}
			s.Master = m.Files[0]
		}
		return nil, nil
	case monitor.KindExited:
		exited, err = decodeExited(m)
		return exited, errors.Join(err, s.end())
	case monitor.KindFailed:
		e := &Error{}
		if err := m.Decode(&e.Failed); err != nil {
			return nil, err
		}
		_ = s.end()
		return nil, e
	}
	return nil, fmt.Errorf("start container: unknown message %q", m.Kind)
}

// AwaitExit waits for the container's end.
func (s *Session) AwaitExit() (*monitor.Exited, error) {
	m, err := s.conn.Recv()
	if err != nil {
		return nil, errors.Join(gone(err), s.end())
	}
	if m.Kind != monitor.KindExited {
		return nil, fmt.Errorf("run container: unknown message %q", m.Kind)
	}
	exited, err := decodeExited(m)
	return exited, errors.Join(err, s.end())
}

func decodeExited(m *handoff.Message) (*monitor.Exited, error) {
	e := &monitor.Exited{}
	return e, m.Decode(e)
}

func gone(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrMonitorGone
	}
	return err
}

// Signal sends a signal to the container's pid 1.
func (s *Session) Signal(sig unix.Signal) error {
	return s.conn.Send(monitor.KindSignal, monitor.Signal{Number: int(sig)})
}

// end waits for the monitor's end, so that nothing of the container is left
// when the command returns.
func (s *Session) end() error {
	err := s.conn.Close()
	if s.cmd != nil {
		_ = s.cmd.Wait() // its status says nothing that its messages did not
	}
	return err
}

// Leave gives up the connection to a detached container.
func (s *Session) Leave() error { return s.conn.Close() }
