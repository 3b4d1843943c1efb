package fuseunion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrDamaged is wrapped by every error that says that an index, a tree or a
// layer's data file is not what was written: the caller may build it again.
var ErrDamaged = errors.New("damaged")

// The format, all integers little-endian:
//
//	header     128 bytes
//	sums       a crc32c for each block of the body
//	           (zeros up to a multiple of 4096 bytes)
//	body       nodes | dirents | extents | layers | chunks | xattrs | strings
//
// Chunks are the crc32c of every 64 KiB of the layers' tars, layer by layer, the
// last of each being shorter. The sections lie one behind the other in this order, so their places follow
// from the counts in the header. Every record's size is a multiple of four.
const (
	formatMagic   = "urunfu\r\n"
	formatVersion = 2

	kindLayer = 1 // the index of one layer
	kindTree  = 2 // a merged tree

	headerSize = 128
	blockShift = 14
	blockSize  = 1 << blockShift
	bodyAlign  = 4096

	nodeSize   = 64
	direntSize = 12
	extentSize = 24
	layerSize  = 16
	sumSize    = 4

	chunkShift = 16
	chunkSize  = 1 << chunkShift
)

// Flags of a node.
const (
	flagImplicit  = 1 << iota // directory that the layer did not list
	flagOpaque                // directory that hides the lower layers' entries
	flagSparse                // regular file: data is the first extent
	flagGhost                 // implicit directory with nothing but whiteouts below it
	flagLowerLink             // hard link to the path in the strings, below this layer
)

// noNode is the node of a dirent that is a whiteout.
const noNode = ^uint32(0)

// The type of a whiteout among the dirents, otherwise as in getdents(2) (DT_WHT).
const dtWhiteout = 14

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// header is the decoded first block.
type header struct {
	kind    uint32
	nodes   uint32
	dirents uint32
	extents uint32
	layers  uint32
	flags   uint32
	chunks  uint64
	xattrs  uint64 // bytes
	strings uint64 // bytes
	content uint64 // bytes of regular files, each node once
}

// Flags of a header.
const (
	headerHasXattrs = 1 << iota
	headerHasACLs
)

const aclPrefix = "system.posix_acl_"

func align(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

// sections returns the offsets, relative to the body, of the sections and of the
// body's end, which is the last. It reports false when the sizes are absurd.
func (h *header) sections() (at [numSections + 1]uint64, ok bool) {
	const most = 1 << 40
	if h.xattrs > most || h.strings > most || h.chunks > most || h.xattrs%4 != 0 {
		return at, false
	}
	sizes := [numSections]uint64{
		uint64(h.nodes) * nodeSize, uint64(h.dirents) * direntSize, uint64(h.extents) * extentSize,
		uint64(h.layers) * layerSize, h.chunks * sumSize, h.xattrs, h.strings,
	}
	for i, s := range sizes {
		at[i+1] = at[i] + s
	}
	return at, true
}

func sumsSize(body uint64) uint64 { return (body + blockSize - 1) >> blockShift * 4 }

func bodyStart(body uint64) uint64 { return align(headerSize+sumsSize(body), bodyAlign) }

func (h *header) encode(b []byte, sums []byte) {
	le := binary.LittleEndian
	copy(b, formatMagic)
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[12:], h.kind)
	le.PutUint32(b[16:], h.nodes)
	le.PutUint32(b[20:], h.dirents)
	le.PutUint32(b[24:], h.extents)
	le.PutUint32(b[28:], h.layers)
	le.PutUint64(b[32:], h.xattrs)
	le.PutUint64(b[40:], h.strings)
	le.PutUint64(b[48:], h.content)
	le.PutUint32(b[56:], h.flags)
	le.PutUint64(b[64:], h.chunks)
	table := castagnoli()
	le.PutUint32(b[headerSize-8:], crc32.Checksum(sums, table))
	le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], table))
}

func decodeHeader(b []byte) (h header, sumsCRC uint32, err error) {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:8]) != formatMagic {
		return h, 0, fmt.Errorf("%w: no index or tree", ErrDamaged)
	}
	if crc32.Checksum(b[:headerSize-4], castagnoli()) != le.Uint32(b[headerSize-4:]) {
		return h, 0, fmt.Errorf("%w: header checksum", ErrDamaged)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return h, 0, fmt.Errorf("%w: format version %d, this program reads %d", ErrDamaged, v, formatVersion)
	}
	h = header{
		kind: le.Uint32(b[12:]), nodes: le.Uint32(b[16:]), dirents: le.Uint32(b[20:]),
		extents: le.Uint32(b[24:]), layers: le.Uint32(b[28:]),
		xattrs: le.Uint64(b[32:]), strings: le.Uint64(b[40:]), content: le.Uint64(b[48:]),
		flags: le.Uint32(b[56:]), chunks: le.Uint64(b[64:]),
	}
	return h, le.Uint32(b[headerSize-8:]), nil
}

// node is the decoded record of an inode.
type node struct {
	mode  uint32 // st_mode: type and permissions
	uid   uint32
	gid   uint32
	nlink uint32
	mtime int64
	nsec  uint32
	layer uint32 // which data file
	size  uint64
	data  uint64 // file: offset in the tar or first extent; symlink: string; directory: first dirent; device: rdev
	count uint32 // sparse file: extents; directory: dirents; lower link: length of the path
	xattr uint32 // offset in the xattr section plus one, 0 for none
	up    uint32 // directory: its parent
	flags uint32
}

func (n *node) encode(b []byte) {
	le := binary.LittleEndian
	_ = b[nodeSize-1]
	le.PutUint32(b[0:], n.mode)
	le.PutUint32(b[4:], n.uid)
	le.PutUint32(b[8:], n.gid)
	le.PutUint32(b[12:], n.nlink)
	le.PutUint64(b[16:], uint64(n.mtime))
	le.PutUint32(b[24:], n.nsec)
	le.PutUint32(b[28:], n.layer)
	le.PutUint64(b[32:], n.size)
	le.PutUint64(b[40:], n.data)
	le.PutUint32(b[48:], n.count)
	le.PutUint32(b[52:], n.xattr)
	le.PutUint32(b[56:], n.up)
	le.PutUint32(b[60:], n.flags)
}

func (n *node) decode(b []byte) {
	le := binary.LittleEndian
	_ = b[nodeSize-1]
	n.mode = le.Uint32(b[0:])
	n.uid = le.Uint32(b[4:])
	n.gid = le.Uint32(b[8:])
	n.nlink = le.Uint32(b[12:])
	n.mtime = int64(le.Uint64(b[16:]))
	n.nsec = le.Uint32(b[24:])
	n.layer = le.Uint32(b[28:])
	n.size = le.Uint64(b[32:])
	n.data = le.Uint64(b[40:])
	n.count = le.Uint32(b[48:])
	n.xattr = le.Uint32(b[52:])
	n.up = le.Uint32(b[56:])
	n.flags = le.Uint32(b[60:])
}

// dirent is the decoded record of a name in a directory.
type dirent struct {
	name uint32 // offset in the strings
	node uint32
	len  uint8
	typ  uint8
}

func (d *dirent) encode(b []byte) {
	le := binary.LittleEndian
	_ = b[direntSize-1]
	le.PutUint32(b[0:], d.name)
	le.PutUint32(b[4:], d.node)
	b[8], b[9], b[10], b[11] = d.len, d.typ, 0, 0
}

func (d *dirent) decode(b []byte) {
	le := binary.LittleEndian
	_ = b[direntSize-1]
	d.name = le.Uint32(b[0:])
	d.node = le.Uint32(b[4:])
	d.len, d.typ = b[8], b[9]
}

// extent is a run of a sparse file's bytes; what no extent covers reads as zeros.
type extent struct {
	at     uint64 // offset in the file
	length uint64
	data   uint64 // offset in the tar
}

func (e *extent) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], e.at)
	le.PutUint64(b[8:], e.length)
	le.PutUint64(b[16:], e.data)
}

func (e *extent) decode(b []byte) {
	le := binary.LittleEndian
	e.at = le.Uint64(b[0:])
	e.length = le.Uint64(b[8:])
	e.data = le.Uint64(b[16:])
}

// layer is the decoded record of a layer.
type layer struct {
	bytes uint64 // length of its tar
	chunk uint64 // the checksum of its first chunk
}

func (l *layer) encode(b []byte) {
	binary.LittleEndian.PutUint64(b[0:], l.bytes)
	binary.LittleEndian.PutUint64(b[8:], l.chunk)
}

func (l *layer) decode(b []byte) {
	l.bytes = binary.LittleEndian.Uint64(b[0:])
	l.chunk = binary.LittleEndian.Uint64(b[8:])
}

// chunks is how many checksums it has.
func (l *layer) chunks() uint64 { return (l.bytes + chunkSize - 1) >> chunkShift }

// xattr is one extended attribute. In the xattr section a node's attributes are
// a count (u32), then for each the length of its name and of its value (u32 each)
// and the two; the whole is padded to four bytes.
type xattr struct {
	name, value string
}

func appendXattrs(b []byte, xs []xattr) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(xs)))
	for _, x := range xs {
		b = le.AppendUint32(b, uint32(len(x.name)))
		b = le.AppendUint32(b, uint32(len(x.value)))
		b = append(b, x.name...)
		b = append(b, x.value...)
	}
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// body is the unwritten content of an index or tree.
type body struct {
	kind    uint32
	flags   uint32
	content uint64
	nodes   []byte
	dirents []byte
	extents []byte
	layers  []byte
	chunks  []byte
	xattrs  []byte
	strings []byte
}

// writeTo writes the header, the checksums and the body.
func (s *body) writeTo(w io.Writer) error {
	h := header{
		kind: s.kind, flags: s.flags, content: s.content,
		nodes: uint32(len(s.nodes) / nodeSize), dirents: uint32(len(s.dirents) / direntSize),
		extents: uint32(len(s.extents) / extentSize), layers: uint32(len(s.layers) / layerSize),
		chunks: uint64(len(s.chunks) / sumSize), xattrs: uint64(len(s.xattrs)), strings: uint64(len(s.strings)),
	}
	if len(s.xattrs) > 0 {
		h.flags |= headerHasXattrs
	}
	parts := [][]byte{s.nodes, s.dirents, s.extents, s.layers, s.chunks, s.xattrs, s.strings}
	var total uint64
	for _, p := range parts {
		total += uint64(len(p))
	}
	head := make([]byte, bodyStart(total))
	sums := head[headerSize : headerSize+sumsSize(total)]
	blockSums(sums, parts)
	h.encode(head[:headerSize], sums)
	for _, p := range append([][]byte{head}, parts...) {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// blockSums fills sums with the checksums of the blocks of the concatenated parts.
func blockSums(sums []byte, parts [][]byte) {
	table := castagnoli()
	var crc uint32
	var filled, block int
	for _, p := range parts {
		for len(p) > 0 {
			n := min(len(p), blockSize-filled)
			crc = crc32.Update(crc, table, p[:n])
			p, filled = p[n:], filled+n
			if filled == blockSize {
				binary.LittleEndian.PutUint32(sums[block*4:], crc)
				block, filled, crc = block+1, 0, 0
			}
		}
	}
	if filled > 0 {
		binary.LittleEndian.PutUint32(sums[block*4:], crc)
	}
}
