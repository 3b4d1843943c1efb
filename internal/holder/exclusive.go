package holder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Exclusive waits until this process alone does what name stands for, among the user's on this
// machine, and returns what ends that. Store is the directory of the containers.
func Exclusive(store, name string) (release func() error, err error) {
	base, err := openBase(store)
	if err != nil {
		return nil, err
	}
	for {
		f, err := lockFile(base, name)
		if err != nil {
			return nil, errors.Join(err, base.Close())
		}
		if f == nil {
			continue // whoever had it took it away
		}
		return func() error {
			// The name goes first: who waits for the lock sees by that that it is nobody's any more.
			err := unix.Unlinkat(int(base.Fd()), name, 0)
			return errors.Join(err, f.Close(), base.Close())
		}, nil
	}
}

// lockFile waits for the lock of a file, making it. It returns nil if the file has lost its name meanwhile.
func lockFile(base *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(base.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", base.Name(), name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s/%s: %w", base.Name(), name, err), f.Close())
	}
	if !current(base, f, name) {
		return nil, f.Close()
	}
	return f, nil
}
