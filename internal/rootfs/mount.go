package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is the root of a container that is being built: a directory, and the
// mounts made below it.
type Root struct{ dir *os.File }

// Open opens the root directory at name.
func Open(name string) (*Root, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", name, err)
	}
	return &Root{dir: os.NewFile(uintptr(fd), name)}, nil
}

// At is the root directory that is open.
func At(dir *os.File) *Root { return &Root{dir: dir} }

// Close closes the root's file descriptor.
func (r *Root) Close() error { return r.dir.Close() }

// Private makes every mount of the namespace receive nothing from the host's and send nothing there.
func Private() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// Source opens what a bind mount shows: a detached copy of the mounts at the
// host path. The caller's file permissions count.
func Source(p Plan) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if p.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, p.Source, flags)
	if err != nil && !p.Recursive && errors.Is(err, unix.EINVAL) {
		// Below the directory are mounts that came from a more privileged
		// namespace; the kernel does not let us uncover what they hide.
		fd, err = unix.OpenTree(unix.AT_FDCWD, p.Source, flags|unix.AT_RECURSIVE)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", p.Source, err)
	}
	return os.NewFile(uintptr(fd), p.Source), nil
}

// Mount applies one plan. Source is the detached tree for a bind, nil else.
func (r *Root) Mount(p Plan, source *os.File) error {
	if err := r.mount(p, source); err != nil {
		return fmt.Errorf("mount %s on %s: %w", p.what(), p.Target, err)
	}
	return nil
}

func (p Plan) what() string {
	if p.Bind {
		return p.Source
	}
	return p.Type
}

func (r *Root) mount(p Plan, source *os.File) error {
	isDir := true
	if p.Bind {
		var st unix.Stat_t
		if err := unix.Fstat(int(source.Fd()), &st); err != nil {
			return err
		}
		isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	target, err := r.target(p, isDir)
	if err != nil {
		return err
	}
	defer target.Close()
	if !p.Bind {
		if source, err = newFilesystem(p.Type, p.Source, p.Data, p.firstAttr()); err != nil {
			return err
		}
		defer source.Close()
	}
	if p.CopyUp {
		if err := copyUp(target, source); err != nil {
			return err
		}
	}
	return attachWith(source, target, p.Attr, p.AttrRecursive)
}

// target opens the mount point, making it where the image has none.
func (r *Root) target(p Plan, isDir bool) (*os.File, error) {
	f, err := r.Lookup(p.Target)
	if err == nil || !errors.Is(err, unix.ENOENT) || !p.Create {
		return f, err
	}
	if isDir {
		return r.MkdirAll(p.Target, 0o755)
	}
	parent, err := r.MkdirAll(path.Dir(p.Target), 0o755)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), path.Base(p.Target), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create mount point: %w", err)
	}
	if err := unix.Close(fd); err != nil {
		return nil, err
	}
	return r.Lookup(p.Target)
}

// Lookup opens (O_PATH) the path inside the root, following symlinks as a
// process inside would.
func (r *Root) Lookup(name string) (*os.File, error) {
	fd, err := unix.Openat2(int(r.dir.Fd()), "."+path.Clean("/"+name), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC,
		// Magic links (/proc/PID/fd/N) lead out of every root.
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s in the container: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// MkdirAll makes a directory inside the root, with its parents, and opens it.
// What exists is found by Lookup, inside the root; what does not is made by name
// in an open directory, which follows nothing.
func (r *Root) MkdirAll(name string, mode uint32) (*os.File, error) {
	f, err := r.Lookup(name)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	name = path.Clean("/" + name)
	parent, err := r.MkdirAll(path.Dir(name), mode)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), path.Base(name), mode); err != nil {
		// EEXIST: a symlink to nowhere; what it means is not ours to make.
		return nil, fmt.Errorf("make directory %s in the container: %w", name, err)
	}
	return r.Lookup(name)
}

// firstAttr are the attributes that a new filesystem is mounted with from the
// first moment. A new /sys beside one that is read-only, as inside docker, must be born so
// (mount_too_revealing, fs/namespace.c). One that is filled first must not.
func (p Plan) firstAttr() uint64 {
	if p.CopyUp {
		return 0
	}
	// fsmount(2) knows MOUNT_ATTR_NOSYMFOLLOW only since Linux 5.14.
	return p.Attr.Attr_set &^ unix.MOUNT_ATTR_NOSYMFOLLOW
}

// newFilesystem makes a detached mount of a new filesystem with MOUNT_ATTR_* attributes.
func newFilesystem(fstype, source string, data []string, attr uint64) (*os.File, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(ctx)
	if source != "" {
		if err := unix.FsconfigSetString(ctx, "source", source); err != nil {
			return nil, fmt.Errorf("source %s: %w", source, err)
		}
	}
	for _, opt := range data {
		key, value, ok := strings.Cut(opt, "=")
		if ok {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, key)
		}
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", opt, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

func setAttr(mount *os.File, attr unix.MountAttr, recursive bool) error {
	if attr == (unix.MountAttr{}) {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(int(mount.Fd()), "", flags, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

func attach(mount, target *os.File) error {
	return moveMount(int(mount.Fd()), int(target.Fd()))
}

func moveMount(mount, target int) error {
	if err := unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// ReadOnly makes the root mount itself read-only; mounts below keep what they
// are.
func (r *Root) ReadOnly() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	err := setAttr(r.dir, attr, false)
	if errors.Is(err, unix.ENOSYS) {
		return remount(r.dir, attr, false)
	}
	return err
}
