package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

// mountPoint makes a directory whose mount, if any, is taken away in the end.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a mount")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(harness.Urun(t, "image", "mount").OK(), dir) {
			harness.Urun(t, "image", "umount", "-f", dir).OK()
		}
	})
	return dir
}

func TestImageMountForACommand(t *testing.T) {
	dir := mountPoint(t)
	mount := []string{"image", "mount", harness.DemoImage, dir, "--"}
	r := harness.Urun(t, append(mount, "sh", "-c", "id -u; stat -c %u:%g:%a \"$0/etc/passwd\"; cat \"$0/demo/kept\"; exit 7", dir)...)
	if got := r.Exits(7); !strings.HasPrefix(got, "0\n0:0:644\n") {
		t.Errorf("%s", r)
	}
	harness.Urun(t, append(mount, "sh", "-c", "kill -9 $$")...).Exits(137)
	r = harness.Urun(t, append(mount, "no-such-command")...)
	if r.Exits(127); !strings.Contains(r.Stderr, "no-such-command") {
		t.Errorf("%s", r)
	}
	if r := harness.Urun(t, append(mount, "sh", "-c", ": > \"$0/new\"", dir)...); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
		t.Errorf("%s", r)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("seen outside: %v, %v", entries, err)
	}
}

func TestImageMountOnADirectory(t *testing.T) {
	harness.Need(t, "fusermount3", "fuse3")
	dir := mountPoint(t)
	// In a store of its own: the image is to be removed.
	t.Setenv("URUN_ROOT", filepath.Join(t.TempDir(), "store"))
	id := harness.Urun(t, "pull", "-q", "oci:"+harness.DemoLayout()+":latest").OK()
	harness.Urun(t, "tag", id, harness.DemoImage).OK()
	r := harness.Urun(t, "image", "mount", harness.DemoImage, dir)
	if strings.Contains(r.Stderr, "mount failed: Operation not permitted") {
		t.Skip("fusermount3 may not mount here")
	}
	r.OK()
	passwd, err := os.ReadFile(filepath.Join(dir, "etc/passwd"))
	if err != nil || !strings.HasPrefix(string(passwd), "root:") {
		t.Errorf("%q, %v", passwd, err)
	}
	harness.Urun(t, "image", "mount").Has(harness.DemoImage, dir)
	if r := harness.Urun(t, "rmi", "-f", harness.DemoImage); r.Code == 0 || !strings.Contains(r.Stderr, "in use") {
		t.Errorf("%s", r)
	}
	open, err := os.Open(filepath.Join(dir, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if r := harness.Urun(t, "image", "umount", dir); r.Code != 1 || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("of a mount in use: %s", r)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	harness.Urun(t, "image", "umount", dir).OK()
	if r := harness.Urun(t, "image", "umount", dir); r.Code != 1 || !strings.Contains(r.Stderr, "no image is mounted there") {
		t.Errorf("a second time: %s", r)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestDamagedImage turns bits of an image's files and runs it: what can be made again is, what cannot is an error,
// and no wrong byte is read.
func TestDamagedImage(t *testing.T) {
	t.Setenv("URUN_LINGER", "3s") // a server that stays must not serve what it has from before
	root := filepath.Join(t.TempDir(), "store")
	urun := func(args ...string) *harness.Result {
		t.Helper()
		return harness.Urun(t, append([]string{"--root", root}, args...)...)
	}
	id := urun("pull", "-q", "oci:"+harness.DemoLayout()+":latest").OK()
	read := func(args ...string) *harness.Result {
		t.Helper()
		return urun(append(append([]string{"run", "--rm"}, args...), id, "cat", "/probe")...)
	}
	want := read().OK()
	glob := func(pattern string) string {
		t.Helper()
		// The largest: the layer of the shell and the probe.
		found, err := filepath.Glob(filepath.Join(root, pattern))
		largest, size := "", int64(-1)
		for _, p := range found {
			info, serr := os.Stat(p)
			if serr != nil {
				t.Fatal(serr)
			}
			if info.Size() > size {
				largest, size = p, info.Size()
			}
		}
		if err != nil || largest == "" {
			t.Fatal(pattern, found, err)
		}
		return largest
	}
	turn := func(path string, where float64) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[int(where*float64(len(b)))] ^= 4
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, where := range []float64{0, 0.99} {
		turn(glob("trees/*"), where)
		if r := read(); r.OK() != want || !strings.Contains(r.Stderr, "made again") {
			t.Errorf("damaged tree: %s", r)
		}
	}
	turn(glob("trees/*"), 0)
	if err := os.Truncate(glob("layers/sha256/*/index"), 1000); err != nil {
		t.Fatal(err)
	}
	if r := read(); r.OK() != want {
		t.Errorf("damaged index: %s", r)
	}
	urun("image", "verify").OK()

	// The probe is in the largest layer; where the bit is that is turned hangs on the build, so all of the layer's
	// files are read: what is wrong is an error.
	layer := glob("layers/sha256/*/data")
	turn(layer, 0.6)
	r := urun("image", "verify")
	if r.Code != 1 || !strings.Contains(r.Stdout, layer) || !strings.Contains(r.Stdout, "65536 bytes at") {
		t.Errorf("%s", r)
	}
	for file := range strings.Lines(r.Stdout) {
		if file = strings.TrimSpace(file); !strings.HasPrefix(file, "/") {
			continue
		}
		dir := mountPoint(t)
		if r := urun("image", "mount", id, dir, "--", "sha256sum", dir+file); r.Code == 0 || !strings.Contains(r.Stderr, "Input/output error") {
			t.Errorf("%s is damaged, but: %s", file, r)
		}
	}
	// The one who reads gets an input/output error; what it was is said when the command is back.
	if r := urun("run", "--rm", id, "cat", "/probe"); r.Code == 0 && r.Stdout != want || !strings.Contains(r.Stderr, "damaged: checksum") || !strings.Contains(r.Stderr, "hint: urun image verify --repair") {
		t.Errorf("%s", r)
	}
	urun("image", "verify", "--repair").OK()
	if r := urun("run", "--rm", "--pull", "never", id, "true"); r.Code != 125 || !strings.Contains(r.Stderr, "is missing") || !strings.Contains(r.Stderr, "hint: ") {
		t.Errorf("%s", r)
	}
	urun("pull", "-q", "oci:"+harness.DemoLayout()+":latest").OK()
	if got := read("--pull", "never").OK(); got != want {
		t.Errorf("pulled again: %q, want %q", got, want)
	}
}
