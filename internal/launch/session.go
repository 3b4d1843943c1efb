package launch

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
)

// Attach connects the files to the output of the running container in dir, and
// to its input if the request says so. The caller closes the files.
func Attach(dir string, req monitor.AttachRequest, files [3]*os.File) (*Session, error) {
	return dial(dir, monitor.KindJoin, req, files)
}

// Exec runs a command in the running container in dir.
func Exec(dir string, req monitor.ExecRequest, files [3]*os.File) (*Session, error) {
	return dial(dir, monitor.KindExec, req, files)
}

func dial(dir, kind string, req any, files [3]*os.File) (*Session, error) {
	conn, err := monitor.Dial(dir)
	if err != nil {
		return nil, err
	}
	if err := conn.Send(kind, req, files[:]...); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &Session{stage: &handoff.Spawned{Conn: conn}}, nil
}

// Session is the connection of a command to a container's monitor.
type Session struct {
	stage *handoff.Spawned
	// Started is what the monitor said of the running container.
	Started monitor.Started
	// Master is the container's terminal, nil without one.
	Master *os.File
	// Warnings are what the user should know of the container's cgroup.
	Warnings []string
	Cgroup   CgroupTimes
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
	m, err := s.stage.Conn.Recv()
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
	case monitor.KindExited, monitor.KindFailed:
		return s.last(m)
	}
	return nil, fmt.Errorf("start container: unknown message %q", m.Kind)
}

// AwaitExit waits for the container's end.
func (s *Session) AwaitExit() (*monitor.Exited, error) {
	m, err := s.stage.Conn.Recv()
	if err != nil {
		return nil, errors.Join(gone(err), s.end())
	}
	return s.last(m)
}

// last takes the monitor's last word.
func (s *Session) last(m *handoff.Message) (*monitor.Exited, error) {
	switch m.Kind {
	case monitor.KindExited:
		e := &monitor.Exited{}
		if err := m.Decode(e); err != nil {
			return nil, errors.Join(err, s.stage.Conn.Close())
		}
		if e.Restarts {
			return e, s.Leave() // the monitor goes on
		}
		return e, s.end()
	case monitor.KindFailed:
		e := &Error{}
		err := m.Decode(&e.Failed)
		if err == nil {
			err = e
		}
		_ = s.end()
		return nil, err
	}
	return nil, fmt.Errorf("container: unknown message %q", m.Kind)
}

func gone(err error) error {
	if errors.Is(err, io.EOF) {
		return ErrMonitorGone
	}
	return err
}

// Signal sends a signal to the container's pid 1.
func (s *Session) Signal(sig unix.Signal) error {
	return s.stage.Conn.Send(monitor.KindSignal, monitor.Signal{Number: int(sig)})
}

// Resize tells the size of the command's terminal.
func (s *Session) Resize(size monitor.Size) error { return s.stage.Conn.Send(monitor.KindResize, size) }

// Detach leaves the container, or the command in it, to itself.
func (s *Session) Detach() error {
	err := s.stage.Conn.Send(monitor.KindDetach, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = nil // it has ended already, and its status is nobody's
	}
	return errors.Join(err, s.Leave())
}

// end waits for the monitor's end, so that nothing of the container is left
// when the command returns. A session with a container that somebody else has started waits for nobody.
func (s *Session) end() error {
	err := s.stage.Conn.Close()
	if s.stage.Process != nil {
		err = errors.Join(err, s.stage.Wait())
	}
	return err
}

// Leave gives up the connection to a container that stays.
func (s *Session) Leave() error {
	err := s.stage.Conn.Close()
	if s.stage.Process != nil {
		err = errors.Join(err, s.stage.Process.Close())
	}
	return err
}
