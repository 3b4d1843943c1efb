package cgdelegate

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is where this machine has its cgroup v2 tree.
type hierarchy struct {
	mount  string // "" if there is none
	hybrid bool   // v1 beside it, which has the controllers
}

const sysfsCgroup = "/sys/fs/cgroup"

func findHierarchy() hierarchy {
	isCgroup2 := func(path string) bool {
		var s unix.Statfs_t
		return unix.Statfs(path, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
	}
	switch {
	case isCgroup2(sysfsCgroup):
		return hierarchy{mount: sysfsCgroup}
	case isCgroup2(sysfsCgroup + "/unified"):
		return hierarchy{mount: sysfsCgroup + "/unified", hybrid: true}
	}
	return hierarchy{}
}

// dirOf returns the directory of a process's cgroup.
func (h hierarchy) dirOf(pid string) (string, error) {
	data, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return "", err
	}
	path, err := parseProcCgroup(string(data))
	if err != nil {
		return "", fmt.Errorf("process %s: %w", pid, err)
	}
	return filepath.Join(h.mount, path), nil
}

// parseProcCgroup returns the cgroup v2 path in the text of /proc/PID/cgroup. Lines
// with another number than 0 are of v1 hierarchies.
func parseProcCgroup(text string) (string, error) {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if path == "/.." || strings.HasPrefix(path, "/../") {
			return "", errors.New("its cgroup is outside of this cgroup namespace")
		}
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, " (deleted)") {
			return "", fmt.Errorf("cgroup %q is not usable", path)
		}
		return path, nil
	}
	return "", errors.New("it has no cgroup v2")
}

// writeFile writes a control file, which must exist: a missing one must not become
// a plain file where the tree is not cgroupfs.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err != nil {
		err = fmt.Errorf("write %q: %w", value, err)
	}
	return errors.Join(err, f.Close())
}

func readWords(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	return strings.Fields(string(data)), err
}

// readPairs reads a file of lines "key number", such as memory.events.
func readPairs(path string) (map[string]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	pairs := map[string]uint64{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), " ")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("parse %s: line %q", path, sc.Text())
		}
		pairs[key] = n
	}
	return pairs, sc.Err()
}

// readNumber reads a file with one number; "max" is -1.
func readNumber(path string) (int64, error) {
	words, err := readWords(path)
	if err != nil {
		return 0, err
	}
	if len(words) != 1 {
		return 0, fmt.Errorf("parse %s: %q", path, words)
	}
	if words[0] == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", path, err)
	}
	return n, nil
}

// processes returns the process ids in dir and in all cgroups below it.
func processes(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		words, err := readWords(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for _, w := range words {
			pid, err := strconv.Atoi(w)
			if err != nil {
				return fmt.Errorf("parse %s/cgroup.procs: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// removeTree removes dir and the empty cgroups below it. The files of a cgroup go
// with its directory and cannot be removed by themselves.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// ignoreGone drops the errors of a cgroup that ended meanwhile: ENODEV is what an
// open file of one gives.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
