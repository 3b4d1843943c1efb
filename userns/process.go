package userns

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrParentGone says that the parent ended before its death could be watched.
var ErrParentGone = errors.New("parent process is gone")

// allCapabilities returns every capability that the kernel knows.
func allCapabilities() []uintptr {
	var all []uintptr
	for c := uintptr(0); c < 64; c++ {
		// EINVAL marks the first unknown one; it needs no /proc, unlike cap_last_cap.
		if _, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0); errno != 0 {
			break
		}
		all = append(all, c)
	}
	return all
}

// DropAmbient clears the ambient capabilities of all threads. Call it before
// executing a program that shall not inherit the namespace's power.
func DropAmbient() error {
	if err := prctlAll(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	return nil
}

// SetPdeathsig asks for SIGKILL when the parent dies and returns ErrParentGone if
// it did so already. parentPID is the parent's pid as this process should see it:
// 0 if the parent is in an outer pid namespace, where no check is possible.
//
// The kernel keeps the wish per thread and drops it when the process changes its
// user or group ids, or executes a program that does: call it after the id maps are in place and
// after any setuid. All threads get it, because any of them may end.
func SetPdeathsig(parentPID int) error {
	if err := prctlAll(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL)); err != nil {
		return fmt.Errorf("set the parent death signal: %w", err)
	}
	if ppid := os.Getppid(); ppid != parentPID {
		return fmt.Errorf("%w: expected pid %d, have %d", ErrParentGone, parentPID, ppid)
	}
	return nil
}

// prctlAll calls prctl on all threads; on the calling one alone in programs
// linked with cgo, whose threads Go does not know (race detector builds).
func prctlAll(op, arg uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, op, arg, 0, 0, 0, 0)
	if errno == syscall.ENOTSUP {
		return unix.Prctl(int(op), arg, 0, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}
