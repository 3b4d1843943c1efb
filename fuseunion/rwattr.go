package fuseunion

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// lowerRef counts a lookup of a node that is reached by its name in the lower file
// system. It returns the unode if there is one: the node may just be copied up, or be
// in the index.
func (u *Union) lowerRef(i uint32) *unode {
	id := uint64(i) + 1
	name := u.indexName(i)
	if name == "" {
		return u.table.ref(id, 1, nil)
	}
	if n := u.table.tryRef(id, 1); n != nil {
		return n
	}
	made := u.indexed(i, name)
	return u.table.ref(id, 1, func() *unode { return made })
}

// indexName returns where a lower node with several names was copied up to, relative
// to the work directory; empty if it was not.
func (u *Union) indexName(i uint32) string {
	u.indexMu.RLock()
	defer u.indexMu.RUnlock()
	if name, ok := u.index[i]; ok {
		return indexDir + "/" + name
	}
	return ""
}

// indexed makes the unode of a file in the index. A file that can not be read there
// gives errors later.
func (u *Union) indexed(i uint32, name string) *unode {
	n := &unode{id: uint64(i) + 1, ino: u.low.ino(i), low: i + 1, upper: true, name: name, index: true}
	var st unix.Stat_t
	if err := unix.Fstatat(u.workFD, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		n.name = ""
		return n
	}
	n.host, n.htyp = st.Ino, st.Mode&unix.S_IFMT
	n.typ = n.htyp
	m, err := u.readMeta(u.workFD, name, &st)
	if err != nil {
		n.name = ""
		return n
	}
	if n.meta = m; m.has&metaOwner != 0 {
		n.typ = m.mode & unix.S_IFMT
	}
	return n
}

// lowerEntry tells the kernel of a node that is in the lower file system only.
func (u *Union) lowerEntry(i uint32, out *fuse.EntryOut) error {
	out.NodeId = uint64(i) + 1
	out.EntryValid, out.AttrValid = forever, forever
	return u.lowerAttr(i, &out.Attr)
}

func (u *Union) lowerAttr(i uint32, a *fuse.Attr) error {
	var n node
	if err := u.low.node(i, &n); err != nil {
		return err
	}
	nodeAttr(u.low.ino(i), &n, &u.ids, a)
	if n.mode&unix.S_IFMT != unix.S_IFDIR && n.nlink > 1 && u.ledger.anyLinks() {
		path, err := lowerPath(u.low, i)
		if err != nil {
			return err
		}
		a.Nlink = u.ledger.linksLeft(path, n.nlink)
	}
	return nil
}

// entry tells the kernel of a node.
func (u *Union) entry(n *unode, out *fuse.EntryOut) error {
	out.NodeId = n.id
	out.EntryValid, out.AttrValid = forever, forever
	return u.attr(n, &out.Attr)
}

// attr fills in what stat(2) shows of a node.
func (u *Union) attr(n *unode, a *fuse.Attr) error {
	n.mu.RLock()
	if n.typ == unix.S_IFDIR && n.upper && n.dir == nil && !n.dead {
		// The link count needs the entries.
		n.mu.RUnlock()
		n.mu.Lock()
		_, err := u.dirOf(n)
		n.mu.Unlock()
		if err != nil {
			return err
		}
		n.mu.RLock()
	}
	defer n.mu.RUnlock()
	return u.attrLocked(n, a)
}

// attrLocked is attr for a caller that holds n.mu, and has read the entries of a
// directory.
func (u *Union) attrLocked(n *unode, a *fuse.Attr) error {
	if !n.upper {
		err := u.lowerAttr(n.lowerIndex(), a)
		if n.dead {
			a.Nlink = 0
		}
		return err
	}
	var st unix.Stat_t
	if err := u.hostStat(n, &st); err != nil {
		return err
	}
	u.statAttr(n, &st, a)
	return nil
}

// statAttr makes the host's stat of a node's file into what is shown of the node.
func (u *Union) statAttr(n *unode, st *unix.Stat_t, a *fuse.Attr) {
	a.Ino = n.ino
	a.Size, a.Blocks = uint64(st.Size), uint64(st.Blocks)
	a.Atime, a.Atimensec = uint64(st.Atim.Sec), uint32(st.Atim.Nsec)
	a.Mtime, a.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	a.Ctime, a.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	a.Mode, a.Nlink, a.Uid, a.Gid = st.Mode, uint32(st.Nlink), st.Uid, st.Gid
	if n.meta.has&metaOwner != 0 {
		a.Mode, a.Uid, a.Gid, a.Rdev = n.meta.mode, n.meta.uid, n.meta.gid, n.meta.rdev
	}
	a.Mode = a.Mode&^uint32(unix.S_IFMT) | n.typ
	uid, gid := a.Uid, a.Gid
	a.Uid, a.Gid = u.ids.uid(uid), u.ids.gid(gid)
	a.Blksize = u.ids.blksize(uid, gid, n.typ, a)
	switch {
	case n.dead:
		a.Nlink = 0
	case n.typ == unix.S_IFDIR && n.dir != nil:
		a.Nlink = 2 + uint32(n.dir.subdirs)
	case n.inWork():
		if a.Nlink = u.hostLinks(n, st); n.index {
			a.Nlink += u.lowerLinks(n)
		}
	}
	if n.typ == unix.S_IFDIR {
		a.Size = max(a.Size, 4096)
	}
}

// lowerLinks returns how many of its lower names a file has left.
func (u *Union) lowerLinks(n *unode) uint32 {
	var low node
	path, err := lowerPath(u.low, n.lowerIndex())
	if err == nil {
		err = u.low.node(n.lowerIndex(), &low)
	}
	if err != nil {
		return 1 // damaged: there is at least the name that led here
	}
	return u.ledger.linksLeft(path, low.nlink)
}

// hostStat is stat(2) of a node's file in the upper directory.
func (u *Union) hostStat(n *unode, st *unix.Stat_t) error {
	if f := u.fds.acquire(n); f != nil {
		defer u.fds.release(f)
		return unix.Fstat(f.fd, st)
	}
	n.loc.RLock()
	defer n.loc.RUnlock()
	dirfd, done, err := u.container(n)
	if err != nil {
		return err
	}
	defer done()
	return unix.Fstatat(dirfd, n.name, st, unix.AT_SYMLINK_NOFOLLOW)
}

// idMap turns owners that are not mapped in the mount's user namespace into some
// that are: see ServeOptions.
type idMap struct {
	opt     ServeOptions
	emulate bool // see Emulation
}

func (m *idMap) uid(id uint32) uint32 { return mapID(id, m.opt.UIDs, m.opt.SquashUID) }
func (m *idMap) gid(id uint32) uint32 { return mapID(id, m.opt.GIDs, m.opt.SquashGID) }

// nodeAttr fills in what stat(2) shows of a node that is as the layers have it.
func nodeAttr(ino uint64, n *node, ids *idMap, a *fuse.Attr) {
	a.Ino = ino
	a.Size = n.size
	a.Blocks = (n.size + 511) / 512
	a.Mtime, a.Mtimensec = uint64(n.mtime), n.nsec
	a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
	a.Mode = n.mode
	a.Nlink = n.nlink
	a.Uid, a.Gid = ids.uid(n.uid), ids.gid(n.gid)
	a.Blksize = ids.blksize(n.uid, n.gid, n.mode&unix.S_IFMT, a)
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		a.Size, a.Blocks = 4096, 8
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = uint32(n.data)
	case unix.S_IFLNK:
		a.Blocks = 0
	}
}
