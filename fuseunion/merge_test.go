package fuseunion

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLayersMerge(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]ent
		want   []string
	}{
		{"an upper file replaces a lower one", [][]ent{{file("a", "1")}, {file("a", "2")}}, []string{`/a 100644 0:0 n1 "2"`}},
		{"a whiteout hides a lower file", [][]ent{{file("a", "1"), file("b", "")}, {file(".wh.a", "")}}, []string{`/b 100644 0:0 n1 ""`}},
		{"a whiteout hides a lower directory", [][]ent{{file("a/b/c", "1")}, {file(".wh.a", "")}}, nil},
		{"a whiteout of nothing does nothing", [][]ent{{file("a", "1")}, {file(".wh.b", ""), file(".wh.b", "")}}, []string{`/a 100644 0:0 n1 "1"`}},
		{"a whiteout spares the entry of its own layer, before it or after", [][]ent{
			{file("a/x", "1"), file("b/x", "1")},
			{file("a/y", "2"), file(".wh.a", ""), file(".wh.b", ""), file("b/y", "2")},
		}, []string{"/a 40755 0:0 n2", `/a/y 100644 0:0 n1 "2"`, "/b 40755 0:0 n2", `/b/y 100644 0:0 n1 "2"`}},
		{"an opaque directory hides lower entries, wherever in the tar it says so", [][]ent{
			{file("a/x", "1"), file("b/x", "1")},
			{file("a/y", "2"), file("a/.wh..wh..opq", ""), file("b/.wh..wh..opq", ""), file("b/y", "2")},
		}, []string{"/a 40755 0:0 n2", `/a/y 100644 0:0 n1 "2"`, "/b 40755 0:0 n2", `/b/y 100644 0:0 n1 "2"`}},
		{"a whiteout makes no directory to be in", [][]ent{{file("f", "")}, {file("a/b/.wh.x", ""), file("c/.wh..wh..opq", ""), file("f/.wh.x", "")}}, []string{`/f 100644 0:0 n1 ""`}},
		{"a whiteout leaves a directory that holds an entry", [][]ent{{}, {file("a/.wh.x", ""), file("a/b", "")}}, []string{"/a 40755 0:0 n2", `/a/b 100644 0:0 n1 ""`}},
		{"an opaque root hides everything", [][]ent{{file("a", ""), file("b/c", "")}, {file(".wh..wh..opq", ""), file("d", "")}}, []string{`/d 100644 0:0 n1 ""`}},
		{"a listed directory gives its metadata to the lower one", [][]ent{
			{{name: "d/", mode: 0o700, uid: 1}, file("d/a", "")}, {{name: "d/", mode: 0o711, uid: 2}},
		}, []string{"/d 40711 2:0 n2", `/d/a 100644 0:0 n1 ""`}},
		{"an implicit directory leaves the lower metadata alone", [][]ent{
			{{name: "d/", mode: 0o700, uid: 1, xattrs: map[string]string{"user.x": "1"}}}, {file("d/a", "")},
		}, []string{`/d 40700 1:0 n2 map["user.x":"1"]`, `/d/a 100644 0:0 n1 ""`}},
		{"a file replaces a directory", [][]ent{{file("d/a", "")}, {file("d", "f")}}, []string{`/d 100644 0:0 n1 "f"`}},
		{"a directory replaces a file", [][]ent{{file("d", "f")}, {dir("d"), file("d/a", "")}}, []string{"/d 40755 0:0 n2", `/d/a 100644 0:0 n1 ""`}},
		{"an implicit directory replaces a file", [][]ent{{file("d", "f")}, {file("d/a", "")}}, []string{"/d 40755 0:0 n2", `/d/a 100644 0:0 n1 ""`}},
		{"a listed directory replaces a symbolic link", [][]ent{{file("t/x", ""), symlink("d", "t")}, {dir("d"), file("d/a", "")}}, []string{
			"/d 40755 0:0 n2", `/d/a 100644 0:0 n1 ""`, "/t 40755 0:0 n2", `/t/x 100644 0:0 n1 ""`,
		}},
		{"an implicit directory follows a lower symbolic link", [][]ent{
			{file("usr/lib/x", ""), symlink("lib", "usr/lib")}, {file("lib/a", ""), file("lib/.wh.x", "")},
		}, []string{"/lib 120777 0:0 n1 -> usr/lib", "/usr 40755 0:0 n3", "/usr/lib 40755 0:0 n2", `/usr/lib/a 100644 0:0 n1 ""`}},
		{"what a layer has both by its path and through a lower link is as it is through the link", [][]ent{
			{dir("t"), symlink("l", "t")}, {{name: "t/d/", mode: 0o700, uid: 1}, {name: "l/d/", mode: 0o711, uid: 2}, file("t/f", "1"), file("l/f", "2")},
		}, []string{"/l 120777 0:0 n1 -> t", "/t 40755 0:0 n3", "/t/d 40711 2:0 n2", `/t/f 100644 0:0 n1 "2"`}},
		{"wherever in the tar it stands", [][]ent{
			{dir("t"), symlink("l", "t")}, {{name: "l/d/", mode: 0o711, uid: 2}, {name: "t/d/", mode: 0o700, uid: 1}, file("t/d/x", ""), file("l/d/y", "")},
		}, []string{"/l 120777 0:0 n1 -> t", "/t 40755 0:0 n3", "/t/d 40711 2:0 n2", `/t/d/x 100644 0:0 n1 ""`, `/t/d/y 100644 0:0 n1 ""`}},
		{"a whiteout of a lower symbolic link makes way for a directory", [][]ent{
			{file("t/x", ""), symlink("l", "t")}, {file("l/a", ""), file(".wh.l", "")},
		}, []string{"/l 40755 0:0 n2", `/l/a 100644 0:0 n1 ""`, "/t 40755 0:0 n2", `/t/x 100644 0:0 n1 ""`}},
		{"a symbolic link never leads out of the tree", [][]ent{
			{symlink("a/out", "../../../../etc"), symlink("abs", "/etc")}, {file("a/out/x", ""), file("abs/y", "")},
		}, []string{
			"/a 40755 0:0 n2", "/a/out 120777 0:0 n1 -> ../../../../etc", "/abs 120777 0:0 n1 -> /etc",
			"/etc 40755 0:0 n2", `/etc/x 100644 0:0 n1 ""`, `/etc/y 100644 0:0 n1 ""`,
		}},
		{"a hard link to a file of a lower layer is the same inode", [][]ent{{file("a", "1")}, {hardlink("b", "a")}, {hardlink("d/c", "b")}}, []string{
			`/a 100644 0:0 n3 "1"`, `/b 100644 0:0 n3 "1" = /a`, "/d 40755 0:0 n2", `/d/c 100644 0:0 n3 "1" = /a`,
		}},
		{"a hard link outlives the lower name", [][]ent{{file("a", "1")}, {hardlink("b", "a"), file(".wh.a", "")}}, []string{`/b 100644 0:0 n1 "1"`}},
		{"replacing a name of a hard link leaves the other", [][]ent{{file("a", "1"), hardlink("b", "a")}, {file("a", "2")}}, []string{
			`/a 100644 0:0 n1 "2"`, `/b 100644 0:0 n1 "1"`,
		}},
		{"a hard link's target is found through a lower symbolic link", [][]ent{{file("t/a", "1"), symlink("l", "t")}, {hardlink("b", "l/a")}}, []string{
			`/b 100644 0:0 n2 "1"`, "/l 120777 0:0 n1 -> t", "/t 40755 0:0 n2", `/t/a 100644 0:0 n2 "1" = /b`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, makeTar(t, l...))
			}
			tree := openTars(t, tars...)
			if got := listing(t, tree)[1:]; !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if err := tree.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLayersThatDoNotFitAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]ent
		want   string
	}{
		{"a hard link to a lower directory", [][]ent{{dir("d")}, {hardlink("a", "d")}}, "a directory"},
		{"a hard link to what a lower layer has hidden", [][]ent{{file("a", "")}, {file(".wh.a", "")}, {hardlink("b", "a")}}, "no such entry"},
		{"entries below a loop of lower links", [][]ent{{symlink("a", "b"), symlink("b", "a")}, {file("a/x", "")}}, "too many levels"},
		{"entries below a lower link to a file", [][]ent{{file("f", ""), symlink("l", "f")}, {file("l/x", "")}}, "not a directory"},
	} {
		var tars [][]byte
		for _, l := range c.layers {
			tars = append(tars, makeTar(t, l...))
		}
		if _, _, err := writeTree(t.TempDir(), tars...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestMergeEqualsAnUnpackerOnRandomLayers(t *testing.T) {
	// A directory that one layer lists by two names, one of them through a link of a lower layer, has the attributes of
	// that one, whichever comes last in the tar: about one seed in twenty has such a case.
	seed := testSeed(t)
	for i := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, i))
		tars, want, script := randomImage(t, r)
		path, data, err := writeTree(filepath.Join(t.TempDir()), tars...)
		if err != nil {
			t.Fatalf("seed %d/%d: %v\n%s", seed, i, err, script)
		}
		tree, err := OpenTree(path, data)
		if err != nil {
			t.Fatal(err)
		}
		if got := listing(t, tree); !slices.Equal(got, want) {
			t.Fatalf("seed %d/%d: got\n%s\nwant\n%s\nof%s", seed, i, strings.Join(got, "\n"), strings.Join(want, "\n"), script)
		}
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func randomImage(t testing.TB, r *rand.Rand) (tars [][]byte, want []string, script string) {
	var layers [][]ent
	for layer := range 1 + r.IntN(5) {
		ents := randomLayer(r, layers)
		layers = append(layers, ents)
		for _, e := range ents {
			script += fmt.Sprintf("\nlayer %d: %s %q %s", layer, e.name, e.typ, e.link)
		}
		tars = append(tars, makeTar(t, ents...))
	}
	return tars, replay(layers).listing(), script
}

func TestDamageIsFoundAndNamed(t *testing.T) {
	dir := t.TempDir()
	var ents []ent
	for i := range 2000 {
		ents = append(ents, ent{name: fmt.Sprintf("d%d/f%d", i%50, i), body: "x", xattrs: map[string]string{"user.n": fmt.Sprint(i)}})
	}
	path, data, err := writeTree(dir, makeTar(t, ents...))
	if err != nil {
		t.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(sound); off += 997 {
		b := bytes.Clone(sound)
		b[off] ^= 0x10
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		tree, err := OpenTree(path, data)
		if err == nil {
			err = errors.Join(tree.Verify(), tree.Close())
		}
		if !errors.Is(err, ErrDamaged) && off < len(sound) && !padding(sound, off) {
			t.Fatalf("byte %d changed: %v", off, err)
		}
	}
	for _, n := range []int{0, 10, headerSize, 4096, len(sound) - 1} {
		if err := os.WriteFile(path, sound[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenTree(path, data); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if err := os.WriteFile(path, sound, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTree(path, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("without its data: %v", err)
	}
	if err := os.Truncate(data[0], 100); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTree(path, data); !errors.Is(err, ErrDamaged) {
		t.Errorf("data cut: %v", err)
	}
}

// padding reports whether a byte lies between the checksums and the body.
func padding(b []byte, off int) bool {
	h, _, err := decodeHeader(b)
	if err != nil {
		return false
	}
	at, _ := h.sections()
	return off >= headerSize+int(sumsSize(at[numSections])) && off < int(bodyStart(at[numSections]))
}
