package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Outer returns the map of a process that gets no user namespace of its own: the ids
// of this process's. Start makes none for it.
func Outer() (Map, error) {
	uids, err := readMap("/proc/self/uid_map")
	if err != nil {
		return Map{}, err
	}
	gids, err := readMap("/proc/self/gid_map")
	if err != nil {
		return Map{}, err
	}
	return Map{UIDs: identity(uids), GIDs: identity(gids), Outer: true}, nil
}

// Refused says why this process cannot make a user namespace, as far as that is
// known without making one; nil if nothing speaks against it.
func Refused() error {
	l := readLimits()
	switch {
	case !l.kernelSupport:
		return explainClone(unix.ENOSYS, l)
	case l.maxNamespaces == "0":
		return explainClone(unix.ENOSPC, l)
	case l.chrooted:
		return explainClone(unix.EPERM, l)
	case l.seccomp != "2":
		return nil
	}
	// A process of several threads, as every Go program is, is never given a user namespace by unshare(2): EINVAL. A filter
	// is asked before that.
	if err := unix.Unshare(unix.CLONE_NEWUSER); err != nil && !errors.Is(err, unix.EINVAL) {
		return explainClone(err, l)
	}
	return nil
}

// MayMount says whether this process may make mount namespaces, and so mounts, where it is: it
// makes one for a thread that ends with that. In a chroot it would be of no use: "/" is not a mount there.
var MayMount = sync.OnceValue(func() bool {
	if chrooted() {
		return false
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- unix.Unshare(unix.CLONE_NEWNS)
	}()
	return <-done == nil
})

// permitted are the capabilities that this process has.
func permitted() (all []uintptr) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return nil // it cannot fail with this version (capget(2))
	}
	for c := range uintptr(64) {
		if have[c/32].Permitted&(1<<(c%32)) != 0 {
			all = append(all, c)
		}
	}
	return all
}

// startOuter starts cmd with all capabilities that this process may have, in those of the
// namespaces in extra that it may make.
func startOuter(cmd *exec.Cmd, extra uintptr) error {
	attr := &syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		*attr = *cmd.SysProcAttr
	}
	if MayMount() {
		attr.Cloneflags |= extra
	}
	attr.AmbientCaps = permitted()
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a process as uid %d without a user namespace: %w", os.Geteuid(), err)
	}
	return nil
}
