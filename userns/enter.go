package userns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process of several threads cannot enter a user namespace (setns(2)), and a
// Go process has several before any code of its own runs. Where the new process must
// not be another one's child, because whoever waits for it knows its pid, there is
// one moment left: between execve(2), which leaves a single thread, and the
// runtime's own start. So a program that is linked with -E userns.enter begins
// there; enter_*.s looks whether it was executed by Become, joins the namespace, and goes on
// to the runtime in any case. An entry point before this one jumps to it, for which it
// has a name that assembly can write: that of the package has a hyphen in its path.

// becomeStage is the first argument that enter looks for.
const becomeStage = "__rank"

// Become replaces this process by the program at path, which must have been linked with
// -E userns.enter, in the user namespace ns, whose owner has the caller's
// uid. Its arguments are "__rank", the number of ns and then args; it keeps the open files
// that are not marked close-on-exec. It returns only on failure.
func Become(path string, ns *os.File, args ...string) error {
	// Two digits are what enter reads.
	fd, err := unix.FcntlInt(ns.Fd(), unix.F_DUPFD, 10)
	if err != nil {
		return fmt.Errorf("join user namespace: %w", err)
	}
	if fd > 99 {
		return errors.Join(errors.New("join user namespace: too many open files"), unix.Close(fd))
	}
	err = syscall.Exec(path, append([]string{"urun", becomeStage, strconv.Itoa(fd)}, args...), nil)
	return errors.Join(fmt.Errorf("join user namespace: execute %s: %w", path, err), unix.Close(fd))
}

// Joined is Become's other side: it says whether this process is in the user namespace whose number is fd,
// and closes that.
func Joined(fd string) error {
	n, err := strconv.Atoi(fd)
	if err != nil {
		return fmt.Errorf("join user namespace: descriptor %q", fd)
	}
	defer unix.Close(n)
	var want, have unix.Stat_t
	if err := unix.Fstat(n, &want); err != nil {
		return fmt.Errorf("join user namespace: %w", err)
	}
	if err := unix.Stat("/proc/self/ns/user", &have); err != nil {
		return fmt.Errorf("join user namespace: %w", err)
	}
	if want.Dev == have.Dev && want.Ino == have.Ino {
		return nil
	}
	// Either the kernel refused, which this one repeats to learn why, or nobody asked it.
	err = unix.Setns(n, unix.CLONE_NEWUSER)
	if errors.Is(err, unix.EINVAL) {
		return ErrEntry
	}
	return fmt.Errorf("join user namespace: %w", err)
}

// ErrEntry says that the program was linked without its entry point.
var ErrEntry = errors.New("join user namespace: this program was linked without -E userns.enter")
