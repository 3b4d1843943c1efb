package cgdelegate

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
	"time"

	"golang.org/x/sys/unix"
)

// A subtree that nobody's systemd manages is left as it was found: processes that have to be
// somewhere else while there are scopes in it go back where they were.

// leafOfOthers holds what lived in a delegated subtree before controllers had to be
// shared out there. It goes with the last scope of the subtree.
const leafOfOthers = "urun.others"

// shareOut enables controllers for the children of dir. Processes in dir move first to a leaf of the
// same subtree, which keeps them under all of its limits: with most controllers the kernel wants that ("no internal
// processes"), and with cpu and pids it would make dir the root of a threaded subtree, in
// which no other controller works (EOPNOTSUPP).
func shareOut(dir string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return enable(dir, controllers) // the root of all, which may have both
	}
	// A process may fork while it is moved, or come back: repeat until none is left.
	for range 10 {
		words, err := readWords(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("read the processes of %s: %w", dir, err)
		}
		if len(words) == 0 {
			if err = enable(dir, controllers); !errors.Is(err, unix.EBUSY) {
				return err
			}
			continue
		}
		if err := moveAside(dir, words); err != nil {
			return err
		}
	}
	return &UnavailableError{Cause: Occupied, Err: fmt.Errorf("cgroup %s does not run empty", dir), Cure: "move its processes to a leaf cgroup first"}
}

// moveAside moves processes of dir to the leaf of others.
func moveAside(dir string, pids []string) error {
	leaf := filepath.Join(dir, leafOfOthers)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, pid := range pids {
		err := errors.New("it is in another pid namespace")
		if pid != "0" {
			err = writeFile(filepath.Join(leaf, "cgroup.procs"), pid)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the last scope has just gone, and the leaf with it
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return &UnavailableError{
				Cause: Occupied, Err: fmt.Errorf("cgroup %s holds process %s, which cannot be moved: %w", dir, pid, err),
				Cure: "move the processes of " + dir + " to a leaf cgroup first",
			}
		}
	}
	return nil
}

// sharesOut says whether a cgroup's children have these controllers.
func sharesOut(dir string, controllers []string) bool {
	on, err := readWords(filepath.Join(dir, "cgroup.subtree_control"))
	return err == nil && !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(on, c) })
}

// emptyTime bounds the wait for processes that are on their way out of a cgroup.
const emptyTime = 2 * time.Second

// settle undoes shareOut in home when the leaf of others is the only cgroup that is left there: a
// batch system, say, can neither add a process to a step that shares controllers out, nor
// remove one with cgroups in it. It does nothing where somebody else's cgroups are.
func settle(home string) error {
	leaf := filepath.Join(home, leafOfOthers)
	if _, err := os.Stat(leaf); err != nil {
		return ignoreGone(err)
	}
	entries, err := os.ReadDir(home)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != leafOfOthers {
			// If it is empty, what is there came back from elsewhere.
			_ = unix.Rmdir(leaf)
			return nil
		}
	}
	// EBUSY: a new scope is using them already.
	if err := disableAll(home); errors.Is(err, unix.EBUSY) {
		return nil
	} else if err != nil {
		return ignoreGone(err)
	}
	// A process may fork while it is moved: repeat until none is left.
	for range 10 {
		pids, err := processes(leaf)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return removeWhenEmpty(leaf)
		}
		for _, pid := range pids {
			err := writeFile(filepath.Join(home, "cgroup.procs"), strconv.Itoa(pid))
			if errors.Is(err, unix.EBUSY) {
				return nil // they are shared out again
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d back to cgroup %s: %w", pid, home, err)
			}
		}
	}
	return fmt.Errorf("cgroup %s does not run empty", leaf)
}

// removeWhenEmpty removes a cgroup whose last processes may be ending.
func removeWhenEmpty(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), emptyTime)
	defer cancel()
	if err := awaitLine(ctx, filepath.Join(dir, "cgroup.events"), "populated 0"); ignoreGone(err) != nil {
		return err
	}
	// Another Create may be filling it.
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// disableAll takes all controllers from the children of dir.
func disableAll(dir string) error {
	path := filepath.Join(dir, "cgroup.subtree_control")
	on, err := readWords(path)
	if err != nil || len(on) == 0 {
		return err
	}
	return writeFile(path, "-"+strings.Join(on, " -"))
}

// originAttr is the extended attribute of the supervisor leaf that says which cgroup its processes
// came from (cgroupfs has user's attributes since Linux 5.7).
const originAttr = "user.urun.origin"

// noteOrigin notes where the processes of the supervisor leaf come from, if that is not where
// the scope is.
func (s *Scope) noteOrigin(pids []int) error {
	if len(pids) == 0 || strings.HasSuffix(s.dir, ".scope") {
		return nil
	}
	origin, err := s.h.dirOf(strconv.Itoa(pids[0]))
	if err != nil || filepath.Dir(s.dir) == origin {
		return nil // one that has ended needs no way back; populate says so
	}
	err = unix.Setxattr(filepath.Join(s.dir, supervisorLeaf), originAttr, []byte(origin), 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("note the origin of process %d: %w", pids[0], err)
	}
	return nil
}

// origin is what noteOrigin has noted, or "".
func (s *Scope) origin() string {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getxattr(filepath.Join(s.dir, supervisorLeaf), originAttr, buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), s.h.mount+"/") {
		return ""
	}
	return string(buf[:n])
}

// sendHome moves all processes to the cgroup that they came from, or that the scope was made in; if that
// shares out controllers, to a leaf beside the scope, which may be the supervisor of another.
func (s *Scope) sendHome() error {
	pids, err := processes(s.dir)
	if err != nil {
		return err
	}
	origin := s.origin()
	for _, pid := range pids {
		if origin != "" && writeFile(filepath.Join(origin, "cgroup.procs"), strconv.Itoa(pid)) == nil {
			continue // else it is gone, or no place for processes any more
		}
		if err := sendTo(filepath.Dir(s.dir), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

func sendTo(parent, pid string) error {
	var err error
	for _, leaf := range []string{"", leafOfOthers, supervisorLeaf} {
		err = writeFile(filepath.Join(parent, leaf, "cgroup.procs"), pid)
		if err == nil || errors.Is(err, unix.ESRCH) {
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // it came from elsewhere, and no leaf is there yet
		leaf := filepath.Join(parent, leafOfOthers)
		if err = os.Mkdir(leaf, 0o755); err == nil || errors.Is(err, fs.ErrExist) {
			err = writeFile(filepath.Join(leaf, "cgroup.procs"), pid)
		}
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("move process %s back to cgroup %s: %w", pid, parent, err)
	}
	return nil
}
