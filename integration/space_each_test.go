package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// spaceStep is a command that writes, with what ps says before and after.
type spaceStep struct {
	args          []string
	before, after string
	failed        string // what ps may say after a failure as well, "" if only before
}

func spaceSteps() []spaceStep {
	return []spaceStep{
		{args: []string{"create", "--network", "none", "--name", "full", harness.DemoImage, "sleep", "1000"}, after: "full created"},
		{args: []string{"rename", "full", "other"}, before: "full created", after: "other created"},
		{args: []string{"update", "--memory", "64m", "other"}, before: "other created", after: "other created"},
		{args: []string{"update", "--memory", "-1", "other"}, before: "other created", after: "other created"},
		{args: []string{"start", "other"}, before: "other created", after: "other running", failed: "other exited"},
	}
}

// Each command that writes a container's record is tried with no room at all on the file system, then with an inode more, and so on
// until it works, and the same with pages: each of its writes so fails once. A command that failed has changed nothing,
// and with nothing left a container ends, and is removed.
func TestEachCommandFailsCleanlyOnAFullFileSystem(t *testing.T) {
	inNamespaces(t, func(t *testing.T) {
		room := mountRoom(t)
		for _, kind := range []string{"inodes", "pages"} {
			failures := 0
			for _, step := range spaceSteps() {
				failures += step.untilItWorks(t, room, kind)
			}
			if failures < 6 {
				t.Errorf("only %d commands failed for want of %s", failures, kind)
			}
			t.Logf("%d failures for want of %s", failures, kind)
			leave(t, room, kind, 0)
			harness.Urun(t, "stop", "-t", "0", "other").OK()
			harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}").Has("other exited Exited (137)")
			harness.Urun(t, "rm", "other").OK()
			if left := below(t, room); len(left) > 2 {
				t.Errorf("left of it: %q", left)
			}
			leave(t, room, kind, 1000)
		}
	})
}

// mountRoom has the store's containers and names on one tmpfs.
func mountRoom(t *testing.T) string {
	t.Helper()
	room := t.TempDir()
	if err := unix.Mount("tmpfs", room, "tmpfs", 0, "size=16m,nr_inodes=1000"); err != nil {
		t.Fatal(err)
	}
	mounted := []string{room}
	t.Cleanup(func() {
		for _, dir := range slices.Backward(mounted) {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	for _, name := range []string{"containers", "names"} {
		dir := filepath.Join(harness.Store, name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Mkdir(filepath.Join(room, name), 0o700), unix.Mount(filepath.Join(room, name), dir, "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		mounted = append(mounted, dir)
	}
	return room
}

// leave gives the file system n inodes or pages more than are used, and plenty of the other.
func leave(t *testing.T, room, kind string, n uint64) {
	t.Helper()
	var used unix.Statfs_t
	if err := unix.Statfs(room, &used); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("size=16m,nr_inodes=%d", used.Files-used.Ffree+n)
	if kind == "pages" {
		// A size of nothing would be no limit.
		options = fmt.Sprintf("size=%d,nr_inodes=1000", max(used.Blocks-used.Bfree+n, 1)*uint64(used.Bsize))
	}
	if err := unix.Mount("", room, "", unix.MS_REMOUNT, options); err != nil {
		t.Fatalf("%s: %v", options, err)
	}
}

// below are the files and directories below a directory.
func below(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// untilItWorks tries the command with ever more room and returns how often it failed.
func (s spaceStep) untilItWorks(t *testing.T, room, kind string) (failures int) {
	t.Helper()
	for ; failures < 100; failures++ {
		leave(t, room, kind, uint64(failures))
		before := below(t, room)
		r := harness.Urun(t, s.args...)
		now := harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.State}}").OK()
		if r.Code == 0 {
			if now != s.after {
				t.Errorf("%s\nthen ps says %q", r, now)
			}
			return failures
		}
		if !regexp.MustCompile(`no space left|read-only file system|transport endpoint is not connected`).MatchString(r.Stderr) {
			t.Errorf("%d %s: %s", failures, kind, r)
		}
		if now != s.before && (s.failed == "" || now != s.failed) {
			t.Errorf("%d %s: %s\nthen ps says %q", failures, kind, r, now)
		}
		if after := below(t, room); s.failed == "" && !slices.Equal(before, after) {
			t.Errorf("%d %s: %s\nbefore %q\nafter %q", failures, kind, r, before, after)
		}
	}
	t.Fatalf("%q never works", s.args)
	return failures
}
