package handoff

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// marked is how many descriptors are marked one by one where close_range(2) cannot mark them. A stage's own files
// are far below: each got the lowest number that was free.
const marked = 1024

// CloseOnExec keeps every file but the standard ones from what the process executes next.
func CloseOnExec() error {
	err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	if err == nil {
		return nil
	}
	return errors.Join(markEach(), closeFrom(marked))
}

// markEach is the way that needs neither that flag nor a /proc, which in a container's root is the container's.
func markEach() error {
	for fd := 3; fd < marked; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil && !errors.Is(err, unix.EBADF) {
			return fmt.Errorf("close file %d on exec: %w", fd, err)
		}
	}
	return nil
}

// closeFrom closes what somebody left open far above. None of it is this program's.
func closeFrom(fd uint) error {
	if err := unix.CloseRange(fd, math.MaxInt32, 0); err != nil { // Linux 5.9
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}
