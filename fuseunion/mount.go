package fuseunion

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// MountOptions name the mount in /proc/self/mountinfo.
type MountOptions struct {
	Source  string // default "urun"
	Subtype string // the type is shown as fuse.Subtype; default "urun"
	// Writable makes a mount for ServeUnion; without it, it is one for Serve.
	Writable bool
}

func (o MountOptions) withDefaults() MountOptions {
	o.Source, o.Subtype = cmp.Or(o.Source, "urun"), cmp.Or(o.Subtype, "urun")
	return o
}

// Mount makes a FUSE mount for an open /dev/fuse and returns the
// descriptor of it, detached: it is visible nowhere until the caller attaches it
// (move_mount) or hands it to an overlay. The caller needs CAP_SYS_ADMIN in the
// user namespace that owns its mount namespace, and must have opened dev in that
// user namespace: the kernel refuses a device opened in another. Needs Linux 5.2;
// in a user namespace other than the first, what is mounted so works from 4.18 on.
//
// Mount does not wait for the server: requests queue until Serve reads them.
func Mount(dev *os.File, opt MountOptions) (mountFD *os.File, err error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fsfd)
	opt = opt.withDefaults()
	fd, err := rawFD(dev)
	if err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(dev)
	for _, s := range []struct{ key, value string }{
		{"source", opt.Source},
		{"subtype", opt.Subtype},
		{"fd", strconv.Itoa(fd)},
		{"rootmode", "40000"},
		// The owner must exist in the user namespace; the caller does, root may not.
		{"user_id", strconv.Itoa(os.Getuid())},
		{"group_id", strconv.Itoa(os.Getgid())},
	} {
		if err := unix.FsconfigSetString(fsfd, s.key, s.value); err != nil {
			return nil, fmt.Errorf("fsconfig fuse %s=%s: %w", s.key, s.value, err)
		}
	}
	// allow_other: every process of the user namespace and of those below it.
	// default_permissions: the kernel decides by the owners and modes served.
	flags, attr := []string{"allow_other", "default_permissions", "ro"}, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOATIME
	if opt.Writable {
		flags, attr = flags[:2], 0
	}
	for _, flag := range flags {
		if err := unix.FsconfigSetFlag(fsfd, flag); err != nil {
			return nil, fmt.Errorf("fsconfig fuse %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("create fuse superblock: %w", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount fuse: %w", err)
	}
	return os.NewFile(uintptr(mfd), "fuse mount"), nil
}

// rawFD returns the number of a descriptor without changing its mode, which Fd
// may do.
func rawFD(f *os.File) (fd int, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = c.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}
