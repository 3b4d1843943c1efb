package fuseunion

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep directories lie in one another; no path of 4096 bytes is deeper.
const maxDepth = maxPath / 2

func (ix *indexer) isDir(n uint32) bool { return ix.nodes[n].mode&unix.S_IFMT == unix.S_IFDIR }

// remove takes an entry away because a later one of the same layer has its name,
// as an unpacker does: a directory with all that is in it, a hard link alone.
func (ix *indexer) remove(e *entry) {
	ix.lastDir = "" // it may lie below, or have led through this
	ix.unchain(e)
	e.dir = noNode
	ix.stats.Names--
	n := &ix.nodes[e.node]
	if n.nlink--; n.nlink > 0 {
		return
	}
	ix.stats.Nodes--
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
		ix.stats.ContentBytes -= int64(n.size)
	case unix.S_IFDIR:
		for k := uint32(n.data); k != 0; k = ix.entries[k].sibling {
			if below := &ix.entries[k]; below.dir != noNode && below.node != noNode {
				ix.remove(below)
			}
		}
	}
	*n = node{} // a record that nothing refers to
}

// unchain takes an entry out of the hash table, so that a name given a million
// times does not make a chain of a million.
func (ix *indexer) unchain(e *entry) {
	at := &ix.buckets[ix.bucket(e.dir, ix.name(e))]
	for *at != 0 && &ix.entries[*at] != e {
		at = &ix.entries[*at].chain
	}
	if *at != 0 {
		*at = e.chain
	}
}

// walk goes down a path from the root through the directories that the layer has
// so far and, as an unpacker does, through its symbolic links; never above the
// root. What it does not find it gets from missing; noNode ends the walk, and rest
// is what is left of the path. The directories' names are in ix.trail then. A ".." in a link's target is taken by the names:
// what lower links do to the directory it is in is not known yet.
func (ix *indexer) walk(name string, missing func(dir uint32, name string) (uint32, error)) (dir uint32, rest string, err error) {
	ix.trail = ix.trail[:0]
	links := 0
	for name != "" {
		var c string
		c, name, _ = strings.Cut(name, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			dir, ix.trail = ix.nodes[dir].up, ix.trail[:max(len(ix.trail)-1, 0)]
			continue
		}
		if len(c) > maxName {
			return 0, "", fmt.Errorf("%.200q: %w", c, unix.ENAMETOOLONG)
		}
		var next uint32
		if e, ok := ix.lookup(dir, c); ok {
			next = e.node
		} else if next, err = missing(dir, c); err != nil || next == noNode {
			return dir, strings.TrimSuffix(c+"/"+name, "/"), err
		}
		switch n := &ix.nodes[next]; n.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if len(ix.trail) == maxDepth {
				return 0, "", fmt.Errorf("directories nested more than %d deep", maxDepth)
			}
			dir, ix.trail = next, append(ix.trail, c)
		case unix.S_IFLNK:
			if links++; links > maxLinks {
				return 0, "", fmt.Errorf("%.200q: %w", c, unix.ELOOP)
			}
			target := string(ix.strings[n.data : n.data+n.size])
			if strings.HasPrefix(target, "/") {
				dir, ix.trail = 0, ix.trail[:0]
			}
			name = strings.TrimSuffix(target+"/"+name, "/")
		default:
			return 0, "", fmt.Errorf("%.200q above it is not a directory in the same layer", c)
		}
	}
	return dir, "", nil
}

// makeDirs returns the directory of that clean name, making up what is missing. A
// directory made up for a whiteout alone is a ghost: it is not made where the
// layers below have none.
func (ix *indexer) makeDirs(name string, whiteout bool) (uint32, error) {
	if name == "" {
		return 0, nil
	}
	if name == ix.lastDir && (ix.lastReal || whiteout) {
		return ix.lastNode, nil
	}
	flags := uint32(flagImplicit)
	if whiteout {
		flags |= flagGhost
	}
	dir, _, err := ix.walk(name, func(dir uint32, c string) (uint32, error) {
		return ix.addNode(dir, c, node{mode: unix.S_IFDIR | 0o755, flags: flags})
	})
	if err != nil {
		return 0, err
	}
	for d := dir; !whiteout && d != 0; d = ix.nodes[d].up {
		ix.nodes[d].flags &^= flagGhost
	}
	ix.lastDir, ix.lastNode, ix.lastReal = name, dir, !whiteout
	return dir, nil
}

// find returns the node of a clean name without making anything, or noNode and the
// name to look for in the lower layers, in which no link of this layer is left.
func (ix *indexer) find(name string) (n uint32, below string, err error) {
	dirName, base := splitPath(name)
	dir, rest, err := ix.walk(dirName, func(uint32, string) (uint32, error) { return noNode, nil })
	if err != nil {
		return noNode, "", err
	}
	if rest == "" {
		if e, ok := ix.lookup(dir, base); ok {
			return e.node, name, nil
		}
	}
	return noNode, path.Join(strings.Join(ix.trail, "/"), rest, base), nil
}
