package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultDevices are the device files of every container. A user namespace
// can not make device nodes (mknod(2): EPERM), so the host's are bound.
func DefaultDevices() []string {
	return []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
}

// DeviceLinks are the symlinks in a container's /dev, link to target.
func DeviceLinks() [][2]string {
	return [][2]string{
		{"fd", "/proc/self/fd"},
		{"stdin", "/proc/self/fd/0"},
		{"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"},
		{"core", "/proc/kcore"},
		{"ptmx", "pts/ptmx"},
	}
}

// Links makes the symlinks in the container's /dev, leaving alone what is
// there.
func (r *Root) Links() error {
	dev, err := r.Lookup("/dev")
	if err != nil {
		return err
	}
	defer dev.Close()
	for _, l := range DeviceLinks() {
		if err := unix.Symlinkat(l[1], int(dev.Fd()), l[0]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("symlink /dev/%s: %w", l[0], err)
		}
	}
	return nil
}

// Console makes a pseudo terminal in the container's devpts and binds its
// slave on /dev/console.
func (r *Root) Console() (master, slave *os.File, err error) {
	ptmx, err := r.Lookup("/dev/pts/ptmx")
	if err != nil {
		return nil, nil, err
	}
	defer ptmx.Close()
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", ptmx.Fd()), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/pts/ptmx: %w", err)
	}
	if master, slave, err = pair(fd); err != nil {
		return nil, nil, err
	}
	if err := r.bindConsole(slave); err != nil {
		return nil, nil, errors.Join(err, slave.Close(), master.Close())
	}
	return master, slave, nil
}

// Terminal makes a pseudo terminal in the devpts of a container that this
// thread has joined. What stands at its path is the container's to say: it is
// believed only if it is the multiplexer of a devpts.
func Terminal() (master, slave *os.File, err error) {
	const name = "/dev/pts/ptmx"
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("stat %s: %w", name, err), unix.Close(fd))
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return nil, nil, errors.Join(fmt.Errorf("%s is not that of a devpts", name), unix.Close(fd))
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	return pair(fd)
}

// OuterTerminal makes a pseudo terminal in the devpts that programs of this machine use, for a container that has none.
// Its own multiplexer may be closed to all (ptmxmode=000, the default) where there is a device /dev/ptmx.
func OuterTerminal() (master, slave *os.File, err error) {
	const name = "/dev/ptmx"
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	return pair(fd)
}

// pair opens the other end of a pty's master, which it takes over.
func pair(fd int) (master, slave *os.File, err error) {
	master = os.NewFile(uintptr(fd), "/dev/pts/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unlock pty: %w", err), master.Close())
	}
	// TIOCGPTPEER opens the slave of this very master, whatever stands at its
	// path (CVE-2025-52565).
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(fmt.Errorf("open pty slave: %w", errno), master.Close())
	}
	return master, os.NewFile(peer, "/dev/console"), nil
}

func (r *Root) bindConsole(slave *os.File) error {
	fd, err := unix.OpenTree(int(slave.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open_tree /dev/console: %w", err)
	}
	tree := os.NewFile(uintptr(fd), "/dev/console")
	defer tree.Close()
	target, err := r.target(Plan{Target: "/dev/console", Create: true}, false)
	if err != nil {
		return err
	}
	defer target.Close()
	return attach(tree, target)
}
