package stage

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
)

// reap runs the command as a child and stays as pid 1: signals go to the
// child, orphans are reaped, and the child's status is returned.
func (s *setup) reap(p Process) (int, error) {
	// The binary is reached through the container's /proc; it is a read-only
	// clone of the host's (userns.CloneExe), which the container can not write.
	cmd, conn, err := handoff.Command("/proc/self/exe", handoff.Payload)
	if err != nil {
		return 0, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setsid:    true,
		// The child needs the capabilities that it will then give up.
		AmbientCaps: handoff.AllCapabilities(),
	}
	if s.slave != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.slave, s.slave, s.slave
		cmd.SysProcAttr.Setctty = true
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start command: %w", err)
	}
	handoff.Donated(cmd)
	if err := conn.Send(KindConfig, p, p.preserved...); err != nil {
		return 0, err
	}
	for _, f := range p.preserved {
		if err := f.Close(); err != nil {
			return 0, err
		}
	}
	// This init only waits from here on.
	if err := handoff.DropCapabilities(); err != nil {
		return 0, err
	}
	go forward(signals, cmd.Process.Pid)
	said := make(chan *Failed, 1)
	go func() { said <- s.lastWords(conn) }()
	code := waitFor(cmd.Process.Pid)
	if f := <-said; f != nil {
		return 0, &codedError{f.Code, errors.New(f.Error)}
	}
	return code, nil
}

// lastWords returns what the child said of why it can not become the command.
// When it has become that, the monitor is told by the end of the channel, as by
// an init that executes the command itself.
func (s *setup) lastWords(conn *handoff.Conn) *Failed {
	m, err := conn.Recv()
	if err != nil {
		s.parent.Close()
		return nil
	}
	f := &Failed{}
	if err := m.Decode(f); err != nil {
		return &Failed{Error: err.Error(), Code: 125}
	}
	return f
}

// Run is the main function of the stage that becomes the command below an init
// that reaps.
func Run() {
	runtime.LockOSThread()
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	var p Process
	m, err := parent.Expect(KindConfig)
	if err == nil {
		p.preserved = m.Files
		if err = m.Decode(&p); err == nil {
			err = p.Exec()
		}
	}
	_ = parent.Send(KindFailed, Failure(err))
	os.Exit(Failure(err).Code)
}

func forward(signals <-chan os.Signal, pid int) {
	for sig := range signals {
		switch sig {
		case unix.SIGCHLD, unix.SIGURG: // SIGURG is how Go preempts itself
			continue
		}
		// The child may be gone already; then its status is on its way.
		_ = unix.Kill(pid, sig.(syscall.Signal))
	}
}

// waitFor reaps every child until pid ends and returns its status as a shell has it.
func waitFor(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 125
		}
		if got == pid {
			return Status(ws)
		}
	}
}

// Status is a wait status as a shell shows it.
func Status(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
