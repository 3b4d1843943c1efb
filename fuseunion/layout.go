package fuseunion

import (
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// layout turns the merged inodes into the records of a tree.
type layout struct {
	body  body
	order []*inode          // by number
	blobs map[string]uint32 // xattr records that are written already
}

// finish numbers the nodes breadth first and encodes them.
func (m *merger) finish(indexes []*mapped) (*body, error) {
	l := &layout{blobs: make(map[string]uint32)}
	l.body.kind = kindTree
	for _, ix := range indexes {
		if err := l.addLayer(ix); err != nil {
			return nil, err
		}
	}
	l.number(m.root)
	for i := 0; i < len(l.order); i++ {
		if err := l.encode(l.order[i], indexes); err != nil {
			return nil, err
		}
	}
	l.body.nodes = make([]byte, len(l.order)*nodeSize)
	for i, n := range l.order {
		n.node.encode(l.body.nodes[i*nodeSize:])
	}
	const most = math.MaxUint32 - 1
	if len(l.order) >= math.MaxInt32 || len(l.body.strings) > most || len(l.body.xattrs) > most ||
		len(l.body.dirents)/direntSize > most || len(l.body.extents)/extentSize > most {
		return nil, fmt.Errorf("write tree: %d nodes with %d bytes of names are too many", len(l.order), len(l.body.strings))
	}
	return &l.body, nil
}

// addLayer copies the length of a layer's tar and the checksums of its chunks.
func (l *layout) addLayer(ix *mapped) error {
	of, err := ix.layer(0)
	if err != nil {
		return err
	}
	sums, err := ix.bytes(sectChunks, of.chunk*sumSize, of.chunks()*sumSize)
	if err != nil {
		return err
	}
	of.chunk = uint64(len(l.body.chunks) / sumSize)
	var r [layerSize]byte
	of.encode(r[:])
	l.body.layers = append(l.body.layers, r[:]...)
	l.body.chunks = append(l.body.chunks, sums...)
	return nil
}

func (l *layout) number(n *inode) {
	n.number = uint32(len(l.order))
	n.nlink = 0
	l.order = append(l.order, n)
}

// encode rewrites a node's references to point into the tree; the children of a
// directory get their numbers.
func (l *layout) encode(n *inode, indexes []*mapped) error {
	if err := l.copyXattrs(n); err != nil {
		return err
	}
	n.flags &= flagSparse
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		l.encodeDir(n)
	case unix.S_IFREG:
		l.body.content += n.size
		return l.copyExtents(n)
	case unix.S_IFLNK:
		s, err := n.src.str(n.data, n.size)
		if err != nil {
			return err
		}
		n.data = uint64(len(l.body.strings))
		l.body.strings = append(l.body.strings, s...)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return errRecord
	}
	return nil
}

func (l *layout) encodeDir(n *inode) {
	n.data, n.count = uint64(len(l.body.dirents)/direntSize), uint32(len(n.kids))
	n.up = n.parent.number
	n.nlink += 2
	n.size = 0
	for _, c := range n.kids {
		if c.number == 0 {
			l.number(c.inode)
		}
		if c.isDir() {
			n.nlink++
		} else {
			c.nlink++
		}
		d := dirent{name: uint32(len(l.body.strings)), node: c.number, len: uint8(len(c.name)), typ: uint8(c.mode >> 12)}
		var r [direntSize]byte
		d.encode(r[:])
		l.body.dirents = append(l.body.dirents, r[:]...)
		l.body.strings = append(l.body.strings, c.name...)
	}
	n.kids = nil
}

func (l *layout) copyExtents(n *inode) error {
	if n.flags&flagSparse == 0 {
		return nil
	}
	first := uint64(len(l.body.extents) / extentSize)
	var e extent
	for i := range uint64(n.count) {
		if err := n.src.extent(n.data+i, &e); err != nil {
			return err
		}
		var r [extentSize]byte
		e.encode(r[:])
		l.body.extents = append(l.body.extents, r[:]...)
	}
	n.data = first
	return nil
}

// copyXattrs copies a node's attributes; equal sets, of which an image has few,
// are written once.
func (l *layout) copyXattrs(n *inode) error {
	if n.xattr == 0 {
		return nil
	}
	var xs []xattr
	if err := n.src.xattrs(&n.node, func(x xattr) bool {
		xs = append(xs, x)
		return true
	}); err != nil {
		return err
	}
	for _, x := range xs {
		if strings.HasPrefix(x.name, aclPrefix) {
			l.body.flags |= headerHasACLs
		}
	}
	blob := appendXattrs(nil, xs)
	at, ok := l.blobs[string(blob)]
	if !ok {
		at = uint32(len(l.body.xattrs))
		l.body.xattrs = append(l.body.xattrs, blob...)
		l.blobs[string(blob)] = at
	}
	n.xattr = at + 1
	return nil
}
