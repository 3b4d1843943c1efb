package fs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// side is a file system that operations are done on, with the files that are open.
type side struct {
	*mounted
	root  int
	slots map[int]int // open descriptors
	// together: hard links have one inode number, which overlayfs does not promise.
	together bool
	began    time.Time
}

func newSide(t *testing.T, m *mounted) *side {
	t.Helper()
	// The clock of file systems is some milliseconds late; nothing is dated of the last minute.
	s := &side{mounted: m, slots: map[int]int{}, began: time.Now().Add(-time.Minute)}
	s.open(t)
	return s
}

func (s *side) open(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(s.at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	ok(t, err)
	s.root = fd
}

func (s *side) close() {
	for k, fd := range s.slots {
		unix.Close(fd)
		delete(s.slots, k)
	}
	unix.Close(s.root)
}

func (s *side) again(t *testing.T) {
	t.Helper()
	if s.remount == nil {
		return
	}
	s.close()
	s.remount(t)
	s.open(t)
}

// result is what an operation came to, comparable between sides.
type result struct {
	err  error
	what string
}

func (r result) String() string {
	if r.err != nil {
		return r.err.Error() + " " + r.what
	}
	return "ok " + r.what
}

// op is an operation with its arguments.
type op struct {
	text string
	do   func(s *side) result
	as   int // another user to do it as, 0 for root
}

// run does an operation on a side, as its user.
func (o *op) run(s *side) result {
	if o.as == 0 {
		return o.do(s)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _ = unix.SetfsgidRetGid(o.as)
	_, _ = unix.SetfsuidRetUid(o.as)
	defer func() {
		_, _ = unix.SetfsuidRetUid(0)
		_, _ = unix.SetfsgidRetGid(0)
	}()
	return o.do(s)
}

func errOnly(err error) result { return result{err: err} }

// listing describes all that can be seen of a tree, by path. Of times it says what
// was set; one that is later than the test's begin is only "new".
func (s *side) listing(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	links := map[uint64]string{}
	var walk func(dir string)
	walk = func(dir string) {
		names := s.entries(t, dir)
		for _, name := range names {
			path := filepath.Join(dir, name)
			var st unix.Stat_t
			if err := unix.Fstatat(s.root, path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Errorf("%s: %q is listed but: %v", s.name, path, err)
				continue
			}
			all[path] = s.describe(t, path, &st, links)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				walk(path)
			}
		}
	}
	var st unix.Stat_t
	ok(t, unix.Fstat(s.root, &st))
	all["."] = s.describe(t, ".", &st, links)
	walk(".")
	return all
}

// entries reads a directory and holds d_ino and d_type against stat.
func (s *side) entries(t *testing.T, dir string) []string {
	t.Helper()
	fd, err := unix.Openat(s.root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Errorf("%s: open %q: %v", s.name, dir, err)
		return nil
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Errorf("%s: getdents %q: %v", s.name, dir, err)
			break
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			ino, reclen, typ := le64(b), int(b[16])|int(b[17])<<8, b[18]
			name := string(b[19:reclen])
			name = name[:strings.IndexByte(name, 0)]
			b = b[reclen:]
			if name == "." || name == ".." {
				continue
			}
			names = append(names, name)
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				continue // reported by the caller
			}
			if s.name == "union" && (st.Ino != ino || uint8(st.Mode>>12) != typ) {
				t.Errorf("%s: %q: readdir says inode %d type %d, stat %d %d", s.name, filepath.Join(dir, name), ino, typ, st.Ino, st.Mode>>12)
			}
		}
	}
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("%s: %q lists a name twice: %q", s.name, dir, names)
	}
	return names
}

func le64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func (s *side) describe(t *testing.T, path string, st *unix.Stat_t, links map[uint64]string) string {
	t.Helper()
	line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	if mt := time.Unix(st.Mtim.Unix()); mt.After(s.began) {
		line += " new"
	} else {
		line += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		line += fmt.Sprintf(" size=%d %s", st.Size, s.sum(t, path))
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(s.root, path, buf)
		if err != nil {
			t.Errorf("%s: readlink %q: %v", s.name, path, err)
		}
		line += fmt.Sprintf(" -> %q", buf[:max(n, 0)])
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		line += fmt.Sprintf(" n=%d", st.Nlink)
		if st.Nlink > 1 && s.together {
			if first, ok := links[st.Ino]; ok {
				line += " = " + first
			} else {
				links[st.Ino] = path
			}
		}
	}
	return line + s.xattrs(path)
}

func (s *side) sum(t *testing.T, path string) string {
	fd, err := unix.Openat(s.root, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	h := sha256.New()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err.Error()
		}
		if n == 0 {
			return hex.EncodeToString(h.Sum(nil)[:8])
		}
		h.Write(buf[:n])
	}
}

func (s *side) xattrs(path string) string {
	full := filepath.Join(s.at, path)
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(full, buf)
	if err == unix.EOPNOTSUPP && s.name == "overlay" {
		return "" // what overlayfs hears from an image without any attribute
	}
	if err != nil {
		return " " + err.Error()
	}
	var all []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 1024)
		m, err := unix.Lgetxattr(full, name, v)
		all = append(all, fmt.Sprintf("%s=%q,%v", name, v[:max(m, 0)], err))
	}
	slices.Sort(all)
	if len(all) == 0 {
		return ""
	}
	return " " + strings.Join(all, " ")
}

// compare holds two listings against each other.
func compare(t *testing.T, a, b *side) bool {
	t.Helper()
	la, lb := a.listing(t), b.listing(t)
	var diffs []string
	for path, x := range la {
		if y, ok := lb[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q only in %s: %s", path, a.name, x))
		} else if x != y {
			diffs = append(diffs, fmt.Sprintf("%q\n\t%-8s %s\n\t%-8s %s", path, a.name, x, b.name, y))
		}
	}
	for path, y := range lb {
		if _, ok := la[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q only in %s: %s", path, b.name, y))
		}
	}
	slices.Sort(diffs)
	if len(diffs) > 10 {
		diffs = append(diffs[:10], fmt.Sprintf("and %d more", len(diffs)-10))
	}
	if len(diffs) > 0 {
		t.Errorf("differ:\n%s", strings.Join(diffs, "\n"))
	}
	return len(diffs) == 0
}

// unwrap gives the errno of an error, for errors of package os as well.
func unwrap(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	if errors.Is(err, os.ErrNotExist) {
		return unix.ENOENT
	}
	return err
}
