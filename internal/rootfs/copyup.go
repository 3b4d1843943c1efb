package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyUp copies what the image has at target into an empty volume, with
// owners, modes, times and extended attributes. A volume that holds something
// is left alone.
func copyUp(target, volume *os.File) error {
	dst, err := reopenDir(volume)
	if err != nil {
		return err
	}
	defer dst.Close()
	if _, err := dst.Readdirnames(1); err == nil {
		return nil
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("read volume: %w", err)
	}
	src, err := reopenDir(target)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := copyDir(src, dst); err != nil {
		return fmt.Errorf("copy into volume: %w", err)
	}
	return nil
}

// reopenDir opens for reading a directory that is open as O_PATH or as a
// detached mount.
func reopenDir(f *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func copyDir(src, dst *os.File) error {
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(src, dst, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return copyMeta(src, dst)
}

func copyEntry(src, dst *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
			return err
		}
		return withPair(src, dst, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, copyDir)
	case unix.S_IFREG:
		return withPair(src, dst, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, copyFile)
	case unix.S_IFLNK:
		return copyLink(src, dst, name, &st)
	case unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknodat(int(dst.Fd()), name, st.Mode, 0); err != nil {
			return err
		}
		return unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil // device nodes can not be made in a user namespace
}

func withPair(src, dst *os.File, name string, srcFlags, dstFlags int, copy func(src, dst *os.File) error) error {
	s, err := openIn(src, name, srcFlags)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := openIn(dst, name, dstFlags)
	if err != nil {
		return err
	}
	return errors.Join(copy(s, d), d.Close())
}

func openIn(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func copyFile(src, dst *os.File) error {
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return copyMeta(src, dst)
}

func copyLink(src, dst *os.File, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(src.Fd()), name, buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(buf[:n]), int(dst.Fd()), name); err != nil {
		return err
	}
	if err := unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dst.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyMeta sets owner, extended attributes, mode and times, in the order in
// which one does not undo the other: chown clears set-id bits and capabilities.
func copyMeta(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	fd := int(dst.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(int(src.Fd()), fd); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

func copyXattrs(src, dst int) error {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(src, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listxattr: %w", err)
	}
	value := make([]byte, 64<<10)
	for _, name := range splitNames(list[:n]) {
		m, err := unix.Fgetxattr(src, name, value)
		if err != nil {
			return fmt.Errorf("getxattr %s: %w", name, err)
		}
		// The volume's filesystem may not know every attribute.
		if err := unix.Fsetxattr(dst, name, value[:m], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("setxattr %s: %w", name, err)
		}
	}
	return nil
}

func splitNames(list []byte) []string {
	var names []string
	for start, i := 0, 0; i < len(list); i++ {
		if list[i] == 0 {
			names = append(names, string(list[start:i]))
			start = i + 1
		}
	}
	return names
}
