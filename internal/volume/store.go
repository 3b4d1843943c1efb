package volume

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	ErrNotFound = errors.New("no such volume")
	ErrInUse    = errors.New("volume is in use")
)

const (
	dataDir    = "_data"
	metaFile   = "volume.json"
	lockFile   = "volumes.lock"
	gonePrefix = ".gone-"
)

// Volume is one volume.
type Volume struct {
	Name string `json:"name"`
	// Created is when it was made; the directory's time for one that another
	// program made.
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Anonymous volumes belong to the container that they were made for.
	Anonymous bool `json:"anonymous,omitempty"`
	// Path is the directory of its files.
	Path string `json:"-"`
}

// Store is a directory of volumes.
type Store struct{ root string }

// Open returns the volumes below a store's root. Nothing is made yet.
func Open(root string) *Store { return &Store{root: root} }

func (s *Store) dir(name string) string { return filepath.Join(s.root, "volumes", name) }

// Path is where the files of a volume are.
func (s *Store) Path(name string) string { return filepath.Join(s.dir(name), dataDir) }

// NameOf gives the volume that a path lies in, or "".
func (s *Store) NameOf(path string) string {
	rest, ok := strings.CutPrefix(path, filepath.Join(s.root, "volumes")+"/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// CheckName tells whether a name is one that docker would take for a volume.
func CheckName(name string) error {
	ok := len(name) >= 2 && len(name) <= 255
	for i, c := range name {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (alnum || i > 0 && strings.ContainsRune("_.-", c))
	}
	if !ok {
		return fmt.Errorf("volume name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-]+ is allowed", name)
	}
	return nil
}

// Hold keeps volumes from being removed until release is called.
func (s *Store) Hold() (release func(), err error) {
	f, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (s *Store) lock(how int) (*os.File, error) {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return nil, fmt.Errorf("lock volumes: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.root, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock volumes: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock volumes: %w", err), f.Close())
		}
	}
}

// Make makes a volume, unless there is one of its name; made tells. The caller
// holds the store.
func (s *Store) Make(v Volume) (made bool, err error) {
	// Nobody else on the host may reach a set-user-ID program that a container
	// left in a volume: the outer directory is closed.
	if err := os.MkdirAll(filepath.Dir(s.dir(v.Name)), 0o700); err != nil {
		return false, fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	err = os.Mkdir(s.dir(v.Name), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	// One whose maker was killed in between is finished here.
	if derr := os.Mkdir(s.Path(v.Name), 0o755); derr != nil && !errors.Is(derr, fs.ErrExist) {
		return false, fmt.Errorf("make volume %s: %w", v.Name, derr)
	}
	if err != nil {
		return false, nil
	}
	if v.Created.IsZero() {
		v.Created = time.Now()
	}
	return true, s.save(v)
}

func (s *Store) save(v Volume) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode volume %s: %w", v.Name, err)
	}
	tmp := filepath.Join(s.dir(v.Name), "."+metaFile)
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir(v.Name), metaFile)); err != nil {
		return fmt.Errorf("make volume %s: %w", v.Name, err)
	}
	return nil
}

// Find returns the volume of a name.
func (s *Store) Find(name string) (*Volume, error) {
	if CheckName(name) != nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	info, err := os.Stat(s.dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	v := &Volume{}
	raw, err := os.ReadFile(filepath.Join(s.dir(name), metaFile))
	switch {
	case err == nil:
		if err := json.Unmarshal(raw, v); err != nil {
			return nil, fmt.Errorf("volume %s: %w", name, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		v.Created = info.ModTime() // its maker was killed, or did not write one
	default:
		return nil, fmt.Errorf("volume %s: %w", name, err)
	}
	v.Name, v.Path = name, s.Path(name)
	return v, nil
}

// List returns all volumes by name.
func (s *Store) List() ([]*Volume, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var all []*Volume
	for _, e := range entries {
		v, err := s.Find(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // being removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *Volume) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Users tells which containers have which volume, by the volume's name.
type Users func() (map[string][]string, error)

// Remove takes volumes of which choose says so, and which no container has,
// out of the store, and then has their files deleted. It returns those that went.
func (s *Store) Remove(users Users, choose func(*Volume) bool, remove func(dirs []string) error) ([]*Volume, error) {
	taken, err := s.take(users, choose)
	if err != nil {
		return taken, err
	}
	dirs, err := filepath.Glob(filepath.Join(s.root, "volumes", gonePrefix+"*"))
	if err != nil || len(dirs) == 0 {
		return taken, err
	}
	return taken, remove(dirs)
}

// take renames what is to be removed.
func (s *Store) take(users Users, choose func(*Volume) bool) ([]*Volume, error) {
	lock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	used, err := users()
	if err != nil {
		return nil, err
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var taken []*Volume
	for _, v := range all {
		if len(used[v.Name]) > 0 || !choose(v) {
			continue
		}
		if err := os.Rename(s.dir(v.Name), s.dir(gonePrefix+rand.Text())); err != nil {
			return taken, fmt.Errorf("remove volume %s: %w", v.Name, err)
		}
		taken = append(taken, v)
	}
	return taken, nil
}
