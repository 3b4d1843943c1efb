package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// A file system that counts inodes, as homes of clusters do, for images and containers.
func TestAnInodeQuota(t *testing.T) {
	inNamespaces(t, func(t *testing.T) {
		for _, rung := range [][]string{{"--storage", "overlay"}, {"--storage", "fuse"}, {"--storage", "copy"}, {"--without", "fuse"}} {
			t.Run(strings.Join(rung, " "), func(t *testing.T) { inodeQuota(t, append(rung, "--network", "none")) })
		}
	})
}

// inodeQuota starts containers with ever more inodes: what fails says why and leaves nothing. In the first that starts, all that are left are
// used up, and the container and the store are still of use.
func inodeQuota(t *testing.T, flags []string) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=200m,nr_inodes=2000"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	urun := func(args ...string) *harness.Result {
		t.Helper()
		return harness.Urun(t, append([]string{"--root", root}, args...)...)
	}
	id := urun("pull", "-q", "oci:"+harness.DemoLayout()+":latest").OK()
	// All that a first container makes and keeps, such as an index of containers' names, is there.
	urun("run", "--rm", "--network", "none", id, "true").OK()
	urun("system", "prune", "-f").OK()
	before := below(t, root)
	start := append(append([]string{"run", "-d", "--name", "quota"}, flags...), id, "sleep", "1000")
	failures := 0
	for free := uint64(0); ; free += 3 + free/4 {
		inodesLeft(t, root, free)
		r := urun(start...)
		if r.Code == 0 {
			break
		}
		failures++
		if lines := strings.Split(strings.TrimSpace(r.Stderr), "\n"); !strings.Contains(r.Stderr, "no space left") && !strings.Contains(r.Stderr, "read-only file system") || len(errorLines(lines)) != 1 {
			t.Errorf("%d inodes are free: %s\nwant one error", free, r)
		}
		urun("ps", "-aq").Says("")
		if after := below(t, root); len(containersIn(after)) > 0 || halfMade(after, before) != "" {
			t.Errorf("%d inodes are free: %s\nleft is %q", free, r, halfMade(after, before))
		}
		if free > 1000 {
			t.Fatal("no number of inodes is enough")
		}
	}
	if failures == 0 {
		t.Error("it started without any inodes")
	}
	t.Cleanup(func() { urun("rm", "-f", "quota").OK() })
	inodesLeft(t, root, 30)
	urun("exec", "quota", "sh", "-c", "mkdir /many; i=0; while (: >/many/$i) 2>/dev/null; do i=$((i+1)); [ $i -lt 5000 ] || exit 9; done; : >/many/x").Fails("No space left on device")
	urun("exec", "quota", "sh", "-c", "rm -r /many && echo usable >/again && cat /again").Says("usable")
	urun("stop", "-t", "0", "quota").OK()
	urun("start", "quota").OK()
	urun("exec", "quota", "cat", "/again").Says("usable")
	urun("rm", "-f", "quota").OK()
	inodesLeft(t, root, 1000)
	urun(append(append([]string{"run", "--rm"}, flags...), id, "echo", "runs")...).Says("runs")
	urun("rmi", id).OK()
	for _, dir := range []string{"containers", "unpacked", "layers/sha256", "tmp"} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range left {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
}

// inodesLeft gives a tmpfs n inodes more than are used.
func inodesLeft(t *testing.T, root string, n uint64) {
	t.Helper()
	var used unix.Statfs_t
	if err := unix.Statfs(root, &used); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT, fmt.Sprintf("nr_inodes=%d", used.Files-used.Ffree+n)); err != nil {
		t.Fatal(err)
	}
}

func errorLines(lines []string) (errs []string) {
	for _, l := range lines {
		if strings.HasPrefix(l, "urun: ") && !strings.HasPrefix(l, "urun: there is ") {
			errs = append(errs, l)
		}
	}
	return errs
}

func containersIn(files []string) (all []string) {
	for _, f := range files {
		if strings.HasPrefix(f, "containers/") {
			all = append(all, f)
		}
	}
	return all
}

// halfMade are the files of an image that was about to be unpacked, beyond what was there before; a lock, which is empty, may stay.
func halfMade(after, before []string) string {
	was := map[string]bool{}
	for _, f := range before {
		was[f] = true
	}
	var all []string
	for _, f := range after {
		if !was[f] && strings.HasPrefix(f, "unpacked/") && !strings.HasSuffix(f, ".lock") {
			all = append(all, f)
		}
	}
	return strings.Join(all, " ")
}
