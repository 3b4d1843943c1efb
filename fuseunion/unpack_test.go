package fuseunion

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is unpacked says of itself what the tree says, but for devices and, to an ordinary user, owners.
func TestUnpackedTreesEqualTheTree(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user, for whom no owner can be set")
	}
	own := uint32(os.Getuid())
	opt := ServeOptions{
		UIDs: []IDRange{{own, 1}}, GIDs: []IDRange{{uint32(os.Getgid()), 1}}, SquashUID: own, SquashGID: uint32(os.Getgid()),
	}
	seed := testSeed(t)
	for i := range uint64(20) {
		tars, _, script := randomImage(t, rand.New(rand.NewPCG(seed, i)))
		tree := openTars(t, tars...)
		got := unpacked(t, tree, opt)
		// And a copy of the copy, from the directory.
		low, err := OpenDir(got)
		if err != nil {
			t.Fatal(err)
		}
		again := unpacked(t, low, opt)
		for _, dir := range []string{got, again} {
			compareUnpacked(t, tree, opt, dir)
		}
		if err := low.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("seed %d/%d:\n%s", seed, i, script)
		}
	}
}

func unpacked(t *testing.T, low Lower, opt ServeOptions) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := Unpack(low, dir, opt); err != nil {
		t.Fatal(err)
	}
	return dir
}

func compareUnpacked(t *testing.T, tree *Tree, opt ServeOptions, dir string) {
	t.Helper()
	want := map[string]string{}
	if err := tree.Walk(func(p string, st Stat) error {
		if k := st.Mode & unix.S_IFMT; k == unix.S_IFCHR || k == unix.S_IFBLK {
			return nil
		}
		st.UID, st.GID = opt.Owner(st.UID, st.GID)
		want[p] = describeTree(t, tree, st)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		if g := describeHost(t, p); g != want[rel] {
			t.Errorf("%q: unpacked %q, tree %q", rel, g, want[rel])
		}
		delete(want, rel)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for p, w := range want {
		t.Errorf("%q: not unpacked: %q", p, w)
	}
}

func TestUnpackKeepsHolesAndCountsWhatIsLeftOut(t *testing.T) {
	zeros := strings.Repeat("\x00", 8<<20)
	tree := openTars(t, makeTar(t,
		ent{name: "null", typ: '3', major: 1, minor: 3}, hardlink("null2", "null"),
		file("sparse", zeros+"end"), ent{name: "x", body: "x", xattrs: map[string]string{"user.overlay.opaque": "y", "user.a": "b"}},
	))
	dir := t.TempDir()
	left, err := Unpack(tree, dir, ServeOptions{SquashUID: uint32(os.Getuid()), SquashGID: uint32(os.Getgid()), UIDs: []IDRange{{1 << 30, 1}}, GIDs: []IDRange{{1 << 30, 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if left.Devices != 1 || left.Owners != 0 || left.Words() != "device nodes left out: 1" {
		t.Errorf("left: %+v", left)
	}
	if got := read(t, filepath.Join(dir, "sparse")); got != zeros+"end" {
		t.Errorf("sparse: %d bytes", len(got))
	}
	n, err := unix.Lgetxattr(filepath.Join(dir, "x"), "user.overlay.opaque", nil)
	if err == nil {
		t.Errorf("an order to overlayfs was unpacked: %d bytes", n)
	}
	// What is there already is nobody's to replace.
	if _, err := Unpack(tree, dir, ServeOptions{}); err == nil {
		t.Error("a directory that is not empty was taken")
	}
}
