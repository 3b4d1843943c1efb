package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// A small tmpfs for the containers, in a user namespace, runs out of inodes at each step of a container's life in turn. What
// fails says why and leaves nothing; ps is true, and rm cleans up.
func TestAFullFileSystemLeavesATruePs(t *testing.T) {
	inNamespaces(t, fillUp)
}

// fillUp is the test's half in the namespaces.
func fillUp(t *testing.T) {
	dir := filepath.Join(harness.Store, "containers")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// What the harness removes next is below.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	failed := 0
	for inodes := 2; ; inodes++ {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=1m,nr_inodes=%d", inodes)); err != nil {
			t.Fatal(err)
		}
		whole := lifeIn(t, dir, inodes)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if whole {
			break
		}
		if failed++; failed > 60 {
			t.Fatal("no number of inodes is enough")
		}
	}
	if failed < 8 {
		t.Errorf("only %d numbers of inodes were not enough", failed)
	}
}

// lifeIn takes a container through its life and tells whether nothing failed.
func lifeIn(t *testing.T, dir string, inodes int) bool {
	run := harness.Urun(t, "run", "-d", "--network", "none", "--name", "full", harness.DemoImage, "sh", "-c", "seq 1000; exec sleep 1000")
	if run.Code != 0 {
		// The kernel's overlayfs becomes read-only where it can not make its work directory, and the server of our own
		// union ends; of which init may be the first to tell.
		if !regexp.MustCompile(`no space left|read-only file system|transport endpoint is not connected`).MatchString(run.Stderr) {
			t.Errorf("%d inodes: %s", inodes, run)
		}
		harness.Urun(t, "ps", "-aq").Says("")
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%d inodes: %v %v", inodes, left, err)
		}
		return false
	}
	harness.Urun(t, "exec", "full", "true").OK()
	// Whatever is left is used up: the end has to be told all the same.
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, strings.TrimSpace(run.Stdout), fmt.Sprintf("filler-%d", i)))
		if err != nil {
			break
		}
		// The file's blocks, too.
		_, _ = f.Write(make([]byte, 2<<20))
		f.Close()
	}
	harness.Urun(t, "stop", "-t", "0", "full").OK()
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}").Has("full exited Exited (137)")
	harness.Urun(t, "rm", "full").OK()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d inodes: %v %v", inodes, left, err)
	}
	return true
}
