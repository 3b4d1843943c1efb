package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// A kernel overlayfs reads what the union wrote, as far as the host's file system can
// express it: what belongs to root, its mode open to its owner.
func TestOverlayfsReadsTheUpperDirectory(t *testing.T) {
	if !inNamespaces(t, 2*time.Minute) {
		return
	}
	unix.Umask(0o022)
	im := newImage(t, tmpfs(t), posixLayer(t))
	base := tmpfs(t)
	m := unionAt(t, base, served{Tree: im.tree, Data: im.data, Options: fuseunion.UnionOptions{LazySize: -1}})
	in := func(name string) string { return filepath.Join(m.at, name) }
	long := time.Unix(1.4e9, 5)
	for _, err := range []error{
		os.WriteFile(in("file"), []byte("changed"), 0), os.WriteFile(in("dir/new"), []byte("new"), 0o640), os.Remove(in("dir/a")),
		os.RemoveAll(in("moved")), os.Mkdir(in("moved"), 0o755), os.WriteFile(in("moved/y"), nil, 0o600),
		os.Remove(in("bin/true")), os.Mkdir(in("bin/true"), 0o755), os.Symlink("target", in("link")), unix.Mkfifo(in("fifo"), 0o644),
		os.Rename(in("big"), in("dir/big")), os.RemoveAll(in("dir/sub")), os.WriteFile(in("dir/sub"), []byte("a file now"), 0o644),
		unix.Setxattr(in("file"), "user.new", []byte("value"), 0), unix.Setxattr(in("file"), "user.overlay.opaque", []byte("y"), 0), unix.Removexattr(in("file"), "user.color"),
		os.Link(in("dir/new"), in("dir/new2")), os.Chmod(in("dir"), 0o750), os.Chtimes(in("dir/new"), long, long),
		os.Mkdir(in("own"), 0o755), os.Rename(in("own"), in("own2")), os.WriteFile(in("own2/"+strings.Repeat("x", 255)), []byte("x"), 0o644),
	} {
		ok(t, err)
	}
	u := newSide(t, m)
	want := u.listing(t)
	u.close()
	m.unmount(t)

	subdirs(t, base, "work2", "merged2")
	at := filepath.Join(base, "merged2")
	// Not the upper root's own attributes: overlayfs takes those of the host's directory.
	if err := unix.Mount("overlay", at, "overlay", 0, fmt.Sprintf("userxattr,lowerdir=%s,upperdir=%s/upper,workdir=%s/work2", im.dir, base, base)); err != nil {
		t.Fatalf("mount overlay (userxattr needs Linux 5.11): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	k := newSide(t, &mounted{name: "kernel", at: at})
	k.began = u.began
	got := k.listing(t)
	k.close()
	// It also sees what the union keeps for itself.
	own := regexp.MustCompile(` user\.urun\.meta="(\\.|[^"\\])*",<nil>`)
	for path, line := range want {
		if seen := own.ReplaceAllString(got[path], ""); seen != line {
			t.Errorf("%q\n\tunion  %s\n\tkernel %s", path, line, seen)
		}
	}
	for path := range got {
		if _, there := want[path]; !there {
			t.Errorf("%q only for the kernel", path)
		}
	}
}
