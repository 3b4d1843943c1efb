package holder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// doorName is the socket's name in a holder's directory.
const doorName = "door"

// stderrName is the name, beside it, of the file that is the standard error of the
// holder and of the stages that it starts, where they have no other. They write
// to it only when they crash, or when SIGQUIT asks for their stacks.
const stderrName = "stderr"

// bases are the directories that may hold those of the holders, in the order in
// which they are tried. store is the directory of the containers.
func bases(store string) []string {
	var all []string
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		all = append(all, filepath.Join(run, "urun"))
	}
	return append(all, filepath.Join("/tmp", "urun-"+strconv.Itoa(os.Geteuid())), filepath.Join(store, "run"))
}

// StateDir makes a directory for containers where no store can be written to. It lasts
// as long as what the holders have, and belongs to this user alone.
func StateDir() (string, error) {
	var errs []error
	for _, base := range bases("") {
		if !filepath.IsAbs(base) {
			continue
		}
		f, err := privateDir(base + "-state")
		if err == nil {
			return base + "-state", f.Close()
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// openBase opens the first base that is usable, making it.
func openBase(store string) (*os.File, error) {
	var errs []error
	for _, path := range bases(store) {
		f, err := privateDir(path)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("no place for the holder's socket: %w", errors.Join(errs...))
}

// privateDir opens a directory, making it, that belongs to this user and is open
// to nobody else. Anybody may have made one of that name in /tmp, or a link.
func privateDir(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openPrivate(path)
}

func openPrivate(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", path, err), f.Close())
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, errors.Join(fmt.Errorf("%s belongs to uid %d with mode %#o: want this user's own, closed to others", path, st.Uid, st.Mode&0o7777), f.Close())
	}
	return f, nil
}

// openKey opens a holder's directory, making it.
func openKey(base *os.File, key string) (*os.File, error) {
	err := unix.Mkdirat(int(base.Fd()), key, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s/%s: %w", base.Name(), key, err)
	}
	return openAt(base, key)
}

func openAt(base *os.File, key string) (*os.File, error) {
	fd, err := unix.Openat(int(base.Fd()), key, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", base.Name(), key, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(base.Name(), key)), nil
}

// tryLock takes the lock of a holder's directory; ok is false if another has it.
// The lock is of the open file: who gets that donated has it, too.
func tryLock(dir *os.File) (ok bool, err error) {
	switch err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	default:
		return false, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
}

// current says whether the directory has its name still: one that was removed
// while it was waited for is nobody's.
func current(base, dir *os.File, key string) bool {
	var have, named unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &have) == nil &&
		unix.Fstatat(int(base.Fd()), key, &named, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		have.Dev == named.Dev && have.Ino == named.Ino
}

// removeDir removes the directory of the holder key, whose lock the caller has.
func removeDir(base, dir *os.File, key string) error {
	if err := errors.Join(removeAt(dir, doorName), removeAt(dir, stderrName)); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(base.Fd()), key, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

func removeAt(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s/%s: %w", dir.Name(), name, err)
	}
	return nil
}

// openStderr makes the file that is written to by who has no terminal, and this
// process's standard error. It is of no use any more when the holder has ended.
func openStderr(dir *os.File) error {
	fd, err := unix.Openat(int(dir.Fd()), stderrName, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open %s/%s: %w", dir.Name(), stderrName, err)
	}
	defer unix.Close(fd)
	if err := unix.Dup3(fd, 2, 0); err != nil {
		return fmt.Errorf("standard error: %w", err)
	}
	return nil
}

// each calls f for the directory of every holder, in all bases. Those that go
// away meanwhile are left out.
func each(store string, f func(base, dir *os.File, key string) error) error {
	var errs []error
	for _, path := range bases(store) {
		base, err := openPrivate(path)
		if err != nil {
			continue // none there, or not ours
		}
		names, err := base.Readdirnames(-1)
		errs = append(errs, err)
		for _, name := range names {
			dir, err := openAt(base, name)
			if err != nil {
				continue
			}
			errs = append(errs, f(base, dir, name), dir.Close())
		}
		errs = append(errs, base.Close())
	}
	return errors.Join(errs...)
}

// Sweep removes what killed holders left. store is the directory of the containers.
func Sweep(store string) error {
	return each(store, func(base, dir *os.File, key string) error {
		ok, err := tryLock(dir)
		if !ok || err != nil {
			return err
		}
		if !current(base, dir, key) {
			return nil
		}
		return removeDir(base, dir, key)
	})
}
