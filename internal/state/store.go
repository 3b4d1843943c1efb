package state

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var (
	ErrNotFound  = errors.New("no such container")
	ErrNameInUse = errors.New("name is already in use")
	ErrAmbiguous = errors.New("several containers match")
	ErrBusy      = errors.New("container is in use by another process")
)

const (
	recordFile = "state.json"
	specFile   = "config.json"
	lockFile   = "lock"
	makingFile = "containers.lock"
	newPrefix  = ".new-"
)

// Store is a directory of containers.
type Store struct{ root string }

// Open opens the store below root, making its directories.
func Open(root string) (*Store, error) {
	s := &Store{root: root}
	for _, dir := range []string{s.containers(), s.names()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open container store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) containers() string { return filepath.Join(s.root, "containers") }
func (s *Store) names() string      { return filepath.Join(s.root, "names") }

// Dir is the directory of a container.
func (s *Store) Dir(id string) string { return filepath.Join(s.containers(), id) }

// NewID returns a new container id: 64 hexadecimal digits.
func NewID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// CheckName tells whether a name is one that docker would take.
func CheckName(name string) error {
	for i, c := range name {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", c)) {
			return fmt.Errorf("container name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed", name)
		}
	}
	if len(name) > 255 || len(name) == 0 {
		return fmt.Errorf("container name %q: 1 to 255 characters are allowed", name)
	}
	return nil
}

// Handle is a container whose lock this process holds.
type Handle struct {
	Record
	dir  string
	lock *os.File
	s    *Store
}

// Create makes a container. The returned handle holds its lock. Prepare, if
// not nil, fills the directory before it appears.
func (s *Store) Create(rec Record, prepare func(dir string) error) (*Handle, error) {
	h := &Handle{Record: rec, dir: s.Dir(newPrefix + rec.ID), s: s}
	if err := h.begin(); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := h.create(prepare); err != nil {
		err = errors.Join(err, h.Close(), os.RemoveAll(h.dir))
		return nil, fmt.Errorf("create container: %w", err)
	}
	return h, nil
}

// begin makes the directory with its lock and its record. Meanwhile it holds
// the store's lock, shared with others that do the same: without a lock of its own
// the directory is not to be taken for an abandoned one.
func (h *Handle) begin() error {
	making, err := h.s.lockMaking(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer making.Close()
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		return err
	}
	h.lock, err = os.OpenFile(filepath.Join(h.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		// Somebody who looks for abandoned containers may have it for a moment:
		// he finds no record and, since we hold the other lock, lets go.
		err = flock(h.lock, unix.LOCK_EX)
	}
	if err == nil {
		h.Creator, err = ProcessOf(os.Getpid())
	}
	if err == nil {
		err = h.Save()
	}
	if err != nil {
		return errors.Join(err, h.Close(), os.RemoveAll(h.dir))
	}
	return nil
}

// lockMaking takes the lock that guards the making of containers.
func (s *Store) lockMaking(how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.root, makingFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// flock locks a file. A signal that interrupts the wait, such as those by which
// Go preempts itself, is not the end of it.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (h *Handle) create(prepare func(dir string) error) error {
	if prepare != nil {
		if err := prepare(h.dir); err != nil {
			return err
		}
	}
	if h.Name != "" {
		if err := h.s.takeName(h.Name, h.ID); err != nil {
			return err
		}
	}
	final := h.s.Dir(h.ID)
	if err := os.Rename(h.dir, final); err != nil {
		return errors.Join(err, h.s.freeName(h.Name, h.ID))
	}
	h.dir = final
	return nil
}

// takeName makes the symlink that owns a name. A link to a container that does
// not exist is what a killed process left.
func (s *Store) takeName(name, id string) error {
	link := filepath.Join(s.names(), name)
	for range 3 {
		err := os.Symlink(id, link)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		owner, err := os.Readlink(link)
		if err != nil {
			continue
		}
		if s.alive(owner) {
			return fmt.Errorf("%w: %q by container %.12s", ErrNameInUse, name, owner)
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: %q", ErrNameInUse, name)
}

func (s *Store) alive(id string) bool {
	for _, dir := range []string{s.Dir(id), s.Dir(newPrefix + id)} {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

func (s *Store) freeName(name, id string) error {
	if name == "" {
		return nil
	}
	link := filepath.Join(s.names(), name)
	if owner, err := os.Readlink(link); err != nil || owner != id {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Adopt makes a handle of a container whose lock was donated to this process.
func (s *Store) Adopt(rec Record, lock *os.File) *Handle {
	return &Handle{Record: rec, dir: s.Dir(rec.ID), lock: lock, s: s}
}

// Lock takes the lock of a container that has no monitor. It returns ErrBusy
// when it has one.
func (s *Store) Lock(id string) (*Handle, error) {
	return s.lockDir(s.Dir(id))
}

func (s *Store) lockDir(dir string) (*Handle, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(shortID(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("lock container: %w", err)
	}
	if err := flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock container: %w", err)
	}
	rec, err := readRecord(dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &Handle{Record: *rec, dir: dir, lock: lock, s: s}, nil
}

// Begin notes, in the record of a container that is there and does not run,
// that this process is about to start it.
func (h *Handle) Begin() error {
	var err error
	if h.Creator, err = ProcessOf(os.Getpid()); err != nil {
		return err
	}
	h.Monitor, h.Init, h.Cgroup = Process{}, Process{}, ""
	h.Status, h.Error, h.Health, h.Ports = Starting, "", nil, nil
	h.Restart.Count, h.Restart.Stopped = 0, false
	return h.Save()
}

// SaveSpec writes the container's OCI runtime spec into dir, as a bundle has it.
func SaveSpec(dir string, spec *specs.Spec) error {
	raw, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	tmp := filepath.Join(dir, "."+specFile)
	err = os.WriteFile(tmp, raw, 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, specFile))
	}
	if err != nil {
		// On a full file system its blocks are wanted elsewhere.
		if rerr := os.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return Vanished(dir, fmt.Errorf("write spec: %w", err))
	}
	return nil
}

// Spec reads a container's OCI runtime spec.
func (s *Store) Spec(id string) (*specs.Spec, error) {
	return readSpec(s.Dir(id))
}

func readSpec(dir string) (*specs.Spec, error) {
	raw, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, Vanished(dir, fmt.Errorf("read spec: %w", err))
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(raw, spec); err != nil {
		return nil, fmt.Errorf("read spec of container %s: %w", filepath.Base(dir), err)
	}
	return spec, nil
}

// Vanished says ErrNotFound in place of the error of a file that is not there
// because its container, whose directory is dir, has been removed since it was found.
func Vanished(dir string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(dir); errors.Is(lerr, fs.ErrNotExist) {
			return notFound(shortID(dir))
		}
	}
	return err
}

// shortID is what a container is called when nothing is known but its directory.
func shortID(dir string) string {
	id := filepath.Base(dir)
	return id[:min(12, len(id))]
}

func notFound(ref string) error { return fmt.Errorf("%w: %q", ErrNotFound, ref) }

// Dir is the container's directory.
func (h *Handle) Dir() string { return h.dir }

// File is the lock, to be donated to the process that carries on with it.
func (h *Handle) File() *os.File { return h.lock }

// Close gives the lock back, unless another process has got it as well.
func (h *Handle) Close() error {
	if h.lock == nil {
		return nil
	}
	return h.lock.Close()
}

// Save writes the record. It is replaced whole: a reader sees the old one or
// the new one. The old one is kept aside and overwritten the next time, so that
// after the first saves no further inode or block is needed: also on a full disk
// it can be told how a container ended.
func (h *Handle) Save() error {
	h.Version = recordVersion
	raw, err := json.Marshal(&h.Record)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	name, spare := filepath.Join(h.dir, recordFile), filepath.Join(h.dir, "."+recordFile)
	if err := overwrite(spare, raw); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, name, unix.RENAME_EXCHANGE)
	if err != nil { // there is no old one yet, or the file system can not (NFS)
		err = os.Rename(spare, name)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// overwrite replaces a file's content in place.
func overwrite(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}

// Settle gives the lock back and makes what was saved outlive a loss of power.
// The container may be removed while that takes its time.
func (h *Handle) Settle() error {
	f, err := os.Open(filepath.Join(h.dir, recordFile))
	if err = errors.Join(err, h.Close()); err != nil {
		return fmt.Errorf("sync record: %w", err)
	}
	dir, derr := os.Open(h.dir)
	if derr == nil {
		derr = errors.Join(dir.Sync(), dir.Close()) // the exchange of names
	}
	if errors.Is(derr, fs.ErrNotExist) {
		derr = nil // removed meanwhile
	}
	if err := errors.Join(f.Sync(), f.Close(), derr); err != nil {
		return fmt.Errorf("sync record: %w", err)
	}
	return nil
}

// Remove frees the container's name and removes its directory. Files of other
// ids must be gone already (they need a user namespace). The directory is
// renamed first, so that no half of it is ever found under its id.
func (h *Handle) Remove() error {
	gone := h.s.Dir(newPrefix + h.ID)
	if h.dir != gone {
		if err := os.Rename(h.dir, gone); err != nil {
			return fmt.Errorf("remove container: %w", err)
		}
		h.dir = gone
	}
	if err := errors.Join(h.s.freeName(h.Name, h.ID), os.RemoveAll(gone)); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// recordVersion is the version of the record's format. Older ones are read as
// they are: what they lack is zero. Newer ones are not touched.
const recordVersion = 1

// readRecord reads a container's record. One that makes no sense, which a loss
// of power may leave, must not keep the others from being used: it is read as
// that of a dead container.
func readRecord(dir string) (*Record, error) {
	raw, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	rec := &Record{}
	if err := json.Unmarshal(raw, rec); err != nil {
		return deadRecord(dir, fmt.Sprintf("its record is damaged: %v", err)), nil
	}
	if rec.Version > recordVersion {
		return deadRecord(dir, "its record was written by a newer urun"), nil
	}
	return rec, nil
}

// deadRecord is what can be said of a container without its record: enough to
// list and to remove it.
func deadRecord(dir, why string) *Record {
	id := strings.TrimPrefix(filepath.Base(dir), newPrefix)
	s := &Store{root: filepath.Dir(filepath.Dir(dir))}
	rec := &Record{ID: id, Name: s.nameOf(id), Status: Dead, Error: why}
	// Who removes its files must know its ids.
	if spec, err := readSpec(dir); err == nil && spec.Linux != nil {
		rec.UIDs, rec.GIDs = spec.Linux.UIDMappings, spec.Linux.GIDMappings
	}
	return rec
}

// nameOf finds the name of a container the long way.
func (s *Store) nameOf(id string) string {
	entries, err := os.ReadDir(s.names())
	if err != nil {
		return id[:min(12, len(id))]
	}
	for _, e := range entries {
		if owner, err := os.Readlink(filepath.Join(s.names(), e.Name())); err == nil && owner == id {
			return e.Name()
		}
	}
	return id[:min(12, len(id))]
}
