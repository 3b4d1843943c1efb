package fuseunion

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// IndexOptions bound what one layer may make the index grow to; zero values mean
// the defaults.
type IndexOptions struct {
	MaxNodes      int   // names in the layer, with the parents made up for them; default 4 million
	MaxNameBytes  int64 // bytes of all names and link targets; default 1 GiB, at most 4 GiB
	MaxXattrBytes int64 // bytes of all extended attributes; default 256 MiB, at most 4 GiB
	MaxExtents    int   // pieces of all sparse files; default 16 million
}

func (o IndexOptions) withDefaults() IndexOptions {
	o.MaxNodes = min(cmp.Or(o.MaxNodes, 4<<20), math.MaxInt32)
	o.MaxNameBytes = min(cmp.Or(o.MaxNameBytes, 1<<30), math.MaxUint32)
	o.MaxXattrBytes = min(cmp.Or(o.MaxXattrBytes, 256<<20), math.MaxUint32-1)
	o.MaxExtents = min(cmp.Or(o.MaxExtents, 16<<20), math.MaxInt32)
	return o
}

// Stats says what a layer holds.
type Stats struct {
	Nodes        int   // inodes, directories made up for missing parents included
	Names        int   // names: more than Nodes when there are hard links
	Whiteouts    int   // whiteouts and opaque markers
	TarBytes     int64 // length of the tar
	ContentBytes int64 // sizes of the regular files, hard links counted once
}

// IndexTar reads an uncompressed layer tar to its end, padding and whatever
// follows it included, so that a hasher on tar sees every byte; it copies all of
// it to data and then writes the layer's index to index. After an error what was
// written is of no use: the caller removes it. An error about an entry names it.
func IndexTar(tr io.Reader, data, index io.Writer, opt IndexOptions) (Stats, error) {
	stream := newTarStream(tr, data)
	ix := newIndexer(opt.withDefaults())
	if err := ix.readEntries(stream); err != nil {
		return Stats{}, err
	}
	if err := stream.drain(); err != nil {
		return Stats{}, fmt.Errorf("read layer tar: %w", err)
	}
	ix.stats.TarBytes = stream.pos
	b := ix.finish()
	b.layers = make([]byte, layerSize)
	(&layer{bytes: uint64(stream.pos)}).encode(b.layers)
	b.chunks = stream.sums.finish()
	if err := b.writeTo(index); err != nil {
		return Stats{}, fmt.Errorf("write layer index: %w", err)
	}
	return ix.stats, nil
}

// readEntries reads up to the end-of-archive mark.
func (ix *indexer) readEntries(stream *tarStream) error {
	reader := tar.NewReader(stream)
	last := ""
	for {
		h, err := reader.Next()
		if err == io.EOF {
			// archive/tar takes an end inside the last entry's padding for a good one.
			if stream.pos%tarBlock != 0 {
				return fmt.Errorf("read layer tar: %w", io.ErrUnexpectedEOF)
			}
			ix.hideTOC(last)
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fmt.Errorf("read layer tar at byte %d: %w", stream.pos, err)
		}
		end, err := ix.add(h, stream)
		if err != nil {
			return fmt.Errorf("layer entry %.200q: %w", h.Name, err)
		}
		last = h.Name
		stream.headersFrom(int64(align(uint64(end), tarBlock)))
	}
}

// hideTOC takes away what eStargz has added to a layer: its table of contents,
// which is the last entry, and the marks that say what to prefetch.
// https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
func (ix *indexer) hideTOC(last string) {
	const toc = "stargz.index.json"
	if last != toc {
		return
	}
	for _, name := range []string{toc, ".prefetch.landmark", ".no.prefetch.landmark"} {
		if e, ok := ix.lookup(0, name); ok && ix.nodes[e.node].mode&unix.S_IFMT == unix.S_IFREG {
			ix.remove(e)
		}
	}
}

// add indexes one entry and returns where in the tar its content ends.
func (ix *indexer) add(h *tar.Header, stream *tarStream) (end int64, err error) {
	content := stream.pos
	if h.Typeflag == tar.TypeXGlobalHeader {
		return content, nil // archive/tar does not apply them either; git writes one with a comment
	}
	n := node{mode: uint32(h.Mode) & 0o7777}
	var extents []extent
	end = content
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.mode |= unix.S_IFREG
		if n.size, n.data = uint64(h.Size), uint64(content); h.Size < 0 || h.Size > math.MaxInt64-content {
			return 0, fmt.Errorf("size %d", h.Size)
		}
		end = content + h.Size
		es, sparseEnd, ok, err := sparseMap(h, stream.keep, content)
		if err != nil {
			return 0, err
		}
		if ok {
			extents, end = es, sparseEnd
			n.flags |= flagSparse
		}
	case tar.TypeDir:
		n.mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		n.mode = unix.S_IFLNK | 0o777 // Linux has no other; tars say all sorts of things
	case tar.TypeLink:
		n.mode = 0 // by this add knows it
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			n.mode = n.mode&^unix.S_IFMT | unix.S_IFBLK
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return 0, fmt.Errorf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		n.data = uint64(kernelDev(uint32(h.Devmajor), uint32(h.Devminor)))
	case tar.TypeFifo:
		n.mode |= unix.S_IFIFO
	default:
		return 0, fmt.Errorf("type flag %q is not known", h.Typeflag)
	}
	return end, ix.addEntry(h, n, extents)
}

// kernelDev encodes a device number as FUSE carries it (new_encode_dev, kdev_t.h).
func kernelDev(major, minor uint32) uint32 { return minor&0xff | major<<8 | minor&^0xff<<12 }

// addEntry puts an entry whose type is known in its place.
func (ix *indexer) addEntry(h *tar.Header, n node, extents []extent) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if n.mode&unix.S_IFMT != unix.S_IFDIR {
			return errors.New("the root is not a directory")
		}
		if err := ix.setMeta(&n, h); err != nil {
			return err
		}
		return ix.updateDir(0, n)
	}
	dirName, base := splitPath(name)
	if strings.HasPrefix(dirName, whiteoutPrefix) || strings.Contains(dirName, "/"+whiteoutPrefix) {
		if strings.HasPrefix(dirName, aufsPrefix) || strings.Contains(dirName, "/"+aufsPrefix) {
			return nil
		}
		return errors.New("name below a whiteout")
	}
	whiteout := strings.HasPrefix(base, whiteoutPrefix)
	dir, err := ix.makeDirs(dirName, whiteout)
	if err != nil {
		return err
	}
	if whiteout {
		return ix.addWhiteout(dir, base)
	}
	if n.mode == 0 {
		return ix.addLink(dir, base, h.Linkname)
	}
	if err := ix.setMeta(&n, h); err != nil {
		return err
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if e, ok := ix.lookup(dir, base); ok {
			if ix.isDir(e.node) {
				return ix.updateDir(e.node, n)
			}
			ix.remove(e)
			// What the lower layers had of that name went when the one before came.
			n.flags |= flagOpaque
		}
	case unix.S_IFLNK:
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fmt.Errorf("symbolic link to %.100q", h.Linkname)
		}
		if n.data, err = ix.addString(h.Linkname); err != nil {
			return err
		}
		n.size = uint64(len(h.Linkname))
	case unix.S_IFREG:
		if n.flags&flagSparse != 0 {
			if err := ix.addExtents(&n, extents); err != nil {
				return err
			}
		}
		ix.stats.ContentBytes += int64(n.size)
	}
	if e, ok := ix.lookup(dir, base); ok {
		ix.remove(e)
	}
	_, err = ix.addNode(dir, base, n)
	return err
}

// setMeta fills in owner, times and extended attributes.
func (ix *indexer) setMeta(n *node, h *tar.Header) error {
	const noID = math.MaxUint32 // (uid_t)-1 means "unchanged" to chown(2)
	if h.Uid < 0 || h.Uid >= noID || h.Gid < 0 || h.Gid >= noID {
		return fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	if h.Mode < 0 {
		return fmt.Errorf("mode %d", h.Mode)
	}
	n.uid, n.gid = uint32(h.Uid), uint32(h.Gid)
	n.mtime, n.nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	var xs []xattr
	size := int64(4)
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		// XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h.
		if name == "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0 || len(v) > 65536 {
			return fmt.Errorf("extended attribute %.100q of %d bytes", name, len(v))
		}
		xs = append(xs, xattr{name, v})
		size += int64(8 + len(name) + len(v))
	}
	if len(xs) == 0 {
		return nil
	}
	if int64(len(ix.xattrs))+size+3 > ix.opt.MaxXattrBytes {
		return fmt.Errorf("layer with more than %d bytes of extended attributes", ix.opt.MaxXattrBytes)
	}
	slices.SortFunc(xs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	n.xattr = uint32(len(ix.xattrs)) + 1
	ix.xattrs = appendXattrs(ix.xattrs, xs)
	return nil
}

func (ix *indexer) addExtents(n *node, extents []extent) error {
	have := len(ix.extents) / extentSize
	if have+len(extents) > ix.opt.MaxExtents {
		return fmt.Errorf("layer with more than %d pieces of sparse files", ix.opt.MaxExtents)
	}
	n.data, n.count = uint64(have), uint32(len(extents))
	for i := range extents {
		var b [extentSize]byte
		extents[i].encode(b[:])
		ix.extents = append(ix.extents, b[:]...)
	}
	return nil
}

// finish lays the index out.
func (ix *indexer) finish() *body {
	b := &body{kind: kindLayer, content: uint64(ix.stats.ContentBytes), extents: ix.extents, xattrs: ix.xattrs, strings: ix.strings}
	b.dirents = make([]byte, 0, len(ix.entries)*direntSize)
	var list []uint32
	for i := range ix.nodes {
		n := &ix.nodes[i]
		if n.mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		list = list[:0]
		for e := uint32(n.data); e != 0; e = ix.entries[e].sibling {
			if ix.entries[e].dir != noNode {
				list = append(list, e)
			}
		}
		ix.sort(list)
		n.data, n.count = uint64(len(b.dirents)/direntSize), 0
		last := ""
		for _, i := range list {
			e := &ix.entries[i]
			name := ix.name(e)
			if e.node == noNode && name == last && n.count > 0 {
				continue // the same whiteout twice
			}
			if last = name; e.node != noNode {
				last = ""
			}
			d := dirent{name: e.name, node: e.node, len: e.len, typ: dtWhiteout}
			if e.node != noNode {
				d.typ = uint8(ix.nodes[e.node].mode >> 12)
			}
			var r [direntSize]byte
			d.encode(r[:])
			b.dirents = append(b.dirents, r[:]...)
			n.count++
		}
	}
	b.nodes = make([]byte, len(ix.nodes)*nodeSize)
	for i := range ix.nodes {
		ix.nodes[i].encode(b.nodes[i*nodeSize:])
	}
	return b
}
