package fuseunion

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"path"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// rawHeader is a header block with its checksum right, whatever is in it.
func rawHeader(name, link string, typ byte, size int64, edit func(b []byte)) []byte {
	b := make([]byte, tarBlock)
	copy(b[:100], name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "14524366400\x00")
	b[156] = typ
	copy(b[157:257], link)
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&(tarBlock-1))...) }

// checkLayers holds what is true of any layers: an error of one line, or a tree that
// is sound.
func checkLayers(t *testing.T, tars ...[]byte) {
	t.Helper()
	opt := IndexOptions{MaxNodes: 5000, MaxNameBytes: 1 << 20, MaxXattrBytes: 1 << 20, MaxExtents: 10000}
	dir := t.TempDir()
	var layers []Layer
	var data []string
	for i, b := range tars {
		var index bytes.Buffer
		if _, err := IndexTar(bytes.NewReader(b), io.Discard, &index, opt); err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of two lines: %q", err)
			}
			return
		}
		l := Layer{Data: path.Join(dir, fmt.Sprint("data", i)), Index: path.Join(dir, fmt.Sprint("index", i))}
		writeFiles(t, l.Data, b, l.Index, index.Bytes())
		layers, data = append(layers, l), append(data, l.Data)
	}
	var out bytes.Buffer
	if err := MergeTree(layers, &out); err != nil {
		if strings.Contains(err.Error(), ErrDamaged.Error()+":") {
			t.Fatal(err)
		}
		return
	}
	tree := path.Join(dir, "tree")
	writeFiles(t, tree, out.Bytes())
	readAll(t, tree, data, true)
	checkTree(t, tree, data)
}

// checkTree holds what is true of every tree: names that a file system can have,
// sorted, and link counts that are the numbers of names.
func checkTree(t *testing.T, tree string, data []string) {
	t.Helper()
	open, err := OpenTree(tree, data)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	links := map[uint64]uint32{}
	want := map[uint64]uint32{}
	last := map[string]string{}
	if err := open.Walk(func(name string, st Stat) error {
		dir, base := path.Split(name)
		if name != "" && (base == "" || base == "." || base == ".." || len(base) > maxName || strings.IndexByte(base, 0) >= 0) {
			t.Errorf("name %q", name)
		}
		if before, ok := last[dir]; ok && before >= base {
			t.Errorf("%q comes after %q", base, before)
		}
		last[dir] = base
		want[st.Ino] = st.Nlink
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			links[st.Ino] += 2
			if name != "" {
				up, err := open.Lstat(dir)
				if err != nil {
					return err
				}
				links[up.Ino]++
			}
		} else {
			links[st.Ino]++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for ino, n := range want {
		if links[ino] != n {
			t.Errorf("inode %d has %d links and says %d", ino, links[ino], n)
		}
	}
}

// FuzzEntries makes two layers of any names and types: each line of the input is a
// type, a name and, behind a tab, a link's target. An empty line begins the second.
func FuzzEntries(f *testing.F) {
	for _, s := range []string{
		"0a\n0.wh.a\n\n0.wh.a\n0a/b", "5d\n0d/x\n2l\td\n\n0l/y\n0d/.wh..wh..opq", "0.wh.\n0.wh..\n0.wh...\n0.wh..wh.x\n0.wh..wh..opq/a",
		"2a\tb\n2b\ta\n0a/x", "2a\t../../..\n0a/b/c\n1h\ta/b/c\n1h\th", "0a\n5a\n0a/b\n0a\n5a\n\n1x\ta\n1a\tx",
		"0./a\n0/b\n0c/../d\n0../e", "2l\t" + strings.Repeat("d/", 90) + "\n0l/l/l/x\n2" + strings.Repeat("d/", 45) + "l\t../l", "1a\ta\n1b\t/\n1c\t.", "6p\n3c\n4b\n7x\nZz\n0\n5.\n2.\tx",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		layers := [2][]byte{}
		at := 0
		for line := range strings.SplitSeq(s, "\n") {
			if line == "" {
				at = 1
				continue
			}
			name, link, _ := strings.Cut(line[1:], "\t")
			body := []byte(nil)
			if line[0] == '0' {
				body = []byte(name)
			}
			// Names that do not fit go into GNU long name entries.
			for typ, long := range map[byte]string{'L': name, 'K': link} {
				if len(long) > 99 {
					layers[at] = append(layers[at], rawHeader("././@LongLink", "", typ, int64(len(long)+1), nil)...)
					layers[at] = append(layers[at], pad([]byte(long+"\x00"))...)
				}
			}
			layers[at] = append(layers[at], rawHeader(name, link, line[0], int64(len(body)), nil)...)
			layers[at] = append(layers[at], pad(body)...)
		}
		end := make([]byte, 2*tarBlock)
		checkLayers(t, append(layers[0], end...), append(layers[1], end...))
	})
}

// FuzzPAX puts any bytes into a PAX header, and a file behind it.
func FuzzPAX(f *testing.F) {
	record := func(k, v string) string {
		for n := len(k) + len(v) + 3; ; n++ {
			if s := fmt.Sprintf("%d %s=%s\n", n, k, v); len(s) == n {
				return s
			}
		}
	}
	sparse := record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1") + record("GNU.sparse.size", "1000") + record("GNU.sparse.numblocks", "2")
	for _, s := range []string{
		record("path", "a/b") + record("uid", "70000") + record("mtime", "1.5"), record("size", "5"), record("size", "-1"), record("size", "9223372036854775807"),
		record("SCHILY.xattr.user.a", "b\x00c") + record("SCHILY.xattr.", "x"), sparse + record("GNU.sparse.map", "0,3,900,2"), sparse + record("GNU.sparse.map", "0,3,1,2"),
		record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "100000") + record("GNU.sparse.name", "x"),
		record("linkpath", "../x") + record("path", ""), record("path", strings.Repeat("x/", 3000)), record("mtime", "-9999999999999999.9"), record("GNU.sparse.map", "1,"), "5 a=\n", "0 \n",
	} {
		f.Add([]byte(s), []byte("hello"), byte('0'))
		f.Add([]byte(s), []byte("2\n0\n3\n900\n2\n"), byte('0'))
	}
	f.Fuzz(func(t *testing.T, pax, body []byte, typ byte) {
		var b []byte
		b = append(b, rawHeader("pax", "", 'x', int64(len(pax)), nil)...)
		b = append(b, pad(pax)...)
		b = append(b, rawHeader("f", "l", typ, int64(len(body)), nil)...)
		b = append(b, pad(body)...)
		b = append(b, rawHeader("after", "", '0', 0, nil)...)
		checkLayers(t, append(b, make([]byte, 2*tarBlock)...))
	})
}

// FuzzHeader puts any bytes into a header block, its checksum being right, and into what follows.
func FuzzHeader(f *testing.F) {
	gnu := rawHeader("s", "", tar.TypeGNUSparse, 5, func(b []byte) {
		copy(b[257:], "ustar  \x00")
		copy(b[386:], "00000000000\x0000000000003\x0000000001604\x0000000000002\x00")
		copy(b[483:], "00000001750\x00")
	})
	f.Add(gnu, []byte("abcde"))
	f.Add(rawHeader("s", "", '0', 5, func(b []byte) { copy(b[124:], "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05") }), []byte("abcde"))
	f.Add(rawHeader("L", "", 'L', 3, nil), append(pad([]byte("x/y")), rawHeader("f", "", '0', 0, nil)...))
	f.Add(rawHeader("g", "", 'g', 13, nil), append(pad([]byte("13 comment=x\n")), rawHeader("f", "", '0', 0, nil)...))
	f.Add(rawHeader("c", "", '3', 0, func(b []byte) { copy(b[329:], "0000001\x000000003\x00") }), []byte(nil))
	f.Fuzz(func(t *testing.T, head, rest []byte) {
		b := rawHeader("", "", 0, 0, func(b []byte) { clear(b); copy(b, head) })
		checkLayers(t, append(pad(append(b, rest...)), make([]byte, 2*tarBlock)...))
	})
}

// FuzzServe sends any bytes to the server, as one request after another, of which
// each has its length put right: nothing may panic, nor answer with more than fits.
func FuzzServe(f *testing.F) {
	dir := f.TempDir()
	file2, data, err := writeTree(dir, makeTar(
		f, file("d/a", "content"), hardlink("b", "d/a"), symlink("l", "d"), ent{name: "x", xattrs: map[string]string{"user.a": "b", "security.capability": "c"}},
	))
	if err != nil {
		f.Fatal(err)
	}
	tree, err := OpenTree(file2, data)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { tree.Close() })
	le := binary.LittleEndian
	request := func(op uint32, node uint64, body ...byte) []byte {
		b := make([]byte, 40, 40+len(body))
		le.PutUint32(b[4:], op)
		le.PutUint64(b[8:], 1)
		le.PutUint64(b[16:], node)
		return append(b, body...)
	}
	words := func(w ...uint64) (b []byte) {
		for _, x := range w {
			b = le.AppendUint64(b, x)
		}
		return b
	}
	read := func(off, size uint64) []byte { return words(0, off, size, 0, 0) }
	for _, s := range [][]byte{
		request(26, 0, words(7|40<<32, 1<<20|0xffffffff<<32, 0, 0, 0, 0, 0, 0)...), // INIT
		request(1, 1, []byte("d\x00")...), request(1, 1, []byte("nothing\x00")...), request(1, 3, []byte("a\x00")...), request(1, 1, []byte(strings.Repeat("x", 300))...),
		request(3, 1, words(0, 0)...), request(3, 99, words(0, 0)...), request(5, 4), request(5, 1), request(15, 6, read(0, 4096)...), request(15, 6, read(5, 1<<40)...),
		request(28, 1, read(0, 4096)...), request(44, 1, read(0, 4096)...), request(44, 1, read(3, 100)...), request(28, 1, read(^uint64(0), 1<<32-1)...), request(17, 1),
		request(22, 5, append(words(64), "user.a\x00"...)...), request(23, 5, words(64)...), request(23, 5, words(0)...), request(14, 6, words(0)...), request(46, 6, words(0, 0, 4)...),
		request(2, 6, words(1)...), request(36, 0, words(1)...), request(42, 0, words(1, 6)...), request(16, 6, append(words(0, 0, 3, 0, 0), "abc"...)...), request(9, 1, append(words(0), "n\x00"...)...),
		request(47, 1, words(0, 0, 1, 0, 0, 0, 0)...), request(52, 6, make([]byte, 24)...), request(39, 6, make([]byte, 32)...), request(38, 0),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		opt := &fuse.MountOptions{
			MaxWrite: maxRequest, Logger: log.New(io.Discard, "", 0),
			PanicHandler: func(p any) fuse.Status {
				t.Errorf("panic: %v\n%s", p, debug.Stack())
				return fuse.EIO
			},
		}
		fs := newRawFS(tree, ServeOptions{})
		ps := fuse.NewProtocolServer(fs, opt)
		out := make([]byte, 64<<10)
		if len(b) < 40 {
			b = append(b, make([]byte, 40-len(b))...)
		}
		le.PutUint32(b, uint32(len(b)))
		n, _ := ps.HandleRequest([][]byte{b}, [][]byte{out})
		if n > len(out) || n > 0 && (n < 16 || int(le.Uint32(out)) != n) {
			t.Errorf("an answer of %d bytes that says %d", n, le.Uint32(out))
		}
		// Requests that are taken apart here get the same answers; INTERRUPT gets none.
		mine := bytes.Repeat([]byte{0xee}, len(out))
		h := hot{fs: fs, failed: opt.PanicHandler}
		m, ok := h.answer(b, mine)
		if ok && le.Uint32(b[4:]) != opInterrupt && !bytes.Equal(mine[:m], out[:n]) {
			t.Errorf("request %x\nanswer      %x\nof go-fuse  %x", b, mine[:m], out[:n])
		}
	})
}

// FuzzMergeIndexes changes bytes of the index of a layer, makes the checksums right
// again, and merges it between two sound ones.
func FuzzMergeIndexes(f *testing.F) {
	index := func(ents ...ent) []byte {
		var b bytes.Buffer
		if _, err := IndexTar(bytes.NewReader(makeTar(f, ents...)), io.Discard, &b, IndexOptions{}); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	low := index(dir("d"), file("d/a", "1"), symlink("l", "d"), file("x", "2"))
	mid := index(file("d/b", "1"), file("l/c", "2"), file(".wh.x", ""), hardlink("h", "d/a"), ent{name: "y", xattrs: map[string]string{"user.a": "b"}}, file("d/.wh..wh..opq", ""))
	r := rand.New(rand.NewPCG(1, 1))
	for range 5 {
		b := make([]byte, 12)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := bytes.Clone(mid)
		h, _, err := decodeHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := h.sections()
		content := b[bodyStart(at[numSections]):]
		for ; len(edits) >= 3; edits = edits[3:] {
			content[int(binary.LittleEndian.Uint16(edits))%len(content)] ^= edits[2]
		}
		resum(b)
		dir := t.TempDir()
		writeFiles(t, path.Join(dir, "low"), low, path.Join(dir, "mid"), b)
		l, m := Layer{Index: path.Join(dir, "low")}, Layer{Index: path.Join(dir, "mid")}
		if err := MergeTree([]Layer{l, m, l}, io.Discard); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("an error of two lines: %q", err)
		}
	})
}
