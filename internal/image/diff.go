package image

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// Change is one difference between two images.
type Change struct {
	Kind string   // A for added, C for changed, D for deleted, as docker diff has them
	Path string   // from the root, with a slash
	What []string `json:",omitempty"` // of what has changed; empty for a directory in which something has
}

// DiffOptions say what counts as a difference.
type DiffOptions struct {
	IgnoreTimes bool // times of modification do not; those of directories never do
}

// Diff calls each for every path in which two images differ, directories before what is in them. A deleted directory
// stands for all that was in it; a directory in which something has changed is listed, too, as docker does. Contents of one size are
// compared, unless both come from one place of one layer.
func Diff(a, b *Image, treeA, treeB *fuseunion.Tree, opt DiffOptions, each func(Change) error) error {
	d := &differ{imgA: a, imgB: b, a: treeA, b: treeB, opt: opt, each: each}
	if err := d.run(); err != nil {
		return fmt.Errorf("compare images: %w", err)
	}
	return nil
}

type differ struct {
	imgA, imgB *Image
	a, b       *fuseunion.Tree
	opt        DiffOptions
	each       func(Change) error

	pending []string // directories above the current path that are not listed yet
	bufs    [2][]byte
}

type walked struct {
	name string
	st   fuseunion.Stat
	err  error
}

// entries walks a tree; an error is the last that it gives.
func entries(t *fuseunion.Tree) iter.Seq[walked] {
	return func(yield func(walked) bool) {
		err := t.Walk(func(name string, st fuseunion.Stat) error {
			if !yield(walked{name: name, st: st}) {
				return errStopped
			}
			return nil
		})
		if err != nil && err != errStopped {
			yield(walked{err: err})
		}
	}
}

var errStopped = errors.New("stopped")

// walkOrder compares paths in the order of Walk: by components.
func walkOrder(a, b string) int {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	at := func(s string) int {
		switch {
		case i == len(s):
			return -1
		case s[i] == '/':
			return 0
		}
		return 1 + int(s[i])
	}
	return at(a) - at(b)
}

// run merges the two walks.
func (d *differ) run() error {
	nextA, stopA := iter.Pull(entries(d.a))
	defer stopA()
	nextB, stopB := iter.Pull(entries(d.b))
	defer stopB()
	a, okA := nextA()
	b, okB := nextB()
	deleted := "" // the directory that is listed as deleted
	for okA || okB {
		if a.err != nil || b.err != nil {
			return errors.Join(a.err, b.err)
		}
		order := walkOrder(a.name, b.name)
		if !okB {
			order = -1
		} else if !okA {
			order = 1
		}
		var err error
		switch {
		case order < 0:
			if deleted == "" || !strings.HasPrefix(a.name, deleted+"/") {
				deleted = a.name
				err = d.list("D", a.name, nil)
			}
		case order > 0:
			err = d.list("A", b.name, nil)
		default:
			err = d.compare(a, b)
		}
		if err != nil {
			return err
		}
		if order <= 0 {
			a, okA = nextA()
		}
		if order >= 0 {
			b, okB = nextB()
		}
	}
	return nil
}

// list gives a change, after the directories above it.
func (d *differ) list(kind string, name string, what []string) error {
	for _, dir := range d.pending {
		if strings.HasPrefix(name, dir+"/") {
			if err := d.each(Change{Kind: "C", Path: "/" + dir}); err != nil {
				return err
			}
		}
	}
	d.pending = d.pending[:0]
	return d.each(Change{Kind: kind, Path: "/" + name, What: what})
}

// compare looks at one path that both have.
func (d *differ) compare(a, b walked) error {
	for n := len(d.pending); n > 0 && !strings.HasPrefix(a.name, d.pending[n-1]+"/"); n-- {
		d.pending = d.pending[:n-1]
	}
	what, err := d.changes(a.st, b.st)
	if err != nil {
		return err
	}
	isDir := b.st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case len(what) > 0:
		return d.list("C", b.name, what)
	case isDir && b.name != "":
		d.pending = append(d.pending, b.name)
	}
	return nil
}

// changes names what differs between two nodes.
func (d *differ) changes(a, b fuseunion.Stat) (what []string, err error) {
	add := func(format string, args ...any) { what = append(what, fmt.Sprintf(format, args...)) }
	ta, tb := a.Mode&unix.S_IFMT, b.Mode&unix.S_IFMT
	if ta != tb {
		add("type %s -> %s", typeName(ta), typeName(tb))
	}
	if ma, mb := a.Mode&^unix.S_IFMT, b.Mode&^unix.S_IFMT; ma != mb {
		add("mode %04o -> %04o", ma, mb)
	}
	if a.UID != b.UID || a.GID != b.GID {
		add("owner %d:%d -> %d:%d", a.UID, a.GID, b.UID, b.GID)
	}
	if ta == tb {
		more, err := d.contentChanges(a, b, tb)
		if err != nil {
			return nil, err
		}
		what = append(what, more...)
	}
	if tb != unix.S_IFDIR && !d.opt.IgnoreTimes && !a.Mtime.Equal(b.Mtime) {
		add("mtime")
	}
	xa, err := d.a.Xattrs(a.Ino)
	if err != nil {
		return nil, err
	}
	xb, err := d.b.Xattrs(b.Ino)
	if err != nil {
		return nil, err
	}
	if !maps.Equal(xa, xb) {
		add("xattrs")
	}
	return what, nil
}

func (d *differ) contentChanges(a, b fuseunion.Stat, typ uint32) (what []string, err error) {
	switch typ {
	case unix.S_IFREG:
		if a.Size != b.Size {
			return []string{fmt.Sprintf("size %d -> %d", a.Size, b.Size)}, nil
		}
		if same, err := d.sameContent(a, b); err != nil || !same {
			return []string{"content"}, err
		}
	case unix.S_IFLNK:
		la, err := d.a.Readlink(a.Ino)
		if err != nil {
			return nil, err
		}
		lb, err := d.b.Readlink(b.Ino)
		if err != nil {
			return nil, err
		}
		if la != lb {
			return []string{fmt.Sprintf("target %s -> %s", la, lb)}, nil
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if a.Rdev != b.Rdev {
			return []string{fmt.Sprintf("device %d:%d -> %d:%d", unix.Major(a.Rdev), unix.Minor(a.Rdev), unix.Major(b.Rdev), unix.Minor(b.Rdev))}, nil
		}
	}
	return nil, nil
}

func typeName(mode uint32) string {
	switch mode {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	}
	return "socket"
}

// sameContent compares two files of one size.
func (d *differ) sameContent(a, b fuseunion.Stat) (bool, error) {
	if a.At == b.At && a.At != 0 && d.imgA.Layers[a.Layer].DiffID == d.imgB.Layers[b.Layer].DiffID {
		return true, nil
	}
	for i := range d.bufs {
		if d.bufs[i] == nil {
			d.bufs[i] = make([]byte, 256<<10)
		}
	}
	for off := int64(0); off < a.Size; {
		n, err := d.a.ReadAt(a.Ino, d.bufs[0], off)
		if err != nil {
			return false, err
		}
		m, err := d.b.ReadAt(b.Ino, d.bufs[1], off)
		if err != nil {
			return false, err
		}
		if n == 0 || !bytes.Equal(d.bufs[0][:n], d.bufs[1][:m]) {
			return false, nil
		}
		off += int64(n)
	}
	return true, nil
}
