package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	// Release is called before files are removed: it has those who keep files of
	// images open without need let go of them. Nil: there are none.
	Release func() error
	// Collected is called before merged trees are removed, with the chain ids, in hexadecimal digits, of those that
	// stay: what others have made of a tree goes first. No image appears meanwhile. Nil: there is nothing of the kind.
	Collected func(trees map[string]bool) (freed int64, err error)
}

// Store is an image store on disk. It keeps nothing open; its methods may be called at the same time, also by
// several processes.
type Store struct {
	root     string
	readOnly bool
	inUse    func() (map[digest.Digest]bool, error)
	release  func() error
	// As in Options.
	collected func(trees map[string]bool) (freed int64, err error)
}

// Open opens the store, creating its layout where that is missing. A store that this user may not write is opened
// read-only.
func Open(opt Options) (*Store, error) {
	root, err := filepath.Abs(opt.Root)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", opt.Root, err)
	}
	s := &Store{root: root, readOnly: opt.ReadOnly, inUse: opt.InUse, release: opt.Release, collected: opt.Collected}
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
	for _, dir := range []string{".", "layers", "images"} {
		if err := syncDir(s.path(dir)); err != nil {
			return err
		}
	}
	l, err := s.lockStore(context.Background())
	if err != nil {
		return err
	}
	// Last, since it says that the rest is there.
	return errors.Join(s.writeFiles(newFile{s.path("version"), []byte(formatVersion)}), l.release())
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
		switch {
		case isLock:
			err = s.sweepKey(key)
		case e.IsDir() && !slices.ContainsFunc(entries, func(o fs.DirEntry) bool { return o.Name() == key+".lock" }):
			// A work directory goes with its lock, which a power loss may have taken alone.
			err = s.sweepOrphan(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepOrphan(key string) error {
	w, ok, err := s.tryWork(key)
	if err != nil || !ok {
		return err
	}
	return w.close()
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
	return newWorkDir(l, dir)
}

// tryWork is work that does not wait; ok is false if another process has the key.
func (s *Store) tryWork(key string) (w *workDir, ok bool, err error) {
	dir := s.path("tmp", key)
	f, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, false, err
	}
	if ok, err = tryFlock(f, unix.LOCK_EX); ok {
		ok, err = stillNamed(f, dir+".lock")
	}
	if err != nil || !ok {
		return nil, false, errors.Join(err, f.Close())
	}
	w, err = newWorkDir(&lockFile{f}, dir)
	return w, err == nil, err
}

func newWorkDir(l *lockFile, dir string) (*workDir, error) {
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

// newFile is a file to be made.
type newFile struct {
	path string
	data []byte
}

// writeFiles makes files appear under their names in this order, each whole and surviving a crash. If there is not the
// room for all of them, none appears. The store lock must be held.
func (s *Store) writeFiles(files ...newFile) (err error) {
	if len(files) == 0 {
		return nil
	}
	w, err := s.work(context.Background(), "commit", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	tmp := func(i int) string { return filepath.Join(w.dir, strconv.Itoa(i)) }
	for i, f := range files {
		if err := writeSynced(tmp(i), f.data); err != nil {
			return err
		}
	}
	for i, f := range files {
		if err := os.Rename(tmp(i), f.path); err != nil {
			return err
		}
		// What comes later stands for what came before: a name for a config.
		if dir := filepath.Dir(f.path); i+1 == len(files) || dir != filepath.Dir(files[i+1].path) {
			if err := syncDir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	f, err := createFile(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes a rename in dir survive a crash.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
