package fuseunion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// lazyFile tells which parts of a copied-up file are still those of the lower one:
// copying up a large file for one byte, an owner or a new name then costs next to
// nothing. The upper file has its full size from the beginning, as a hole; a part is
// filled when it is first written to.
//
// The state is a file of its own in the work directory, mapped: two bits for each
// chunk. The first, written, survives the death of the server and not that of the
// machine, for data may reach the disk later than the bit: it counts only as long as
// the machine has not been started again. The second, synced, is set by fsync.
type lazyFile struct {
	mu    sync.RWMutex
	name  string // in lazyDir
	f     *os.File
	raw   []byte // mapped: lazyHeader, written, synced
	low   uint32
	size  uint64 // what is behind this is the upper file's own
	total uint64 // chunks
}

const (
	lazyDir    = "lazy" // in the work directory
	lazyChunk  = 64 << 10
	lazyMagic  = "urunlz1\n"
	lazyHeader = 64 // magic, boot id
	// defaultLazySize is from which size on files are copied up lazily.
	defaultLazySize = 256 << 10
)

func bitmapSize(chunks uint64) int { return int((chunks + 7) / 8) }

func (l *lazyFile) written() []byte { return l.raw[lazyHeader : lazyHeader+bitmapSize(l.total)] }
func (l *lazyFile) synced() []byte  { return l.raw[lazyHeader+bitmapSize(l.total):] }

func hasBit(m []byte, i uint64) bool { return m[i/8]&(1<<(i%8)) != 0 }
func setBit(m []byte, i uint64)      { m[i/8] |= 1 << (i % 8) }

// bootID names this life of the machine.
func bootID() ([]byte, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	return []byte(strings.TrimSpace(string(b))), nil
}

// lazily tells whether a file is to be copied up without its content.
func (u *Union) lazily(typ uint32, size uint64) bool {
	return typ == unix.S_IFREG && u.lazySize >= 0 && size >= uint64(u.lazySize) && size > 0
}

// newLazy makes the state of a file that is copied up without its content.
func (u *Union) newLazy(m *meta, size uint64) error {
	name := strconv.FormatUint(u.seq.Add(1), 36)
	chunks := (size + lazyChunk - 1) / lazyChunk
	b := make([]byte, lazyHeader+2*bitmapSize(chunks))
	copy(b, lazyMagic)
	copy(b[8:lazyHeader], u.boot)
	fd, err := unix.Openat(u.workFD, lazyDir+"/"+name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = pwriteAll(fd, b, 0)
	if err == nil && !u.opt.Volatile {
		err = unix.Fdatasync(fd)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(err, unix.Unlinkat(u.workFD, lazyDir+"/"+name, 0))
	}
	m.has |= metaLazy
	m.lazyName, m.lazySize, m.lazyTotal = name, size, chunks
	return nil
}

// lazyOf returns the state of a node that was copied up lazily, nil of others. The
// caller holds n.mu for writing.
func (u *Union) lazyOf(n *unode) (*lazyFile, error) {
	if n.lazy != nil || n.meta.has&metaLazy == 0 {
		return n.lazy, nil
	}
	m := &n.meta
	l := &lazyFile{name: m.lazyName, low: n.lowerIndex(), size: m.lazySize, total: m.lazyTotal}
	fd, err := unix.Openat(u.workFD, lazyDir+"/"+m.lazyName, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open state of a file: %w", err)
	}
	l.f = os.NewFile(uintptr(fd), m.lazyName)
	size := lazyHeader + 2*bitmapSize(l.total)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Size != int64(size) {
		err = errMeta
	}
	if err == nil {
		l.raw, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(err, l.f.Close())
	}
	if string(l.raw[:8]) != lazyMagic {
		return nil, errors.Join(errMeta, l.close())
	}
	if string(l.raw[8:8+len(u.boot)]) != string(u.boot) {
		copy(l.written(), l.synced())
		copy(l.raw[8:lazyHeader], u.boot)
	}
	n.lazy = l
	return l, nil
}

func (l *lazyFile) close() error { return errors.Join(unix.Munmap(l.raw), l.f.Close()) }

// chunkEnd returns where the chunk of an offset ends.
func (l *lazyFile) chunkEnd(off uint64) uint64 {
	return min((off/lazyChunk+1)*lazyChunk, l.size)
}

// read fills p from the upper file fd or the lower one.
func (l *lazyFile) read(u *Union, fd int, p []byte, off uint64) (int, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	done := 0
	for done < len(p) {
		at := off + uint64(done)
		if at >= l.size || hasBit(l.written(), at/lazyChunk) {
			part := p[done:]
			if at < l.size {
				part = part[:min(uint64(len(part)), l.chunkEnd(at)-at)]
			}
			n, err := preadAll(fd, part, int64(at))
			if done += n; err != nil || n < len(part) {
				return done, err
			}
			continue
		}
		n, err := u.low.readFile(l.low, p[done:min(uint64(len(p)), uint64(done)+l.chunkEnd(at)-at)], at)
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, unix.EIO // the lower file has become shorter
		}
		done += n
	}
	return done, nil
}

// write writes to the upper file, after it has filled what else is in the chunks.
func (l *lazyFile) write(u *Union, fd int, p []byte, off uint64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.fill(u, fd, off, uint64(len(p))); err != nil {
		return 0, err
	}
	return pwriteAll(fd, p, int64(off))
}

// fill brings what of the lower file is in a range, and in the rest of its chunks, to
// the upper one. The caller holds l.mu.
func (l *lazyFile) fill(u *Union, fd int, off, n uint64) error {
	for at := off; at < min(off+n, l.size); at = (at/lazyChunk + 1) * lazyChunk {
		i := at / lazyChunk
		if hasBit(l.written(), i) {
			continue
		}
		end := l.chunkEnd(at)
		for from := i * lazyChunk; from < end; {
			got, err := copyRange(u.low, fd, l.low, from, end-from)
			if err != nil {
				return err
			}
			if got == 0 {
				return unix.EIO
			}
			from += got
		}
		setBit(l.written(), i)
	}
	return nil
}

// whole fills all that is left.
func (l *lazyFile) whole(u *Union, fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer u.slow()()
	return l.fill(u, fd, 0, l.size)
}

// sync makes what was written count after a loss of power. The caller has synced the
// upper file after it took what to count: see hostSync.
func (l *lazyFile) sync(counted []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, b := range counted {
		l.synced()[i] |= b
	}
	return errors.Join(unix.Msync(l.raw, unix.MS_SYNC), unix.Fdatasync(int(l.f.Fd())))
}

// snapshot returns what is written now.
func (l *lazyFile) snapshot() []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return append([]byte(nil), l.written()...)
}

// cutLazy shortens what a node still has of its lower file, before it is truncated. The
// caller holds n.mu for writing.
func (u *Union) cutLazy(n *unode, size uint64) error {
	l, err := u.lazyOf(n)
	if err != nil || l == nil || size >= l.size {
		return err
	}
	m := n.meta.clone()
	m.lazySize = size
	if err := u.setMeta(n, m); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = size
	return nil
}

// dropLazy lets go of the state of a node that is forgotten, and removes it if the
// file is gone.
func (u *Union) dropLazy(n *unode) {
	if n.lazy != nil {
		// Errors of unmapping and closing leave nothing to be done.
		_ = n.lazy.close()
		n.lazy = nil
	}
	if n.dead && n.meta.has&metaLazy != 0 {
		_ = unix.Unlinkat(u.workFD, lazyDir+"/"+n.meta.lazyName, 0)
	}
}

// encodeLazy and decodeLazy are for meta.
func (m *meta) encodeLazy(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(m.lazyName)))
	b = append(b, m.lazyName...)
	return binary.AppendUvarint(binary.AppendUvarint(b, m.lazySize), m.lazyTotal)
}

func (m *meta) decodeLazy(r *metaReader) {
	m.lazyName, m.lazySize, m.lazyTotal = string(r.bytes()), r.uvarint(), r.uvarint()
	if strings.ContainsAny(m.lazyName, "/") || m.lazyTotal > 1<<40 || m.lazySize > m.lazyTotal*lazyChunk {
		r.bad = true
	}
}
