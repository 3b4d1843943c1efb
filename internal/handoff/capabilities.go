package handoff

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// AllCapabilities are what a stage is started with as ambient capabilities
// (SysProcAttr.AmbientCaps), so that it has them also when its uid is not root's
// in the user namespace: execve takes the others away.
func AllCapabilities() []uintptr {
	last, err := capability.LastCap()
	if err != nil {
		last = capability.CAP_CHECKPOINT_RESTORE // without /proc: those of Linux 5.9
	}
	all := make([]uintptr, 0, last+1)
	for c := capability.Cap(0); c <= last; c++ {
		all = append(all, uintptr(c))
	}
	return all
}

// DropCapabilities gives up the capabilities of every thread, for a stage that
// goes on without.
func DropCapabilities() error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); errno != 0 {
		return fmt.Errorf("drop ambient capabilities: %w", errno)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
