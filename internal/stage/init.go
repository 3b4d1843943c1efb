package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/rootfs"
)

// Init is the main function of the init stage. It does not return: it executes
// the command, or ends the process after it has told the monitor why not.
func Init() {
	runtime.LockOSThread()
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	code, err := run(parent)
	if err != nil {
		// If the monitor is gone, nobody is left to be told.
		_ = parent.Send(KindFailed, Failure(err))
		code = Failure(err).Code
	}
	os.Exit(code)
}

// setup is the state that the steps share.
type setup struct {
	Config
	parent    *handoff.Conn
	joins     []*os.File // namespaces to join
	shm       *os.File   // another container's /dev/shm
	preserved []*os.File // for the command
	binds     map[int]*os.File
	null      *os.File // the host's /dev/null
	tunDev    *os.File // an opened /dev/net/tun
	tun       *os.File
	master    *os.File
	slave     *os.File
	root      *rootfs.Root
	storage   Storage // overlay, fuse or copy
	notices   []string
	// emulated says that the monitor emulates root.
	emulated bool
}

// run receives the configuration and sets up the container. It returns only
// on failure or, for an init that reaps, with the command's status.
func run(parent *handoff.Conn) (int, error) {
	m, err := parent.Expect(KindConfig)
	if err != nil {
		return 0, err
	}
	s := &setup{parent: parent, joins: m.Files, binds: map[int]*os.File{}}
	if err := m.Decode(&s.Config); err != nil {
		return 0, err
	}
	if n := len(s.joins) - len(s.Preserve); n >= 0 {
		s.joins, s.preserved = s.joins[:n], s.joins[n:]
	}
	if n := len(s.joins) - 1; s.SharedShm && n >= 0 {
		s.joins, s.shm = s.joins[:n], s.joins[n]
	}
	todo := steps()
	if s.Chroot {
		todo = chrootSteps()
	}
	if s.Outer {
		if err := onlyPermitted(s.Spec.Process); err != nil {
			return 0, err
		}
	}
	for _, st := range todo {
		if err := st.run(s); err != nil {
			return 0, fmt.Errorf("%s: %w", st.name, err)
		}
	}
	if err := s.emulate(); err != nil {
		return 0, err
	}
	if err := s.ready(); err != nil {
		return 0, err
	}
	if s.Idle {
		return 0, s.idle()
	}
	p := Process{Spec: s.Spec.Process, Seccomp: s.Seccomp, SeccompFlags: s.SeccompFlags, KeepGroups: s.KeepGroups, Preserve: s.Preserve, preserved: s.preserved}
	if s.Reap {
		return s.reap(p)
	}
	if s.slave != nil {
		if err := takeTerminal(s.slave); err != nil {
			return 0, err
		}
	}
	return 0, p.Exec()
}

// ready tells the monitor and waits for its word: the record on disk says
// "running" before the command does anything.
func (s *setup) ready() error {
	r := Ready{HasTUN: s.tun != nil, HasTTY: s.master != nil, Storage: s.storage, Emulated: s.emulated, Notices: s.notices}
	var files []*os.File
	for _, f := range []*os.File{s.tun, s.master} {
		if f != nil {
			files = append(files, f)
		}
	}
	if err := s.parent.Send(KindReady, r, files...); err != nil {
		return err
	}
	for _, f := range files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	if _, err := s.parent.Expect(KindExec); err != nil {
		return fmt.Errorf("wait for the monitor: %w", err)
	}
	return nil
}

// takeTerminal makes the pty the controlling terminal and the standard files.
func takeTerminal(slave *os.File) error {
	// The monitor started this process with setsid(2), so it leads a session.
	if err := unix.IoctlSetInt(int(slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set controlling terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(int(slave.Fd()), fd, 0); err != nil {
			return fmt.Errorf("dup terminal: %w", err)
		}
	}
	return nil
}

// codedError is an error with the exit status it calls for.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// Failure is what there is to say of an error.
func Failure(err error) Failed {
	f := Failed{Error: err.Error(), Code: 125, Unserved: errors.Is(err, unix.ENOTCONN)}
	var coded *codedError
	if errors.As(err, &coded) {
		f.Code = coded.code
	}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		f.Hint = hinted.Hint()
	}
	return f
}

// hintError is an error with a known cure.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }
