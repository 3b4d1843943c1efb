package rootfs

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// What a container gets where no mount can be made: files in its root itself.

// Chroot makes the root the root directory of this process.
func (r *Root) Chroot() error {
	if err := unix.Fchdir(int(r.dir.Fd())); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return chdirRoot()
}

// WriteFile makes a file inside the root, in place of what is there.
func (r *Root) WriteFile(name string, content []byte, mode uint32) error {
	parent, err := r.MkdirAll(path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer parent.Close()
	base := path.Base(name)
	if err := unix.Unlinkat(int(parent.Fd()), base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("replace %s in the container: %w", name, err)
	}
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return fmt.Errorf("make %s in the container: %w", name, err)
	}
	for err == nil && len(content) > 0 {
		var n int
		n, err = unix.Write(fd, content)
		content = content[max(n, 0):]
	}
	if err = errors.Join(err, unix.Fchmod(fd, mode), unix.Close(fd)); err != nil {
		return fmt.Errorf("write %s in the container: %w", name, err)
	}
	return nil
}

// nodeNumbers are the device numbers of DefaultDevices (admin-guide/devices.txt of the kernel).
var nodeNumbers = map[string][2]uint32{
	"/dev/null": {1, 3}, "/dev/zero": {1, 5}, "/dev/full": {1, 7}, "/dev/random": {1, 8}, "/dev/urandom": {1, 9}, "/dev/tty": {5, 0},
}

// Nodes makes the default devices as device files, and the directory for shared memory, leaving alone what is
// there. EPERM where that takes a capability that this process has not.
func (r *Root) Nodes() error {
	shm, err := r.MkdirAll("/dev/shm", 0o755)
	if err != nil {
		return err
	}
	// MkdirAll's mode is subject to the umask, and the descriptor is one of a path alone.
	err = unix.Fchmodat(int(shm.Fd()), ".", 0o1777, 0)
	if err = errors.Join(err, shm.Close()); err != nil {
		return fmt.Errorf("chmod /dev/shm: %w", err)
	}
	dev, err := r.Lookup("/dev")
	if err != nil {
		return err
	}
	defer dev.Close()
	for _, name := range DefaultDevices() {
		number := nodeNumbers[name]
		err := unix.Mknodat(int(dev.Fd()), path.Base(name), unix.S_IFCHR|0o666, int(unix.Mkdev(number[0], number[1])))
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = unix.Fchmodat(int(dev.Fd()), path.Base(name), 0o666, 0)
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return nil
}
