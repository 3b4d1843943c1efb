package rootfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Pivot makes the root the root of the mount namespace and detaches everything
// else. The root must be a mount.
func (r *Root) Pivot() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(int(r.dir.Fd())); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	err = unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		// / is the initramfs, which can not be pivoted away (pivot_root(2)).
		return r.Move()
	}
	if err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root is now mounted on top of the new one; go there to detach it.
	if err := unix.Fchdir(old); err != nil {
		return fmt.Errorf("enter old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach old root: %w", err)
	}
	return chdirRoot()
}

// Move moves the root over that of the mount namespace, which stays below it.
func (r *Root) Move() error {
	if err := unix.Fchdir(int(r.dir.Fd())); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return chdirRoot()
}

func chdirRoot() error {
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter /: %w", err)
	}
	return nil
}
