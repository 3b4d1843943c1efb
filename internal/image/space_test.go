package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullFileSystemLeavesNothingHalfMade pulls onto a small tmpfs, in a user namespace, that runs out of inodes at each
// step of a pull in turn, and out of space. What fails says so with a hint and leaves nothing; with room made the same store works.
func TestFullFileSystemLeavesNothingHalfMade(t *testing.T) {
	const inside = "IMAGE_TEST_SPACE_REFS"
	if refs := strings.Fields(os.Getenv(inside)); len(refs) == 2 {
		fillUp(t, refs[0], refs[1])
		return
	}
	reg := newRegistry(t)
	small := reg.push(t, "small:1", build(t, nil, gzipLayer(t, "a", "1"), gzipLayer(t, "b", "2")))
	large := reg.push(t, "large:1", build(t, nil, gzipLayer(t, "a", "1"), gzipLayer(t, "zeros", strings.Repeat("\x00", 90<<20))))
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-test.run", "^TestFullFileSystemLeavesNothingHalfMade$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+small+" "+large)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// fillUp is the test's half in the namespaces.
func fillUp(t *testing.T, small, large string) {
	dir := t.TempDir()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	failed := 0
	for inodes := 3; ; inodes++ {
		if pullOnto(t, dir, fmt.Sprintf("size=200m,nr_inodes=%d", inodes), small) {
			break
		}
		if failed++; failed > 100 {
			t.Fatal("no number of inodes is enough")
		}
	}
	// The layout takes 9 of them, so that most failures are of the pull.
	if failed < 15 {
		t.Errorf("only %d numbers of inodes were not enough", failed)
	}
	for _, size := range []string{"1m", "80m", "120m"} {
		if pullOnto(t, dir, "size="+size+",nr_inodes=1000", large) {
			t.Errorf("90 MB fit into %s with a reserve of 64 MiB", size)
		}
	}
}

// pullOnto pulls onto a new tmpfs, says whether that worked, and looks at what is there.
func pullOnto(t *testing.T, dir, options, ref string) bool {
	t.Helper()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	ctx := context.Background()
	opt := Options{Root: filepath.Join(dir, "store")}
	s, err := Open(opt)
	if err == nil {
		_, err = s.Pull(ctx, ref, PullOptions{Platform: "linux/amd64"})
		if err != nil && hintOf(err) == "" {
			t.Errorf("%s: no hint: %v", options, err)
		}
	}
	if err == nil {
		checkStore(t, s)
		return true
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%s: %v", options, err)
	}
	halves := 0
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, opt.Root+"/")
		if !d.IsDir() && (strings.HasPrefix(rel, "images/") || strings.HasPrefix(rel, "tmp/")) {
			t.Errorf("%s: left: %s", options, rel)
			halves++
		}
		return err
	}))
	// With room the same store works.
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1g,nr_inodes=10000"))
	s, err = Open(opt)
	must(t, err)
	if _, err := s.Pull(ctx, ref, PullOptions{Platform: "linux/amd64"}); err != nil {
		t.Errorf("%s: with room: %v", options, err)
	}
	checkStore(t, s)
	return false
}
