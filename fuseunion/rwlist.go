package fuseunion

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Offsets in a directory: 1 is behind ".", 2 behind "..", 3+k behind the lower
// entry k, 2+lower+seq behind an upper entry.

// dirReply is the answer to a READDIR or READDIRPLUS in the making.
type dirReply struct {
	out  *fuse.DirEntryList
	plus bool
	bare bool // lower entries go without attributes, but for directories
	// What the kernel is to be told of upper entries: it is found out when the lock of
	// the directory is no longer held.
	nodes []listedNode
}

type listedNode struct {
	n  *unode
	eo *fuse.EntryOut
}

// add adds an entry; false if there is no room.
func (l *dirReply) add(e fuse.DirEntry) (*fuse.EntryOut, bool) {
	if !l.plus {
		return nil, l.out.AddDirEntry(e)
	}
	eo := l.out.AddDirLookupEntry(e)
	return eo, eo != nil
}

// list adds the entries of a directory, a unode or the lower node i, from an offset on.
func (u *Union) list(dir *unode, i uint32, off uint64, l *dirReply) error {
	var err error
	if dir == nil {
		err = u.listLower(i, off, l)
	} else {
		err = u.listEntries(dir, off, l)
	}
	for _, x := range l.nodes {
		if aerr := u.entry(x.n, x.eo); aerr != nil {
			// The name alone: whoever looks at it gets the error.
			*x.eo = fuse.EntryOut{}
			u.forget(x.n.id, 1)
		}
	}
	return err
}

func (u *Union) listEntries(dir *unode, off uint64, l *dirReply) error {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.dead {
		return nil // as an empty directory
	}
	if dir.typ != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	if !dir.upper {
		return u.listLower(dir.lowerIndex(), off, l)
	}
	d, err := u.dirOf(dir)
	if err != nil {
		return err
	}
	if !l.dots(dir.ino, u.parentIno(dir), &off) {
		return nil
	}
	if off -= 2; off < uint64(d.lower) {
		list, err := u.lowerEntries(dir)
		if err != nil {
			return err
		}
		for ; off < uint64(d.lower); off++ {
			name, i, typ, err := list.entry(int(off))
			if err != nil {
				return err
			}
			if _, hidden := d.byName[name]; hidden {
				continue
			}
			if ok, err := u.addLower(l, i, name, typ, off+3); !ok || err != nil {
				return err
			}
		}
	}
	return u.listUpper(dir, d, off-uint64(d.lower), l)
}

func (u *Union) listUpper(dir *unode, d *dirState, seq uint64, l *dirReply) error {
	var f *openFile
	for k := d.from(seq); k < len(d.ents); k++ {
		e := &d.ents[k]
		if e.white || e.gone {
			continue
		}
		if f == nil {
			var err error
			if f, err = u.open(dir); err != nil {
				return err
			}
			defer u.fds.release(f)
		}
		if ok, err := u.addUpper(l, dir, f.fd, e, 2+uint64(d.lower)+e.seq); !ok || err != nil {
			return err
		}
	}
	return nil
}

// addUpper adds an upper entry; false if there is no room.
func (u *Union) addUpper(l *dirReply, dir *unode, dirfd int, e *upperEnt, off uint64) (bool, error) {
	if err := u.identify(dir, dirfd, e); err != nil {
		return false, err
	}
	ino := u.firstIno + e.host
	if e.low != 0 {
		ino = u.low.ino(e.low - 1)
	}
	eo, ok := l.add(fuse.DirEntry{Mode: e.typ, Name: e.name, Ino: ino, Off: off})
	if !ok || eo == nil {
		return ok, nil
	}
	n, err := u.entNode(dir, dirfd, e, 1)
	if err == nil {
		l.nodes = append(l.nodes, listedNode{n, eo})
	}
	return true, nil
}

// addLower adds an entry that is in the lower file system only.
func (u *Union) addLower(l *dirReply, i uint32, name string, typ uint8, off uint64) (bool, error) {
	eo, ok := l.add(fuse.DirEntry{Mode: uint32(typ) << 12, Name: name, Ino: u.low.ino(i), Off: off})
	if !ok || eo == nil || l.bare && typ != unix.DT_DIR {
		return ok, nil
	}
	if n := u.lowerRef(i); n != nil {
		l.nodes = append(l.nodes, listedNode{n, eo})
		return true, nil
	}
	return true, u.lowerEntry(i, eo)
}

func (l *dirReply) dots(self, parent uint64, off *uint64) bool {
	for i, e := range []fuse.DirEntry{{Name: ".", Ino: self}, {Name: "..", Ino: parent}} {
		if *off > uint64(i) {
			continue
		}
		// The kernel ignores the attributes of the dots: node id 0 says there are none.
		e.Mode, e.Off = unix.S_IFDIR, uint64(i)+1
		if _, ok := l.add(e); !ok {
			return false
		}
		*off = uint64(i) + 1
	}
	return true
}

func (u *Union) parentIno(dir *unode) uint64 {
	dir.loc.RLock()
	defer dir.loc.RUnlock()
	if dir.parent == nil {
		return dir.ino
	}
	return dir.parent.ino
}

// listLower lists a directory that is in the lower file system only.
func (u *Union) listLower(i uint32, off uint64, l *dirReply) error {
	var self node
	if err := u.low.node(i, &self); err != nil {
		return err
	}
	if self.mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	list, err := u.low.entries(i)
	if err != nil {
		return err
	}
	l.bare = l.plus && u.ahead != nil && u.ahead.bare(i, off)
	if !l.dots(u.low.ino(i), u.low.ino(self.up), &off) {
		return nil
	}
	for off -= 2; off < uint64(list.len()); off++ {
		name, c, typ, err := list.entry(int(off))
		if err != nil {
			return err
		}
		if ok, err := u.addLower(l, c, name, typ, off+3); !ok || err != nil {
			return err
		}
	}
	return nil
}
