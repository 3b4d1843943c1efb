package fuseunion

import (
	"cmp"
	"errors"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// futimens sets the times of an open file.
func futimens(fd int, ts []unix.Timespec) error {
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// read fills p from a regular file.
func (u *Union) read(id uint64, p []byte, off uint64) (int, error) {
	n := u.table.get(id)
	if n == nil {
		if id == 0 || id >= maxLowerID {
			return 0, unix.ESTALE
		}
		return u.readLower(uint32(id-1), p, off)
	}
	n.mu.RLock()
	if !n.upper {
		defer n.mu.RUnlock()
		return u.readLower(n.lowerIndex(), p, off)
	}
	n.mu.RUnlock()
	if n.typ != unix.S_IFREG {
		return 0, unix.EINVAL
	}
	f, err := u.open(n)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(f)
	l, err := u.lazyFor(n)
	if err != nil {
		return 0, err
	}
	if l != nil {
		return l.read(u, f.fd, p, off)
	}
	return preadAll(f.fd, p, int64(off))
}

// lazyFor is lazyOf for a caller that holds no lock.
func (u *Union) lazyFor(n *unode) (*lazyFile, error) {
	n.mu.RLock()
	l, lazy := n.lazy, n.meta.has&metaLazy != 0
	n.mu.RUnlock()
	if l != nil || !lazy {
		return l, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.lazyOf(n)
}

func (u *Union) readLower(i uint32, p []byte, off uint64) (int, error) {
	var low node
	if err := u.low.node(i, &low); err != nil {
		return 0, err
	}
	if low.mode&unix.S_IFMT != unix.S_IFREG {
		return 0, unix.EINVAL
	}
	return u.low.readFile(i, p, off)
}

// preadAll reads until p is full or the file ends.
func preadAll(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// changing returns a regular file that is about to be written to, with its
// descriptor.
func (u *Union) changing(id uint64) (*unode, *openFile, error) {
	n, err := u.node(id)
	if err != nil {
		return nil, nil, err
	}
	if n.typ != unix.S_IFREG {
		return nil, nil, unix.EINVAL
	}
	if err := u.copyUp(n, whole); err != nil {
		return nil, nil, err
	}
	f, err := u.open(n)
	return n, f, err
}

const writeKillSetID = 1 << 2 // FUSE_WRITE_KILL_SUIDGID

func (u *Union) write(in *fuse.WriteIn, data []byte) (uint32, error) {
	n, f, err := u.changing(in.NodeId)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(f)
	if err := u.written(n, in.WriteFlags&writeKillSetID != 0); err != nil {
		return 0, err
	}
	l, err := u.lazyFor(n)
	if err != nil {
		return 0, err
	}
	var done int
	if l != nil {
		done, err = l.write(u, f.fd, data, in.Offset)
	} else {
		done, err = pwriteAll(f.fd, data, int64(in.Offset))
	}
	if done > 0 {
		err = nil
	}
	return uint32(done), err
}

// written takes privileges from a file that is written to.
func (u *Union) written(n *unode, setid bool) error {
	n.mu.RLock()
	privileged := n.privileged(setid)
	n.mu.RUnlock()
	if !privileged {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.dropPrivilege(n, setid)
}

func (u *Union) fallocate(in *fuse.FallocateIn) error {
	n, f, err := u.changing(in.NodeId)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	if err := u.written(n, true); err != nil {
		return err
	}
	if in.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		l, err := u.lazyFor(n)
		if err == nil && l != nil {
			err = l.whole(u, f.fd)
		}
		if err != nil {
			return err
		}
	}
	return unix.Fallocate(f.fd, in.Mode, int64(in.Offset), int64(in.Length))
}

// copyFileRange copies in the kernel between two files; from a lower file only what
// lies together there.
func (u *Union) copyFileRange(in *fuse.CopyFileRangeIn) (uint32, error) {
	dst, g, err := u.changing(in.NodeIdOut)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(g)
	if err := u.written(dst, true); err != nil {
		return 0, err
	}
	if l, err := u.lazyFor(dst); err != nil || l != nil {
		return 0, cmp.Or(err, error(unix.EXDEV)) // the kernel then copies by reading and writing
	}
	size := min(in.Len, 1<<30)
	to := int64(in.OffOut)
	n := u.table.get(in.NodeId)
	if n != nil {
		n.mu.RLock()
		defer n.mu.RUnlock()
	}
	if n == nil || !n.upper {
		if in.NodeId == 0 || in.NodeId >= maxLowerID {
			return 0, unix.ESTALE
		}
		s, err := u.low.span(uint32(in.NodeId-1), in.OffIn)
		if err != nil {
			return 0, err
		}
		defer s.done()
		if s.n == 0 {
			return 0, unix.EXDEV // the kernel then copies by reading and writing
		}
		done, err := unix.CopyFileRange(s.fd, &s.at, g.fd, &to, int(min(size, s.n)), 0)
		return uint32(max(done, 0)), err
	}
	if n.meta.has&metaLazy != 0 {
		return 0, unix.EXDEV
	}
	f, err := u.open(n)
	if err != nil {
		return 0, err
	}
	defer u.fds.release(f)
	from := int64(in.OffIn)
	done, err := unix.CopyFileRange(f.fd, &from, g.fd, &to, int(size), 0)
	return uint32(max(done, 0)), err
}

// sync is fsync(2) of a file or directory: afterwards its content is on disk, and so
// is the way to it as far as a copy-up or rename made it.
func (u *Union) sync(id uint64, data bool) error {
	if u.opt.Volatile {
		return nil
	}
	n := u.table.get(id)
	if n == nil {
		return nil // nothing of it was ever changed
	}
	defer u.slow()()
	n.mu.Lock()
	upper, fresh := n.upper, n.fresh
	n.fresh = false
	n.mu.Unlock()
	if !upper {
		return nil
	}
	if err := u.syncNode(n, data, fresh); err != nil {
		return err
	}
	for p := n; ; {
		p.loc.RLock()
		parent := p.parent
		p.loc.RUnlock()
		if p = parent; p == nil {
			return u.ledger.sync()
		}
		p.mu.Lock()
		fresh := p.fresh
		p.fresh = false
		p.mu.Unlock()
		if !fresh {
			continue
		}
		if err := u.syncNode(p, false, true); err != nil {
			return err
		}
	}
}

func (u *Union) syncNode(n *unode, data, fresh bool) error {
	err := u.hostSync(n, data)
	if err != nil && fresh {
		n.mu.Lock()
		n.fresh = true
		n.mu.Unlock()
	}
	return err
}

func (u *Union) hostSync(n *unode, data bool) error {
	f, err := u.open(n)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	switch n.typ {
	case unix.S_IFREG:
		l, err := u.lazyFor(n)
		if err != nil {
			return err
		}
		var counted []byte
		if l != nil {
			counted = l.snapshot()
		}
		if data {
			err = unix.Fdatasync(f.fd)
		} else {
			err = unix.Fsync(f.fd)
		}
		if err == nil && l != nil {
			err = l.sync(counted)
		}
		return err
	case unix.S_IFDIR:
		fd, err := u.openRead(f.fd)
		if err != nil {
			return err
		}
		return errors.Join(unix.Fsync(fd), unix.Close(fd))
	}
	return nil
}
