package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/archive"
	"github.com/urun-dev/urun/internal/stage"
)

// lower is what a container's writable layer lies on.
type lower interface {
	// stat looks at a name, a link itself at its end.
	stat(name string) (entry, error)
	// children are the names in a directory.
	children(name string) ([]string, error)
	close() error
}

type entry struct {
	mode, uid, gid uint32
	// of a file, by which one that was copied is told from one that was changed
	size  int64
	mtime time.Time
}

func openLower(l Layers) (lower, error) {
	if l.LowerDir != "" {
		return dirLower(l.LowerDir), nil
	}
	t, err := fuseunion.OpenTree(l.Image.Tree, l.Image.Data)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return &treeLower{tree: t, serve: l.Image.Serve}, nil
}

// treeLower is an image.
type treeLower struct {
	tree  *fuseunion.Tree
	serve fuseunion.ServeOptions
	all   map[string][]string // names by directory, once they are asked for
}

func (t *treeLower) close() error { return t.tree.Close() }

func (t *treeLower) stat(name string) (entry, error) {
	st, err := t.tree.Lstat(name)
	uid, gid := t.serve.Owner(st.UID, st.GID)
	return entry{st.Mode, uid, gid, st.Size, st.Mtime}, err
}

func (t *treeLower) children(name string) ([]string, error) {
	if t.all == nil {
		t.all = map[string][]string{}
		err := t.tree.Walk(func(name string, _ fuseunion.Stat) error {
			clean := path.Clean("/" + name)
			if clean != "/" {
				t.all[path.Dir(clean)] = append(t.all[path.Dir(clean)], path.Base(clean))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return t.all[path.Clean("/"+name)], nil
}

// dirLower is a root directory.
type dirLower string

func (d dirLower) close() error { return nil }

func (d dirLower) stat(name string) (entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(string(d), name), &st); err != nil {
		return entry{}, err
	}
	return entryOf(&st), nil
}

func entryOf(st *unix.Stat_t) entry {
	return entry{st.Mode, st.Uid, st.Gid, st.Size, time.Unix(st.Mtim.Unix())}
}

func (d dirLower) children(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(string(d), name))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// changes compares a container's writable layer with what it lies on.
func changes(l Layers, merged *archive.Root) ([]Change, error) {
	low, err := openLower(l)
	if err != nil {
		return nil, err
	}
	defer low.close()
	d := &differ{low: low, merged: merged, storage: l.Storage, upper: filepath.Join(l.Dir, "upper"), own: ownPaths(l), chroot: l.Chroot}
	if l.Memory {
		// The layer itself can be reached by nobody: all files are compared.
		d.storage, d.upper = stage.StorageCopy, merged.Path()
	}
	if _, err := d.directory("/"); err != nil {
		return nil, fmt.Errorf("compare with the image: %w", err)
	}
	slices.SortFunc(d.found, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return d.found, nil
}

// writeLayer writes what differs from the image as a layer to be laid on it.
func writeLayer(w io.Writer, l Layers, merged *archive.Root) error {
	all, err := changes(l, merged)
	if err != nil {
		return err
	}
	entries := make([]archive.LayerEntry, len(all))
	for i, c := range all {
		entries[i] = archive.LayerEntry{Path: c.Path, Deleted: c.Kind == Deleted}
	}
	return merged.WriteLayer(w, entries)
}

// ownPaths are the mount points that urun made where the image had none: no
// change of the container's.
func ownPaths(l Layers) map[string]bool {
	own := map[string]bool{"/dev": true, "/proc": true, "/sys": true}
	if l.Chroot {
		for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
			own["/etc/"+name] = true
		}
	}
	for _, m := range l.Mounts {
		own[path.Clean(m.Destination)] = true
	}
	return own
}

// differ goes through the names in the writable layer. What these are, owners and
// modes, it asks the merged tree: a union of our own keeps them elsewhere.
type differ struct {
	low     lower
	merged  *archive.Root
	storage stage.Storage
	upper   string
	own     map[string]bool
	chroot  bool // nothing is mounted on those: they are in the layer itself
	found   []Change
}

func (d *differ) add(kind ChangeKind, name string) { d.found = append(d.found, Change{kind, name}) }

// directory goes through a directory of the writable layer and tells whether
// there is a change in it.
func (d *differ) directory(name string) (changed bool, err error) {
	entries, err := os.ReadDir(filepath.Join(d.upper, name))
	if err != nil {
		return false, err
	}
	here := map[string]bool{}
	for _, e := range entries {
		here[e.Name()] = true
		c, err := d.entry(path.Join(name, e.Name()))
		if err != nil {
			return false, err
		}
		changed = changed || c
	}
	if d.storage == stage.StorageOverlay && !isOpaque(filepath.Join(d.upper, name)) {
		return changed, nil
	}
	// It may hide what the image has in it.
	names, err := d.low.children(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return false, err
	}
	for _, n := range names {
		if here[n] {
			continue
		}
		info, err := d.merged.Stat(path.Join(name, n), false)
		if err != nil {
			return false, err
		}
		if !info.Exists {
			d.add(Deleted, path.Join(name, n))
			changed = true
		}
	}
	return changed, nil
}

// entry compares one name of the writable layer.
func (d *differ) entry(name string) (changed bool, err error) {
	full := filepath.Join(d.upper, name)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, &fs.PathError{Op: "lstat", Path: full, Err: err}
	}
	if d.chroot && d.own[name] {
		return false, nil
	}
	old, err := d.low.stat(name)
	existed := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return false, err
	}
	if isWhiteout(full, &st) {
		if existed {
			d.add(Deleted, name)
		}
		return existed, nil
	}
	if !existed && d.own[name] {
		return false, nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		inside, err := d.directory(name)
		if err != nil {
			return false, err
		}
		// Its times alone are no change: they are those of its content.
		now, err := d.merged.Stat(name, false)
		if err != nil {
			return false, err
		}
		if existed && !inside && old.mode == now.Mode && old.uid == uint32(now.UID) && old.gid == uint32(now.GID) {
			return false, nil
		}
	} else if existed && d.storage == stage.StorageCopy && old.same(entryOf(&st)) {
		return false, nil
	}
	if existed {
		d.add(Modified, name)
	} else {
		d.add(Added, name)
	}
	return true, nil
}

// same tells whether a file of a copy is what was copied.
func (e entry) same(now entry) bool {
	sized := e.mode&unix.S_IFMT != unix.S_IFREG || e.size == now.size
	return sized && e.mode == now.mode && e.uid == now.uid && e.gid == now.gid && e.mtime.Equal(now.mtime)
}

// isWhiteout tells whether an entry of the writable layer says that the image's
// is gone: a character device 0/0, or a link that only package fuseunion makes.
func isWhiteout(name string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFLNK:
		target, err := os.Readlink(name)
		return err == nil && target == fuseunion.WhiteoutTarget
	}
	return false
}

// isOpaque tells whether a directory of the writable layer hides that of the image.
func isOpaque(name string) bool {
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(name, "user.overlay.opaque", value)
	return err == nil && n == 1 && value[0] == 'y'
}
