package fuseunion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// chunkSums takes the checksums of the chunks of a tar that passes by.
type chunkSums struct {
	table  *crc32.Table
	sums   []byte
	crc    uint32
	filled int // bytes of the chunk that is not finished
}

func newChunkSums() *chunkSums { return &chunkSums{table: castagnoli()} }

func (c *chunkSums) add(p []byte) {
	for len(p) > 0 {
		n := min(len(p), chunkSize-c.filled)
		c.crc = crc32.Update(c.crc, c.table, p[:n])
		p, c.filled = p[n:], c.filled+n
		if c.filled == chunkSize {
			c.end()
		}
	}
}

func (c *chunkSums) end() {
	c.sums = binary.LittleEndian.AppendUint32(c.sums, c.crc)
	c.crc, c.filled = 0, 0
}

// finish returns the checksums, encoded, of all that was added.
func (c *chunkSums) finish() []byte {
	if c.filled > 0 {
		c.end()
	}
	return c.sums
}

// content is the tar of a layer. Each chunk of it is checked when it is read for
// the first time: what a file says is what the layer's diffID stood for when it was
// indexed, or an error. What the disk gives when it is asked again, after the page
// cache has dropped a chunk, is not checked again.
type content struct {
	layer
	m       *mapped
	f       *os.File
	checked []atomic.Uint32 // a bit for each chunk

	onDamage func(*ContentError)
}

// openContent opens the data file of layer i of a tree.
func openContent(m *mapped, i uint32, path string) (*content, error) {
	l, err := m.layer(i)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c := &content{layer: l, m: m, f: f, checked: make([]atomic.Uint32, l.chunks()/32+1)}
	fi, err := f.Stat()
	if err == nil && uint64(fi.Size()) != l.bytes {
		err = fmt.Errorf("%w: %s has %d bytes, want %d", ErrDamaged, path, fi.Size(), l.bytes)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return c, nil
}

var chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// readAt fills p from the tar at off.
func (c *content) readAt(p []byte, off uint64) error {
	if off > c.bytes || uint64(len(p)) > c.bytes-off {
		return errOutside
	}
	if len(p) == 0 {
		return nil
	}
	if err := c.read(p, off); err != nil {
		return err
	}
	for i := off >> chunkShift; i <= (off+uint64(len(p))-1)>>chunkShift; i++ {
		if c.checked[i/32].Load()&(1<<(i%32)) != 0 {
			continue
		}
		if err := c.check(i, p, off); err != nil {
			return err
		}
	}
	return nil
}

func (c *content) read(p []byte, off uint64) error {
	_, err := c.f.ReadAt(p, int64(off))
	if err == io.EOF {
		return errOutside // cut short since it was opened
	}
	return err
}

// check checks a chunk of which p, read at off, holds at least a part.
func (c *content) check(i uint64, p []byte, off uint64) error {
	from := i << chunkShift
	to := min(from+chunkSize, c.bytes)
	var chunk []byte
	if from >= off && to <= off+uint64(len(p)) {
		chunk = p[from-off : to-off]
	} else {
		buf := chunkBuffers.Get().(*[chunkSize]byte)
		defer chunkBuffers.Put(buf)
		chunk = buf[:to-from]
		if err := c.read(chunk, from); err != nil {
			return err
		}
		// What is given out is what was checked.
		if from < off {
			copy(p, chunk[off-from:])
		} else {
			copy(p[from-off:], chunk)
		}
	}
	want, err := c.m.chunk(c.chunk + i)
	if err != nil {
		return err
	}
	if crc32.Checksum(chunk, c.m.table) != want {
		err := &ContentError{Path: c.f.Name(), Offset: int64(from)}
		if c.onDamage != nil {
			c.onDamage(err)
		}
		return err
	}
	c.checked[i/32].Or(1 << (i % 32))
	return nil
}

// ContentError says that a layer's tar is not what was indexed. It is an
// ErrDamaged that no index can mend: the layer has to be fetched again.
type ContentError struct {
	Path   string // of the data file
	Offset int64  // of the chunk, 64 KiB long, that is damaged
}

func (e *ContentError) Error() string {
	return fmt.Sprintf("%s: %v: checksum of the %d bytes at %d", e.Path, ErrDamaged, chunkSize, e.Offset)
}

func (e *ContentError) Unwrap() error { return ErrDamaged }

// noteSuffix is what the name of a note beside a data file ends in.
const noteSuffix = ".damaged"

// Note leaves a note of the damage beside the data file, since whoever reads through
// a mount is told no more than EIO. The first one stays.
func (e *ContentError) Note() error {
	f, err := os.OpenFile(e.Path+noteSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, e)
	return errors.Join(err, f.Close())
}

// Noted returns the note of damage that is beside a data file, a line, or "".
func Noted(data string) string {
	b, err := os.ReadFile(data + noteSuffix)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[:min(len(b), 4096)]))
}

// Unnote removes the note beside a data file.
func Unnote(data string) error {
	if err := os.Remove(data + noteSuffix); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
