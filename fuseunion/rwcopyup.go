package fuseunion

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// whole asks a copy-up for all of a file's bytes.
const whole = ^uint64(0)

// copyUp makes sure that a node has a file in the upper directory, with at least
// the first size bytes of its content: it is about to be changed.
func (u *Union) copyUp(n *unode, size uint64) error {
	n.mu.RLock()
	ready := n.upper
	n.mu.RUnlock()
	if ready {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.copyUpLocked(n, size)
}

// copyUpLocked is copyUp for a caller that holds n.mu for writing. The file is made
// in the work directory and then renamed, so that a kill leaves all of it or nothing.
func (u *Union) copyUpLocked(n *unode, size uint64) error {
	if n.upper {
		return nil
	}
	i := n.lowerIndex()
	var low node
	if err := u.low.node(i, &low); err != nil {
		return err
	}
	if n.dead {
		return u.copyUpTo(n, &low, size, func(string) error { return nil })
	}
	if n.typ != unix.S_IFDIR && low.nlink > 1 {
		return u.copyUpToIndex(n, &low, size)
	}
	dir, name, err := u.low.place(i)
	if err != nil {
		return err
	}
	parent, err := u.node(uint64(dir) + 1)
	if err != nil {
		return err
	}
	if err := u.copyUp(parent, 0); err != nil {
		return err
	}
	return u.copyUpTo(n, &low, size, func(tmp string) error { return u.settle(n, parent, name, tmp) })
}

// copyUpTo makes the copy and calls place to move it to where it belongs.
func (u *Union) copyUpTo(n *unode, low *node, size uint64, place func(tmp string) error) error {
	tmp := u.temp()
	c, err := u.makeCopy(n, low, size, tmp)
	if err == nil {
		n.loc.Lock()
		n.parent, n.name = nil, tmp
		n.loc.Unlock()
		n.host, n.htyp = c.host, c.htyp
		n.meta = c.meta
		err = place(tmp)
	}
	if err != nil {
		n.host, n.htyp, n.meta = 0, 0, meta{}
		n.loc.Lock()
		n.name = ""
		n.loc.Unlock()
		if c.meta.has&metaLazy != 0 {
			err = errors.Join(err, unix.Unlinkat(u.workFD, lazyDir+"/"+c.meta.lazyName, 0))
		}
		return errors.Join(err, c.close(), u.discard(tmp, c.host))
	}
	n.upper = true
	if c.fd >= 0 {
		u.fds.release(u.fds.add(n, c.fd))
	}
	return nil
}

// discard removes a file that came to nothing.
func (u *Union) discard(tmp string, host uint64) error {
	err := removeAll(u.workFD, tmp)
	if host != 0 {
		err = errors.Join(err, u.ledger.forget(host))
	}
	return err
}

// settle moves a copy to its name in the upper directory of parent, whose times do
// not change by it.
func (u *Union) settle(n, parent *unode, name, tmp string) error {
	parent.mu.Lock()
	defer parent.mu.Unlock()
	d, err := u.dirOf(parent)
	if err != nil {
		return err
	}
	f, err := u.open(parent)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	n.loc.Lock()
	defer n.loc.Unlock()
	if err := unix.Renameat(u.workFD, tmp, f.fd, name); err != nil {
		return err
	}
	u.move(n, parent, name)
	d.set(upperEnt{name: name, host: n.host, htyp: n.htyp, known: true, typ: n.typ, low: n.low})
	parent.fresh, n.fresh = true, n.typ == unix.S_IFDIR
	return unix.UtimesNanoAt(f.fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyUpToIndex copies up a file that has several names in the lower file system: it
// goes to the index, where all of them find it.
func (u *Union) copyUpToIndex(n *unode, low *node, size uint64) error {
	name := strconv.FormatUint(u.seq.Add(1), 36)
	err := u.copyUpTo(n, low, size, func(tmp string) error {
		n.loc.Lock()
		defer n.loc.Unlock()
		if err := unix.Renameat(u.workFD, tmp, u.workFD, indexDir+"/"+name); err != nil {
			return err
		}
		n.name, n.index = indexDir+"/"+name, true
		return nil
	})
	if err != nil {
		return err
	}
	u.indexMu.Lock()
	u.index[n.lowerIndex()] = name
	u.indexMu.Unlock()
	return nil
}

// copied is a file in the making.
type copied struct {
	fd   int // -1 if it is no regular file
	host uint64
	htyp uint32
	meta meta
}

func (c *copied) close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// makeCopy copies a lower node to a name in the work directory: content, owner,
// mode, attributes and times.
func (u *Union) makeCopy(n *unode, low *node, size uint64, tmp string) (c copied, err error) {
	c.fd = -1
	i := n.lowerIndex()
	target := ""
	if n.typ == unix.S_IFLNK {
		if target, err = u.low.readlink(i); err != nil {
			return c, err
		}
	}
	if c.fd, c.htyp, err = u.makeFile(u.workFD, tmp, low.mode, target); err != nil {
		return c, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(u.workFD, tmp, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return c, err
	}
	c.host = st.Ino
	if c.meta, err = u.lowerMeta(i, low); err != nil {
		return c, err
	}
	if n.typ == unix.S_IFREG {
		if err := u.makeContent(&c, i, min(size, low.size)); err != nil {
			return c, err
		}
	}
	if err := u.copyXattrs(i, tmp, c.htyp, &c.meta); err != nil {
		return c, err
	}
	if err := u.writeMeta(u.workFD, tmp, c.htyp, c.host, &c.meta); err != nil {
		return c, err
	}
	ts := unix.Timespec{Sec: low.mtime, Nsec: int64(low.nsec)}
	if err := unix.UtimesNanoAt(u.workFD, tmp, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return c, err
	}
	return c, u.settleData(&c)
}

// makeContent copies the first size bytes of a lower file, or makes the copy one that
// is filled when it is written to.
func (u *Union) makeContent(c *copied, i uint32, size uint64) error {
	if !u.lazily(unix.S_IFREG, size) {
		return u.copyContent(c.fd, i, size)
	}
	if err := unix.Ftruncate(c.fd, int64(size)); err != nil {
		return err
	}
	return u.newLazy(&c.meta, size)
}

// settleData brings a copy to disk before it replaces what was safe there.
func (u *Union) settleData(c *copied) error {
	if u.opt.Volatile {
		return nil
	}
	if !u.inXattr(c.htyp) {
		if err := u.ledger.sync(); err != nil {
			return err
		}
	}
	if c.fd < 0 {
		return nil
	}
	return unix.Fsync(c.fd)
}

// lowerMeta returns the metadata that a lower node has when it is copied up, except
// for its attributes.
func (u *Union) lowerMeta(i uint32, low *node) (meta, error) {
	m := meta{has: metaOwner | metaOrigin, uid: low.uid, gid: low.gid, mode: low.mode}
	if t := low.mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		m.rdev = uint32(low.data)
	}
	var err error
	m.origin, err = lowerPath(u.low, i)
	return m, err
}

// copyXattrs gives the attributes of a lower node to a file in the work directory.
func (u *Union) copyXattrs(i uint32, tmp string, htyp uint32, m *meta) error {
	var serr error
	err := u.low.xattrs(i, func(x xattr) bool {
		if !shown(x.name) {
			return true
		}
		if host, ok := u.hostXattr(x.name, htyp); ok {
			serr = setxattrAt(u.workFD, tmp, host, []byte(x.value), 0)
			return serr == nil
		}
		if m.xattrs == nil {
			m.xattrs = map[string][]byte{}
		}
		m.xattrs[strings.Clone(x.name)] = []byte(x.value)
		m.has |= metaXattrs
		return true
	})
	return errors.Join(err, serr)
}

// hostMode is the mode that a file has on the host: readable and writable for its
// owner, whatever it is in the union, and without the bits that give rights to others.
func hostMode(mode uint32) uint32 {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// makeFile makes a file on the host for one of that type and mode: fd is open if it
// is a regular one, else -1. Devices get a placeholder.
func (u *Union) makeFile(dirfd int, name string, mode uint32, target string) (fd int, htyp uint32, err error) {
	perm := hostMode(mode)
	switch htyp = mode & unix.S_IFMT; htyp {
	case unix.S_IFREG:
		fd, err = u.createFile(dirfd, name, perm)
	case unix.S_IFDIR:
		fd, err = -1, unix.Mkdirat(dirfd, name, perm)
	case unix.S_IFLNK:
		if reserved(target) { // of an image: it must not be taken for what it is not
			return -1, htyp, unix.EPERM
		}
		return -1, htyp, unix.Symlinkat(target, dirfd, name)
	case unix.S_IFIFO, unix.S_IFSOCK:
		fd, err = -1, unix.Mknodat(dirfd, name, htyp|perm, 0)
	case unix.S_IFCHR, unix.S_IFBLK:
		htyp = unix.S_IFREG
		if fd, err = u.createFile(dirfd, name, perm); err == nil {
			err = unix.Close(fd)
		}
		fd = -1
	default:
		return -1, 0, unix.EINVAL
	}
	if err == nil && perm&u.umask != 0 {
		err = unix.Fchmodat(dirfd, name, perm, 0)
	}
	return fd, htyp, err
}

func (u *Union) createFile(dirfd int, name string, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if (err == unix.EMFILE || err == unix.ENFILE) && u.fds.reclaim() {
			continue
		}
		return fd, err
	}
}

const copyChunk = 1 << 20

// copyContent copies the first size bytes of a lower file into an empty one.
func (u *Union) copyContent(fd int, i uint32, size uint64) error {
	if size > copyChunk {
		defer u.slow()()
	}
	// The size first: what is not written then is a hole, and a full disk is seen early.
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return err
	}
	for off := uint64(0); off < size; {
		n, err := copyRange(u.low, fd, i, off, size-off)
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		off += n
	}
	return nil
}

// copyRange copies some of a lower file to the same place of fd, and returns how
// much: by sharing blocks, in the kernel, or by hand, whatever is possible first.
func copyRange(low lowerFS, fd int, i uint32, off, size uint64) (uint64, error) {
	s, err := low.span(i, off)
	if err != nil {
		return 0, err
	}
	defer s.done()
	if n := min(s.n, size); n > 0 {
		const block = 4096
		if clone := n &^ (block - 1); clone > 0 && s.at%block == 0 && off%block == 0 {
			r := unix.FileCloneRange{Src_fd: int64(s.fd), Src_offset: uint64(s.at), Src_length: clone, Dest_offset: off}
			if unix.IoctlFileCloneRange(fd, &r) == nil {
				return clone, nil
			}
		}
		at, to := s.at, int64(off)
		got, err := unix.CopyFileRange(s.fd, &at, fd, &to, int(min(n, 1<<30)), 0)
		if err == nil && got > 0 {
			return uint64(got), nil
		}
	}
	return copyByHand(low, fd, i, off, min(size, copyChunk))
}

func copyByHand(low lowerFS, fd int, i uint32, off, size uint64) (uint64, error) {
	buf := make([]byte, size)
	got, err := low.readFile(i, buf, off)
	if err != nil {
		return 0, err
	}
	if buf = buf[:got]; isZero(buf) {
		return uint64(got), nil // a hole stays one
	}
	_, err = pwriteAll(fd, buf, int64(off))
	return uint64(got), err
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func pwriteAll(fd int, b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Pwrite(fd, b[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, unix.EIO
		}
		done += n
	}
	return done, nil
}
