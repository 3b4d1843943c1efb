package fuseunion

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// creation is a file to be made.
type creation struct {
	dir    uint64
	name   string
	mode   uint32 // type and permissions, before the umask
	umask  uint32
	rdev   uint32
	target string // of a symbolic link
	caller fuse.Owner
}

// create makes a file and tells the kernel of it.
func (u *Union) create(c *creation, out *fuse.EntryOut) error {
	if len(c.name) > maxName {
		return unix.ENAMETOOLONG
	}
	if c.mode&unix.S_IFMT == unix.S_IFLNK && reserved(c.target) {
		return unix.EPERM
	}
	dir, err := u.changeable(c.dir)
	if err != nil {
		return err
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return u.createLocked(dir, c, out)
}

// changeable returns a directory that is about to be changed.
func (u *Union) changeable(id uint64) (*unode, error) {
	dir, err := u.node(id)
	if err != nil {
		return nil, err
	}
	if dir.typ != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	return dir, u.copyUp(dir, 0)
}

// createLocked is create for a caller that holds dir.mu. A file that takes the place
// of a whiteout is made in the work directory first, so that the whiteout is
// replaced in one step. out may be nil, if the kernel does not ask for the file.
func (u *Union) createLocked(dir *unode, c *creation, out *fuse.EntryOut) error {
	if dir.dead {
		return unix.ENOENT
	}
	d, err := u.dirOf(dir)
	if err != nil {
		return err
	}
	i, below, err := u.lowerChild(dir, c.name)
	if err != nil {
		return err
	}
	e, covered := d.get(c.name)
	if covered && !e.white || below && !covered {
		return unix.EEXIST
	}
	f, err := u.open(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	m, err := u.newMeta(dir, c)
	if err != nil {
		return err
	}
	n := &unode{typ: c.mode & unix.S_IFMT, upper: true, parent: dir, name: c.name}
	if below && n.typ == unix.S_IFDIR {
		if err := u.hide(i, m); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	fd, err := u.makeNew(n, f.fd, c, m, covered, &st)
	if err != nil {
		return err
	}
	if n.typ == unix.S_IFDIR {
		n.dir = &dirState{byName: map[string]int32{}}
		d.subdirs++
	}
	d.set(upperEnt{name: c.name, host: n.host, htyp: n.htyp, known: true, typ: n.typ})
	return u.publish(n, fd, &st, out)
}

// hide makes a new directory opaque if it would else be merged with lower node i.
func (u *Union) hide(i uint32, m *meta) error {
	var low node
	if err := u.low.node(i, &low); err != nil {
		return err
	}
	if low.mode&unix.S_IFMT == unix.S_IFDIR {
		m.has |= metaOpaque
	}
	return nil
}

// publish puts the unode of a new file into the table and tells the kernel.
func (u *Union) publish(n *unode, fd int, st *unix.Stat_t, out *fuse.EntryOut) error {
	n.id, n.ino = maxLowerID+n.host, u.firstIno+n.host
	if out != nil {
		if got := u.table.ref(n.id, 1, func() *unode { return n }); got != n {
			// The host has given the number of a file that is still there.
			return unix.EIO
		}
		u.table.adopt(n.parent)
		u.statAttr(n, st, &out.Attr)
		out.NodeId, out.EntryValid, out.AttrValid = n.id, forever, forever
	}
	switch {
	case fd < 0:
	case out == nil:
		return unix.Close(fd)
	default:
		u.fds.release(u.fds.add(n, fd))
	}
	return nil
}

// makeNew makes the host's file of a new node at its name in dirfd.
func (u *Union) makeNew(n *unode, dirfd int, c *creation, m *meta, covered bool, st *unix.Stat_t) (fd int, err error) {
	at, name := dirfd, c.name
	if covered {
		at, name = u.workFD, u.temp()
	}
	if fd, n.htyp, err = u.makeFile(at, name, m.mode, c.target); err != nil {
		return -1, err
	}
	if fd >= 0 {
		err = unix.Fstat(fd, st)
	} else {
		err = unix.Fstatat(at, name, st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		n.host, n.meta = st.Ino, *m
		if m.has&metaOpaque != 0 {
			u.markOpaque(at, name)
		}
		if err = u.writeNewMeta(at, name, n.htyp, n.host, m); err == nil && covered {
			err = u.overWhiteout(name, dirfd, c.name, n.typ)
		}
	}
	if err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return -1, errors.Join(err, removeAll(at, name))
	}
	return fd, nil
}

// writeNewMeta is writeMeta of a file that has none yet; what the ledger may still
// have of an older file with its number is forgotten.
func (u *Union) writeNewMeta(dirfd int, name string, htyp uint32, host uint64, m *meta) error {
	if m.empty() && u.inXattr(htyp) {
		return nil
	}
	return u.writeMeta(dirfd, name, htyp, host, m)
}

// overWhiteout moves a file from the work directory to where a whiteout is.
func (u *Union) overWhiteout(tmp string, dirfd int, name string, typ uint32) error {
	if typ != unix.S_IFDIR {
		return unix.Renameat(u.workFD, tmp, dirfd, name)
	}
	err := unix.Renameat2(u.workFD, tmp, dirfd, name, unix.RENAME_EXCHANGE)
	if err == nil {
		return unix.Unlinkat(u.workFD, tmp, 0)
	}
	if !noRenameFlags(err) {
		return err
	}
	if err := unix.Unlinkat(dirfd, name, 0); err != nil {
		return err
	}
	return unix.Renameat(u.workFD, tmp, dirfd, name)
}

// noRenameFlags tells whether a file system does not know the flags of renameat2(2).
func noRenameFlags(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM)
}

// newMeta returns the metadata of a new file: owner and mode if the host's do not
// say it, and what it inherits from the directory.
func (u *Union) newMeta(dir *unode, c *creation) (*meta, error) {
	m := &meta{uid: c.caller.Uid, gid: c.caller.Gid, mode: c.mode, rdev: c.rdev}
	typ := c.mode & unix.S_IFMT
	_, dgid, dmode, err := u.ownerOf(dir)
	if err != nil {
		return nil, err
	}
	if dmode&unix.S_ISGID != 0 {
		m.gid = dgid
		if typ == unix.S_IFDIR {
			m.mode |= unix.S_ISGID
		}
	}
	if typ != unix.S_IFLNK {
		if err := inheritACL(m, dir.meta.xattrs[aclDefault], c.umask); err != nil {
			return nil, err
		}
	}
	u.markOwner(m)
	return m, nil
}

// markOwner sets metaOwner if the host would not show owner and mode as m has them.
func (u *Union) markOwner(m *meta) {
	typ := m.mode & unix.S_IFMT
	plain := m.uid == u.uid && m.gid == u.gid && m.mode&0o7777 == hostMode(m.mode)
	if typ == unix.S_IFLNK {
		plain = m.uid == u.uid && m.gid == u.gid
	}
	if plain && typ != unix.S_IFCHR && typ != unix.S_IFBLK {
		m.has &^= metaOwner
		return
	}
	m.has |= metaOwner
}

// ownerOf returns owner, group and st_mode of a node that has an upper file. The
// caller holds n.mu.
func (u *Union) ownerOf(n *unode) (uid, gid, mode uint32, err error) {
	if n.meta.has&metaOwner != 0 {
		return n.meta.uid, n.meta.gid, n.meta.mode, nil
	}
	var st unix.Stat_t
	if err := u.hostStat(n, &st); err != nil {
		return 0, 0, 0, err
	}
	return st.Uid, st.Gid, st.Mode, nil
}

// link gives a file another name.
func (u *Union) link(id, newDir uint64, name string, out *fuse.EntryOut) error {
	if len(name) > maxName {
		return unix.ENAMETOOLONG
	}
	n, err := u.node(id)
	if err != nil {
		return err
	}
	dir, err := u.changeable(newDir)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := u.copyUpLocked(n, whole); err != nil {
		return err
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if err := u.linkLocked(n, dir, name); err != nil {
		return err
	}
	u.table.ref(n.id, 1, nil)
	out.NodeId, out.EntryValid, out.AttrValid = n.id, forever, forever
	return u.attrLocked(n, &out.Attr)
}

func (u *Union) linkLocked(n, dir *unode, name string) error {
	if dir.dead {
		return unix.ENOENT
	}
	d, err := u.dirOf(dir)
	if err != nil {
		return err
	}
	e, covered := d.get(name)
	_, below, err := u.lowerChild(dir, name)
	if err != nil {
		return err
	}
	if covered && !e.white || below && !covered {
		return unix.EEXIST
	}
	f, err := u.open(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	if err := u.hostLink(n, f.fd, name, covered); err != nil {
		return err
	}
	d.set(upperEnt{name: name, host: n.host, htyp: n.htyp, known: true, typ: n.typ, low: n.low})
	if !n.dead {
		return nil
	}
	// It was made without a name (O_TMPFILE), and has one now.
	n.dead = false
	if err := u.setMeta(n, n.meta); err != nil {
		return err
	}
	n.loc.Lock()
	defer n.loc.Unlock()
	old := n.name
	u.move(n, dir, name)
	u.fds.unpin(n)
	if old == "" {
		return nil
	}
	if err := unix.Unlinkat(u.workFD, old, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// hostLink gives a node's file a name, over a whiteout if covered. The caller holds n.mu.
func (u *Union) hostLink(n *unode, dirfd int, name string, covered bool) error {
	at, to := dirfd, name
	if covered {
		at, to = u.workFD, u.temp()
	}
	err := u.linkFile(n, at, to)
	if noLinks(err) {
		return u.refer(n, dirfd, name, covered)
	}
	if err == nil && covered {
		err = unix.Renameat(at, to, dirfd, name)
	}
	return err
}

// linkFile is link(2) of a node's file.
func (u *Union) linkFile(n *unode, at int, to string) error {
	if u.opt.NoLinks {
		return unix.EPERM
	}
	n.loc.RLock()
	defer n.loc.RUnlock()
	if n.parent == nil && n.name == "" {
		f := u.fds.acquire(n)
		if f == nil {
			return unix.ENOENT
		}
		defer u.fds.release(f)
		return unix.Linkat(unix.AT_FDCWD, procPath(f.fd, ""), at, to, unix.AT_SYMLINK_FOLLOW)
	}
	from, done, err := u.container(n)
	if err != nil {
		return err
	}
	defer done()
	return unix.Linkat(from, n.name, at, to, 0)
}

// tmpfile makes a file without a name.
func (u *Union) tmpfile(c *creation, out *fuse.EntryOut) error {
	dir, err := u.changeable(c.dir)
	if err != nil {
		return err
	}
	dir.mu.RLock()
	defer dir.mu.RUnlock()
	m, err := u.newMeta(dir, c)
	if err != nil {
		return err
	}
	n := &unode{typ: unix.S_IFREG, htyp: unix.S_IFREG, upper: true, dead: true, meta: *m}
	fd := -1
	if !u.noTmpfile.Load() {
		fd, err = unix.Openat(u.workFD, tempDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, hostMode(m.mode))
		if err != nil && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL)) {
			u.noTmpfile.Store(true)
		} else if err != nil {
			return err
		}
	}
	if fd < 0 {
		// A name in the work directory stands for none.
		n.name = u.temp()
		if fd, err = u.createFile(u.workFD, n.name, hostMode(m.mode)); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		n.host = st.Ino
		if u.inXattr(n.htyp) { // the ledger gets it when there is a name
			err = u.writeNewMeta(fd, "", n.htyp, n.host, m)
		}
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	n.id, n.ino = maxLowerID+n.host, u.firstIno+n.host
	if got := u.table.ref(n.id, 1, func() *unode { return n }); got != n {
		return errors.Join(unix.EIO, unix.Close(fd))
	}
	f := u.fds.add(n, fd)
	u.fds.pin(f)
	u.fds.release(f)
	u.statAttr(n, &st, &out.Attr)
	out.NodeId, out.EntryValid, out.AttrValid = n.id, forever, forever
	return nil
}
