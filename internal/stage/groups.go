package stage

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSetgroups changes the groups of the calling thread only. The standard
// library's Setgroups changes all threads, of which just this one will execute
// the command.
func rawSetgroups(n int, gids *uint32) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(n), uintptr(unsafe.Pointer(gids)), 0); errno != 0 {
		return errno
	}
	return nil
}
