package state

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ProcessOf describes a running process.
func ProcessOf(pid int) (Process, error) {
	start, err := stat(pid, 22)
	return Process{PID: pid, Start: start}, err
}

// ParentOf returns the pid of a running process's parent.
func ParentOf(pid int) (int, error) {
	parent, err := stat(pid, 4)
	return int(parent), err
}

// stat reads a number of /proc/PID/stat; the fields are numbered as in proc_pid_stat(5).
func stat(pid, field int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	// The command's name, in parentheses, is the second and may hold anything.
	const first = 3
	_, rest, ok := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')'):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) <= field-first {
		return 0, fmt.Errorf("process %d: unknown format of stat", pid)
	}
	n, err := strconv.ParseUint(fields[field-first], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %d: field %d of stat: %w", pid, field, err)
	}
	return n, nil
}

// Open returns a pidfd of the process, or nil when it is gone.
func (p Process) Open() (*os.File, error) {
	if p.PID <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// The start time is read after the pidfd is open: now it is of that
	// very process, or of none.
	if now, err := ProcessOf(p.PID); err != nil || now.Start != p.Start {
		return nil, f.Close()
	}
	return f, nil
}

// Await returns when the process has ended.
func (p Process) Await() error {
	f, err := p.Open()
	if f == nil {
		return err
	}
	defer f.Close()
	return AwaitEnd(f)
}

// AwaitEnd waits for the end of the process of a pidfd, as one waits for a socket: without
// a thread of its own.
func AwaitEnd(pidfd *os.File) error {
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	f := os.NewFile(uintptr(fd), "process")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// Signal sends a signal to the process. It returns os.ErrProcessDone when it
// is gone.
func (p Process) Signal(sig unix.Signal) error {
	f, err := p.Open()
	if err != nil {
		return err
	}
	if f == nil {
		return os.ErrProcessDone
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
