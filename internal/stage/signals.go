package stage

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetSignals gives every signal its default action and unblocks all: the
// command must not inherit what urun's caller ignores (nohup ignores SIGHUP,
// shells SIGINT for their background jobs). Ignored signals stay ignored through
// execve (signal(7)), and os/signal has no way to undo it. Go's own handlers
// go, too: what is left to do until the execve is one goroutine's work on a
// locked thread.
func resetSignals() error {
	var defaultAction [4]uint64 // struct sigaction of the kernel: handler SIG_DFL, no flags, empty mask
	const setSize = 8
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&defaultAction)), 0, setSize, 0, 0); errno != 0 {
			return errno
		}
	}
	var none uint64
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, setSize, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
