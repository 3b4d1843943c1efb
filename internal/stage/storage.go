package stage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/rootfs"
)

// chooseStorage decides who merges the writable layer with what is below: what was
// asked for, else the kernel if it will do it here, which takes less than a
// millisecond to find out, else urun's union, else nobody.
func (s *setup) chooseStorage() error {
	s.storage = s.Storage
	if s.Memory && (s.storage == StorageAuto || s.storage == StorageOverlay) {
		if err := rootfs.MemoryLayer(); err != nil {
			return err
		}
	}
	switch s.storage {
	case StorageOverlay, StorageFuse, StorageCopy:
		return nil
	}
	s.storage = StorageOverlay
	// The kernel remembers no owner that does not exist; nor does a copy.
	if (len(s.Emulation) == 0 || s.Plain) && rootfs.ProbeOverlay(s.Memory) == nil {
		return nil
	}
	if s.Plain {
		s.storage = StorageCopy
		return nil
	}
	if dev, err := openFuse(); err == nil {
		s.storage = StorageFuse
		return dev.Close()
	}
	return nil // a layer in memory, or the error of the overlay, which says what is wrong
}

// lower mounts what is below the writable layer, or, with a union of our own or a copy, both.
func (s *setup) lower() error {
	if s.storage == StorageCopy {
		return s.copied()
	}
	tree, err := s.tree()
	if err != nil {
		return err
	}
	if tree != nil {
		defer tree.Close()
	}
	if s.storage == StorageOverlay {
		return rootfs.AttachAt(tree, rootfs.Lower)
	}
	return s.union()
}

// tree gets the mount of what is below: the image's of the monitor, which sends it
// unless a union was asked for, or the directory's.
func (s *setup) tree() (*os.File, error) {
	if s.LowerDir != "" {
		if s.storage != StorageOverlay {
			return nil, nil
		}
		return rootfs.Source(rootfs.Plan{Source: s.LowerDir, Recursive: true})
	}
	if s.Storage == StorageFuse {
		return nil, nil
	}
	if s.Unpacked != nil {
		return s.unpacked()
	}
	m, err := s.parent.Expect(KindImage)
	if err != nil {
		return nil, fmt.Errorf("wait for the image's mount: %w", err)
	}
	if len(m.Files) != 1 {
		m.Close()
		return nil, fmt.Errorf("got %d files for the image", len(m.Files))
	}
	return m.Files[0], nil
}

// union mounts the union of image and writable layer, which the monitor has served.
func (s *setup) union() error {
	if len(s.Emulation) > 0 {
		return s.unionOfMonitor()
	}
	dev, mnt, err := MountUnion()
	if err != nil {
		return err
	}
	return errors.Join(s.parent.Send(KindFuse, nil, dev, mnt), dev.Close(), mnt.Close())
}

// MountUnion mounts a writable union at rootfs.Merged of the working directory and gives the device that its server is to read,
// and the mount, which lasts as long as that is open.
func MountUnion() (dev, mnt *os.File, err error) {
	if dev, err = openFuse(); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = dev.Close() // err says more
		}
	}()
	if mnt, err = fuseunion.Mount(dev, fuseunion.MountOptions{Writable: true}); err != nil {
		return nil, nil, err
	}
	if err = rootfs.AttachAt(mnt, rootfs.Merged); err != nil {
		_ = mnt.Close() // err says more
	}
	return dev, mnt, err
}

// unionOfMonitor has the monitor make the mount. The kernel then names the processes that use it, of which
// the union knows who they are, by the pids that the monitor and the union see: it takes those of the pid namespace
// that the mount was made in.
func (s *setup) unionOfMonitor() error {
	if err := s.parent.Send(KindFuse, nil); err != nil {
		return err
	}
	m, err := s.parent.Expect(KindImage)
	if err != nil {
		return fmt.Errorf("wait for the union's mount: %w", err)
	}
	defer m.Close()
	if len(m.Files) != 1 {
		return fmt.Errorf("got %d files for the union", len(m.Files))
	}
	return rootfs.AttachAt(m.Files[0], rootfs.Merged)
}

func openFuse() (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &hintError{
			fmt.Errorf("open /dev/fuse: %w", err),
			"images are served through FUSE: have the administrator run: modprobe fuse; chmod 666 /dev/fuse",
		}
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// merged mounts the root: an overlay, if no union of our own is there already.
func (s *setup) merged() (err error) {
	if s.storage == StorageOverlay {
		if err := s.overlay(); err != nil {
			return err
		}
	}
	s.root, err = rootfs.Open(rootfs.Merged)
	return err
}

func (s *setup) overlay() error {
	if s.Memory {
		return rootfs.MemoryOverlay()
	}
	// Asked for by name, it must be the real one: files in memory would be lost.
	notice, err := rootfs.Overlay(s.Volatile, s.Storage != StorageOverlay)
	if err != nil {
		if !errors.Is(err, unix.ENOENT) && s.Storage == StorageOverlay {
			return &hintError{err, "the kernel's overlayfs can not be used here; --storage=fuse can"}
		}
		return spaceHint(err, memoryCure)
	}
	if notice != "" {
		s.notices = append(s.notices, notice)
	}
	return nil
}
