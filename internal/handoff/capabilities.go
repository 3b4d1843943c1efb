package handoff

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AllCapabilities are what a stage is started with as ambient capabilities
// (SysProcAttr.AmbientCaps), so that it has them also when its uid is not root's
// in the user namespace: execve takes the others away. They are all that this process has
// itself: every one, but where there is no user namespace.
func AllCapabilities() []uintptr {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return nil // it cannot fail with this version (capget(2))
	}
	var all []uintptr
	for c := range uintptr(64) {
		if have[c/32].Permitted&(1<<(c%32)) != 0 {
			all = append(all, c)
		}
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
