package fuseunion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ledger keeps the metadata of those files of a writable layer that can not carry
// it themselves, by the host's inode number, how many names are left of files
// of the lower file system that have several, and where files were that have references. It is a log in the work directory:
// records are appended, the last for a key is valid, and what a broken-off write
// left at the end is cut off. Opening it rewrites it when most of it is outdated.
type ledger struct {
	mu     sync.Mutex
	f      *os.File
	workFD int
	files  map[uint64]meta
	links  map[string]uint32 // lower path: names left
	homes  map[uint64]string // of files with references: see rwlinks.go
	writes int               // records in the file
	synced bool
}

// A record is its length without these eight bytes, the crc32c of what follows,
// a kind, the key, and the value.
const (
	ledgerFile = 'f' // key: inode number; value: a meta, none when the file is gone
	ledgerLink = 'l' // key: number of names left; value: the path
	ledgerHome = 'h' // key: number of a place; value: a path in the upper directory or homeIndex, none when the file is gone
	ledgerName = "ledger"
	ledgerMax  = 1 << 20 // bytes of a record

	// homeIndex is the home of a file that is in the index, and stays there.
	homeIndex = "/"
)

func openLedger(workFD int) (*ledger, error) {
	fd, err := unix.Openat(workFD, ledgerName, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l := &ledger{f: os.NewFile(uintptr(fd), ledgerName), files: map[uint64]meta{}, links: map[string]uint32{}, homes: map[uint64]string{}, synced: true, workFD: workFD}
	good, err := l.load()
	if err == nil {
		err = l.f.Truncate(good)
	}
	if err == nil {
		err = l.tidy(1000)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger: %w", err), l.f.Close())
	}
	return l, nil
}

// load applies all whole records and returns where they end.
func (l *ledger) load() (good int64, err error) {
	b, err := io.ReadAll(l.f)
	if err != nil {
		return 0, err
	}
	for rest := b; len(rest) >= 8; {
		n := binary.LittleEndian.Uint32(rest)
		if n < 9 || n > ledgerMax || uint64(n) > uint64(len(rest)-8) {
			break
		}
		rec := rest[8 : 8+n]
		if crc32.Checksum(rec, castagnoli()) != binary.LittleEndian.Uint32(rest[4:]) {
			break
		}
		if err := l.apply(rec); err != nil {
			return 0, err
		}
		rest = rest[8+n:]
		good = int64(len(b) - len(rest))
		l.writes++
	}
	return good, nil
}

func (l *ledger) apply(rec []byte) error {
	key, value := binary.LittleEndian.Uint64(rec[1:]), rec[9:]
	switch {
	case rec[0] == ledgerLink:
		l.links[string(value)] = uint32(key)
	case rec[0] == ledgerHome && len(value) == 0:
		delete(l.homes, key)
	case rec[0] == ledgerHome:
		l.homes[key] = string(value)
	case len(value) == 0:
		delete(l.files, key)
	default:
		m, err := decodeMeta(value)
		if err != nil {
			return err
		}
		l.files[key] = m
	}
	return nil
}

func ledgerRecord(b []byte, kind byte, key uint64, value []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, 8)...)
	b = append(b, kind)
	b = binary.LittleEndian.AppendUint64(b, key)
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-8))
	binary.LittleEndian.PutUint32(b[at+4:], crc32.Checksum(b[at+8:], castagnoli()))
	return b
}

// tidy rewrites the file when it has more than least records, most of them outdated.
func (l *ledger) tidy(least int) error {
	if l.writes < least || l.writes < 3*l.valid() {
		return nil
	}
	return l.rewrite()
}

// valid is the number of records that are.
func (l *ledger) valid() int { return len(l.files) + len(l.links) + len(l.homes) }

// rewrite replaces the file by one with the valid records only.
func (l *ledger) rewrite() error {
	var b []byte
	for key, m := range l.files {
		b = ledgerRecord(b, ledgerFile, key, m.encode())
	}
	for path, n := range l.links {
		b = ledgerRecord(b, ledgerLink, uint64(n), []byte(path))
	}
	for id, home := range l.homes {
		b = ledgerRecord(b, ledgerHome, id, []byte(home))
	}
	const tmp = ledgerName + ".new"
	fd, err := unix.Openat(l.workFD, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), ledgerName)
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Renameat(l.workFD, tmp, l.workFD, ledgerName)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.writes = l.valid()
	old := l.f
	l.f = f
	return old.Close()
}

// append writes one record, which the maps have already, with one write, which a killed process has done or not.
func (l *ledger) append(kind byte, key uint64, value []byte) error {
	if len(value) > ledgerMax-9 {
		return unix.ENOSPC
	}
	b := ledgerRecord(nil, kind, key, value)
	n, err := l.f.Write(b)
	if err != nil {
		if n > 0 {
			// Half a record would hide all later ones.
			if fi, serr := l.f.Stat(); serr == nil {
				err = errors.Join(err, l.f.Truncate(fi.Size()-int64(n)))
			}
		}
		return fmt.Errorf("write ledger: %w", err)
	}
	l.writes++
	l.synced = false
	return l.tidy(100_000)
}

func (l *ledger) get(host uint64) (meta, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[host], nil
}

// set replaces what is known of a file; an empty m forgets it.
func (l *ledger) set(host uint64, m *meta) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.empty() {
		if _, ok := l.files[host]; !ok {
			return nil
		}
		delete(l.files, host)
		return l.append(ledgerFile, host, nil)
	}
	old, had := l.files[host]
	l.files[host] = *m
	if err := l.append(ledgerFile, host, m.encode()); err != nil {
		if l.files[host] = old; !had {
			delete(l.files, host)
		}
		return err
	}
	return nil
}

// forget is called for a file that is gone, whose number may be given to another.
func (l *ledger) forget(host uint64) error { return l.set(host, &meta{}) }

// linksLeft returns how many of its n names a lower file has left.
func (l *ledger) linksLeft(path string, n uint32) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left, ok := l.links[path]; ok {
		return left
	}
	return n
}

func (l *ledger) setLinks(path string, n uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links[path] = n
	return l.append(ledgerLink, uint64(n), []byte(path))
}

// anyLinks tells whether any lower file has lost a name.
func (l *ledger) anyLinks() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.links) > 0
}

// setHome notes where the file of a place was before it had references; "" forgets it.
func (l *ledger) setHome(id uint64, home string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if home == "" {
		delete(l.homes, id)
	} else {
		l.homes[id] = home
	}
	return l.append(ledgerHome, id, []byte(home))
}

func (l *ledger) home(id uint64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.homes[id]
}

// anyHomes tells whether any file may have references.
func (l *ledger) anyHomes() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.homes) > 0
}

// keepHomes forgets all homes but those of these places.
func (l *ledger) keepHomes(alive map[uint64]bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.homes {
		if alive[id] {
			continue
		}
		delete(l.homes, id)
		if err := l.append(ledgerHome, id, nil); err != nil {
			return err
		}
	}
	return nil
}

func (l *ledger) sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.synced {
		return nil
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("sync ledger: %w", err)
	}
	l.synced = true
	return nil
}

func (l *ledger) close() error { return l.f.Close() }
