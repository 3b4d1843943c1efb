package fuseunion

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// indexer is the index of a layer while it grows. A million names cost it about
// 120 MB: names lie in one blob, and the hash table holds numbers.
type indexer struct {
	opt   IndexOptions
	stats Stats

	nodes   []node  // of a directory, data is its first entry and count is unused
	entries []entry // 0 is none
	strings []byte
	xattrs  []byte
	extents []byte

	seed    maphash.Seed
	buckets []uint32 // first entry of a chain; the length is a power of two

	trail    []string // of the last walk
	lastDir  string   // of the entry before, whose directory is likely to be the same
	lastNode uint32
	lastReal bool // whether it was for more than a whiteout
}

// entry is a name in a directory.
type entry struct {
	name    uint32 // offset in strings
	node    uint32 // noNode for a whiteout
	dir     uint32 // noNode for an entry that a later one has taken the place of
	sibling uint32
	chain   uint32
	len     uint8
}

func newIndexer(opt IndexOptions) *indexer {
	ix := &indexer{opt: opt, seed: maphash.MakeSeed(), buckets: make([]uint32, 1<<12), entries: make([]entry, 1, 1<<10)}
	ix.nodes = append(make([]node, 0, 1<<10), node{mode: unix.S_IFDIR | 0o755, flags: flagImplicit})
	ix.stats.Nodes = 1
	return ix
}

func (ix *indexer) name(e *entry) string {
	if e.len == 0 {
		return ""
	}
	return unsafe.String(&ix.strings[e.name], int(e.len))
}

func (ix *indexer) sort(list []uint32) {
	slices.SortFunc(list, func(a, b uint32) int {
		x, y := &ix.entries[a], &ix.entries[b]
		if c := strings.Compare(ix.name(x), ix.name(y)); c != 0 {
			return c
		}
		// A whiteout stands before the entry that takes the hidden one's place.
		switch {
		case x.node == noNode && y.node != noNode:
			return -1
		case x.node != noNode && y.node == noNode:
			return 1
		}
		return 0
	})
}

func (ix *indexer) bucket(dir uint32, name string) uint32 {
	h := maphash.String(ix.seed, name) + uint64(dir)*0x9e3779b97f4a7c15
	h ^= h >> 32
	return uint32(h) & uint32(len(ix.buckets)-1)
}

func (ix *indexer) lookup(dir uint32, name string) (*entry, bool) {
	for i := ix.buckets[ix.bucket(dir, name)]; i != 0; i = ix.entries[i].chain {
		if e := &ix.entries[i]; e.dir == dir && ix.name(e) == name {
			return e, true
		}
	}
	return nil, false
}

// addString puts a string into the blob.
func (ix *indexer) addString(s string) (off uint64, err error) {
	if int64(len(ix.strings)+len(s)) > ix.opt.MaxNameBytes {
		return 0, fmt.Errorf("layer with more than %d bytes of names", ix.opt.MaxNameBytes)
	}
	off = uint64(len(ix.strings))
	ix.strings = append(ix.strings, s...)
	return off, nil
}

// addName puts a name into a directory; whiteouts stay out of the hash table.
func (ix *indexer) addName(dir uint32, name string, n uint32) error {
	if len(ix.entries) > ix.opt.MaxNodes {
		return fmt.Errorf("layer with more than %d names", ix.opt.MaxNodes)
	}
	off, err := ix.addString(name)
	if err != nil {
		return err
	}
	i := uint32(len(ix.entries))
	d := &ix.nodes[dir]
	ix.entries = append(ix.entries, entry{name: uint32(off), len: uint8(len(name)), node: n, dir: dir, sibling: uint32(d.data)})
	d.data = uint64(i)
	if n == noNode {
		return nil
	}
	ix.stats.Names++
	if len(ix.entries) > len(ix.buckets) {
		ix.rehash()
		return nil
	}
	b := ix.bucket(dir, name)
	ix.entries[i].chain, ix.buckets[b] = ix.buckets[b], i
	return nil
}

func (ix *indexer) rehash() {
	ix.buckets = make([]uint32, 4*len(ix.buckets))
	for i := 1; i < len(ix.entries); i++ {
		e := &ix.entries[i]
		if e.node == noNode || e.dir == noNode {
			continue
		}
		b := ix.bucket(e.dir, ix.name(e))
		e.chain, ix.buckets[b] = ix.buckets[b], uint32(i)
	}
}

// addNode makes a node and its first name, which is not taken.
func (ix *indexer) addNode(dir uint32, name string, n node) (uint32, error) {
	n.nlink = 1
	if n.mode&unix.S_IFMT == unix.S_IFDIR {
		n.up = dir
	}
	i := uint32(len(ix.nodes))
	if err := ix.addName(dir, name, i); err != nil {
		return 0, err
	}
	ix.nodes = append(ix.nodes, n)
	ix.stats.Nodes++
	return i, nil
}

// updateDir gives a directory that is there already the metadata of n.
func (ix *indexer) updateDir(i uint32, n node) error {
	d := &ix.nodes[i]
	n.data, n.up, n.flags = d.data, d.up, d.flags&^(flagImplicit|flagGhost)
	*d = n
	return nil
}

func (ix *indexer) addWhiteout(dir uint32, base string) error {
	name := base[len(whiteoutPrefix):]
	switch {
	case base == opaqueMarker:
		ix.nodes[dir].flags |= flagOpaque
		ix.stats.Whiteouts++
		return nil
	case strings.HasPrefix(base, aufsPrefix):
		return nil
	case name == "" || name == "." || name == "..":
		return errors.New("whiteout of no name")
	}
	ix.stats.Whiteouts++
	return ix.addName(dir, name, noNode)
}

// addLink adds a hard link: another name of a node of this layer or, if no entry
// before it has that name, a note for MergeTree to look below this layer.
func (ix *indexer) addLink(dir uint32, base, linkname string) error {
	target, err := cleanName(linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", linkname, err)
	}
	if target == "" {
		return errors.New("hard link to a directory")
	}
	if e, ok := ix.lookup(dir, base); ok {
		if n, _, err := ix.find(target); err == nil && n == e.node {
			return nil // it is one already
		}
		ix.remove(e)
	}
	n, target, err := ix.find(target)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", linkname, err)
	}
	// An implicit directory may stand for a lower link, which may be the target.
	if n != noNode && ix.nodes[n].flags&flagImplicit == 0 {
		if ix.nodes[n].mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("hard link to %.200q: a directory", target)
		}
		ix.nodes[n].nlink++
		return ix.addName(dir, base, n)
	}
	below := node{flags: flagLowerLink, count: uint32(len(target))}
	if below.data, err = ix.addString(target); err != nil {
		return err
	}
	_, err = ix.addNode(dir, base, below)
	return err
}
