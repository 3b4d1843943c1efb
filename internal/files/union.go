package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/unpacked"
)

// union is the file system of a container that does not run, mounted in this
// thread's own mount namespace.
type union struct {
	dir     string
	storage stage.Storage
	server  *exec.Cmd // of the image
	conn    *handoff.Conn
	lock    *os.File // the container's, held until the layer is parked again
	chroot  bool     // nothing is mounted
}

// mount puts the writable layer back and mounts the union, as a start of the
// container does. It runs on the thread that it gives a mount namespace of its own.
func (s *server) mount(l Layers, lock *os.File) (err error) {
	if l.Chroot {
		s.union = &union{lock: lock, chroot: true}
		return s.openDirectory(l)
	}
	u := &union{dir: l.Dir, storage: l.Storage, lock: lock}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := errors.Join(rootfs.Private(), os.Chdir(l.Dir)); err != nil {
		return err
	}
	// Paths of the host come before any content of the container is looked at.
	binds, err := openBinds(l)
	if err != nil {
		return err
	}
	defer func() {
		for _, b := range binds {
			b.source.Close()
		}
	}()
	// From here on there is something to undo.
	s.union = u
	// With the ids that park has to give the files to, so not as root yet.
	if err := monitor.Unpark(l.Dir, string(u.storage)); err != nil {
		return err
	}
	if err := becomeRoot(l.Root); err != nil {
		return err
	}
	if err := rootfs.MountPoints(); err != nil {
		return err
	}
	if err := u.lower(l); err != nil {
		return err
	}
	if u.storage == stage.StorageOverlay {
		if _, err := rootfs.Overlay(false, false); err != nil {
			return err
		}
	}
	return s.openUnion(binds)
}

// openDirectory opens the files of a container that is a directory and no more.
func (s *server) openDirectory(l Layers) error {
	if _, _, err := unpacked.Own(l.Dir, l.Unpacked, l.LowerDir); err != nil {
		return err
	}
	root, bare, err := openTwice(filepath.Join(l.Dir, unpacked.OwnDir))
	if err != nil {
		return err
	}
	s.root, s.bare = newRoot(root), newRoot(bare)
	return nil
}

func openTwice(dir string) (a, b *os.File, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	x, err := unix.Open(dir, flags, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", dir, err)
	}
	y, err := unix.Open(dir, flags, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open %s: %w", dir, err), unix.Close(x))
	}
	return os.NewFile(uintptr(x), dir), os.NewFile(uintptr(y), dir), nil
}

// openUnion opens the merged tree, first bare and then with what the container
// has mounted in it.
func (s *server) openUnion(binds []bind) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, rootfs.Merged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	s.bare = newRoot(os.NewFile(uintptr(fd), "/"))
	root, err := rootfs.Open(rootfs.Merged)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, b := range binds {
		if err := root.Mount(b.plan, b.source); err != nil {
			return err
		}
	}
	fd, err = unix.Open(rootfs.Merged, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	s.root = newRoot(os.NewFile(uintptr(fd), "/"))
	return nil
}

type bind struct {
	plan   rootfs.Plan
	source *os.File
}

// openBinds opens what of the host and of volumes the container sees. What is no
// longer there would keep it from starting, but not from being looked at.
func openBinds(l Layers) ([]bind, error) {
	var all []bind
	for _, m := range l.Mounts {
		plan, err := rootfs.Parse(m)
		if err != nil {
			return all, err
		}
		if !plan.Bind {
			continue
		}
		source, err := rootfs.Source(plan)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return all, fmt.Errorf("bind %s: %w", plan.Target, err)
		}
		all = append(all, bind{plan, source})
	}
	return all, nil
}

// lower mounts what the writable layer lies on or, with a union of our own, both.
func (u *union) lower(l Layers) error {
	if u.storage == "" { // it has never run
		u.storage = stage.StorageOverlay
		if rootfs.ProbeOverlay(false) != nil {
			u.storage = stage.StorageFuse
			if l.Plain {
				u.storage = stage.StorageCopy
			}
		}
	}
	if u.storage == stage.StorageCopy {
		return mountCopy(l)
	}
	if l.LowerDir != "" && u.storage == stage.StorageOverlay {
		tree, err := rootfs.Source(rootfs.Plan{Source: l.LowerDir, Recursive: true})
		if err != nil {
			return err
		}
		defer tree.Close()
		return rootfs.AttachAt(tree, rootfs.Lower)
	}
	if u.storage == stage.StorageOverlay && l.Unpacked != nil {
		if _, err := l.Unpacked.Ensure(); err != nil {
			return err
		}
		tree, err := rootfs.Source(rootfs.Plan{Source: l.Unpacked.Dir})
		if err != nil {
			return err
		}
		return errors.Join(rootfs.AttachAt(tree, rootfs.Lower), tree.Close())
	}
	if u.storage == stage.StorageOverlay {
		mnt, err := u.serveImage(l.Image)
		if err != nil {
			return err
		}
		return errors.Join(rootfs.AttachAt(mnt, rootfs.Lower), mnt.Close())
	}
	dev, mnt, err := stage.MountUnion()
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := mnt.Close(); err != nil {
		return err
	}
	if err := u.start(monitor.KindTree, l.Image); err != nil {
		return err
	}
	return u.conn.Send(monitor.KindServe, monitor.WritableIn(l.Dir), dev)
}

// mountCopy mounts the container's copy of its image.
func mountCopy(l Layers) error {
	if _, _, err := unpacked.Own(".", l.Unpacked, l.LowerDir); err != nil {
		return err
	}
	tree, err := rootfs.Source(rootfs.Plan{Source: unpacked.OwnDir})
	if err != nil {
		return err
	}
	return errors.Join(rootfs.AttachAt(tree, rootfs.Merged), tree.Close())
}

// serveImage has an image served for reading and returns its mount.
func (u *union) serveImage(img *monitor.Image) (*os.File, error) {
	if err := u.start(holder.KindServe, img); err != nil {
		return nil, err
	}
	m, err := u.conn.Recv()
	if err != nil {
		return nil, fmt.Errorf("image server: %w", err)
	}
	if m.Kind != holder.KindMounted || len(m.Files) != 1 {
		m.Close()
		var failed stage.Failed
		if err := m.Decode(&failed); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("image server: %s", failed.Error)
	}
	return m.Files[0], nil
}

// start starts the image server with its first message: a process that serves must
// not touch its own mount.
func (u *union) start(kind string, img *monitor.Image) error {
	exe, err := handoff.Exe()
	if err != nil {
		return err
	}
	defer exe.Close()
	cmd, conn, err := handoff.Command(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), handoff.Union)
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: handoff.AllCapabilities(), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start image server: %w", err), conn.Close())
	}
	handoff.Donated(cmd)
	u.server, u.conn = cmd, conn
	return conn.Send(kind, img)
}

// becomeRoot switches this thread to root of the user namespace: what is made on
// the way belongs to root.
func becomeRoot(has bool) error {
	if !has {
		return nil
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	return nil
}

// flushTime bounds the wait for an image server that writes out what the kernel
// still had.
const flushTime = 30 * time.Second

// endServer ends the image server. One that writes ends by itself, when all is
// written and its mount is gone.
func (u *union) endServer() error {
	if u.server == nil {
		return nil
	}
	defer u.conn.Close()
	if u.storage != stage.StorageFuse {
		_ = u.server.Process.Kill()
		_ = u.server.Wait() // by a signal, as it must
		return nil
	}
	late := time.AfterFunc(flushTime, func() { _ = u.server.Process.Kill() })
	defer late.Stop()
	if err := u.server.Wait(); err != nil {
		return fmt.Errorf("image server: %w", err)
	}
	return nil
}

// close unmounts the union and parks the writable layer.
func (u *union) close() error {
	if u.chroot {
		return u.lock.Close()
	}
	var errs []error
	for _, m := range []string{rootfs.Merged, rootfs.Lower} {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	errs = append(errs, u.endServer())
	parked := make(chan error)
	// Another thread still has the ids that files are given to.
	go func() { parked <- monitor.Park(u.dir, string(u.storage)) }()
	return errors.Join(append(errs, <-parked, u.lock.Close())...)
}
