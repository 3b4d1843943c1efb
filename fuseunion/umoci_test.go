package fuseunion

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const handMade = "hand-made"

// TestTreesEqualWhatUmociUnpacks compares with an unpacker of the OCI, as root.
func TestTreesEqualWhatUmociUnpacks(t *testing.T) {
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skip("needs umoci")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to unpack with owners")
	}
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	compareUmoci(t, handMade, [][]ent{
		{
			dir("."),
			{name: "d/", mode: 0o1777, uid: 3, gid: 4, mtime: testTime.Add(-1e9)},
			file("d/a", "1"), file("d/b", "2"),
			{name: "setuid", mode: 0o6755, uid: 7, gid: 8, body: "x"},
			symlink("l", "d"), symlink("abs", "/etc/x"),
			{name: "cap", body: "x", xattrs: map[string]string{
				"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.a": "b\x00c",
			}},
			{name: "acl", body: "x", mode: 0o664, xattrs: map[string]string{"system.posix_acl_access": acl}},
			hardlink("d/h", "setuid"),
			{name: "null", typ: '3', major: 1, minor: 3, mode: 0o666},
			{name: "fifo", typ: '6'},
			{name: "bad\xff", body: "y"},
			file("gone", ""), dir("od"), file("od/x", ""), file("old", "old"), hardlink("old2", "old"),
			dir("deep"), dir("deep/er"), file("deep/er/f", "f"),
		},
		{file("d/.wh.a", ""), hardlink("h3", "setuid"), file(".wh.gone", ""), dir("od"), file("od/y", ""), file("od/.wh..wh..opq", "")},
		{file("l/through", "t"), {name: "d/", mode: 0o700, mtime: testTime.Add(1e9)}, file("deep", "now a file"), file("d/h", "replaced")},
	})
	// What other builders write, and every unpacker takes.
	compareUmoci(t, handMade, [][]ent{
		{dir("."), dir("lower"), file("lower/kept", "1"), dir("lower2"), file("lower2/x", "1"), dir("d"), dir("d/e"), file("d/e/f", "x")},
		{
			file("/abs", "1"), file("./dot", "2"), file("up/../side", "3"),
			file("a", "1"), hardlink("a2", "a"), file("a", "2"), dir("b"), file("b/x", ""), file("b", "now a file"),
			symlink("c", "a"), dir("c"), file("c/y", ""), file("lower", "a file"), dir("lower"), hardlink("h", "a2"), hardlink("h", "a"),
			symlink("d/e2", "e"), file("d/e2/through", "t"), symlink("lower2", "d"), file("lower2/z", ""),
		},
	})
	seed := testSeed(t)
	for i := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, i))
		var layers [][]ent
		for range 1 + r.IntN(4) {
			layers = append(layers, wellMade(randomLayer(r, layers), layers))
		}
		compareUmoci(t, fmt.Sprintf("seed %d/%d", seed, i), layers)
	}
}

// wellMade lists the directories of a layer before their entries and its whiteouts
// before what takes the place of the hidden: umoci's result hangs on the order.
func wellMade(ents []ent, below [][]ent) (out []ent) {
	rank := func(e ent) int {
		switch {
		case strings.Contains(e.name, ".wh."):
			return 0
		case strings.HasSuffix(e.name, "/"):
			return 1
		case e.typ == '1':
			return 3
		}
		return 2
	}
	sorted := slices.Clone(ents)
	slices.SortStableFunc(sorted, func(a, b ent) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	root := replay(below)
	root.newLayer()
	for _, e := range sorted {
		if root.blocked(e.name) {
			continue // umoci refuses entries below a lower file
		}
		if err := root.apply(e, len(below)+1); err == nil {
			out = append(out, e)
		} else {
			root = replay(append(slices.Clone(below), out))
		}
	}
	return out
}

// blocked reports whether something that is no directory stands above name.
func (root *refNode) blocked(name string) bool {
	for p := path.Dir(strings.TrimSuffix(name, "/")); p != "."; p = path.Dir(p) {
		d, b := path.Split(p)
		if at, err := root.walk(d, -1, false); err == nil {
			if k := at.kids[b]; k != nil && k.kids == nil && !k.is('2') {
				return true
			}
		}
	}
	return false
}

func compareUmoci(t *testing.T, name string, layers [][]ent) {
	t.Helper()
	base := t.TempDir()
	var tars [][]byte
	for _, l := range layers {
		tars = append(tars, makeTar(t, l...))
	}
	rootfs, err := umociUnpack(base, tars)
	if err != nil {
		t.Logf("%s: umoci refuses it: %v", name, err)
		return
	}
	tree := openTars(t, tars...)
	want := map[string]string{}
	if err := filepath.WalkDir(rootfs, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, rootfs), "/")
		want[rel] = describeHost(t, p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := tree.Walk(func(p string, st Stat) error {
		got[p] = describeTree(t, tree, st)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for p, w := range want {
		// A directory that no layer lists has the time it was unpacked at, and so have
		// those above it.
		if g := got[p]; g != w && !(name != handMade && g[0] == '4' && dropTime(g) == dropTime(w)) {
			t.Errorf("%s: %q: tree %q, umoci %q", name, p, g, w)
		}
		delete(got, p)
	}
	for p, g := range got {
		t.Errorf("%s: %q: tree %q, not there for umoci", name, p, g)
	}
	if t.Failed() {
		for i, l := range layers {
			for _, e := range l {
				t.Logf("layer %d: %s %q %s", i, e.name, e.typ, e.link)
			}
		}
		t.FailNow()
	}
}

func dropTime(s string) string {
	f := strings.SplitN(s, " ", 5)
	if len(f) < 5 {
		return s
	}
	return strings.Join(append(f[:3], f[4]), " ")
}

func describeHost(t *testing.T, p string) string {
	st := lstat(t, p)
	s := fmt.Sprintf("%o %d:%d n%d %d ", st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Nano())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf("%q", read(t, p))
	case unix.S_IFLNK:
		l, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		s += l
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprint(st.Rdev)
	}
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	var xs []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		xs = append(xs, fmt.Sprintf("%s=%q", name, v[:n]))
	}
	slices.Sort(xs)
	return s + fmt.Sprint(xs)
}

func describeTree(t *testing.T, tree *Tree, st Stat) string {
	s := fmt.Sprintf("%o %d:%d n%d %d ", st.Mode, st.UID, st.GID, st.Nlink, st.Mtime.UnixNano())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b := make([]byte, st.Size)
		if _, err := tree.ReadAt(st.Ino, b, 0); err != nil {
			t.Fatal(err)
		}
		s += fmt.Sprintf("%q", b)
	case unix.S_IFLNK:
		l, err := tree.Readlink(st.Ino)
		if err != nil {
			t.Fatal(err)
		}
		s += l
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprint(st.Rdev)
	}
	m, err := tree.Xattrs(st.Ino)
	if err != nil {
		t.Fatal(err)
	}
	var xs []string
	for k, v := range m {
		xs = append(xs, fmt.Sprintf("%s=%q", k, v))
	}
	slices.Sort(xs)
	return s + fmt.Sprint(xs)
}

// umociUnpack writes an OCI layout and has umoci unpack it.
func umociUnpack(base string, tars [][]byte) (rootfs string, err error) {
	blobs := filepath.Join(base, "oci", "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return "", err
	}
	type descriptor map[string]any
	put := func(mediaType string, b []byte) (descriptor, string, error) {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		err := os.WriteFile(filepath.Join(blobs, sum), b, 0o644)
		return descriptor{"mediaType": mediaType, "digest": "sha256:" + sum, "size": len(b)}, "sha256:" + sum, err
	}
	var layers []descriptor
	var diffIDs []string
	for _, b := range tars {
		d, id, err := put("application/vnd.oci.image.layer.v1.tar", b)
		if err != nil {
			return "", err
		}
		layers, diffIDs = append(layers, d), append(diffIDs, id)
	}
	last := descriptor{}
	for _, step := range []func() (string, any){
		func() (string, any) {
			return "application/vnd.oci.image.config.v1+json", map[string]any{
				"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
			}
		},
		func() (string, any) {
			return "application/vnd.oci.image.manifest.v1+json", map[string]any{"schemaVersion": 2, "config": last, "layers": layers}
		},
	} {
		mediaType, v := step()
		b, err := json.Marshal(v)
		if err != nil {
			return "", err
		}
		if last, _, err = put(mediaType, b); err != nil {
			return "", err
		}
	}
	last["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "x"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{last}})
	if err != nil {
		return "", err
	}
	for name, b := range map[string]string{"index.json": string(index), "oci-layout": `{"imageLayoutVersion":"1.0.0"}`} {
		if err := os.WriteFile(filepath.Join(base, "oci", name), []byte(b), 0o644); err != nil {
			return "", err
		}
	}
	out, err := exec.Command("umoci", "unpack", "--image", filepath.Join(base, "oci")+":x", filepath.Join(base, "bundle")).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(base, "bundle", "rootfs"), nil
}
