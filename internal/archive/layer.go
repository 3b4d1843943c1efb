package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// whiteoutPrefix marks, in a layer, the name of what a lower layer has and this one
// has not (OCI image spec, layer.md).
const whiteoutPrefix = ".wh."

// LayerEntry is a path of which a layer says something.
type LayerEntry struct {
	Path    string // absolute
	Deleted bool
}

// WriteLayer writes an image layer as a tar stream: each of the paths by itself, a
// directory without what is in it, and a whiteout for each that is deleted. A
// directory must come before what is in it. What goes away meanwhile is left out.
func (r *Root) WriteLayer(w io.Writer, entries []LayerEntry) error {
	lw := &writer{root: r, tar: tar.NewWriter(w), opt: WriteOptions{Flat: true}, links: map[inode]string{}}
	for _, e := range entries {
		err := lw.layerEntry(e)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	return lw.tar.Close()
}

func (w *writer) layerEntry(e LayerEntry) error {
	called := strings.TrimPrefix(path.Clean("/"+e.Path), "/")
	if called == "" {
		return nil
	}
	if e.Deleted {
		dir, base := path.Split(called)
		return w.tar.WriteHeader(&tar.Header{
			Name: dir + whiteoutPrefix + base, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		})
	}
	parent, base, err := w.root.parent(e.Path)
	if err != nil {
		return err
	}
	defer parent.Close()
	return w.entry(parent, base, called)
}
