package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// List returns the records of all containers, newest first.
func (s *Store) List() ([]*Record, error) {
	entries, err := os.ReadDir(s.containers())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []*Record
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		rec, err := readRecord(s.Dir(e.Name()))
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, rec)
	}
	slices.SortFunc(all, func(a, b *Record) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// Find returns the container of a name, an id or an unambiguous beginning of
// an id.
func (s *Store) Find(ref string) (*Record, error) {
	if ref == "" || strings.ContainsRune(ref, '/') {
		return nil, notFound(ref)
	}
	if id, err := os.Readlink(filepath.Join(s.names(), ref)); err == nil {
		if rec, err := readRecord(s.Dir(id)); !errors.Is(err, ErrNotFound) {
			return rec, err
		}
	}
	entries, err := os.ReadDir(s.containers())
	if err != nil {
		return nil, fmt.Errorf("find container: %w", err)
	}
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ref) && !strings.HasPrefix(e.Name(), ".") {
			found = append(found, e.Name())
		}
	}
	switch len(found) {
	case 0:
		return nil, notFound(ref)
	case 1:
		rec, err := readRecord(s.Dir(found[0]))
		if errors.Is(err, ErrNotFound) {
			return nil, notFound(ref) // removed meanwhile
		}
		return rec, err
	}
	return nil, fmt.Errorf("%w: %q", ErrAmbiguous, ref)
}

// Abandoned returns, locked, the containers whose monitor is gone without
// having finished its work: what a kill -9 or a crash left. The caller cleans
// up and closes them.
func (s *Store) Abandoned() ([]*Handle, error) {
	entries, err := os.ReadDir(s.containers())
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []*Handle
	for _, e := range entries {
		dir := s.Dir(e.Name())
		half := strings.HasPrefix(e.Name(), newPrefix)
		if !half && finished(dir) {
			continue
		}
		h, err := s.lockDir(dir)
		if errors.Is(err, ErrBusy) {
			h, err = s.lockOrphan(dir)
		}
		switch {
		case err == nil && !half && finished(dir):
			// It ended, and its monitor with it, after it was looked at.
			if err := h.Close(); err != nil {
				return all, err
			}
		case err == nil:
			if half {
				h.Record.Remove = true // it never was, or was being removed
			}
			all = append(all, h)
		case errors.Is(err, ErrBusy):
		case errors.Is(err, ErrNotFound):
			if err := s.removeHusk(dir); err != nil {
				return all, err
			}
		default:
			return all, err
		}
	}
	return all, nil
}

// orphanTime bounds the wait for the lock of a container whose owner is gone.
const orphanTime = time.Second

// lockOrphan takes a lock that is held though its owner is gone. A process that
// is killed while it forks leaves the lock to the child, which gives it up a
// moment later, when it executes something; and a monitor whose command is
// gone cleans up by itself.
func (s *Store) lockOrphan(dir string) (*Handle, error) {
	if rec, err := readRecord(dir); err == nil {
		owner := rec.Monitor
		if owner.PID == 0 {
			owner = rec.Creator
		}
		if err := owner.Signal(0); !errors.Is(err, os.ErrProcessDone) {
			return nil, ErrBusy
		}
	} else if making, err := s.lockMaking(unix.LOCK_EX | unix.LOCK_NB); err == nil {
		making.Close() // nobody is making it
	} else {
		return nil, ErrBusy
	}
	for deadline := time.Now().Add(orphanTime); ; time.Sleep(2 * time.Millisecond) {
		h, err := s.lockDir(dir)
		if !errors.Is(err, ErrBusy) || time.Now().After(deadline) {
			return h, err
		}
	}
}

// finished tells, without taking the lock, that there is nothing to clean.
func finished(dir string) bool {
	rec, err := readRecord(dir)
	return err == nil && !rec.Remove && !rec.Unparked && rec.Status.Ended()
}

// removeHusk removes a directory without lock or record: the process that made
// it was killed between two system calls. One that is just being made is left alone.
func (s *Store) removeHusk(dir string) error {
	making, err := s.lockMaking(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer making.Close()
	// It may have been finished before the lock was ours.
	if _, err := readRecord(dir); !errors.Is(err, ErrNotFound) {
		return err
	}
	return os.RemoveAll(dir)
}
