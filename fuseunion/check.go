package fuseunion

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckIndex checks every block of a layer's index against its checksum. An index
// that is not what IndexTar wrote, or of another version of the format, gives
// ErrDamaged: IndexTar makes it again from the layer's data.
func CheckIndex(path string) (err error) {
	m, err := openMapped(path, kindLayer)
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.verify(); err != nil {
		return fmt.Errorf("index %s: %w", path, err)
	}
	return nil
}

// Range is a run of bytes.
type Range struct{ Offset, Length int64 }

// CheckData compares a layer's data with the checksums in its index, which must be
// sound. It returns the runs of bytes, in whole chunks of 64 KiB, that are not what
// was indexed, and the files whose content lies in them, by name; a damaged run that
// no file lies in is one of headers or padding.
func CheckData(l Layer) (bad []Range, files []string, err error) {
	m, err := openMapped(l.Index, kindLayer)
	if err != nil {
		return nil, nil, fmt.Errorf("open index: %w", err)
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if err := m.verify(); err != nil {
		return nil, nil, fmt.Errorf("index %s: %w", l.Index, err)
	}
	if bad, err = m.damagedChunks(l.Data); err != nil || len(bad) == 0 {
		return bad, nil, err
	}
	err = m.eachFile("", 0, 0, func(name string, n *node) error {
		hit, err := m.overlaps(n, bad)
		if hit {
			files = append(files, name)
		}
		return err
	})
	return bad, files, err
}

func (m *mapped) damagedChunks(path string) (bad []Range, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l, err := m.layer(0)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, chunkSize)
	for i := range l.chunks() {
		at := int64(i) << chunkShift
		b := buf[:min(chunkSize, int64(l.bytes)-at)]
		want, err := m.chunk(l.chunk + i)
		if err != nil {
			return nil, err
		}
		n, err := f.ReadAt(b, at)
		if err != nil && err != io.EOF && !errors.Is(err, unix.EIO) {
			return nil, err
		}
		if n == len(b) && crc32.Checksum(b, m.table) == want {
			continue
		}
		if k := len(bad) - 1; k >= 0 && bad[k].Offset+bad[k].Length == at {
			bad[k].Length += int64(len(b))
		} else {
			bad = append(bad, Range{at, int64(len(b))})
		}
	}
	return bad, nil
}

// eachFile calls fn for the regular files below a directory of a layer.
func (m *mapped) eachFile(name string, dir uint32, depth int, fn func(name string, n *node) error) error {
	var n node
	if err := m.node(dir, &n); err != nil {
		return err
	}
	if depth > maxPath {
		return errRecord
	}
	list, err := m.dirents(&n)
	if err != nil {
		return err
	}
	var d dirent
	for i := range list.len() {
		base, err := list.get(i, &d)
		if err != nil {
			return err
		}
		if d.node == noNode {
			continue
		}
		if err := m.node(d.node, &n); err != nil {
			return err
		}
		below := strings.TrimPrefix(name+"/"+base, "/")
		switch n.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = m.eachFile(below, d.node, depth+1, fn)
		case unix.S_IFREG:
			err = fn(below, &n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// overlaps reports whether a file has content in one of the sorted ranges.
func (m *mapped) overlaps(n *node, ranges []Range) (bool, error) {
	in := func(at, length uint64) bool {
		if length == 0 {
			return false
		}
		// The first range that ends behind at.
		i, _ := slices.BinarySearchFunc(ranges, int64(at), func(r Range, at int64) int {
			if r.Offset+r.Length <= at {
				return -1
			}
			return 1
		})
		return i < len(ranges) && ranges[i].Offset < int64(at+length)
	}
	if n.flags&flagSparse == 0 {
		return in(n.data, n.size), nil
	}
	var e extent
	for i := range uint64(n.count) {
		if err := m.extent(n.data+i, &e); err != nil {
			return false, err
		}
		if in(e.data, e.length) {
			return true, nil
		}
	}
	return false, nil
}
