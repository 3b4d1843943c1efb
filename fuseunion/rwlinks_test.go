package fuseunion

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLinksByReferences has files with several names where the host has no hard links.
func TestLinksByReferences(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	for _, opt := range []UnionOptions{{NoLinks: true}, {NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 3, LazySize: 1}} {
		u := newTestUnion(t, opt, makeTar(t, dir("d"), file("d/low", "lower"), file("two", "both"), hardlink("d/two", "two"),
			symlink("posing", refTarget(linkDir+"/1"))))
		u.mount()
		in := func(name string) string { return filepath.Join(u.at, name) }
		must(t, os.WriteFile(in("a"), []byte("first"), 0o640))
		must(t, os.Link(in("a"), in("d/b")))
		must(t, os.Link(in("d/b"), in("c")))
		must(t, os.Link(in("d/low"), in("low2")))
		must(t, os.Link(in("two"), in("two2"))) // of the image, by two names
		must(t, os.Chmod(in("two2"), 0o604))
		must(t, unix.Mkfifo(in("fifo"), 0o600))
		same := func(links int, content string, names ...string) {
			t.Helper()
			var first unix.Stat_t
			for i, name := range names {
				var st unix.Stat_t
				must(t, unix.Lstat(in(name), &st))
				if i == 0 {
					first = st
				}
				if st.Ino != first.Ino || int(st.Nlink) != links || st.Mode != first.Mode {
					t.Errorf("%v: %s: inode %d, %d links, mode %o; %s: inode %d", opt, name, st.Ino, st.Nlink, st.Mode, names[0], first.Ino)
				}
				if got := read(t, in(name)); got != content {
					t.Errorf("%v: %s: %q, want %q", opt, name, got, content)
				}
			}
		}
		all := func() {
			t.Helper()
			same(3, "first", "a", "d/b", "c")
			same(2, "lower", "d/low", "low2")
			same(3, "both", "two", "d/two", "two2")
		}
		all()
		before := treeListing(t, u.at)
		u.unmount()
		u.mount()
		all()
		diffListings(t, before, treeListing(t, u.at))
		// What looks like a reference can neither be made nor come from an image.
		wantErr(t, os.Symlink(refTarget(linkDir+"/1"), in("made")), unix.EPERM)
		wantErr(t, os.Lchown(in("posing"), os.Getuid(), os.Getgid()), unix.EPERM)
		must(t, os.Remove(in("posing")))
		// One goes, another is replaced, one moves, and one is written to.
		f, err := os.OpenFile(in("d/b"), os.O_WRONLY|os.O_TRUNC, 0)
		must(t, err)
		must(t, os.Remove(in("a")))
		must(t, os.Rename(in("fifo"), in("d/b")))
		_, err = f.WriteString("second")
		must(t, err)
		must(t, f.Close())
		must(t, os.Rename(in("c"), in("d/c")))
		must(t, os.Remove(in("two")))
		must(t, os.Rename(in("d/two"), in("moved")))
		must(t, os.Rename(in("low2"), in("d/low"))) // two names of one file: nothing happens
		same(1, "second", "d/c")
		same(2, "both", "moved", "two2")
		same(2, "lower", "d/low", "low2")
		before = treeListing(t, u.at)
		u.unmount()
		u.mount()
		diffListings(t, before, treeListing(t, u.at))
		must(t, os.Link(in("d/c"), in("again")))
		same(2, "second", "d/c", "again")
		for _, name := range []string{"d/c", "again", "two2", "moved", "low2", "d/low"} {
			must(t, os.Remove(in(name)))
		}
		u.unmount()
		for _, dir := range []string{linkDir, indexDir} {
			left, err := os.ReadDir(filepath.Join(u.spec.Work, dir))
			must(t, err)
			if len(left) > 0 {
				t.Errorf("%v: %s has %v", opt, dir, left)
			}
		}
	}
}

// A server may be killed between any two steps of a first link(2), and of the last unlink(2).
func TestLinksHalfMade(t *testing.T) {
	base := t.TempDir()
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	must(t, os.MkdirAll(filepath.Join(upper, "d"), 0o755))
	must(t, os.MkdirAll(work, 0o755))
	tree := openTars(t, makeTar(t, dir("d")))
	open := func() *Union {
		t.Helper()
		u, err := OpenUnion(tree, upper, work, UnionOptions{NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true})
		must(t, err)
		return u
	}
	u := open()
	at := func(place string) string { return filepath.Join(work, linkDir, place) }
	must(t, os.WriteFile(filepath.Join(upper, "d/moving"), []byte("here"), 0o600))
	for id, home := range map[uint64]string{1: "d/moving", 2: "d/stays", 3: "d/none/x", 4: "../out", 5: "d/taken", 6: "d/twice"} {
		must(t, u.ledger.setHome(id, home))
	}
	must(t, u.Close())
	must(t, os.Rename(filepath.Join(upper, "d/moving"), at("1")))                           // no reference yet
	must(t, os.WriteFile(filepath.Join(upper, "d/stays"), []byte("here"), 0o600))           // not moved yet
	must(t, os.WriteFile(at("3"), nil, 0o600))                                              // the directory is gone
	must(t, os.WriteFile(at("4"), nil, 0o600))                                              // never leads out
	must(t, os.WriteFile(at("5"), nil, 0o600))                                              // the name is in use
	must(t, os.WriteFile(filepath.Join(upper, "d/taken"), []byte("new"), 0o600))            //
	must(t, os.WriteFile(at("6"), []byte("twice"), 0o600))                                  // one of two references is there
	must(t, os.Symlink(refTarget(linkDir+"/6"), filepath.Join(upper, "d/twice")))           //
	must(t, os.WriteFile(at("7"), nil, 0o600))                                              // its last reference is gone
	must(t, os.Symlink(refTarget(linkDir+"/8"), filepath.Join(upper, "lost")))              // a loss of power
	must(t, os.Symlink(refPrefix+"../../etc/passwd"+refSuffix, filepath.Join(upper, "no"))) // not a reference
	u = open()
	if n := len(u.links); n != 1 || len(u.ledger.homes) != 1 {
		t.Errorf("%d files have references, %v homes", n, u.ledger.homes)
	}
	must(t, u.Close())
	for name, want := range map[string]string{"d/moving": "here", "d/stays": "here", "d/taken": "new"} {
		if got := read(t, filepath.Join(upper, name)); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	left, err := os.ReadDir(filepath.Join(work, linkDir))
	must(t, err)
	if len(left) != 1 || left[0].Name() != "6" {
		t.Errorf("%v is left", left)
	}
	_, err = os.Lstat(filepath.Join(upper, "lost"))
	wantErr(t, err, fs.ErrNotExist)
	if target, err := os.Readlink(filepath.Join(upper, "no")); err != nil || !strings.Contains(target, "passwd") {
		t.Errorf("%q %v", target, err)
	}
	if _, err := os.Lstat(filepath.Join(base, "out")); err == nil {
		t.Error("a file came out of the upper directory")
	}
}
