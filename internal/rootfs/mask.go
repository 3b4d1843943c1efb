package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Mask hides paths of the container: files behind /dev/null, directories behind
// an empty read-only tmpfs. Paths that do not exist need no mask. Null is the
// host's /dev/null: the container's could be replaced by something else
// (CVE-2025-31133).
func (r *Root) Mask(paths []string, null *os.File) error {
	for _, name := range paths {
		target, err := r.Lookup(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask: %w", err)
		}
		err = mask(target, null)
		if err = errors.Join(err, target.Close()); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	return nil
}

func mask(target, null *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(target.Fd()), &st); err != nil {
		return err
	}
	over, err := maskFor(st.Mode, null)
	if err != nil {
		return err
	}
	defer over.Close()
	return attach(over, target)
}

// maskFor makes the detached mount that hides a file of this mode.
func maskFor(mode uint32, null *os.File) (*os.File, error) {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return newFilesystem("tmpfs", "tmpfs", []string{"size=0k", "nr_inodes=1", "mode=0555"},
			unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	}
	// A clone of what is attached: detached mounts can be cloned only since
	// Linux 6.15.
	fd, err := unix.OpenTree(int(null.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("clone /dev/null: %w", err)
	}
	return os.NewFile(uintptr(fd), null.Name()), nil
}

// Protect makes paths of the container read-only, with what is mounted below.
func (r *Root) Protect(paths []string) error {
	for _, name := range paths {
		target, err := r.Lookup(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make read-only: %w", err)
		}
		err = protect(target)
		if err = errors.Join(err, target.Close()); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

func protect(target *os.File) error {
	fd, err := unix.OpenTree(int(target.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	tree := os.NewFile(uintptr(fd), target.Name())
	defer tree.Close()
	return attachWith(tree, target, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, true)
}

// Sysctl writes kernel parameters ("net.ipv4.ip_forward": "1") of the
// container's namespaces. It must come before /proc/sys is made read-only.
func (r *Root) Sysctl(values map[string]string) error {
	for key, value := range values {
		if err := r.sysctl(key, value); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
	}
	return nil
}

func (r *Root) sysctl(key, value string) error {
	name := path.Join("proc/sys", strings.ReplaceAll(key, ".", "/"))
	fd, err := unix.Openat2(int(r.dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// A file of another filesystem in the place of procfs would take the write
	// (CVE-2025-52881).
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return errors.New("not on procfs")
	}
	_, err = f.WriteString(value)
	return err
}
