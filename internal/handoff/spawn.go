package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Go process has several threads and so cannot enter a user namespace
// (setns(2)). A command that wants a stage in one that exists asks a stage that
// lives there, over its door, to start it: with kindSpawn, whose files are the
// new stage's end of a channel and, if asked for, its standard error. The answer
// is kindSpawned, with a pidfd.
const (
	KindSpawn   = "spawn"
	kindSpawned = "spawned"
)

// SpawnRequest says which stage is wanted.
type SpawnRequest struct {
	Stage string `json:"stage"`
	// HasStderr says that a file for standard error comes along.
	HasStderr bool `json:"hasStderr,omitempty"`
}

// Spawned is a stage that another started.
type Spawned struct {
	PID   int    `json:"pid"`
	Error string `json:"error,omitempty"`
	// Process is a pidfd: the stage is not a child of who asked for it.
	Process *os.File `json:"-"`
	// Conn is the channel to the stage.
	Conn *Conn `json:"-"`
}

// Spawn asks whoever is at the other end of c for a stage. Stderr may be nil.
// The error wraps ErrNobody if the other end was closed before it answered; a
// stage that was started all the same sees its channel closed.
func (c *Conn) Spawn(stage string, stderr *os.File) (*Spawned, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	s, err := c.spawn(stage, theirs, stderr)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	s.Conn = ours
	return s, nil
}

func (c *Conn) spawn(stage string, theirs, stderr *os.File) (*Spawned, error) {
	files := []*os.File{theirs}
	if stderr != nil {
		files = append(files, stderr)
	}
	if err := c.Send(KindSpawn, SpawnRequest{Stage: stage, HasStderr: stderr != nil}, files...); err != nil {
		return nil, nobody(err)
	}
	m, err := c.Expect(kindSpawned)
	if err != nil {
		return nil, nobody(err)
	}
	s := &Spawned{}
	if err := m.Decode(s); err != nil {
		return nil, err
	}
	if s.Error != "" {
		return nil, errors.New(s.Error)
	}
	if len(m.Files) != 1 {
		return nil, fmt.Errorf("start stage %s: got %d files", stage, len(m.Files))
	}
	s.Process = m.Files[0]
	return s, nil
}

// Wait waits until the process has ended and closes the pidfd.
func (s *Spawned) Wait() error {
	defer s.Process.Close()
	poll := []unix.PollFd{{Fd: int32(s.Process.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, -1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", s.PID, err)
		}
	}
}

// Spawner starts stages in the user namespace of this process.
type Spawner struct {
	// Exe is this binary, such that nobody can write to it (userns.CloneExe).
	Exe *os.File
	// Allowed are the stages that may be asked for.
	Allowed []string
	// Stderr is the standard error of stages for which none came along; nil is /dev/null.
	Stderr *os.File
	// Keeper makes a channel to the holder for a new stage and returns the end
	// to be donated; nil if there is no holder.
	Keeper func() *os.File
}

// Answer starts the stage that m, a message of KindSpawn, asks for, tells c,
// and closes m. The stage is independent of this process: it may outlive it.
// It returns nil if there is no stage to wait for.
func (s Spawner) Answer(c *Conn, m *Message) *exec.Cmd {
	defer m.Close()
	cmd, err := s.start(m)
	answer := Spawned{}
	var files []*os.File
	if err == nil {
		answer.PID = cmd.Process.Pid
		// The process is not reaped yet, so the pid is its own.
		var fd int
		if fd, err = unix.PidfdOpen(answer.PID, 0); err == nil {
			f := os.NewFile(uintptr(fd), "pidfd")
			defer f.Close()
			files = append(files, f)
		}
	}
	if err != nil {
		answer.Error = err.Error()
	}
	// Whoever asked may be gone. The stage sees that itself, by its channel.
	_ = c.Send(kindSpawned, answer, files...)
	return cmd
}

func (s Spawner) start(m *Message) (*exec.Cmd, error) {
	var req SpawnRequest
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	want := 1
	if req.HasStderr {
		want = 2
	}
	if len(m.Files) != want {
		return nil, fmt.Errorf("spawn: got %d files, want %d", len(m.Files), want)
	}
	allowed := false
	for _, a := range s.Allowed {
		allowed = allowed || a == req.Stage
	}
	if !allowed {
		return nil, fmt.Errorf("spawn: %q is not to be had here", req.Stage)
	}
	keeper, err := s.keeper()
	if err != nil {
		return nil, err
	}
	defer keeper.Close()
	cmd := s.command(req.Stage, m.Files[0], keeper)
	switch {
	case req.HasStderr:
		cmd.Stderr = m.Files[1]
	case s.Stderr != nil: // a nil *os.File in an interface is not nil
		cmd.Stderr = s.Stderr
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("spawn %s: %w", req.Stage, err)
	}
	return cmd, nil
}

// command is a stage with all capabilities that leads a session of its own:
// a terminal's signals are for the command that asked.
func (s Spawner) command(stage string, theirs, keeper *os.File) *exec.Cmd {
	return &exec.Cmd{
		Path:        fmt.Sprintf("/proc/self/fd/%d", s.Exe.Fd()),
		Args:        []string{"urun", stage},
		Env:         []string{},
		ExtraFiles:  []*os.File{theirs, s.Exe, keeper},
		SysProcAttr: &syscall.SysProcAttr{AmbientCaps: AllCapabilities(), Setsid: true},
	}
}

// keeper returns the end of a channel to the holder, or of one that is closed at
// the other end.
func (s Spawner) keeper() (*os.File, error) {
	if f := s.Keeper(); f != nil {
		return f, nil
	}
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	return theirs, ours.Close()
}

// exeFD is where a spawned stage finds the binary, keeperFD its channel to the
// holder.
const (
	exeFD    = 4
	keeperFD = 5
)

// Keeper returns a spawned stage's channel to the holder. At its other end is
// nobody where the holder is gone.
func Keeper() (*Conn, error) {
	fd := keeperFD
	if len(os.Args) > 4 {
		var err error
		if fd, err = strconv.Atoi(os.Args[4]); err != nil {
			return nil, fmt.Errorf("the channel to the holder: descriptor %q", os.Args[4])
		}
	}
	c, err := FromFile(os.NewFile(uintptr(fd), "holder"))
	if err != nil {
		return nil, fmt.Errorf("not started by a holder: %w", err)
	}
	return c, nil
}

// highFD is where it moves it to: os/exec moves the files that a child gets to
// 3, 4, ... before it executes, which would replace a program that is to be
// executed as /proc/self/fd/N with a small N. It is below 64 for the reason that
// userns.CloneExe has.
const highFD = 48

// Execute replaces this process by a stage of s's binary, with theirs as its
// channel. It returns only on failure.
func (s Spawner) Execute(theirs *os.File, stage string) error {
	// Duplicates are not closed at execve.
	conn, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD, connFD)
	if err != nil {
		return fmt.Errorf("execute %s: %w", stage, err)
	}
	binary, err := unix.FcntlInt(s.Exe.Fd(), unix.F_DUPFD, highFD)
	if err != nil {
		return fmt.Errorf("execute %s: %w", stage, err)
	}
	far, err := s.keeper()
	if err != nil {
		return fmt.Errorf("execute %s: %w", stage, err)
	}
	keeper, err := unix.FcntlInt(far.Fd(), unix.F_DUPFD, keeperFD)
	if err != nil {
		return fmt.Errorf("execute %s: %w", stage, err)
	}
	args := []string{"urun", stage, strconv.Itoa(conn), strconv.Itoa(binary), strconv.Itoa(keeper)}
	err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", binary), args, nil)
	return fmt.Errorf("execute %s: %w", stage, err)
}

// Exe returns the binary that came with a spawned stage, to be executed as
// /proc/self/fd/N.
func Exe() (*os.File, error) {
	if len(os.Args) > 3 {
		fd, err := strconv.Atoi(os.Args[3])
		if err != nil || fd < highFD {
			return nil, fmt.Errorf("the stage's own binary: descriptor %q", os.Args[3])
		}
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), "urun"), nil
	}
	fd, err := unix.FcntlInt(exeFD, unix.F_DUPFD_CLOEXEC, highFD)
	if err != nil {
		return nil, fmt.Errorf("the stage's own binary: %w", err)
	}
	if err := unix.Close(exeFD); err != nil {
		return nil, fmt.Errorf("the stage's own binary: %w", err)
	}
	return os.NewFile(uintptr(fd), "urun"), nil
}

// nobody says ErrNobody for errors that mean that the other end is gone.
func nobody(err error) error {
	for _, gone := range []error{io.EOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return fmt.Errorf("%w: %w", ErrNobody, err)
		}
	}
	return err
}
