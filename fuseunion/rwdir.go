package fuseunion

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// dirState is what the upper directory of a node holds, read once and kept up to
// date. An entry keeps its place until the directory is forgotten, so that reading the directory
// goes on where it was after entries have come and gone.
type dirState struct {
	ents    []upperEnt // by seq
	byName  map[string]int32
	seq     uint64
	holes   int // ents that are gone
	subdirs int // visible directories, of both layers
	lower   int // number of the lower directory's entries
}

// upperEnt is an entry of an upper directory.
type upperEnt struct {
	name  string
	seq   uint64 // its place in the directory
	host  uint64
	htyp  uint32 // S_IFMT of the host's file
	white bool   // hides the lower entry, and is none itself
	gone  bool   // removed; the name may be in a later entry
	known bool   // the following are
	typ   uint32
	low   uint32 // the lower node it is or was copied up from, plus one
}

func (d *dirState) get(name string) (*upperEnt, bool) {
	if i, ok := d.byName[name]; ok {
		return &d.ents[i], true
	}
	return nil, false
}

// set adds an entry or replaces the one of that name.
func (d *dirState) set(e upperEnt) {
	if i, ok := d.byName[e.name]; ok {
		if old := &d.ents[i]; old.white == e.white {
			e.seq = old.seq
			*old = e
			return
		}
		// A new place: whoever reads the directory may be past the old one.
		d.remove(e.name)
	}
	if d.holes > 64 && d.holes > len(d.ents)/2 {
		d.compact()
	}
	d.seq++
	e.seq = d.seq
	d.byName[e.name] = int32(len(d.ents))
	d.ents = append(d.ents, e)
}

func (d *dirState) remove(name string) {
	if i, ok := d.byName[name]; ok {
		d.ents[i] = upperEnt{gone: true, seq: d.ents[i].seq}
		d.holes++
		delete(d.byName, name)
	}
}

func (d *dirState) compact() {
	d.ents = slices.DeleteFunc(d.ents, func(e upperEnt) bool { return e.gone })
	for i := range d.ents {
		d.byName[d.ents[i].name] = int32(i)
	}
	d.holes = 0
}

// from returns the index of the first entry behind a place.
func (d *dirState) from(seq uint64) int {
	return sort.Search(len(d.ents), func(i int) bool { return d.ents[i].seq > seq })
}

// hostDirent is an entry as getdents(2) has it.
type hostDirent struct {
	name string
	ino  uint64
	typ  uint32 // S_IFMT, 0 if the file system does not say
}

// readDirents reads a directory, without the dots.
func readDirents(fd int) ([]hostDirent, error) {
	var all []hostDirent
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return all, err
		}
		for b := buf[:n]; len(b) >= 19; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			if reclen < 19 || reclen > len(b) {
				return all, unix.EIO
			}
			name := b[19:reclen]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				all = append(all, hostDirent{name: s, ino: binary.NativeEndian.Uint64(b), typ: uint32(b[18]) << 12})
			}
			b = b[reclen:]
		}
	}
}

// dirOf returns the entries of a directory that has an upper one. The caller holds
// dir.mu for writing.
func (u *Union) dirOf(dir *unode) (*dirState, error) {
	if dir.dir != nil {
		return dir.dir, nil
	}
	f, err := u.open(dir)
	if err != nil {
		return nil, err
	}
	defer u.fds.release(f)
	fd, err := u.openRead(f.fd)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	list, err := readDirents(fd)
	if err != nil {
		return nil, err
	}
	d := &dirState{ents: make([]upperEnt, 0, len(list)), byName: make(map[string]int32, len(list))}
	for _, h := range list {
		e := upperEnt{name: h.name, host: h.ino, htyp: h.typ}
		if err := u.classify(f.fd, &e); err != nil {
			return nil, err
		}
		if e.gone {
			continue
		}
		if !e.white && e.htyp == unix.S_IFDIR {
			d.subdirs++
		}
		d.set(e)
	}
	if err := u.countLower(dir, d); err != nil {
		return nil, err
	}
	dir.dir = d
	return d, nil
}

// openRead opens a directory for reading that is open as O_PATH.
func (u *Union) openRead(dirfd int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if (err == unix.EMFILE || err == unix.ENFILE) && u.fds.reclaim() {
			continue
		}
		return fd, err
	}
}

// classify finds out whether an entry is a whiteout, or a reference: one to nothing is gone.
func (u *Union) classify(dirfd int, e *upperEnt) error {
	if e.htyp == 0 || e.htyp == unix.S_IFCHR {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		e.htyp = st.Mode & unix.S_IFMT
		e.white = e.htyp == unix.S_IFCHR && st.Rdev == 0
	}
	if e.htyp == unix.S_IFLNK {
		var buf [64]byte
		n, err := unix.Readlinkat(dirfd, e.name, buf[:])
		if err != nil {
			return err
		}
		target := string(buf[:n])
		e.white = target == WhiteoutTarget
		if place, ok := refPlace(target); ok {
			return u.classifyRef(e, place)
		}
	}
	return nil
}

// classifyRef makes the entry of a reference that of the file.
func (u *Union) classifyRef(e *upperEnt, place string) error {
	var st unix.Stat_t
	err := unix.Fstatat(u.workFD, place, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		e.gone = true
		return nil
	}
	e.host, e.htyp = st.Ino, st.Mode&unix.S_IFMT
	return err
}

// entMeta reads the metadata of an upper entry.
func (u *Union) entMeta(dirfd int, e *upperEnt) (meta, error) {
	st := unix.Stat_t{Ino: e.host, Mode: e.htyp}
	if place := u.linkPlace(e.host); place != "" {
		return u.readMeta(u.workFD, place, &st)
	}
	return u.readMeta(dirfd, e.name, &st)
}

// WhiteoutTarget is where a symbolic link leads that is a whiteout, on file systems
// without character devices 0/0. No link with this target can be made in a mount.
const WhiteoutTarget = "(urun: removed)"

// makeWhiteout makes a whiteout where nothing is.
func (u *Union) makeWhiteout(dirfd int, name string) error {
	if u.linkWhite {
		return unix.Symlinkat(WhiteoutTarget, dirfd, name)
	}
	return unix.Mknodat(dirfd, name, unix.S_IFCHR, 0)
}

// countLower adds what the lower directory has to see.
func (u *Union) countLower(dir *unode, d *dirState) error {
	list, err := u.lowerEntries(dir)
	if err != nil || list == nil {
		return err
	}
	d.lower = list.len()
	for k := range d.lower {
		name, _, typ, err := list.entry(k)
		if err != nil {
			return err
		}
		if _, hidden := d.byName[name]; !hidden && typ == unix.DT_DIR {
			d.subdirs++
		}
	}
	return nil
}

// lowerDir returns the number of the lower directory that shows through; false if
// there is none.
func (n *unode) lowerDir() (uint32, bool) {
	if n.low == 0 || n.typ != unix.S_IFDIR || n.upper && n.meta.has&metaOpaque != 0 {
		return 0, false
	}
	return n.low - 1, true
}

func (u *Union) lowerEntries(dir *unode) (entryList, error) {
	i, ok := dir.lowerDir()
	if !ok {
		return nil, nil
	}
	return u.low.entries(i)
}

// lowerChild looks a name up in the lower directory that shows through.
func (u *Union) lowerChild(dir *unode, name string) (uint32, bool, error) {
	i, ok := dir.lowerDir()
	if !ok {
		return 0, false, nil
	}
	i, err := u.low.child(i, name)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	return i, err == nil, err
}

// identify finds out what an entry stands for. The caller holds dir.mu, for writing
// if the entry is not known.
func (u *Union) identify(dir *unode, dirfd int, e *upperEnt) error {
	if e.known {
		return nil
	}
	m, err := u.entMeta(dirfd, e)
	if err != nil {
		return err
	}
	return u.identifyBy(dir, e, &m)
}

func (u *Union) identifyBy(dir *unode, e *upperEnt, m *meta) error {
	e.typ = e.htyp
	if m.has&metaOwner != 0 && m.mode&unix.S_IFMT != 0 {
		e.typ = m.mode & unix.S_IFMT
	}
	switch {
	case m.has&metaOrigin != 0:
		i, err := lowerNode(u.low, m.origin)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		if err == nil {
			e.low = i + 1
		}
	case e.typ == unix.S_IFDIR && m.has&metaOpaque == 0:
		// Merged with what the lower directory has of that name, if it is one.
		i, ok, err := u.lowerChild(dir, e.name)
		if err != nil {
			return err
		}
		var low node
		if ok {
			if err := u.low.node(i, &low); err != nil {
				return err
			}
			if low.mode&unix.S_IFMT == unix.S_IFDIR {
				e.low = i + 1
			}
		}
	}
	e.known = true
	return nil
}

// entNode returns the unode of an upper entry, counting lookups by the kernel. The
// caller holds dir.mu for writing or the entry is known.
func (u *Union) entNode(dir *unode, dirfd int, e *upperEnt, lookups uint64) (*unode, error) {
	if e.known {
		if n := u.refEnt(dir, e, lookups, nil); n != nil {
			return n, nil
		}
	}
	m, err := u.entMeta(dirfd, e)
	if err != nil {
		return nil, err
	}
	if !e.known {
		if err := u.identifyBy(dir, e, &m); err != nil {
			return nil, err
		}
	}
	return u.refEnt(dir, e, lookups, &m), nil
}

// refEnt finds the unode of a known entry or, if m is given, makes it.
func (u *Union) refEnt(dir *unode, e *upperEnt, lookups uint64, m *meta) *unode {
	id, ino := maxLowerID+e.host, u.firstIno+e.host
	if e.low != 0 {
		id, ino = uint64(e.low), u.low.ino(e.low-1)
	}
	made := false
	parent, name, indexed, place := dir, e.name, "", u.linkPlace(e.host)
	if e.low != 0 {
		if indexed = u.indexName(e.low - 1); indexed != "" {
			place = indexed
		}
	}
	if place != "" {
		parent, name = nil, place
	}
	mk := func() *unode {
		made = true
		return &unode{
			id: id, ino: ino, low: e.low, typ: e.typ, upper: true, host: e.host, htyp: e.htyp, meta: *m,
			parent: parent, name: name, index: indexed != "", shared: indexed == "" && place != "",
		}
	}
	var n *unode
	if m == nil {
		if n = u.table.tryRef(id, lookups); n == nil {
			return nil
		}
	} else {
		n = u.table.ref(id, lookups, mk)
	}
	if made {
		u.table.adopt(parent)
	} else {
		u.found(n, dir, e.name)
	}
	return n
}

// found tells where a file is whose name was removed while others were left.
func (u *Union) found(n, dir *unode, name string) {
	if !n.lost.Load() {
		return
	}
	n.loc.Lock()
	defer n.loc.Unlock()
	if n.lost.Swap(false) {
		u.move(n, dir, name)
		u.fds.unpin(n)
	}
}
