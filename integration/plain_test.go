package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// ownStore gives the test a store of its own with the demo image, and removes the image with all that was made of it.
func ownStore(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "store")
	t.Setenv("URUN_ROOT", dir)
	id := harness.Urun(t, "pull", "--quiet", "oci:"+harness.DemoLayout()+":latest").OK()
	harness.Urun(t, "tag", id, harness.DemoImage).OK()
	t.Cleanup(func() {
		harness.Urun(t, "rm", "-f", "--all").OK()
		harness.Urun(t, "rmi", "-f", id).OK()
		left, err := filepath.Glob(filepath.Join(dir, "unpacked", "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("the image is gone, what was unpacked of it is not: %v, %v", left, err)
		}
	})
	return dir
}

// wholeLife uses a container in every way: run, -d, exec, logs, cp, diff, export, stop, start, rm.
func wholeLife(t *testing.T, flags ...string) {
	t.Helper()
	args := slices.Concat([]string{"run", "-d"}, flags, []string{harness.DemoImage, "sh", "-c", "rm /etc/group; echo new >/root/new; echo up; exec sleep 1000"})
	name := harness.Urun(t, args...).OK()
	said := func() bool { return strings.Contains(harness.Urun(t, "logs", name).Stdout, "up") }
	harness.Eventually(t, 20*time.Second, "the container says up", said)
	harness.Urun(t, "exec", "-w", "/root", name, "sh", "-c", "cat new; echo more >>new").Says("new")
	harness.UrunInput(t, strings.NewReader("typed"), "exec", "-i", name, "cat").Says("typed")

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		harness.Urun(t, "cp", file, name+":/root/copied").OK()
		if got := harness.Urun(t, "cp", name+":/root/copied", "-"); !strings.Contains(got.Stdout, "copied") {
			t.Errorf("%s: cp: %s", when, got)
		}
		want := "C /etc\nD /etc/group\nC /root\nA /root/copied\nA /root/new"
		if got := harness.Urun(t, "diff", name).OK(); !equalLines(got, want) {
			t.Errorf("%s: diff: %q, want %q", when, got, want)
		}
		names := exported(t, name)
		if !slices.Contains(names, "root/new") || slices.Contains(names, "etc/group") || !slices.Contains(names, "etc/passwd") {
			t.Errorf("%s: export: %v", when, names)
		}
	}
	look("while it runs")
	harness.Urun(t, "stop", "-t", "0", name).OK()
	look("when it has ended")
	harness.Urun(t, "start", name).OK()
	harness.Urun(t, "exec", name, "cat", "/root/copied").Says("copied")
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Urun(t, "inspect", name).Exits(1)
}

func equalLines(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// exported are the names in the tar of a container.
func exported(t *testing.T, name string) (names []string) {
	t.Helper()
	raw := harness.Urun(t, "export", name).OK()
	for r := tar.NewReader(bytes.NewReader([]byte(raw))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			// The harness has cut the zeros at the end off.
			return names
		}
		names = append(names, strings.TrimPrefix(h.Name, "./"))
	}
}

// Without FUSE an image is unpacked, once, and the kernel's overlayfs lies on that; or a container is a copy.
func TestContainersWithoutFuse(t *testing.T) {
	dir := ownStore(t)
	first := harness.Run(t, "--without", "fuse", "--", "cat", "/etc/hostname")
	first.OK()
	if n := strings.Count(first.Stderr, "urun: there is n"); n != 1 || !strings.Contains(first.Stderr, "FUSE") {
		t.Errorf("%s\nwant one line about FUSE", first)
	}
	wholeLife(t, "--without", "fuse")
	if harness.Ranges(t) {
		harness.Run(t, "--without", "fuse", "--user", "1000:1000", "--", "id", "-u").Says("1000")
		harness.Run(t, "--without", "fuse", "--userns", "keep-id", "--", "sh", "-c", "cat /etc/passwd >/dev/null && id -u").Says(own())
	}
	kept, err := filepath.Glob(filepath.Join(dir, "unpacked", "*[!k]"))
	if err != nil || len(kept) == 0 || len(kept) > 2 {
		t.Errorf("unpacked for each map of ids: %v, %v", kept, err)
	}
	harness.Urun(t, "system", "df").Has("Images")
	harness.Run(t, "--without", "fuse", "--storage", "fuse", "--", "true").Refused("no FUSE mount", "--device /dev/fuse")
}

func own() string {
	out, err := exec.Command("id", "-u").Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

func TestContainersThatAreCopies(t *testing.T) {
	ownStore(t)
	wholeLife(t, "--storage", "copy")
	harness.Run(t, "--storage", "copy", "--read-only", "--", "sh", "-c", "echo x >/x || echo kept").Says("kept")
	r := harness.Run(t, "--storage", "copy", "-v", t.TempDir()+":/mnt", "--", "sh", "-c", "echo x >/mnt/x && cat /mnt/x")
	r.Says("x")
}

// A process that is killed while it unpacks leaves nothing that is taken for the image.
func TestAnUnpackingThatIsKilledIsMadeAgain(t *testing.T) {
	dir := ownStore(t)
	for _, after := range []time.Duration{5, 15, 30, 60, 120} {
		cmd := exec.Command(harness.Binary, harness.RunArgs("--without", "fuse", "--name", "killed", "--", "true")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		killMonitors(t, dir)
	}
	harness.Run(t, "--without", "fuse", "--", "sh", "-c", "cat /etc/passwd | grep -c root").Says("1")
	if left, err := filepath.Glob(filepath.Join(dir, "unpacked", "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// killMonitors kills the processes that hold something open in a store.
func killMonitors(t *testing.T, dir string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if cwd, err := os.Readlink(d + "/cwd"); err == nil && strings.HasPrefix(cwd, dir) {
			_ = exec.Command("kill", "-9", filepath.Base(d)).Run()
		}
	}
}
