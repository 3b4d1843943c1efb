package fuseunion

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// setMeta replaces the metadata of a node that has an upper file. The caller holds
// n.mu for writing.
func (u *Union) setMeta(n *unode, m meta) error {
	if n.dead && !u.inXattr(n.htyp) {
		// Nobody asks for it after a restart, and the number may be given away.
		n.meta = m
		return nil
	}
	f, err := u.open(n)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	if err := u.writeMeta(f.fd, "", n.htyp, n.host, &m); err != nil {
		return err
	}
	if m.has&metaOpaque != 0 && n.meta.has&metaOpaque == 0 {
		u.markOpaque(f.fd, "")
	}
	n.meta = m
	return nil
}

// markOpaque tells an overlayfs that may read the upper directory some day what the
// metadata says already; so an error is none.
func (u *Union) markOpaque(dirfd int, name string) {
	if u.hasXattrs {
		_ = setxattrAt(dirfd, name, "user.overlay.opaque", []byte("y"), 0)
	}
}

// withOwner returns the metadata of a node with owner and mode filled in.
func (u *Union) withOwner(n *unode) (m meta, err error) {
	m = n.meta.clone()
	if m.uid, m.gid, m.mode, err = u.ownerOf(n); err != nil {
		return m, err
	}
	m.mode = m.mode&^uint32(unix.S_IFMT) | n.typ
	return m, nil
}

// setAttr is chmod, chown, truncate and utimes.
func (u *Union) setAttr(in *fuse.SetAttrIn, out *fuse.AttrOut) error {
	n, err := u.node(in.NodeId)
	if err != nil {
		return err
	}
	size, resize := in.GetSize()
	if !resize {
		size = whole
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if in.Valid&^(fuse.FATTR_FH|fuse.FATTR_LOCKOWNER|fuse.FATTR_CTIME) != 0 {
		if err := u.copyUpLocked(n, size); err != nil {
			return err
		}
	}
	if resize {
		if err := u.truncate(n, size, in.Valid&fuse.FATTR_KILL_SUIDGID != 0); err != nil {
			return err
		}
	}
	if err := u.setOwner(n, in); err != nil {
		return err
	}
	if err := u.setTimes(n, in); err != nil {
		return err
	}
	if n.typ == unix.S_IFDIR && n.upper && !n.dead {
		if _, err := u.dirOf(n); err != nil {
			return err
		}
	}
	out.AttrValid = forever
	return u.attrLocked(n, &out.Attr)
}

func (u *Union) truncate(n *unode, size uint64, kill bool) error {
	f, err := u.open(n)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	if err := u.cutLazy(n, size); err != nil {
		return err
	}
	if err := unix.Ftruncate(f.fd, int64(size)); err != nil {
		return err
	}
	return u.dropPrivilege(n, kill)
}

const capabilityXattr = "security.capability"

// dropPrivilege takes from a file that is written to its capabilities and, if asked
// to, the set-id bits: FUSE_HANDLE_KILLPRIV_V2.
func (u *Union) dropPrivilege(n *unode, setid bool) error {
	if !n.privileged(setid) {
		return nil
	}
	m, err := u.withOwner(n)
	if err != nil {
		return err
	}
	if setid {
		dropSetID(&m)
	}
	m.setXattr(capabilityXattr, nil)
	u.markOwner(&m)
	return u.setMeta(n, m)
}

// privileged tells whether dropPrivilege would change anything.
func (n *unode) privileged(setid bool) bool {
	return setid && n.meta.has&metaOwner != 0 && n.meta.mode&(unix.S_ISUID|unix.S_ISGID) != 0 || n.meta.xattrs[capabilityXattr] != nil
}

// dropSetID clears what chown(2) and write(2) clear: a set-group-id bit without group
// execution once meant mandatory locking, and stays.
func dropSetID(m *meta) {
	m.mode &^= unix.S_ISUID
	if m.mode&unix.S_IXGRP != 0 {
		m.mode &^= unix.S_ISGID
	}
}

// setXattr sets or, with nil, removes an attribute that the union keeps.
func (m *meta) setXattr(name string, value []byte) {
	if value == nil {
		delete(m.xattrs, name)
	} else {
		if m.xattrs == nil {
			m.xattrs = map[string][]byte{}
		}
		m.xattrs[name] = value
	}
	if m.has &^= metaXattrs; len(m.xattrs) > 0 {
		m.has |= metaXattrs
	}
}

func (u *Union) setOwner(n *unode, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) == 0 {
		return nil
	}
	m, err := u.withOwner(n)
	if err != nil {
		return err
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		if in.Valid&fuse.FATTR_UID != 0 {
			m.uid = in.Uid
		}
		if in.Valid&fuse.FATTR_GID != 0 {
			m.gid = in.Gid
		}
		if n.typ != unix.S_IFDIR {
			dropSetID(&m)
			m.setXattr(capabilityXattr, nil)
		}
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		m.mode = n.typ | in.Mode&0o7777
		if err := chmodACL(&m); err != nil {
			return err
		}
	}
	return u.setModeMeta(n, m)
}

// setModeMeta stores metadata with an owner and mode that may be new, and gives the
// host's file the mode that goes with it.
func (u *Union) setModeMeta(n *unode, m meta) error {
	if n.htyp != unix.S_IFLNK && hostMode(m.mode) != hostMode(n.meta.mode) || n.meta.has&metaOwner == 0 {
		if err := u.hostChmod(n, hostMode(m.mode)); err != nil {
			return err
		}
	}
	u.markOwner(&m)
	return u.setMeta(n, m)
}

func (u *Union) hostChmod(n *unode, mode uint32) error {
	if n.htyp == unix.S_IFLNK {
		return nil
	}
	f, err := u.open(n)
	if err != nil {
		return err
	}
	defer u.fds.release(f)
	switch n.typ {
	case unix.S_IFREG:
		return unix.Fchmod(f.fd, mode)
	case unix.S_IFDIR:
		return unix.Fchmodat(f.fd, ".", mode, 0)
	}
	return unix.Chmod(procPath(f.fd, ""), mode)
}

func (u *Union) setTimes(n *unode, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		if ts[0] = (unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}); in.Valid&fuse.FATTR_ATIME_NOW != 0 {
			ts[0] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		if ts[1] = (unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}); in.Valid&fuse.FATTR_MTIME_NOW != 0 {
			ts[1] = unix.Timespec{Nsec: unix.UTIME_NOW}
		}
	}
	if n.typ == unix.S_IFREG || n.typ == unix.S_IFDIR {
		f, err := u.open(n)
		if err != nil {
			return err
		}
		defer u.fds.release(f)
		if n.typ == unix.S_IFDIR {
			return unix.UtimesNanoAt(f.fd, ".", ts, 0)
		}
		return futimens(f.fd, ts)
	}
	n.loc.RLock()
	defer n.loc.RUnlock()
	if n.parent == nil && n.name == "" {
		f := u.fds.acquire(n)
		if f == nil {
			return unix.ESTALE
		}
		defer u.fds.release(f)
		return unix.UtimesNanoAt(f.fd, "", ts, unix.AT_EMPTY_PATH)
	}
	dirfd, done, err := u.container(n)
	if err != nil {
		return err
	}
	defer done()
	return unix.UtimesNanoAt(dirfd, n.name, ts, unix.AT_SYMLINK_NOFOLLOW)
}
