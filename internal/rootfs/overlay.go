package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// AttachAt attaches a detached mount at a path relative to the working
// directory.
func AttachAt(mount *os.File, name string) error {
	target, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(target)
	return moveMount(int(mount.Fd()), target)
}

// Memory mounts a small tmpfs on a directory and returns its root.
func Memory(path string) (*os.File, error) {
	mem, err := newFilesystem("tmpfs", "tmpfs", []string{"mode=0700", "size=64k"}, 0)
	if err != nil {
		return nil, err
	}
	if err := AttachAt(mem, path); err != nil {
		return nil, errors.Join(err, mem.Close())
	}
	return mem, nil
}

// Where the image and the finished root are mounted, relative to the container's
// directory. The mount points are in a tmpfs of the container's own mount
// namespace, so that nothing of them is ever on disk.
const (
	scratch = "etc"
	Lower   = scratch + "/lower"
	Merged  = scratch + "/merged"
)

// MountPoints makes Lower and Merged: a tmpfs on the directory of the generated
// files, which must have been opened before.
func MountPoints() error {
	fs, err := newFilesystem("tmpfs", "tmpfs", []string{"mode=0700", "size=4m"}, 0)
	if err != nil {
		return err
	}
	defer fs.Close()
	if err := AttachAt(fs, scratch); err != nil {
		return err
	}
	for _, dir := range []string{Lower, Merged} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return nil
}

// Overlay mounts the kernel's overlayfs at Merged, over Lower, with "upper" and
// "work" in the working directory as its writable layer. All paths are
// relative: nothing needs escaping, and nothing is too long.
//
// Where the filesystem of the working directory can not hold a writable layer
// (no user.* extended attributes, no RENAME_WHITEOUT: NFS, Lustre, older tmpfs)
// the layer goes into memory if that is allowed, and a notice is returned that says so.
func Overlay(volatile, memory bool) (notice string, err error) {
	err = mountOverlay("", volatile)
	if err == nil || !memory || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
		return "", err
	}
	cause := err
	if err := MemoryLayer(); err != nil {
		return "", errors.Join(cause, err)
	}
	if err := MemoryOverlay(); err != nil {
		return "", errors.Join(cause, err)
	}
	return fmt.Sprintf("the store's filesystem can not hold a writable layer (%v): changes are kept in memory and lost when the container ends", cause), nil
}

// MemoryOverlay is Overlay with the writable layer that MemoryLayer has made.
func MemoryOverlay() error { return mountOverlay(memoryPrefix, true) }

func mountOverlay(prefix string, volatile bool) error {
	if err := likeLower(prefix + "upper"); err != nil {
		return err
	}
	// userxattr: overlayfs keeps its marks in user.overlay.*, since trusted.*
	// is not for user namespaces (Linux 5.11).
	// No xino=on: it would make d_ino and st_ino equal for "." too, but by setting
	// bit 63 of the numbers of all files of the image, which programs that keep
	// inode numbers in floating point (Node.js) then take for one file.
	opts := "lowerdir=" + Lower + ",upperdir=" + prefix + "upper,workdir=" + prefix + "work,userxattr"
	if volatile {
		opts += ",volatile"
	}
	if err := unix.Mount("overlay", Merged, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// ProbeOverlay tells whether Overlay will work without falling back to memory or, if
// memory is set, MemoryOverlay: it makes an overlay with the empty Lower and throws it away. MountPoints comes before.
func ProbeOverlay(memory bool) error {
	prefix := ""
	if memory {
		prefix = memoryPrefix
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	for _, o := range [][2]string{{"lowerdir", Lower}, {"upperdir", prefix + "upper"}, {"workdir", prefix + "work"}} {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return fmt.Errorf("overlay %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fd, "userxattr"); err != nil {
		return fmt.Errorf("overlay userxattr (Linux 5.11): %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// memoryDir is where the writable layer is kept in memory: a tmpfs on the
// directory that would have been overlayfs's own.
const (
	memoryDir    = "work"
	memoryPrefix = memoryDir + "/"
)

// MemoryLayer makes room for a writable layer in memory.
func MemoryLayer() error {
	mem, err := DetachedLayer()
	if err != nil {
		return err
	}
	return errors.Join(AttachAt(mem, memoryDir), mem.Close())
}

// DetachedLayer makes a file system in memory, attached nowhere, with the directories
// upper and work. It lasts as long as it is open or attached.
func DetachedLayer() (*os.File, error) {
	mem, err := newFilesystem("tmpfs", "tmpfs", []string{"mode=0755"}, 0)
	if err != nil {
		return nil, fmt.Errorf("memory for the writable layer: %w", err)
	}
	for _, name := range []string{"upper", "work"} {
		if err := unix.Mkdirat(int(mem.Fd()), name, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("memory for the writable layer: %w", err), mem.Close())
		}
	}
	return mem, nil
}

// likeLower gives the upper root the attributes of the lower one: it is what
// the root of an overlay shows. One that has been in use has its own.
func likeLower(upper string) error {
	if used, err := os.ReadDir(upper); err != nil || len(used) > 0 {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(Lower, &st); err != nil {
		return fmt.Errorf("stat image root: %w", err)
	}
	if err := unix.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown writable layer: %w", err)
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod writable layer: %w", err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, upper, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return fmt.Errorf("set times of writable layer: %w", err)
	}
	return nil
}
