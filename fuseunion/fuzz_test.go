package fuseunion

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzIndexTar holds that any bytes give an error or an index that merges and can
// be read through, and that what was read was copied.
func FuzzIndexTar(f *testing.F) {
	f.Add(makeTar(f, dir("d"), file("d/a", "x"), hardlink("b", "d/a"), symlink("l", "d"), file(".wh.x", ""), file("d/.wh..wh..opq", "")))
	f.Add(makeTar(f, ent{name: "x", xattrs: map[string]string{"user.a": "b"}, mode: 0o4755}, file(strings.Repeat("long/", 60)+"n", "y")))
	addSparse(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var data, index bytes.Buffer
		opt := IndexOptions{MaxNodes: 10000}
		if _, err := IndexTar(bytes.NewReader(b), &data, &index, opt); err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of two lines: %q", err)
			}
			return
		}
		if !bytes.Equal(data.Bytes(), b) {
			t.Fatalf("%d of %d bytes copied", data.Len(), len(b))
		}
		dir := t.TempDir()
		l := Layer{Data: filepath.Join(dir, "data"), Index: filepath.Join(dir, "index")}
		writeFiles(t, l.Data, b, l.Index, index.Bytes())
		var out bytes.Buffer
		if err := MergeTree([]Layer{l, l}, &out); err != nil {
			if errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return // a hard link to nothing, for one
		}
		tree := filepath.Join(dir, "tree")
		writeFiles(t, tree, out.Bytes())
		readAll(t, tree, []string{l.Data, l.Data}, true)
	})
}

func addSparse(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s"), []byte("start"), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "s"), 1<<20); err != nil {
		f.Fatal(err)
	}
	for _, args := range [][]string{{"--format=gnu"}, {"--format=posix"}, {"--format=posix", "--sparse-version=0.0"}} {
		if b, err := exec.Command("tar", append(args, "-S", "-C", dir, "-cf", "-", "s")...).Output(); err == nil {
			f.Add(b)
		}
	}
}

func writeFiles(t testing.TB, pathsAndBytes ...any) {
	t.Helper()
	for i := 0; i < len(pathsAndBytes); i += 2 {
		if err := os.WriteFile(pathsAndBytes[i].(string), pathsAndBytes[i+1].([]byte), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// readAll reads a tree through. A tree that is not sound must give errors alone.
func readAll(t *testing.T, path string, data []string, sound bool) {
	t.Helper()
	tree, err := OpenTree(path, data)
	if err != nil {
		if sound {
			t.Fatal(err)
		}
		return
	}
	defer func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}()
	names := 0
	err = tree.Walk(func(name string, st Stat) error {
		if names++; names > 5000 {
			return nil
		}
		var errs []error
		b := make([]byte, 1000)
		for _, off := range []int64{0, st.Size / 2, st.Size - 1} {
			if _, err := tree.ReadAt(st.Ino, b, max(off, 0)); err != nil && st.Mode>>12 == 8 {
				errs = append(errs, err)
			}
		}
		if _, err := tree.Readlink(st.Ino); err != nil && st.Mode>>12 == 10 {
			errs = append(errs, err)
		}
		if _, err := tree.Xattrs(st.Ino); err != nil {
			errs = append(errs, err)
		}
		if got, err := tree.Lstat(name); err != nil || got.Ino != st.Ino {
			errs = append(errs, errors.Join(errors.New("lookup differs from the walk"), err))
		}
		if err := errors.Join(errs...); err != nil && sound {
			t.Fatalf("%q: %v", name, err)
		}
		return nil
	})
	if err != nil && sound {
		t.Fatal(err)
	}
}

// resum makes the checksums of an index or tree right, if its header says sizes
// that it has.
func resum(b []byte) {
	le, table := binary.LittleEndian, castagnoli()
	le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], table))
	h, _, err := decodeHeader(b)
	if err != nil {
		return
	}
	at, ok := h.sections()
	if start := bodyStart(at[numSections]); ok && start < uint64(len(b)) {
		sums := b[headerSize : headerSize+sumsSize(at[numSections])]
		body := b[start:]
		if sumsSize(uint64(len(body))) == uint64(len(sums)) {
			blockSums(sums, [][]byte{body})
		}
		le.PutUint32(b[headerSize-8:], crc32.Checksum(sums, table))
	}
	le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], table))
}

// FuzzOpenTree changes bytes of a tree and makes the checksums right again: what
// no checksum finds must still not lead outside.
func FuzzOpenTree(f *testing.F) {
	dir := f.TempDir()
	path, data, err := writeTree(dir, makeTar(
		f, file("d/a", "x"), hardlink("b", "d/a"), symlink("l", "d"), ent{name: "x", xattrs: map[string]string{"user.a": "b"}}, file("d/e/f/g", "h"),
	), makeTar(f, file(".wh.b", ""), hardlink("c", "d/a")))
	if err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 0, 0})
	f.Add(bytes.Repeat([]byte{0, 40, 0xff}, 20))
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := bytes.Clone(sound)
		h, _, err := decodeHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := h.sections()
		body := b[bodyStart(at[numSections]):]
		for ; len(edits) >= 3; edits = edits[3:] {
			if off := int(binary.LittleEndian.Uint16(edits)) % (len(body) + 60); off < len(body) {
				body[off] ^= edits[2]
			} else {
				b[12+off-len(body)] ^= edits[2]
			}
		}
		resum(b)
		tree := filepath.Join(t.TempDir(), "tree")
		writeFiles(t, tree, b)
		readAll(t, tree, data, false)

		// The same as the index of a layer.
		binary.LittleEndian.PutUint32(b[12:], kindLayer)
		resum(b)
		writeFiles(t, tree, b)
		var out bytes.Buffer
		if err := MergeTree([]Layer{{Index: tree}}, &out); err == nil && out.Len() == 0 {
			t.Error("neither a tree nor an error")
		}
	})
}
