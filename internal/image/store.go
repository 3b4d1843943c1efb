package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// formatVersion is what the version file of a store that this code understands says.
const formatVersion = "urun store 1\n"

// Options say where a store is and how it may be used.
type Options struct {
	Root     string // directory of the store; created if it is not there, unless ReadOnly
	ReadOnly bool   // never write; set by itself for a store that belongs to somebody else

	// InUse tells which images containers are made of, so that Remove and Prune leave them alone. Nil: none.
	InUse func() (map[digest.Digest]bool, error)
}

// Store is an image store on disk. It keeps nothing open; its methods may be called at the same time, also by
// several processes.
type Store struct {
	root     string
	readOnly bool
	inUse    func() (map[digest.Digest]bool, error)
}

// Open opens the store, creating its layout where that is missing. A store that this user may not write is opened
// read-only.
func Open(opt Options) (*Store, error) {
	root, err := filepath.Abs(opt.Root)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", opt.Root, err)
	}
	s := &Store{root: root, readOnly: opt.ReadOnly, inUse: opt.InUse}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	return s, nil
}

func (s *Store) open() error {
	version, err := os.ReadFile(s.path("version"))
	switch {
	case err == nil:
		if err := checkVersion(string(version)); err != nil {
			return err
		}
		if !s.readOnly && unix.Access(s.root, unix.W_OK) != nil {
			s.readOnly = true
		}
		if s.readOnly {
			return nil
		}
		return s.sweep()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case s.readOnly:
		return withHint(err, "a store is made by its owner's first `urun pull`")
	}
	return s.create()
}

func checkVersion(got string) error {
	if got == formatVersion {
		return nil
	}
	return withHint(fmt.Errorf("store format %q: %w", strings.TrimSpace(got), ErrUnsupported),
		"another version of urun made this store; use that one, or choose another directory with --root")
}

func (s *Store) create() error {
	// Only the root is closed to others: who wants to share the store opens it with one chmod.
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{"layers/sha256", "trees", "images/sha256", "images/names", "tmp"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			return err
		}
	}
	l, err := s.lockStore(context.Background())
	if err != nil {
		return err
	}
	// Last, since it says that the rest is there.
	return errors.Join(s.writeFile(s.path("version"), []byte(formatVersion)), l.release())
}

// Root is the directory of the store.
func (s *Store) Root() string { return s.root }

// ReadOnly says whether the store can only be read.
func (s *Store) ReadOnly() bool { return s.readOnly }

func (s *Store) writable() error {
	if !s.readOnly {
		return nil
	}
	return withHint(fmt.Errorf("write %s: %w", s.root, ErrReadOnly), "choose a store of your own with --root or URUN_ROOT")
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) layerDir(diffID digest.Digest) string {
	return s.path("layers", "sha256", diffID.Encoded())
}
func (s *Store) layerData(d digest.Digest) string    { return filepath.Join(s.layerDir(d), "data") }
func (s *Store) layerIndex(d digest.Digest) string   { return filepath.Join(s.layerDir(d), "index") }
func (s *Store) treePath(chain digest.Digest) string { return s.path("trees", chain.Encoded()) }
func (s *Store) configPath(id digest.Digest) string  { return s.path("images", "sha256", id.Encoded()) }

// lockStore serialises changes of names and configs and their removal. It is held for moments only.
func (s *Store) lockStore(ctx context.Context) (*lockFile, error) {
	return lockPath(ctx, s.path("lock"), nil)
}

// sweep removes what killed processes left in tmp. An empty tmp costs one readdir.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		key, isLock := strings.CutSuffix(e.Name(), ".lock")
		if !isLock {
			continue // a work directory goes with its lock
		}
		if err := s.sweepKey(key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepKey(key string) error {
	l, ok, err := lockForRemoval(s.path("tmp", key+".lock"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !ok {
		return nil
	}
	if err != nil {
		return err
	}
	w := &workDir{lock: l, dir: s.path("tmp", key)}
	if same, err := stillNamed(l.f, w.dir+".lock"); err != nil || !same {
		return errors.Join(err, l.release())
	}
	return w.close()
}

// workDir is a directory in tmp that one process works in.
type workDir struct {
	lock *lockFile
	dir  string
}

// work takes the work directory for key, waiting while another process has it. The directory is empty.
func (s *Store) work(ctx context.Context, key string, onWait func()) (*workDir, error) {
	dir := s.path("tmp", key)
	l, err := lockPath(ctx, dir+".lock", onWait)
	if err != nil {
		return nil, err
	}
	w := &workDir{lock: l, dir: dir}
	// What is there was left by a process that died: its lock was free.
	if err := os.RemoveAll(dir); err != nil {
		return nil, errors.Join(err, l.release())
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// close removes the directory, then its lock file, then lets the lock go: in this order no directory is ever without a lock file
// and no lock file is removed by one who does not hold it.
func (w *workDir) close() error {
	return errors.Join(os.RemoveAll(w.dir), os.Remove(w.dir+".lock"), w.lock.release())
}

// writeFile makes a file appear whole under its name, surviving a crash. The store lock must be held: there is one
// name for the temporary file, so a killed process leaves at most one, and the next writer reuses it.
func (s *Store) writeFile(path string, data []byte) (err error) {
	tmp := s.path("tmp", "commit")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in dir survive a crash.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
