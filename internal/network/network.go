package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	ErrNotFound = errors.New("no such network")
	ErrExists   = errors.New("network already exists")
	ErrInUse    = errors.New("network is in use")
)

const (
	dirName  = "networks"
	lockName = "lock"
	suffix   = ".json"
)

// Network is a network of containers.
type Network struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Driver  string    `json:"driver"` // "bridge"

	Subnet4  netip.Prefix `json:"subnet4"`
	Gateway4 netip.Addr   `json:"gateway4"`
	// Subnet6 is the zero Prefix for a network without IPv6.
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`

	// Internal: there is no way out of the network.
	Internal bool              `json:"internal,omitempty"`
	MTU      int               `json:"mtu,omitempty"` // 0: 1500
	Labels   map[string]string `json:"labels,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// IPv6 tells whether the network has IPv6.
func (n *Network) IPv6() bool { return n.Subnet6.IsValid() }

// Bridge is the name of the network's bridge. Interface names have 15 characters at most (IFNAMSIZ).
func (n *Network) Bridge() string { return "br-" + n.ID[:12] }

// Reserved names stand for something else in --network.
var reserved = []string{"slirp", "slirp4netns", "pasta", "private", "none", "host", "container", "default", "bridge"}

// CheckName tells whether a network may have the name.
func CheckName(name string) error {
	for i, c := range name {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", c)) {
			return fmt.Errorf("network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed", name)
		}
	}
	if name == "" || len(name) > 200 {
		return fmt.Errorf("network name %q: 1 to 200 characters are allowed", name)
	}
	if slices.Contains(reserved, name) {
		return fmt.Errorf("network name %q has a meaning of its own in --network", name)
	}
	return nil
}

// Store is the directory of networks.
type Store struct{ root string }

// Open opens the networks of the store below root, making the directory.
func Open(root string) (*Store, error) {
	s := &Store{root: root}
	if err := os.MkdirAll(s.Dir(), 0o700); err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	return s, nil
}

// Dir is the directory of networks.
func (s *Store) Dir() string { return filepath.Join(s.root, dirName) }

func (s *Store) path(name string) string { return filepath.Join(s.Dir(), name+suffix) }

// lock takes the lock under which networks and addresses change.
func (s *Store) lock() (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(s.Dir(), lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock networks: %w", err)
	}
	for {
		// A signal that interrupts the wait, such as those by which Go preempts itself, is not the end of it.
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock networks: %w", err), f.Close())
		}
	}
}

// List gives all networks by name.
func (s *Store) List() ([]*Network, error) {
	entries, err := os.ReadDir(s.Dir())
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []*Network
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		n, err := s.read(name)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

func (s *Store) read(name string) (*Network, error) {
	raw, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read network: %w", err)
	}
	n := &Network{}
	if err := json.Unmarshal(raw, n); err != nil {
		return nil, fmt.Errorf("read network %s: %w", name, err)
	}
	if n.Name != name || len(n.ID) < 12 || !n.Subnet4.IsValid() {
		return nil, fmt.Errorf("read network %s: the file is damaged", name)
	}
	return n, nil
}

// Find gives the network of a name, an id or an unambiguous beginning of an id.
func (s *Store) Find(ref string) (*Network, error) {
	if CheckName(ref) != nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	n, err := s.read(ref)
	if !errors.Is(err, ErrNotFound) {
		return n, err
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var found []*Network
	for _, n := range all {
		if strings.HasPrefix(n.ID, ref) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("several networks match %s", ref)
}

// write writes a network's file, which appears whole.
func (s *Store) write(n *Network) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode network: %w", err)
	}
	tmp := filepath.Join(s.Dir(), "."+n.Name+suffix)
	err = os.WriteFile(tmp, raw, 0o600)
	if err == nil {
		err = os.Rename(tmp, s.path(n.Name))
	}
	if err != nil {
		return fmt.Errorf("write network: %w", err)
	}
	return nil
}

// Remove removes a network. used tells who is on it; it is asked while nothing can join.
func (s *Store) Remove(n *Network, used func() (string, error)) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	by, err := used()
	if err != nil {
		return err
	}
	if by != "" {
		return fmt.Errorf("%w: %s by %s", ErrInUse, n.Name, by)
	}
	if err := os.Remove(s.path(n.Name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNotFound, n.Name)
		}
		return fmt.Errorf("remove network: %w", err)
	}
	return nil
}
