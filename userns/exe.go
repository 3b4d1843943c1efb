package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// exeFD is the lowest number for the descriptor of CloneExe. os/exec moves the
// files of ExtraFiles to 3, 4, ... before it executes, which would replace a
// program that is to be executed as /proc/self/fd/N with a small N. From 64 on
// the kernel has to enlarge the table of descriptors, for which a process of
// several threads waits an RCU grace period: 7 ms and more (expand_fdtable).
const exeFD = 48

// CloneExe returns a descriptor of this process's own executable that nobody can
// write through, to be executed as /proc/self/fd/N.
//
// A process that executes the user's own urun within reach of a container gives
// the container /proc/PID/exe, which is that file, and the container's root may
// be its owner (CVE-2019-5736). What is returned here is the file seen through
// a read-only clone of its mount (open_tree(2), Linux 5.2, mount_setattr(2), 5.12)
// that is attached nowhere, so no mount namespace can make it writable again. It
// needs CAP_SYS_ADMIN over the mount namespace: call it in the new user
// namespace with a mount namespace of its own, before the container's is made.
// Where that fails the file is copied into a sealed memfd; that costs memory of
// the binary's size.
func CloneExe() (*os.File, error) {
	f, err := cloneExeMount()
	if err == nil {
		return f, nil
	}
	f, copyErr := copyExe()
	if copyErr != nil {
		return nil, fmt.Errorf("protect the executable: %w", errors.Join(err, copyErr))
	}
	return f, nil
}

func cloneExeMount() (*os.File, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the executable: %w", err)
	}
	// /proc/self/exe itself cannot be cloned after a change of mount namespace:
	// its mount belongs to the old one.
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", path, err)
	}
	defer unix.Close(tree)
	if err := sameFile(tree, path); err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fmt.Errorf("make the mount of %s read-only: %w", path, err)
	}
	// Closing tree afterwards takes the mount out of every mount namespace; the
	// open file keeps it alive.
	return reopen(tree, path)
}

// sameFile checks that the path still names the file that this process executes
// and not a newer version of it.
func sameFile(fd int, path string) error {
	var have, want unix.Stat_t
	if err := unix.Fstat(fd, &have); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if err := unix.Stat("/proc/self/exe", &want); err != nil {
		return fmt.Errorf("stat /proc/self/exe: %w", err)
	}
	if have.Dev != want.Dev || have.Ino != want.Ino {
		return fmt.Errorf("%s is not the file this process executes", path)
	}
	return nil
}

// reopen opens what fd refers to for reading only, at a number from exeFD on.
func reopen(fd int, name string) (*os.File, error) {
	low, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the protected %s: %w", name, err)
	}
	defer unix.Close(low)
	high, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, exeFD)
	if err != nil {
		return nil, fmt.Errorf("duplicate the protected %s: %w", name, err)
	}
	return os.NewFile(uintptr(high), name), nil
}

func copyExe() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer src.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("urun", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("urun", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("create a memfd: %w", err)
	}
	dst := os.NewFile(uintptr(fd), "urun")
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return nil, fmt.Errorf("copy the executable: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(dst.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal the copy of the executable: %w", err)
	}
	// A descriptor open for writing makes execve fail with ETXTBSY.
	return reopen(fd, "urun")
}
