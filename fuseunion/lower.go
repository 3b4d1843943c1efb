package fuseunion

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Lower is what a Union shows below its writable layer: a *Tree or a *Dir.
type Lower interface{ lower() lowerFS }

func (t *Tree) lower() lowerFS { return &treeLower{Tree: t} }

// lowerFS is a file system that never changes. Its nodes have numbers, of which the
// root's is 0.
type lowerFS interface {
	// node fills in what node i is; data of a device is its number as FUSE has it.
	// The caller must not look at what else data means.
	node(i uint32, n *node) error
	// child looks a name up in a directory: ENOENT if there is none.
	child(dir uint32, name string) (uint32, error)
	// entries returns what is in a directory.
	entries(dir uint32) (entryList, error)
	readlink(i uint32) (string, error)
	// readFile fills p from a regular file; it returns less only at the end of it.
	readFile(i uint32, p []byte, off uint64) (int, error)
	// span returns where a file's bytes from off on lie, as far as they lie together;
	// with n 0 if they must be read by readFile. The caller must call its done.
	span(i uint32, off uint64) (s span, err error)
	xattrs(i uint32, fn func(x xattr) bool) error
	// ino is the inode number that is shown for node i.
	ino(i uint32) uint64
	// place returns a directory that node i is in and its name there.
	place(i uint32) (dir uint32, name string, err error)
	// firstIno is above all inode numbers of this file system that are not of another
	// device; the files of the writable layer are numbered from it on.
	firstIno() uint64
}

// span is a piece of an open file.
type span struct {
	fd   int
	at   int64
	n    uint64
	done func()
}

var noSpan = span{fd: -1, done: func() {}}

// entryList is the list of a directory's entries, sorted by the bytes of their names.
type entryList interface {
	len() int
	// entry returns entry k; typ is as in getdents(2).
	entry(k int) (name string, i uint32, typ uint8, err error)
}

// treeLower is a Tree as a lowerFS. The methods of the same purpose that Tree has for
// its own server take decoded nodes.
type treeLower struct {
	*Tree
	// The dirent that first names each node, by which a node's place is found: made
	// when a place is first asked for, 4 bytes a node.
	once  sync.Once
	err   error
	first []uint32
	dirs  []uint32 // the directories, in the order of their first dirents
}

func (t *treeLower) node(i uint32, n *node) error {
	if i >= t.m.hdr.nodes {
		return unix.ESTALE
	}
	return t.m.node(i, n)
}

func (t *treeLower) child(dir uint32, name string) (uint32, error) {
	var n node
	if err := t.m.node(dir, &n); err != nil {
		return 0, err
	}
	if n.mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, unix.ENOTDIR
	}
	return t.Tree.child(&n, name)
}

func (t *treeLower) entries(dir uint32) (entryList, error) {
	var n node
	if err := t.m.node(dir, &n); err != nil {
		return nil, err
	}
	return t.m.dirents(&n)
}

// entry makes a direntList an entryList.
func (l direntList) entry(k int) (string, uint32, uint8, error) {
	var d dirent
	name, err := l.get(k, &d)
	return name, d.node, d.typ, err
}

func (t *treeLower) readlink(i uint32) (string, error) { return t.Readlink(uint64(i) + 1) }

func (t *treeLower) readFile(i uint32, p []byte, off uint64) (int, error) {
	var n node
	if err := t.m.node(i, &n); err != nil {
		return 0, err
	}
	return t.readAt(&n, p, off)
}

func (t *treeLower) span(i uint32, off uint64) (span, error) {
	var n node
	if err := t.m.node(i, &n); err != nil {
		return noSpan, err
	}
	const most = 1 << 62
	if n.flags&flagSparse != 0 || off >= n.size || uint64(n.layer) >= uint64(len(t.data)) || n.data > most || off > most {
		return noSpan, nil
	}
	c := t.data[n.layer]
	s := span{at: int64(n.data + off), n: min(n.size-off, maxSpan), done: func() {}}
	if err := c.verify(uint64(s.at), s.n); err != nil {
		return noSpan, err
	}
	var err error
	s.fd, err = rawFD(c.f)
	return s, err
}

// maxSpan bounds how much is checked before it is copied, so that it is still in the
// page cache then.
const maxSpan = 16 << 20

// verify checks the chunks of a piece of the tar that have not been read yet.
func (c *content) verify(off, n uint64) error {
	if n == 0 || off > c.bytes || n > c.bytes-off {
		return errOutside
	}
	for i := off >> chunkShift; i <= (off+n-1)>>chunkShift; i++ {
		if c.checked[i/32].Load()&(1<<(i%32)) != 0 {
			continue
		}
		if err := c.check(i, nil, i<<chunkShift); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeLower) xattrs(i uint32, fn func(x xattr) bool) error {
	var n node
	if err := t.m.node(i, &n); err != nil {
		return err
	}
	return t.m.xattrs(&n, fn)
}

func (t *treeLower) ino(i uint32) uint64 { return uint64(i) + 1 }

func (t *treeLower) firstIno() uint64 { return 1 << 32 }

func (t *treeLower) place(i uint32) (dir uint32, name string, err error) {
	t.once.Do(func() { t.err = t.findPlaces() })
	if t.err != nil {
		return 0, "", t.err
	}
	if i == 0 || int(i) >= len(t.first) || t.first[i] == noNode {
		return 0, "", unix.ESTALE
	}
	at := t.first[i]
	// The last directory whose dirents begin at or before this one and that has any.
	lo, hi := 0, len(t.dirs)
	var n node
	for lo < hi {
		mid := (lo + hi) / 2
		if err := t.m.node(t.dirs[mid], &n); err != nil {
			return 0, "", err
		}
		if n.data <= uint64(at) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0, "", errRecord
	}
	dir = t.dirs[lo-1]
	if err := t.m.node(dir, &n); err != nil {
		return 0, "", err
	}
	list, err := t.m.dirents(&n)
	if err != nil {
		return 0, "", err
	}
	k := uint64(at) - n.data
	if k >= uint64(list.len()) {
		return 0, "", errRecord
	}
	var d dirent
	if name, err = list.get(int(k), &d); err != nil {
		return 0, "", err
	}
	return dir, strings.Clone(name), nil
}

func (t *treeLower) findPlaces() error {
	t.first = make([]uint32, t.m.hdr.nodes)
	for i := range t.first {
		t.first[i] = noNode
	}
	var n node
	var d dirent
	for i := range t.m.hdr.nodes {
		if err := t.m.node(i, &n); err != nil {
			return err
		}
		if n.mode&unix.S_IFMT != unix.S_IFDIR || n.count == 0 {
			continue
		}
		t.dirs = append(t.dirs, i)
		list, err := t.m.dirents(&n)
		if err != nil {
			return err
		}
		for k := range list.len() {
			d.decode(list.b[k*direntSize:])
			if d.node < uint32(len(t.first)) && t.first[d.node] == noNode {
				t.first[d.node] = uint32(n.data) + uint32(k)
			}
		}
	}
	return nil
}

// lowerPath returns the path of a node from the root of its file system.
func lowerPath(low lowerFS, i uint32) (string, error) {
	path := ""
	for depth := 0; i != 0; depth++ {
		if depth > maxPath {
			return "", errRecord
		}
		dir, name, err := low.place(i)
		if err != nil {
			return "", err
		}
		path = "/" + name + path
		i = dir
	}
	if path == "" {
		path = "/"
	}
	return path, nil
}

// lowerNode finds the node of a path that lowerPath returned.
func lowerNode(low lowerFS, path string) (uint32, error) {
	i := uint32(0)
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" {
			continue
		}
		var err error
		if i, err = low.child(i, name); err != nil {
			return 0, err
		}
	}
	return i, nil
}
