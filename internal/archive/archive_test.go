package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newRoot is a tree of its own, and its directory.
func newRoot(t *testing.T) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRoot(f)
	t.Cleanup(func() { r.Close() })
	return r, dir
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func stream(t *testing.T, r *Root, name string, opt WriteOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b, name, opt); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func names(t *testing.T, raw []byte) (all []string) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestATreeComesBackAsItWas(t *testing.T) {
	r, dir := newRoot(t)
	write(t, dir+"/a/file", "content")
	write(t, dir+"/a/sub/deep", "more")
	if err := errors.Join(
		os.Link(dir+"/a/file", dir+"/a/hard"), os.Symlink("file", dir+"/a/link"), os.Symlink("/a/file", dir+"/a/absolute"),
		unix.Mkfifo(dir+"/a/pipe", 0o640), os.Chmod(dir+"/a/file", 0o640), os.Chmod(dir+"/a/sub", 0o555),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir+"/a/sub", 0o755) })
	_ = unix.Setxattr(dir+"/a/file", "user.x", []byte("y"), 0) // where the file system has them
	raw := stream(t, r, "/a", WriteOptions{Name: "b"})
	if err := r.Extract(bytes.NewReader(raw), "/", ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir+"/b/sub", 0o755) })
	again := stream(t, r, "/b", WriteOptions{Name: "b"})
	if !bytes.Equal(raw, again) {
		t.Errorf("%v\nbecame\n%v", names(t, raw), names(t, again))
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(dir+"/b/file", &a), unix.Stat(dir+"/b/hard", &b)); err != nil || a.Ino != b.Ino {
		t.Errorf("hard links are not: %v", err)
	}
}

func TestTheStreamIsCalledWhatItShallBe(t *testing.T) {
	r, dir := newRoot(t)
	write(t, dir+"/a/f", "x")
	if err := errors.Join(os.Symlink("a", dir+"/l"), os.Symlink("a/f", dir+"/lf")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		opt  WriteOptions
		want []string
	}{
		{"/a", WriteOptions{Name: "z"}, []string{"z/", "z/f"}},
		{"/a/.", WriteOptions{Name: "."}, []string{"./", "f"}},
		{"/a/f", WriteOptions{Name: "g"}, []string{"g"}},
		{"/l", WriteOptions{Name: "l"}, []string{"l"}},
		{"/l", WriteOptions{Name: "l", Follow: true}, []string{"l/", "l/f"}},
		{"/lf", WriteOptions{Name: "n", Follow: true}, []string{"n"}},
		{"l/f", WriteOptions{Name: "n"}, []string{"n"}},
	} {
		if got := names(t, stream(t, r, c.path, c.opt)); !slices.Equal(got, c.want) {
			t.Errorf("%s %+v: %v, want %v", c.path, c.opt, got, c.want)
		}
	}
}

func TestLinksNeverLeadOut(t *testing.T) {
	r, dir := newRoot(t)
	outside := t.TempDir()
	write(t, outside+"/secret", "secret")
	write(t, dir+"/etc/passwd", "inside")
	if err := errors.Join(
		os.Symlink(outside, dir+"/abs"), os.Symlink("../../../../../../../.."+outside, dir+"/rel"), os.Symlink("/etc/passwd", dir+"/passwd"),
	); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/abs/secret", "/rel/secret", "/../../.." + outside + "/secret"} {
		if info, err := r.Stat(p, true); err != nil || info.Exists {
			t.Errorf("%s: %+v, %v", p, info, err)
		}
	}
	if raw := stream(t, r, "/passwd", WriteOptions{Name: "p", Follow: true}); !bytes.Contains(raw, []byte("inside")) {
		t.Error("an absolute link is not followed inside")
	}
	for _, p := range []string{"/abs", "/rel"} {
		if err := r.Extract(bytes.NewReader(tarOf(t, &tar.Header{Name: "f", Size: 1, Mode: 0o644})), p, ExtractOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Error(left)
	}
}

// tarOf makes a stream of entries whose content is x.
func tarOf(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 && h.Size == 0 && !strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAnArchiveThatWantsOutStaysInside(t *testing.T) {
	for _, inside := range []bool{false, true} {
		r, dir := newRoot(t)
		outside := t.TempDir()
		if err := os.Mkdir(dir+"/dst", 0o755); err != nil {
			t.Fatal(err)
		}
		evil := tarOf(
			t,
			&tar.Header{Name: "../../up", Size: 1, Mode: 0o644},
			&tar.Header{Name: "/abs", Size: 1, Mode: 0o644},
		)
		if err := r.Extract(bytes.NewReader(evil), "/dst", ExtractOptions{Inside: inside}); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"up", "abs"} {
			if _, err := os.Stat(filepath.Join(dir, "dst", n)); err != nil {
				t.Error(err)
			}
		}
		link := tarOf(
			t,
			&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside},
			&tar.Header{Name: "l/f", Size: 1, Mode: 0o644},
		)
		_ = r.Extract(bytes.NewReader(link), "/dst", ExtractOptions{Inside: inside})
		hard := tarOf(t, &tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../../../.." + outside + "/x"})
		write(t, outside+"/x", "x")
		if err := r.Extract(bytes.NewReader(hard), "/dst", ExtractOptions{Inside: inside}); err == nil {
			t.Error("a hard link to the outside was made")
		}
		if left, _ := os.ReadDir(outside); len(left) != 1 {
			t.Error(left)
		}
	}
}

func TestADirectoryIsNotReplacedByAFileNorAFileByADirectory(t *testing.T) {
	r, dir := newRoot(t)
	write(t, dir+"/dir/f", "x")
	write(t, dir+"/file", "x")
	if err := r.Extract(bytes.NewReader(tarOf(t, &tar.Header{Name: "dir", Size: 1, Mode: 0o644})), "/", ExtractOptions{}); !errors.Is(err, errIsDir) {
		t.Error(err)
	}
	if err := r.Extract(bytes.NewReader(tarOf(t, &tar.Header{Name: "file/", Typeflag: tar.TypeDir, Mode: 0o755})), "/", ExtractOptions{}); !errors.Is(err, errNotDir) {
		t.Error(err)
	}
}

func TestSetIDBitsGoWithTheirOwnerAlone(t *testing.T) {
	r, dir := newRoot(t)
	raw := tarOf(t, &tar.Header{Name: "su", Size: 1, Mode: 0o4755, Uid: os.Getuid() + 1, Gid: os.Getgid() + 1})
	if os.Getuid() == 0 {
		t.Skip("root may give files away")
	}
	for _, o := range []Owners{OwnersMine, OwnersTried} {
		if err := r.Extract(bytes.NewReader(raw), "/", ExtractOptions{Owners: o}); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(dir + "/su"); err != nil || info.Mode()&fs.ModeSetuid != 0 {
			t.Errorf("%q: %v, %v", o, info.Mode(), err)
		}
	}
	if err := r.Extract(bytes.NewReader(raw), "/", ExtractOptions{Owners: OwnersKept}); err == nil {
		t.Error("owners that cannot be set are no error")
	}
}

// A program inside exchanges a directory for a link to the outside, again and
// again, while its files are read and written.
func TestARaceForALinkIsNotWon(t *testing.T) {
	r, dir := newRoot(t)
	outside := t.TempDir()
	write(t, outside+"/f", "secret")
	write(t, dir+"/d/real/f", "inside")
	if err := os.Symlink(outside, dir+"/d/bait"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/d/real", dir+"/d/x"); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				// x is the directory, bait the link; then the other way round.
				_ = unix.Renameat2(unix.AT_FDCWD, dir+"/d/x", unix.AT_FDCWD, dir+"/d/bait", unix.RENAME_EXCHANGE)
			}
		}
	}()
	evil := tarOf(t, &tar.Header{Name: "x/g", Size: 1, Mode: 0o644}, &tar.Header{Name: "x/f", Size: 1, Mode: 0o644})
	for range 500 {
		var b bytes.Buffer
		if err := r.Write(&b, "/d", WriteOptions{Name: "d"}); err == nil && bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Fatal("what lies outside was read")
		}
		b.Reset()
		if err := r.Write(&b, "/d/x/f", WriteOptions{Name: "f", Follow: true}); err == nil && bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Fatal("what lies outside was read")
		}
		// It may fail: x may be a link that leads nowhere.
		_ = r.Extract(bytes.NewReader(evil), "/d", ExtractOptions{})
	}
	close(stop)
	<-stopped
	if raw, err := os.ReadFile(outside + "/f"); err != nil || string(raw) != "secret" {
		t.Errorf("%q, %v", raw, err)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Error(left)
	}
}

func FuzzExtract(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "a/b", Size: 1, Mode: 0o644})
	_, _ = w.Write([]byte("x"))
	_ = w.WriteHeader(&tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "../.."})
	_ = w.WriteHeader(&tar.Header{Name: "a/l/c", Typeflag: tar.TypeLink, Linkname: "a/b"})
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		outer := t.TempDir()
		if err := os.Mkdir(outer+"/root", 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(outer + "/root")
		if err != nil {
			t.Fatal(err)
		}
		r := NewRoot(dir)
		defer r.Close()
		for _, inside := range []bool{true, false} {
			_ = r.Extract(io.LimitReader(bytes.NewReader(raw), 1<<20), "/", ExtractOptions{Inside: inside})
		}
		if left, err := os.ReadDir(outer); err != nil || len(left) != 1 {
			t.Errorf("%v, %v", left, err)
		}
		_ = filepath.WalkDir(outer, func(p string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				return os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}
