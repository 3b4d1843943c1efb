package fuseunion

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapped is an index or tree in memory. Its methods may be called from many
// goroutines at once. Strings and slices that they return point into the map and
// must not be used after close.
type mapped struct {
	hdr   header
	raw   []byte // what close unmaps, nil if the bytes are not mapped
	body  []byte
	sums  []byte
	at    [numSections + 1]uint64
	table *crc32.Table
	seen  []atomic.Uint32 // a bit for each block whose checksum was right
}

// openMapped maps a file and checks its header.
func openMapped(path string, kind uint32) (*mapped, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() < headerSize || fi.Size() > 1<<42 {
		return nil, fmt.Errorf("%s: %w: size %d", path, ErrDamaged, fi.Size())
	}
	raw, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	m, err := newMapped(raw, kind)
	if err != nil {
		return nil, joinUnmap(fmt.Errorf("%s: %w", path, err), raw)
	}
	m.raw = raw
	return m, nil
}

func joinUnmap(err error, raw []byte) error {
	if uerr := unix.Munmap(raw); uerr != nil {
		return fmt.Errorf("%w (and unmap: %v)", err, uerr)
	}
	return err
}

// newMapped checks the header of an index or tree that is in memory.
func newMapped(raw []byte, kind uint32) (*mapped, error) {
	h, sumsCRC, err := decodeHeader(raw)
	if err != nil {
		return nil, err
	}
	if h.kind != kind {
		return nil, fmt.Errorf("%w: kind %d where %d is expected", ErrDamaged, h.kind, kind)
	}
	at, ok := h.sections()
	if !ok || h.nodes == 0 {
		return nil, fmt.Errorf("%w: section sizes", ErrDamaged)
	}
	start := bodyStart(at[numSections])
	if uint64(len(raw)) != start+at[numSections] {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrDamaged, len(raw), start+at[numSections])
	}
	m := &mapped{hdr: h, body: raw[start:], at: at, table: castagnoli()}
	m.sums = raw[headerSize : headerSize+sumsSize(at[numSections])]
	if crc32.Checksum(m.sums, m.table) != sumsCRC {
		return nil, fmt.Errorf("%w: checksum of the checksums", ErrDamaged)
	}
	m.seen = make([]atomic.Uint32, len(m.sums)/4/32+1)
	return m, nil
}

func (m *mapped) close() error {
	raw := m.raw
	m.raw, m.body, m.sums = nil, nil, nil
	if raw == nil {
		return nil
	}
	return unix.Munmap(raw)
}

// bytes returns n bytes at off of section s, after checking that they are inside
// it and that their blocks are as they were written.
func (m *mapped) bytes(s int, off, n uint64) ([]byte, error) {
	size := m.at[s+1] - m.at[s]
	if off > size || n > size-off {
		return nil, errOutside
	}
	if n == 0 {
		return nil, nil
	}
	lo := m.at[s] + off
	hi := lo + n
	for b := lo >> blockShift; b <= (hi-1)>>blockShift; b++ {
		if m.seen[b/32].Load()&(1<<(b%32)) == 0 {
			if err := m.checkBlock(b); err != nil {
				return nil, err
			}
		}
	}
	return m.body[lo:hi:hi], nil
}

var (
	errOutside  = fmt.Errorf("%w: a record points outside its section", ErrDamaged)
	errChecksum = fmt.Errorf("%w: block checksum", ErrDamaged)
	errRecord   = fmt.Errorf("%w: impossible record", ErrDamaged)
)

func (m *mapped) checkBlock(b uint64) error {
	end := min((b+1)<<blockShift, uint64(len(m.body)))
	if crc32.Checksum(m.body[b<<blockShift:end], m.table) != binary.LittleEndian.Uint32(m.sums[b*4:]) {
		return errChecksum
	}
	m.seen[b/32].Or(1 << (b % 32))
	return nil
}

// verify checks every block.
func (m *mapped) verify() error {
	for b := range uint64(len(m.sums) / 4) {
		if err := m.checkBlock(b); err != nil {
			return err
		}
	}
	return nil
}

const (
	sectNodes = iota
	sectDirents
	sectExtents
	sectLayers
	sectChunks
	sectXattrs
	sectStrings
	numSections
)

func (m *mapped) node(i uint32, n *node) error {
	b, err := m.bytes(sectNodes, uint64(i)*nodeSize, nodeSize)
	if err != nil {
		return err
	}
	n.decode(b)
	return nil
}

// dirents returns the records of a directory.
func (m *mapped) dirents(dir *node) (direntList, error) {
	if dir.data > uint64(m.hdr.dirents) {
		return direntList{}, errOutside
	}
	b, err := m.bytes(sectDirents, dir.data*direntSize, uint64(dir.count)*direntSize)
	return direntList{m: m, b: b}, err
}

// direntList is the sorted list of a directory's entries.
type direntList struct {
	m *mapped
	b []byte
}

func (l direntList) len() int { return len(l.b) / direntSize }

// get decodes entry i and returns its name, which points into the map.
func (l direntList) get(i int, d *dirent) (string, error) {
	d.decode(l.b[i*direntSize:])
	return l.m.str(uint64(d.name), uint64(d.len))
}

// find returns the entry of that name; ok is false if there is none.
func (l direntList) find(name string) (d dirent, ok bool, err error) {
	lo, hi := 0, l.len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		s, err := l.get(mid, &d)
		if err != nil {
			return d, false, err
		}
		switch {
		case s == name:
			return d, true, nil
		case s < name:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return d, false, nil
}

// str returns a string that points into the map.
func (m *mapped) str(off, n uint64) (string, error) {
	b, err := m.bytes(sectStrings, off, n)
	if err != nil || len(b) == 0 {
		return "", err
	}
	return unsafe.String(&b[0], len(b)), nil
}

func (m *mapped) extent(i uint64, e *extent) error {
	if i >= uint64(m.hdr.extents) {
		return errOutside
	}
	b, err := m.bytes(sectExtents, i*extentSize, extentSize)
	if err != nil {
		return err
	}
	e.decode(b)
	return nil
}

// layer returns the record of a layer, whose checksums are there.
func (m *mapped) layer(i uint32) (l layer, err error) {
	b, err := m.bytes(sectLayers, uint64(i)*layerSize, layerSize)
	if err != nil {
		return l, err
	}
	l.decode(b)
	if n := l.chunks(); l.bytes > 1<<62 || n > m.hdr.chunks || l.chunk > m.hdr.chunks-n {
		return l, errOutside
	}
	return l, nil
}

// chunk returns the checksum of a chunk.
func (m *mapped) chunk(i uint64) (uint32, error) {
	b, err := m.bytes(sectChunks, i*sumSize, sumSize)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// xattrs calls fn for each attribute of a node until fn returns false. The
// strings point into the map.
func (m *mapped) xattrs(n *node, fn func(x xattr) bool) error {
	if n.xattr == 0 {
		return nil
	}
	off := uint64(n.xattr - 1)
	b, err := m.bytes(sectXattrs, off, 4)
	if err != nil {
		return err
	}
	count := binary.LittleEndian.Uint32(b)
	off += 4
	for range count {
		if b, err = m.bytes(sectXattrs, off, 8); err != nil {
			return err
		}
		nlen, vlen := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
		if b, err = m.bytes(sectXattrs, off+8, nlen+vlen); err != nil {
			return err
		}
		off += 8 + nlen + vlen
		if nlen == 0 {
			return errRecord
		}
		x := xattr{name: unsafe.String(&b[0], nlen)}
		if vlen > 0 {
			x.value = unsafe.String(&b[nlen], vlen)
		}
		if !fn(x) {
			return nil
		}
	}
	return nil
}
