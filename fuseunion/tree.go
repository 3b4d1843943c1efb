package fuseunion

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is an open merged tree with the data files of its layers. Its methods may
// be called from many goroutines at once, but not during or after Close.
type Tree struct {
	m    *mapped
	data []*content
}

// OpenTree maps a tree that MergeTree wrote and opens the data files of its layers,
// bottom first. It checks the header and the files' sizes; the rest is checked when
// it is used, so the time it takes does not depend on the size of the tree.
func OpenTree(treePath string, data []string) (*Tree, error) {
	m, err := openMapped(treePath, kindTree)
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	t := &Tree{m: m}
	if err := t.openData(data); err != nil {
		return nil, errors.Join(fmt.Errorf("open tree %s: %w", treePath, err), t.Close())
	}
	return t, nil
}

func (t *Tree) openData(data []string) error {
	if len(data) != int(t.m.hdr.layers) {
		return fmt.Errorf("%w: made of %d layers, %d are given", ErrDamaged, t.m.hdr.layers, len(data))
	}
	for i, file := range data {
		c, err := openContent(t.m, uint32(i), file)
		if err != nil {
			return err
		}
		t.data = append(t.data, c)
	}
	return nil
}

// Close unmaps the tree and closes the data files.
func (t *Tree) Close() error {
	err := t.m.close()
	for _, c := range t.data {
		err = errors.Join(err, c.f.Close())
	}
	t.data = nil
	return err
}

// OnDamage has fn called, by whatever goroutine reads, each time that content turns
// out to be damaged, so that somebody can be told why a read failed. It is to be
// called before the tree is used by others.
func (t *Tree) OnDamage(fn func(*ContentError)) {
	for _, c := range t.data {
		c.onDamage = fn
	}
}

// Verify checks every block of the tree against its checksum.
func (t *Tree) Verify() error { return t.m.verify() }

// Stats says what the tree holds.
func (t *Tree) Stats() Stats {
	return Stats{Nodes: int(t.m.hdr.nodes), Names: int(t.m.hdr.dirents), ContentBytes: int64(t.m.hdr.content)}
}

// Stat describes one node.
type Stat struct {
	Ino   uint64 // the root's is 1
	Mode  uint32 // st_mode: unix.S_IFMT and permission bits
	UID   uint32
	GID   uint32
	Nlink uint32
	Rdev  uint64 // as unix.Mkdev
	Size  int64
	Mtime time.Time

	Layer int   // the layer, counted from 0, that it, or the metadata of a directory, comes from
	At    int64 // of a regular file that is not sparse: where in the layer's tar its content begins; else 0
}

func statOf(i uint32, n *node) Stat {
	st := Stat{
		Ino: uint64(i) + 1, Mode: n.mode, UID: n.uid, GID: n.gid, Nlink: n.nlink,
		Size: int64(n.size), Mtime: time.Unix(n.mtime, int64(n.nsec)), Layer: int(n.layer),
	}
	if n.mode&unix.S_IFMT == unix.S_IFREG && n.flags&flagSparse == 0 {
		st.At = int64(n.data)
	}
	if t := n.mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		d := uint32(n.data)
		st.Rdev = unix.Mkdev(d>>8&0xfff, d&0xff|d>>12&^0xff)
	}
	return st
}

// Lstat describes the node of a slash-separated path from the root. Symbolic links
// above it are followed inside the tree, it is not.
func (t *Tree) Lstat(name string) (Stat, error) { return t.stat("lstat", name, false) }

// Stat is Lstat that follows a symbolic link at the end, too.
func (t *Tree) Stat(name string) (Stat, error) { return t.stat("stat", name, true) }

func (t *Tree) stat(op, name string, follow bool) (Stat, error) {
	i, n, err := t.resolve(name, follow)
	if err != nil {
		return Stat{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return statOf(i, &n), nil
}

// ReadFile returns the content of a regular file of at most limit bytes. Symbolic
// links are followed inside the tree.
func (t *Tree) ReadFile(name string, limit int64) ([]byte, error) {
	b, err := t.readFile(name, limit)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

func (t *Tree) readFile(name string, limit int64) ([]byte, error) {
	_, n, err := t.resolve(name, true)
	if err != nil {
		return nil, err
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, unix.EISDIR
	default:
		return nil, unix.EINVAL
	}
	if n.size > uint64(max(limit, 0)) {
		return nil, unix.EFBIG
	}
	b := make([]byte, n.size)
	if got, err := t.readAt(&n, b, 0); err != nil {
		return nil, err
	} else if got != len(b) {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

// ReadAt reads from a regular file, by inode number. It returns less than len(p)
// bytes, without an error, only at the end of the file.
func (t *Tree) ReadAt(ino uint64, p []byte, off int64) (int, error) {
	n, err := t.byIno(ino)
	if err != nil {
		return 0, err
	}
	if n.mode&unix.S_IFMT != unix.S_IFREG || off < 0 {
		return 0, unix.EINVAL
	}
	return t.readAt(&n, p, uint64(off))
}

func (t *Tree) byIno(ino uint64) (n node, err error) {
	if ino == 0 || ino > uint64(t.m.hdr.nodes) {
		return n, unix.ESTALE
	}
	return n, t.m.node(uint32(ino-1), &n)
}

// Readlink returns where a symbolic link leads, by inode number.
func (t *Tree) Readlink(ino uint64) (string, error) {
	n, err := t.byIno(ino)
	if err != nil {
		return "", err
	}
	s, err := t.readlink(&n)
	return strings.Clone(s), err
}

func (t *Tree) readlink(n *node) (string, error) {
	if n.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	if n.size == 0 || n.size > maxTarget {
		return "", errRecord
	}
	return t.m.str(n.data, n.size)
}

// Xattrs returns all extended attributes that the layers give a node, by inode
// number. (A mount shows fewer: see Serve.)
func (t *Tree) Xattrs(ino uint64) (map[string]string, error) {
	n, err := t.byIno(ino)
	if err != nil {
		return nil, err
	}
	xs := make(map[string]string)
	err = t.m.xattrs(&n, func(x xattr) bool {
		xs[strings.Clone(x.name)] = strings.Clone(x.value)
		return true
	})
	return xs, err
}

// Walk calls fn for the root ("") and then for everything below it, directories
// before their entries, these in order of their bytes, as long as fn returns nil.
// After fs.SkipDir for a directory it leaves out what is in it.
func (t *Tree) Walk(fn func(name string, st Stat) error) error { return t.WalkFrom("", fn) }

// WalkFrom is Walk from a path on, of which a symbolic link at the end is not followed.
func (t *Tree) WalkFrom(root string, fn func(name string, st Stat) error) error {
	start, _, err := t.resolve(root, false)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: root, Err: err}
	}
	// A tree that is damaged on purpose may have a directory twice; a sound one has
	// no more entries than dirents.
	left := int64(t.m.hdr.dirents)
	var walk func(name string, i uint32, depth int) error
	walk = func(name string, i uint32, depth int) error {
		var n node
		if err := t.m.node(i, &n); err != nil {
			return err
		}
		switch err := fn(name, statOf(i, &n)); {
		case err == fs.SkipDir && n.mode&unix.S_IFMT == unix.S_IFDIR:
			return nil
		case err != nil:
			return err
		case n.mode&unix.S_IFMT != unix.S_IFDIR:
			return nil
		}
		list, err := t.m.dirents(&n)
		if err != nil {
			return err
		}
		var d dirent
		for k := range list.len() {
			s, err := list.get(k, &d)
			if err != nil {
				return err
			}
			if left--; left < 0 || depth > maxPath {
				return errRecord
			}
			below := strings.Clone(s)
			if name != "" {
				below = name + "/" + s
			}
			if err := walk(below, d.node, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(strings.Trim(path.Clean("/"+root), "/"), start, 0)
}

// resolve walks a path from the root, never above it.
func (t *Tree) resolve(name string, follow bool) (i uint32, n node, err error) {
	if err := t.m.node(0, &n); err != nil {
		return 0, n, err
	}
	for links := 0; name != ""; {
		var c string
		c, name, _ = strings.Cut(name, "/")
		if c == "" || c == "." {
			continue
		}
		if n.mode&unix.S_IFMT != unix.S_IFDIR {
			return 0, n, unix.ENOTDIR
		}
		dir := i
		if c == ".." {
			i = n.up
			if err := t.m.node(i, &n); err != nil {
				return 0, n, err
			}
			continue
		}
		if i, err = t.child(&n, c); err != nil {
			return 0, n, err
		}
		if err := t.m.node(i, &n); err != nil {
			return 0, n, err
		}
		if n.mode&unix.S_IFMT != unix.S_IFLNK || name == "" && !follow {
			continue
		}
		target, err := t.readlink(&n)
		if err != nil {
			return 0, n, err
		}
		if links++; links > maxLinks {
			return 0, n, unix.ELOOP
		}
		if i = dir; strings.HasPrefix(target, "/") {
			i = 0
		}
		if err := t.m.node(i, &n); err != nil {
			return 0, n, err
		}
		if name = strings.TrimSuffix(target+"/"+name, "/"); name == "" {
			break
		}
	}
	return i, n, nil
}

// child looks a name up in a directory.
func (t *Tree) child(dir *node, name string) (uint32, error) {
	list, err := t.m.dirents(dir)
	if err != nil {
		return 0, err
	}
	d, ok, err := list.find(name)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, unix.ENOENT
	}
	return d.node, nil
}

// readAt fills p from a regular file, from its tar and with zeros for holes.
func (t *Tree) readAt(n *node, p []byte, off uint64) (int, error) {
	if off >= n.size || len(p) == 0 {
		return 0, nil
	}
	p = p[:min(uint64(len(p)), n.size-off)]
	if n.flags&flagSparse == 0 {
		return len(p), t.pread(n.layer, p, n.data, off)
	}
	// The first extent that ends behind off.
	var e extent
	lo, hi := uint64(0), uint64(n.count)
	for lo < hi {
		mid := (lo + hi) / 2
		if err := t.m.extent(n.data+mid, &e); err != nil {
			return 0, err
		}
		if e.at+e.length <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	done := uint64(0)
	for want := uint64(len(p)); done < want; lo++ {
		e = extent{at: n.size}
		if lo < uint64(n.count) {
			if err := t.m.extent(n.data+lo, &e); err != nil {
				return 0, err
			}
			if e.length == 0 || e.at > n.size || e.length > n.size-e.at || e.at+e.length <= off+done {
				return 0, errRecord
			}
		}
		if hole := min(max(e.at, off+done)-(off+done), want-done); hole > 0 {
			clear(p[done : done+hole])
			done += hole
		}
		if in := off + done - e.at; done < want && e.length > 0 {
			piece := p[done:min(want, done+e.length-in)]
			if err := t.pread(n.layer, piece, e.data, in); err != nil {
				return 0, err
			}
			done += uint64(len(piece))
		}
	}
	return len(p), nil
}

// pread fills p from the data file of a layer at base+off.
func (t *Tree) pread(layer uint32, p []byte, base, off uint64) error {
	const most = 1 << 62
	if uint64(layer) >= uint64(len(t.data)) || base > most || off > most {
		return errOutside
	}
	return t.data[layer].readAt(p, base+off)
}
