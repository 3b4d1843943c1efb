package fuseunion

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Layer names the two files of a layer.
type Layer struct {
	Data  string // the uncompressed tar
	Index string // what IndexTar wrote about it
}

// MergeTree merges the layers of an image, bottom first, into one tree and writes
// it to out. An index that is not as it was written gives ErrDamaged.
func MergeTree(layers []Layer, out io.Writer) (err error) {
	m := newMerger()
	indexes := make([]*mapped, 0, len(layers))
	defer func() {
		for _, ix := range indexes {
			err = errors.Join(err, ix.close())
		}
	}()
	for i, l := range layers {
		ix, err := openMapped(l.Index, kindLayer)
		if err != nil {
			return fmt.Errorf("open index of layer %d: %w", i, err)
		}
		indexes = append(indexes, ix)
		if err := m.apply(ix); err != nil {
			return fmt.Errorf("merge layer %d (%s): %w", i, l.Index, err)
		}
	}
	b, err := m.finish(indexes)
	if err != nil {
		return err
	}
	if err := b.writeTo(out); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	return nil
}

// inode is a node of the tree that is being merged.
type inode struct {
	node
	src     *mapped // the index that its link target, extents and xattrs are in
	touched uint32  // of a directory: the last layer, counted from 1, that has it
	number  uint32  // in the finished tree
	kids    []child // of a directory, sorted by name
	parent  *inode  // of a directory
}

func (n *inode) isDir() bool     { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *inode) isSymlink() bool { return n.mode&unix.S_IFMT == unix.S_IFLNK }

func (n *inode) find(name string) (int, bool) {
	return slices.BinarySearchFunc(n.kids, name, func(c child, name string) int { return strings.Compare(c.name, name) })
}

// child is a name in a directory. The name points into the index it came from.
type child struct {
	name string
	*inode
	layer uint32 // that gave the name, counted from 1: a link may be newer than its inode
}

type merger struct {
	root  *inode
	arena []inode

	// Of the layer that is being applied.
	layer     uint32
	ix        *mapped
	made      []*inode // by number of its node, for hard links
	redirects []redirect
	depth     int
}

// redirect is an implicit directory of a layer that stands where the tree has a
// symbolic link: its entries belong where the link leads.
type redirect struct {
	in    *inode // the directory that the link is in
	name  string
	dir   uint32 // in the index
	ghost bool
}

func newMerger() *merger {
	m := &merger{}
	m.root = m.newInode()
	m.root.node = node{mode: unix.S_IFDIR | 0o755}
	m.root.parent = m.root
	return m
}

func (m *merger) newInode() *inode {
	if len(m.arena) == cap(m.arena) {
		m.arena = make([]inode, 0, 1024)
	}
	m.arena = append(m.arena, inode{})
	return &m.arena[len(m.arena)-1]
}

// apply puts a layer on top of the tree.
func (m *merger) apply(ix *mapped) error {
	if err := ix.verify(); err != nil {
		return err
	}
	m.layer++
	m.ix, m.redirects = ix, m.redirects[:0]
	m.made = make([]*inode, ix.hdr.nodes)
	if err := m.bindLowerLinks(); err != nil {
		return err
	}
	if err := m.applyDir(m.root, 0); err != nil {
		return err
	}
	// The links are followed when the layer is in its place: what they lead through
	// may be of this layer too. A redirect may bring forth others.
	for i := 0; i < len(m.redirects); i++ {
		r := m.redirects[i]
		to, err := m.resolveDir(r.in, r.name, !r.ghost)
		if _, ok := errors.AsType[unix.Errno](err); ok && r.ghost {
			continue // the link leads to nothing that could be hidden
		}
		if err != nil {
			return fmt.Errorf("follow %q: %w", r.name, err)
		}
		if err := m.applyDir(to, r.dir); err != nil {
			return err
		}
	}
	return nil
}

// bindLowerLinks finds the targets of hard links to files of lower layers before
// anything of this layer can hide them.
func (m *merger) bindLowerLinks() error {
	var n node
	for i := range m.ix.hdr.nodes {
		if err := m.ix.node(i, &n); err != nil {
			return err
		}
		if n.flags&flagLowerLink == 0 {
			continue
		}
		target, err := m.ix.str(n.data, uint64(n.count))
		if err != nil {
			return err
		}
		dirName, base := splitPath(target)
		dir, err := m.resolveDir(m.root, dirName, false)
		if err != nil {
			return fmt.Errorf("hard link to %.200q: %w", target, err)
		}
		k, ok := dir.find(base)
		if !ok {
			return fmt.Errorf("hard link to %.200q: no such entry in this layer before it, or below", target)
		}
		if dir.kids[k].isDir() {
			return fmt.Errorf("hard link to %.200q: a directory", target)
		}
		m.made[i] = dir.kids[k].inode
	}
	return nil
}

// applyDir puts a directory of the layer over one of the tree.
func (m *merger) applyDir(dst *inode, dir uint32) error {
	// Names are at most 4096 bytes long, so a deeper index was not made by IndexTar.
	if m.depth++; m.depth > maxPath {
		return errRecord
	}
	defer func() { m.depth-- }()
	// Nor has a directory two names: without this a loop of them never ends.
	if m.made[dir] != nil {
		return errRecord
	}
	m.made[dir] = dst
	var src node
	if err := m.ix.node(dir, &src); err != nil {
		return err
	}
	list, err := m.ix.dirents(&src)
	if err != nil {
		return err
	}
	if src.flags&flagImplicit == 0 {
		dst.node, dst.src = src, m.ix
		dst.node.layer = m.layer - 1
	}
	if src.flags&flagGhost == 0 {
		dst.touched = m.layer
	}
	if src.flags&flagOpaque != 0 {
		m.prune(dst)
	}
	return m.mergeList(dst, list)
}

// prune takes away what is not of the layer being applied. (Only over a redirect
// is there anything of that layer in a directory yet.)
func (m *merger) prune(dir *inode) {
	dir.kids = slices.DeleteFunc(dir.kids, func(c child) bool { return m.hide(c) })
}

// hide reports whether a whiteout takes a name away as a whole.
func (m *merger) hide(c child) bool {
	if !c.isDir() {
		return c.layer != m.layer
	}
	if c.touched != m.layer {
		return true
	}
	if c.node.layer != m.layer-1 {
		// The layer has entries below it but does not list it: the metadata is a lower
		// layer's, and hidden.
		c.node, c.src = node{mode: unix.S_IFDIR | 0o755}, nil
	}
	m.prune(c.inode)
	return false
}

// mergeList merges the sorted entries of a directory of the layer into dst's.
func (m *merger) mergeList(dst *inode, list direntList) error {
	old := dst.kids
	kids := make([]child, 0, len(old)+list.len())
	var d dirent
	last := ""
	for i := range list.len() {
		name, err := list.get(i, &d)
		if err != nil {
			return err
		}
		if name == "" || name < last {
			return errRecord
		}
		last = name
		k := 0
		for k < len(old) && old[k].name < name {
			k++
		}
		kids, old = append(kids, old[:k]...), old[k:]
		var over child
		if len(old) > 0 && old[0].name == name {
			over, old = old[0], old[1:]
		}
		if d.node == noNode {
			if over.inode != nil && !m.hide(over) {
				kids = append(kids, over)
			}
			continue
		}
		if over.inode == nil && len(kids) > 0 && kids[len(kids)-1].name == name {
			// A whiteout came before and spared an entry of this layer.
			over, kids = kids[len(kids)-1], kids[:len(kids)-1]
		}
		n, err := m.applyEntry(dst, over.inode, name, d.node)
		if err != nil {
			return err
		}
		// A hard link to its own lower name is the layer's all the same.
		if n != over.inode || n != nil && n == m.made[d.node] {
			over = child{name, n, m.layer}
		}
		if n != nil {
			kids = append(kids, over)
		}
	}
	dst.kids = append(kids, old...)
	return nil
}

// applyEntry returns the inode that an entry of the layer makes of over, which is
// nil where the tree has nothing of that name; the result is nil, too, if the entry
// does no more than hide what is not there.
func (m *merger) applyEntry(dir, over *inode, name string, number uint32) (*inode, error) {
	if number >= uint32(len(m.made)) {
		return nil, errOutside
	}
	if n := m.made[number]; n != nil {
		if n.isDir() {
			return nil, errRecord
		}
		return n, nil
	}
	var src node
	if err := m.ix.node(number, &src); err != nil {
		return nil, err
	}
	if src.mode&unix.S_IFMT != unix.S_IFDIR {
		n := m.newInode()
		n.node, n.src = src, m.ix
		n.node.layer = m.layer - 1
		m.made[number] = n
		return n, nil
	}
	implicit := src.flags&flagImplicit != 0
	if over != nil && over.isSymlink() && implicit {
		m.redirects = append(m.redirects, redirect{in: dir, name: name, dir: number, ghost: src.flags&flagGhost != 0})
		return over, nil
	}
	if src.flags&flagGhost != 0 && (over == nil || !over.isDir()) {
		return over, nil
	}
	n := over
	if n == nil || !n.isDir() {
		n = m.newDir(dir)
	}
	return n, m.applyDir(n, number)
}

func (m *merger) newDir(parent *inode) *inode {
	n := m.newInode()
	n.node = node{mode: unix.S_IFDIR | 0o755}
	n.parent, n.touched = parent, m.layer
	return n
}

// maxLinks bounds the symbolic links of one resolution, as MAXSYMLINKS does.
const maxLinks = 40

// resolveDir walks from a directory of the tree along a path, following symbolic
// links, never above the root. With create, what is missing is made up.
func (m *merger) resolveDir(dir *inode, path string, create bool) (*inode, error) {
	for links := 0; path != ""; {
		var c string
		c, path, _ = strings.Cut(path, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			dir = dir.parent
			continue
		}
		k, ok := dir.find(c)
		if !ok {
			if !create {
				return nil, fmt.Errorf("%.200q: %w", c, unix.ENOENT)
			}
			if len(c) > maxName {
				return nil, fmt.Errorf("%.200q: %w", c, unix.ENAMETOOLONG)
			}
			n := m.newDir(dir)
			dir.kids = slices.Insert(dir.kids, k, child{c, n, m.layer})
			dir = n
			continue
		}
		n := dir.kids[k].inode
		switch {
		case n.isDir():
			dir = n
		case n.isSymlink():
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%.200q: %w", c, unix.ELOOP)
			}
			target, err := n.src.str(n.data, n.size)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				dir = m.root
			}
			path = target + "/" + path
		default:
			return nil, fmt.Errorf("%.200q: %w", c, unix.ENOTDIR)
		}
	}
	return dir, nil
}
