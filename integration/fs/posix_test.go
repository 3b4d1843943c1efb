package fs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// posixCheck looks at one thing that programs rely on. It returns what is wrong, in
// a file system with the files of posixLayer at dir.
type posixCheck struct {
	name string
	run  func(c *checker) string
	// differs are the file systems that are known to do otherwise: see
	// docs/filesystem.md, which says why.
	differs string
}

// checker is what a check works in.
type checker struct {
	t    *testing.T
	dir  string
	many bool // other ids than root's exist
}

func (c *checker) in(name string) string { return filepath.Join(c.dir, name) }

// failed formats the first error of several steps; empty if there is none.
func failed(errs ...error) string {
	for i, err := range errs {
		if err != nil {
			return fmt.Sprintf("step %d: %v", i+1, err)
		}
	}
	return ""
}

func wants(err, want error) string {
	if unwrap(err) != want {
		return fmt.Sprintf("got %v, want %v", err, want)
	}
	return ""
}

func equal[T comparable](what string, got, want T) string {
	if got != want {
		return fmt.Sprintf("%s: got %v, want %v", what, got, want)
	}
	return ""
}

// all returns the first complaint.
func all(complaints ...string) string {
	for _, c := range complaints {
		if c != "" {
			return c
		}
	}
	return ""
}

// as does something as another user.
func (c *checker) as(id int, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _ = unix.SetfsgidRetGid(id)
	_, _ = unix.SetfsuidRetUid(id)
	defer func() {
		_, _ = unix.SetfsuidRetUid(0)
		_, _ = unix.SetfsgidRetGid(0)
	}()
	return fn()
}

func (c *checker) stat(name string) (st unix.Stat_t) {
	if err := unix.Lstat(c.in(name), &st); err != nil {
		c.t.Errorf("lstat %s: %v", name, err)
	}
	return st
}

func (c *checker) open(name string, flags int) int {
	fd, err := unix.Open(c.in(name), flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		c.t.Errorf("open %s: %v", name, err)
	}
	return fd
}

func (c *checker) write(name, s string) string {
	return failed(os.WriteFile(c.in(name), []byte(s), 0o644))
}

func (c *checker) says(name, want string) string {
	b, err := os.ReadFile(c.in(name))
	return all(failed(err), equal(name, string(b), want))
}

// posixLayer is the image of the checks.
func posixLayer(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skipf("needs /bin/true: %v", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range []struct {
		name, body, link string
		mode             int64
	}{
		{name: "./", mode: 0o755},
		{name: "bin/", mode: 0o755},
		{name: "bin/true", body: string(program), mode: 0o755},
		{name: "dir/", mode: 0o755},
		{name: "dir/a", body: "a", mode: 0o644},
		{name: "dir/sub/", mode: 0o755},
		{name: "dir/sub/b", body: "b", mode: 0o644},
		{name: "dir/empty/", mode: 0o755},
		{name: "file", body: "content", mode: 0o644},
		{name: "suid", body: "s", mode: 0o6755},
		{name: "hard1", body: "hard", mode: 0o644},
		{name: "hard2", link: "hard1"},
		{name: "big", body: strings.Repeat("0123456789abcdef", 65536), mode: 0o644},
		{name: "secret", body: "secret", mode: 0o600},
		{name: "bad\xff\xfe", body: "x", mode: 0o644},
		{name: strings.Repeat("n", 255), body: "long", mode: 0o644},
		{name: "moved/", mode: 0o755},
		{name: "moved/x", body: "x", mode: 0o644},
	} {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: e.mode, Size: int64(len(e.body)), ModTime: time.Unix(1.5e9, 0), Format: tar.FormatPAX}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeLink, e.link, 0o644
		}
		// So that overlayfs is not told that the image knows no attributes at all.
		if e.name == "file" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.color": "blue"}
		}
		ok(t, w.WriteHeader(h))
		_, err := w.Write([]byte(e.body))
		ok(t, err)
	}
	ok(t, w.Close())
	return b.Bytes()
}

// TestPOSIX holds all file systems against what programs rely on: each does it, or
// is known to differ and does differ.
func TestPOSIX(t *testing.T) {
	if !inNamespaces(t, 5*time.Minute) {
		return
	}
	unix.Umask(0o022)
	layer := posixLayer(t)
	im := newImage(t, tmpfs(t), layer)
	systems := []*mounted{
		plain(t, layer), kernel(t, im), overFUSE(t, im), union(t, im, fuseunion.UnionOptions{}),
		union(t, im, fuseunion.UnionOptions{NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 16, LazySize: 1}),
		union(t, im, fuseunion.UnionOptions{NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 16}),
		unionAt(t, tmpfs(t), served{Dir: im.dir}),
	}
	for _, m := range systems {
		t.Run(m.name, func(t *testing.T) {
			for _, check := range posixChecks {
				c := &checker{t: t, dir: m.at, many: manyIDs()}
				wrong := check.run(c)
				known := strings.Contains(check.differs, m.name)
				switch {
				case wrong != "" && !known:
					t.Errorf("%s: %s", check.name, wrong)
				case wrong == "" && known:
					t.Errorf("%s: is known to differ and does not; docs/filesystem.md", check.name)
				}
			}
			if m.remount != nil {
				m.remount(t)
			}
		})
	}
}
