package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// attachWith attaches a detached mount with these attributes: it has them before
// anybody can see it. Kernels without mount_setattr(2), before Linux 5.12, change
// only mounts that are attached. There the attributes come afterwards, by
// mount(2), which is no loss: nobody else is in this mount namespace yet.
func attachWith(mount, target *os.File, attr unix.MountAttr, recursive bool) error {
	err := setAttr(mount, attr, recursive)
	old := errors.Is(err, unix.ENOSYS)
	if err != nil && !old {
		return err
	}
	if err := attach(mount, target); err != nil || !old {
		return err
	}
	return remount(mount, attr, recursive)
}

// remount does to an attached mount what setAttr does to any. The mount is reached
// through its descriptor, which no path in between can turn into another.
func remount(mount *os.File, attr unix.MountAttr, recursive bool) error {
	if err := remountOne(int(mount.Fd()), attr); err != nil {
		return err
	}
	if !recursive {
		return nil
	}
	below, err := mountsBelow(int(mount.Fd()))
	if err != nil {
		return err
	}
	for _, m := range below {
		if err := m.remount(mount, attr); err != nil {
			return fmt.Errorf("%s: %w", m.path, err)
		}
	}
	return nil
}

const stNoSymFollow = 0x2000 // include/linux/statfs.h

// Flags of a mount: as mount_setattr(2) has them, as statfs(2) shows and mount(2) takes them.
var mountFlags = []struct{ attr, shown, flag uint64 }{
	{unix.MOUNT_ATTR_RDONLY, unix.ST_RDONLY, unix.MS_RDONLY},
	{unix.MOUNT_ATTR_NOSUID, unix.ST_NOSUID, unix.MS_NOSUID},
	{unix.MOUNT_ATTR_NODEV, unix.ST_NODEV, unix.MS_NODEV},
	{unix.MOUNT_ATTR_NOEXEC, unix.ST_NOEXEC, unix.MS_NOEXEC},
	{unix.MOUNT_ATTR_NODIRATIME, unix.ST_NODIRATIME, unix.MS_NODIRATIME},
	{unix.MOUNT_ATTR_NOSYMFOLLOW, stNoSymFollow, unix.MS_NOSYMFOLLOW},
}

// remountFlags are the flags for mount(2), which sets all of them at once: what is not
// to change is given as it is. A mount that came from a more privileged namespace must
// keep what restricts it, and its way with access times (can_change_locked_flags, fs/namespace.c).
func remountFlags(shown uint64, attr unix.MountAttr) uintptr {
	var flags uint64
	for _, f := range mountFlags {
		if attr.Attr_set&f.attr != 0 || shown&f.shown != 0 && attr.Attr_clr&f.attr == 0 {
			flags |= f.flag
		}
	}
	noatime, relatime := shown&unix.ST_NOATIME != 0, shown&unix.ST_RELATIME != 0
	if attr.Attr_clr&unix.MOUNT_ATTR__ATIME != 0 {
		now := attr.Attr_set & unix.MOUNT_ATTR__ATIME
		noatime, relatime = now == unix.MOUNT_ATTR_NOATIME, now == unix.MOUNT_ATTR_RELATIME
	}
	switch {
	case noatime:
		flags |= unix.MS_NOATIME
	case relatime:
		flags |= unix.MS_RELATIME
	default:
		flags |= unix.MS_STRICTATIME
	}
	return uintptr(flags)
}

func remountOne(fd int, attr unix.MountAttr) error {
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	if attr.Attr_set != 0 || attr.Attr_clr != 0 {
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil {
			return fmt.Errorf("statfs: %w", err)
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|remountFlags(uint64(st.Flags), attr), ""); err != nil {
			return fmt.Errorf("remount: %w", err)
		}
	}
	if attr.Propagation != 0 {
		if err := unix.Mount("", path, "", uintptr(attr.Propagation), ""); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	return nil
}

// submount is a mount below another, by the path to it from there.
type submount struct {
	id   uint64
	path string
}

// mountsBelow lists the mounts below that of fd, each after its parent.
func mountsBelow(fd int) ([]submount, error) {
	top, err := mountID(fd)
	if err != nil {
		return nil, err
	}
	// Of this thread: others of the process may be in another namespace.
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	children := map[uint64][]*mountinfo.Info{}
	base := ""
	for _, m := range all {
		if uint64(m.ID) == top {
			base = m.Mountpoint
		}
		children[uint64(m.Parent)] = append(children[uint64(m.Parent)], m)
	}
	var below []submount
	for queue := []uint64{top}; len(queue) > 0; queue = queue[1:] {
		for _, m := range children[queue[0]] {
			rel := strings.TrimPrefix(strings.TrimPrefix(m.Mountpoint, base), "/")
			below = append(below, submount{uint64(m.ID), rel})
			queue = append(queue, uint64(m.ID))
		}
	}
	return below, nil
}

func (m submount) remount(top *os.File, attr unix.MountAttr) error {
	fd, err := unix.Openat2(int(top.Fd()), m.path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	id, err := mountID(fd)
	if err != nil {
		return err
	}
	// What another mount hides cannot be reached, by us or by the container.
	if id != m.id {
		return nil
	}
	return remountOne(fd, attr)
}

// mountID is the number by which mountinfo has the mount of fd (Linux 5.8).
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("statx: this kernel tells no mount ids (Linux 5.8)")
	}
	return st.Mnt_id, nil
}
