package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// importTar makes an image of tar entries; the content of a file is in Linkname.
func (c *imageCLI) importTar(name string, entries ...tar.Header) {
	c.t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body, h.Linkname = h.Linkname, ""
			h.Size = int64(len(body))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			c.t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.dir, "import.tar")
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.ok("import", path, name)
}

func TestImageTree(t *testing.T) {
	c := newImageCLI(t)
	c.importTar("app",
		tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Linkname: "12345", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		tar.Header{Name: "bin/odd\n", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 7, Gid: 42},
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "bin"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
	)
	fields := func(s string) (lines []string) {
		for l := range strings.SplitSeq(strings.TrimSpace(s), "\n") {
			lines = append(lines, strings.Join(strings.Fields(l), " "))
		}
		return lines
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"app"}, `drwxr-xr-x 0:0 - 1 /
drwxr-xr-x 0:0 - 1 /bin
-rw-r----- 7:42 0 1 "/bin/odd\n"
-rwsr-xr-x+ 0:0 5 1 /bin/su
lrwxrwxrwx 0:0 - 1 /l -> bin
crw-rw-rw- 0:0 1:3 1 /null
drwxrwxrwt 0:0 - 1 /tmp`},
		{[]string{"-d", "1", "app", "/bin/"}, `drwxr-xr-x 0:0 - 1 /bin
-rw-r----- 7:42 0 1 "/bin/odd\n"
-rwsr-xr-x+ 0:0 5 1 /bin/su`},
		{[]string{"app", "l/su"}, `-rwsr-xr-x+ 0:0 5 1 /l/su`},
	} {
		if got := strings.Join(fields(c.ok(append([]string{"image", "tree"}, tt.args...)...)), "\n"); got != tt.want {
			t.Errorf("image tree %q prints\n%s\nwant\n%s", tt.args, got, tt.want)
		}
	}
	var e treeEntry
	if err := json.Unmarshal([]byte(c.ok("image", "tree", "--format", "json", "app", "bin/su")), &e); err != nil || e.Path != "/bin/su" || e.Size != 5 || string(e.Xattrs["user.a"]) != "b" || !strings.HasPrefix(e.DiffID, "sha256:") {
		t.Errorf("%+v, %v", e, err)
	}
	c.fails("image app has no /nowhere", "image", "tree", "app", "/nowhere")
	c.fails("no such image", "image", "tree", "none")
	c.fails("--depth -1", "image", "tree", "-d", "-1", "app")
}

func TestImageDiff(t *testing.T) {
	c := newImageCLI(t)
	both := []tar.Header{
		{Name: "same/x", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "1"},
		{Name: "same.d", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "1"},
	}
	c.importTar("a", append(both,
		tar.Header{Name: "gone/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "gone/x", Typeflag: tar.TypeReg, Mode: 0o644},
		tar.Header{Name: "gone2", Typeflag: tar.TypeReg, Mode: 0o644},
		tar.Header{Name: "deep/er/content", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "abc"},
		tar.Header{Name: "size", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "abc"},
		tar.Header{Name: "meta", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "abc"},
		tar.Header{Name: "type", Typeflag: tar.TypeReg, Mode: 0o777, Linkname: "abc"},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "x"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "time", Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(5, 0)},
	)...)
	c.importTar("b", append(both,
		tar.Header{Name: "deep/er/content", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "abd"},
		tar.Header{Name: "new/x", Typeflag: tar.TypeReg, Mode: 0o644},
		tar.Header{Name: "size", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "abcd"},
		tar.Header{Name: "meta", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 5, Linkname: "abc", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		tar.Header{Name: "type", Typeflag: tar.TypeSymlink, Linkname: "size"},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "y"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5},
		tar.Header{Name: "time", Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(6, 0)},
	)...)
	want := `C /deep
C /deep/er
C /deep/er/content  content
D /gone
D /gone2
C /link  target x -> y
C /meta  mode 0644 -> 0600, owner 0:0 -> 5:0, xattrs
A /new
A /new/x
C /null  device 1:3 -> 1:5
C /size  size 3 -> 4
C /time  mtime
C /type  type file -> link
`
	if got := c.ok("image", "diff", "a", "b"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := c.ok("image", "diff", "--ignore-times", "a", "b"); got != strings.Replace(want, "C /time  mtime\n", "", 1) {
		t.Errorf("without times: got\n%s", got)
	}
	if got := c.ok("image", "diff", "a", "a"); got != "" {
		t.Errorf("with itself: %q", got)
	}
	if got := c.ok("image", "diff", "--format", "json", "a", "b"); !strings.Contains(got, `{"Kind":"C","Path":"/link","What":["target x -> y"]}`) || !strings.Contains(got, `{"Kind":"D","Path":"/gone"}`) {
		t.Errorf("json: %s", got)
	}
	c.fails("no such image", "image", "diff", "a", "none")
}

func TestImageVerify(t *testing.T) {
	c := newImageCLI(t)
	c.importTar("a", tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: strings.Repeat("x", 100_000)})
	if got := c.ok("image", "verify"); !strings.HasPrefix(got, "ok ") || !strings.Contains(got, " a:latest: 1 layers, ") {
		t.Errorf("sound: %q", got)
	}
	data, err := filepath.Glob(filepath.Join(c.root, "layers", "sha256", "*", "data"))
	if err != nil || len(data) != 1 {
		t.Fatal(data, err)
	}
	f, err := os.OpenFile(data[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{'y'}, 70_000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"image", "verify"}, {"image", "verify", "a"}, {"image", "verify", "--format", "json"}} {
		out, errs, status := c.run("", args...)
		if status != 1 || errs != "" || !strings.Contains(out, "bytes at 65536") || !strings.Contains(out, "x") {
			t.Errorf("%v: status %d, %q, %q", args, status, out, errs)
		}
	}
	if got := c.ok("image", "verify", "--repair", "a"); !strings.HasPrefix(got, "repaired ") || !strings.Contains(got, "    /x\n    removed\n") {
		t.Errorf("repair: %q", got)
	}
	c.fails("is missing", "image", "tree", "a")
	c.importTar("a", tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: strings.Repeat("x", 100_000)})
	c.ok("image", "verify")
	c.fails("no such image", "image", "verify", "none")
}
