package fuseunion

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// refNode is a node of the reference: a file system in memory to which a layer's
// entries are applied one after the other, as an unpacker does it.
type refNode struct {
	ent
	kids   map[string]*refNode // of a directory
	up     *refNode
	layer  int            // of a directory: the last that touched it
	marks  map[string]int // of a directory: the layer that gave each name
	via    int            // of the root: the last layer that went through a link
	twice  int            // of the root: the last layer that gave a name twice
	born   int            // of a directory
	nlink  int
	listed bool
}

func newRefDir(up *refNode, layer int) *refNode {
	n := &refNode{ent: ent{typ: tar.TypeDir, mode: 0o755}, kids: map[string]*refNode{}, marks: map[string]int{}, up: up, layer: layer, born: layer}
	if up == nil {
		n.up = n
	}
	return n
}

func (n *refNode) is(typ byte) bool { return n.typ == typ }

var errConflict = errors.New("two entries of the layer for one place")

// walk goes down from the root, following links and making directories.
func (root *refNode) walk(name string, layer int, create bool) (*refNode, error) {
	at := root
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			at = at.up
			continue
		}
		next := at.kids[c]
		if next != nil && next.is(tar.TypeSymlink) {
			if links++; links > 40 || at.fresh(c, layer) {
				return nil, errConflict
			}
			if layer > 0 {
				root.via = layer
			}
			if strings.HasPrefix(next.link, "/") {
				at = root
			}
			rest = append(strings.Split(next.link, "/"), rest...)
			continue
		}
		if next == nil || !next.is(tar.TypeDir) {
			if !create || next != nil && (at.fresh(c, layer) || links > 0) {
				return nil, errConflict
			}
			next = newRefDir(at, layer)
			at.kids[c] = next
		}
		at = next
		if create {
			at.layer = layer
		}
	}
	return at, nil
}

// has reports whether a directory is there.
func (root *refNode) has(name string) bool {
	_, err := root.walk(name, -1, false)
	return err == nil
}

// overLink reports whether a path goes over a symbolic link.
func (root *refNode) overLink(name string) bool {
	at := root
	for c := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if at = at.kids[c]; at == nil {
			return false
		}
		if at.is(tar.TypeSymlink) {
			return true
		}
	}
	return false
}

func (n *refNode) hideLower(layer int) error {
	for name := range n.kids {
		if err := n.hide(name, layer); err != nil {
			return err
		}
	}
	return nil
}

func (n *refNode) hide(name string, layer int) error {
	k := n.kids[name]
	switch {
	case k == nil:
		return nil
	case !n.fresh(name, layer):
		delete(n.kids, name)
		return nil
	case k.kids == nil:
		return nil
	}
	if !k.listed {
		k.ent = newRefDir(nil, 0).ent
	}
	return k.hideLower(layer)
}

// fresh reports whether a name is of the layer.
func (n *refNode) fresh(name string, layer int) bool {
	k := n.kids[name]
	if k == nil {
		return false
	}
	return k.kids != nil && k.layer == layer || k.kids == nil && n.marks[name] == layer
}

// apply applies one entry.
func (root *refNode) apply(e ent, layer int) error {
	dirName, base := path.Split(strings.TrimSuffix(e.name, "/"))
	whiteout := strings.HasPrefix(base, ".wh.")
	if whiteout && !root.has(dirName) {
		if root.overLink(dirName) {
			return errConflict // the layer may yet give what the link leads to
		}
		return nil
	}
	at, err := root.walk(dirName, layer, !whiteout)
	if err != nil {
		return err
	}
	if base == opaqueMarker {
		return at.hideLower(layer)
	}
	if whiteout {
		return at.hide(base[len(".wh."):], layer)
	}
	old := at.kids[base]
	isDir := strings.HasSuffix(e.name, "/")
	if old != nil && at.fresh(base, layer) && !(isDir && old.is(tar.TypeDir)) {
		root.twice = layer
	}
	if e.typ == tar.TypeLink {
		d, b := path.Split(e.link)
		from, err := root.walk(d, layer, false)
		if err != nil {
			return err
		}
		target := from.kids[b]
		if target == nil || target.is(tar.TypeDir) {
			return errConflict
		}
		at.kids[base], at.marks[base] = target, layer
		return nil
	}
	n := &refNode{ent: e}
	switch {
	case isDir && old != nil && old.is(tar.TypeDir):
		n = old
		n.ent = e
	case isDir:
		n = newRefDir(at, layer)
		n.ent = e
	}
	if n.mode == 0 {
		if n.mode = 0o644; isDir {
			n.mode = 0o755
		}
	}
	if n.typ == 0 {
		if n.typ = tar.TypeReg; isDir {
			n.typ = tar.TypeDir
		}
	}
	n.layer, n.listed = layer, true
	at.kids[base], at.marks[base] = n, layer
	return nil
}

// newLayer forgets what the layer before listed.
func (n *refNode) newLayer() {
	n.listed = false
	for _, k := range n.kids {
		k.newLayer()
	}
}

// listing writes the lines that listing writes of a Tree.
func (root *refNode) listing() (lines []string) {
	root.count()
	first := map[*refNode]string{}
	var walk func(name string, n *refNode)
	walk = func(name string, n *refNode) {
		types := map[byte]int64{tar.TypeDir: unix.S_IFDIR, tar.TypeReg: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK, tar.TypeFifo: unix.S_IFIFO}
		line := fmt.Sprintf("/%s %o %d:%d n%d", name, n.mode|types[n.typ], n.uid, n.gid, n.nlink)
		switch n.typ {
		case tar.TypeReg:
			line += fmt.Sprintf(" %q", n.body)
		case tar.TypeSymlink:
			line += " -> " + n.link
		}
		if len(n.xattrs) > 0 {
			line += fmt.Sprintf(" %q", n.xattrs)
		}
		if f, ok := first[n]; ok {
			line += " = " + f
		} else if n.kids == nil {
			first[n] = "/" + name
		}
		lines = append(lines, line)
		for _, c := range slices.Sorted(maps.Keys(n.kids)) {
			walk(strings.TrimPrefix(name+"/"+c, "/"), n.kids[c])
		}
	}
	walk("", root)
	return lines
}

func (n *refNode) count() {
	var zero func(n *refNode)
	zero = func(n *refNode) {
		n.nlink = 0
		for _, k := range n.kids {
			zero(k)
		}
	}
	zero(n)
	var add func(n *refNode)
	add = func(n *refNode) {
		n.nlink += 2
		for _, k := range n.kids {
			if k.kids != nil {
				n.nlink++
				add(k)
			} else {
				k.nlink++
			}
		}
	}
	add(n)
}

// randomLayer makes a layer that fits on others. What a layer means that goes
// through a lower link and also takes away what links lead through hangs on the
// order of its entries for an unpacker, but not for us: it makes no such layer.
func randomLayer(r *rand.Rand, below [][]ent) []ent {
	for {
		ents := anyLayer(r, below)
		before, after := replay(below), replay(append(slices.Clone(below), ents))
		if after.via <= len(below) || after.twice <= len(below) && before.keptIn(after) {
			return ents
		}
	}
}

// keptIn reports whether the links and directories of n are in m as well, and what
// is at the place of its files is no other thing.
func (n *refNode) keptIn(m *refNode) bool {
	for name, k := range n.kids {
		l := m.kids[name]
		if l == nil && !k.is(tar.TypeSymlink) && k.kids == nil {
			continue
		}
		if l == nil || l.typ != k.typ || l.born != k.born || k.is(tar.TypeSymlink) && l.link != k.link || !k.keptIn(l) {
			return false
		}
	}
	return true
}

// anyLayer leaves out the entries that no well-made layer would have.
func anyLayer(r *rand.Rand, below [][]ent) (ents []ent) {
	layer := len(below) + 1
	root := replay(below)
	root.newLayer()
	given := map[string]byte{} // what the layer has: 'd', 'i' (implicit) or 'f'
	var files []string
	lower := root.files("")
	name := func() string {
		var c []string
		for range 1 + r.IntN(3) {
			c = append(c, string("abcd"[r.IntN(4)]))
		}
		return strings.Join(c, "/")
	}
	for i := range 2 + r.IntN(12) {
		p := name()
		e := ent{name: p, uid: r.IntN(3), gid: layer, mode: int64(0o600 + r.IntN(64)), mtime: testTime}
		switch k := r.IntN(12); {
		case k < 4:
			e.name += "/"
			e.mode |= 0o100
		case k < 7:
			e.body = fmt.Sprintf("%d.%d", layer, i)
			if r.IntN(3) == 0 {
				e.xattrs = map[string]string{"user.n": fmt.Sprint(r.IntN(3))}
			}
		case k == 7:
			e.typ, e.link, e.mode = tar.TypeSymlink, []string{"", "/", "../", "./"}[r.IntN(4)]+name(), 0o777
		case k == 8:
			e.typ, e.link = tar.TypeLink, p
			files = slices.DeleteFunc(files, func(f string) bool { return given[f] != 'f' })
			if pick := slices.Concat(files, lower); len(pick) > 0 {
				e.link = pick[r.IntN(len(pick))]
			}
			if given[e.link] == 'f' && !slices.Contains(files, e.link) || inLayer(given, e.link) && !slices.Contains(files, e.link) {
				continue
			}
		case k == 9:
			e.typ = tar.TypeFifo
		case k == 10:
			d, b := path.Split(p)
			e = ent{name: d + ".wh." + b}
		case k == 11:
			e = ent{name: p + "/" + opaqueMarker}
		}
		if !fits(given, e) {
			continue
		}
		if e.typ == tar.TypeLink && given[e.link] == 0 {
			// A target that this layer gave under another name, through a lower link:
			// an unpacker's answer hangs on the order of entries.
			d, b := path.Split(e.link)
			if at, err := root.walk(d, layer, false); err != nil || at.fresh(b, layer) {
				continue
			}
		}
		if err := root.apply(e, layer); err != nil {
			root = replay(append(slices.Clone(below), ents)) // it may have made directories
			continue
		}
		ents = append(ents, e)
		note(given, e)
		if e.typ != tar.TypeSymlink && given[e.name] == 'f' {
			files = append(files, e.name)
		}
	}
	return ents
}

// replay applies layers that are known to fit.
func replay(layers [][]ent) *refNode {
	root := newRefDir(nil, 0)
	for i, ents := range layers {
		root.newLayer()
		for _, e := range ents {
			if err := root.apply(e, i+1); err != nil {
				panic(err)
			}
		}
	}
	return root
}

// inLayer reports whether the layer has a non-directory on the way to name.
func inLayer(given map[string]byte, name string) bool {
	for d := name; d != "."; d = path.Dir(d) {
		if given[d] == 'f' {
			return true
		}
	}
	return false
}

// fits reports whether an entry agrees with what the layer has.
func fits(given map[string]byte, e ent) bool {
	p := strings.TrimSuffix(e.name, "/")
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if given[d] == 'f' {
			return false
		}
	}
	// What comes after entries below it is a different thing to an unpacker than to
	// us where a lower link of that name is: it has put the entries elsewhere.
	if given[p] == 'i' {
		return false
	}
	for d, k := range given {
		if k == 'i' && strings.HasPrefix(d, p+"/") {
			return false
		}
	}
	return e.typ != tar.TypeLink || given[p] != 'd'
}

func note(given map[string]byte, e ent) {
	p := strings.TrimSuffix(e.name, "/")
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if given[d] == 0 {
			given[d] = 'i'
		}
	}
	if strings.HasPrefix(path.Base(p), ".wh.") {
		return
	}
	if p != e.name {
		given[p] = 'd'
		return
	}
	given[p] = 'f'
	maps.DeleteFunc(given, func(d string, _ byte) bool { return strings.HasPrefix(d, p+"/") })
}

// files lists the paths of what is not a directory and was there before the layer.
func (n *refNode) files(name string) (paths []string) {
	for _, c := range slices.Sorted(maps.Keys(n.kids)) {
		p := strings.TrimPrefix(name+"/"+c, "/")
		if k := n.kids[c]; k.kids != nil {
			paths = append(paths, k.files(p)...)
		} else {
			paths = append(paths, p)
		}
	}
	return paths
}
