package fuseunion

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var testTime = time.Unix(1700000000, 123456789)

// ent is an entry of a test tar: the name's form says what it is unless typ does.
type ent struct {
	name         string
	typ          byte // default: directory if the name ends in a slash, else a file
	mode         int64
	uid, gid     int
	body         string
	link         string
	xattrs       map[string]string
	mtime        time.Time
	major, minor int64
}

func file(name, body string) ent      { return ent{name: name, body: body} }
func dir(name string) ent             { return ent{name: name + "/"} }
func symlink(name, target string) ent { return ent{name: name, typ: tar.TypeSymlink, link: target} }
func hardlink(name, target string) ent {
	return ent{name: name, typ: tar.TypeLink, link: target}
}

func (e ent) header() *tar.Header {
	h := &tar.Header{
		Name: e.name, Typeflag: e.typ, Mode: e.mode, Uid: e.uid, Gid: e.gid, Linkname: e.link,
		ModTime: e.mtime, Devmajor: e.major, Devminor: e.minor, Size: int64(len(e.body)), Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if e.name[len(e.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		if h.Mode = 0o644; h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = testTime
	}
	for k, v := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

func makeTar(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		if err := w.WriteHeader(e.header()); err != nil {
			t.Fatalf("entry %q: %v", e.name, err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// writeLayer indexes a tar into a directory.
func writeLayer(dir string, tarball []byte) (Layer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Layer{}, err
	}
	l := Layer{Data: filepath.Join(dir, "data"), Index: filepath.Join(dir, "index")}
	var data, index bytes.Buffer
	if _, err := IndexTar(bytes.NewReader(tarball), &data, &index, IndexOptions{}); err != nil {
		return l, err
	}
	if !bytes.Equal(data.Bytes(), tarball) {
		return l, fmt.Errorf("data differs from the tar")
	}
	if err := os.WriteFile(l.Data, data.Bytes(), 0o644); err != nil {
		return l, err
	}
	return l, os.WriteFile(l.Index, index.Bytes(), 0o644)
}

// writeTree merges tars into dir/tree and returns the paths of their data.
func writeTree(dir string, tars ...[]byte) (tree string, data []string, err error) {
	var layers []Layer
	for i, b := range tars {
		l, err := writeLayer(filepath.Join(dir, fmt.Sprintf("layer%d", i)), b)
		if err != nil {
			return "", nil, err
		}
		layers, data = append(layers, l), append(data, l.Data)
	}
	tree = filepath.Join(dir, "tree")
	var b bytes.Buffer
	if err := MergeTree(layers, &b); err != nil {
		return "", nil, err
	}
	return tree, data, os.WriteFile(tree, b.Bytes(), 0o644)
}

func openTars(t testing.TB, tars ...[]byte) *Tree {
	t.Helper()
	path, data, err := writeTree(t.TempDir(), tars...)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(path, data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// listing describes a tree, a line for each node.
func listing(t testing.TB, tree *Tree) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := tree.Walk(func(name string, st Stat) error {
		line := fmt.Sprintf("/%s %o %d:%d n%d", name, st.Mode, st.UID, st.GID, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b := make([]byte, st.Size)
			if _, err := tree.ReadAt(st.Ino, b, 0); err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		case unix.S_IFLNK:
			s, err := tree.Readlink(st.Ino)
			if err != nil {
				return err
			}
			line += " -> " + s
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		xs, err := tree.Xattrs(st.Ino)
		if err != nil {
			return err
		}
		if len(xs) > 0 {
			line += fmt.Sprintf(" %q", xs)
		}
		if f, ok := first[st.Ino]; ok {
			line += " = " + f
		} else if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			first[st.Ino] = "/" + name
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// testSeed is the seed of random cases: always the same, for tests that tell of a change and not of luck; another by
// URUN_SEED.
func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	if v := os.Getenv("URUN_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("URUN_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("URUN_SEED=%d", seed)
	return seed
}
