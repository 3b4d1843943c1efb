package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is an open file with a flock. The lock ends with the file, thus with the process, however it dies.
type lockFile struct{ f *os.File }

func (l *lockFile) release() error { return l.f.Close() }

// tryFlock asks for a lock without waiting; ok is false if another open file holds one that conflicts.
func tryFlock(f *os.File, how int) (ok bool, err error) {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		default:
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// lockPath opens path, creating it, and takes the exclusive lock, waiting for it while ctx lives. onWait is called once if there
// is something to wait for. The lock is of the file that has the name now: one that was removed while waiting is let go.
func lockPath(ctx context.Context, path string, onWait func()) (*lockFile, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		if err := waitFlock(ctx, f, unix.LOCK_EX, onWait); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		same, err := stillNamed(f, path)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if same {
			return &lockFile{f}, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// waitFlock polls: flock(2) cannot be given up when ctx ends, and a signal would hit any thread.
func waitFlock(ctx context.Context, f *os.File, how int, onWait func()) error {
	const shortest, longest = time.Millisecond, 50 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		ok, err := tryFlock(f, how)
		if ok || err != nil {
			return err
		}
		if onWait != nil && pause > 8*shortest {
			onWait()
			onWait = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func stillNamed(f *os.File, path string) (bool, error) {
	held, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(held, named), nil
}

// pin takes a shared lock on a finished file so that removal leaves it alone. It returns fs.ErrNotExist if the file
// is not there, or is being removed.
func pin(path string) (*lockFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	ok, err := tryFlock(f, unix.LOCK_SH)
	if err == nil && !ok {
		err = fs.ErrNotExist // the only exclusive locker of a finished file is its remover
	}
	if err == nil {
		ok, err = stillNamed(f, path)
		if err == nil && !ok {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &lockFile{f}, nil
}

// lockForRemoval takes the exclusive lock on a finished file; ok is false if someone has it pinned. It is opened for
// writing because NFS grants an exclusive flock only then (flock(2), NFS details).
func lockForRemoval(path string) (l *lockFile, ok bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, false, err
	}
	ok, err = tryFlock(f, unix.LOCK_EX)
	if err != nil || !ok {
		return nil, false, errors.Join(err, f.Close())
	}
	return &lockFile{f}, true, nil
}
