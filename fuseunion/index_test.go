package fuseunion

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

func TestIndexTarCopiesTheTarAndIndexesIt(t *testing.T) {
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff"
	for _, c := range []struct {
		name string
		ents []ent
		want []string
	}{
		{"an empty archive is an empty root", nil, []string{"/ 40755 0:0 n2"}},
		{"the root entry gives the root's metadata", []ent{{name: "./", mode: 0o700, uid: 5}}, []string{"/ 40700 5:0 n2"}},
		{"names with ./ and doubled slashes are cleaned", []ent{dir("./a"), file("./a/./b", "x"), file("a//c", "y")}, []string{
			"/ 40755 0:0 n3", "/a 40755 0:0 n2", `/a/b 100644 0:0 n1 "x"`, `/a/c 100644 0:0 n1 "y"`,
		}},
		{"missing parents are made up", []ent{file("a/b/c", "x")}, []string{
			"/ 40755 0:0 n3", "/a 40755 0:0 n3", "/a/b 40755 0:0 n2", `/a/b/c 100644 0:0 n1 "x"`,
		}},
		{"a directory listed after its entries takes its metadata", []ent{file("a/b", "x"), {name: "a/", mode: 0o1777, gid: 7}}, []string{
			"/ 40755 0:0 n3", "/a 41777 0:7 n2", `/a/b 100644 0:0 n1 "x"`,
		}},
		{"a repeated directory takes the last metadata", []ent{{name: "a/", mode: 0o700}, {name: "a/", mode: 0o711, uid: 9}}, []string{
			"/ 40755 0:0 n3", "/a 40711 9:0 n2",
		}},
		{"every type is kept", []ent{
			{name: "setuid", mode: 0o4755, uid: 1, gid: 2},
			symlink("link", "/nowhere"),
			{name: "null", typ: tar.TypeChar, major: 1, minor: 3, mode: 0o666},
			{name: "disk", typ: tar.TypeBlock, major: 259, minor: 70000, mode: 0o660},
			{name: "fifo", typ: tar.TypeFifo},
		}, []string{
			"/ 40755 0:0 n2", "/disk 60660 0:0 n1 259:70000", "/fifo 10644 0:0 n1", "/link 120777 0:0 n1 -> /nowhere",
			"/null 20666 0:0 n1 1:3", `/setuid 104755 1:2 n1 ""`,
		}},
		{"hard links share an inode", []ent{file("a", "x"), hardlink("b", "a"), hardlink("d/c", "./b"), hardlink("e", "/a")}, []string{
			"/ 40755 0:0 n3", `/a 100644 0:0 n4 "x"`, `/b 100644 0:0 n4 "x" = /a`, "/d 40755 0:0 n2",
			`/d/c 100644 0:0 n4 "x" = /a`, `/e 100644 0:0 n4 "x" = /a`,
		}},
		{"a hard link to a symbolic link is one", []ent{symlink("a", "t"), hardlink("b", "a")}, []string{
			"/ 40755 0:0 n2", "/a 120777 0:0 n2 -> t", "/b 120777 0:0 n2 -> t = /a",
		}},
		{"extended attributes are kept as they are", []ent{{name: "a", xattrs: map[string]string{
			"user.x": "1\x002", "security.capability": "\x01\x02", "system.posix_acl_access": acl,
		}}}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n1 "" map["security.capability":"\x01\x02" "system.posix_acl_access":` +
				fmt.Sprintf("%q", acl) + ` "user.x":"1\x002"]`,
		}},
		{"odd names are kept", []ent{file("\xff\xfe", "1"), file("a\nb", "2"), file(strings.Repeat("x", 255), "3"), file(" ", "4")}, []string{
			"/ 40755 0:0 n2", `/  100644 0:0 n1 "4"`, "/a\nb 100644 0:0 n1 \"2\"", "/" + strings.Repeat("x", 255) + ` 100644 0:0 n1 "3"`,
			"/\xff\xfe 100644 0:0 n1 \"1\"",
		}},
		{"names are relative to the root, however they are written", []ent{dir("/"), file("/a", "1"), file("./b", "2"), file("c/../d", "3"), hardlink("//e", "x/../a")}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n2 "1"`, `/b 100644 0:0 n1 "2"`, `/d 100644 0:0 n1 "3"`, `/e 100644 0:0 n2 "1" = /a`,
		}},
		{"a name given twice is the last", []ent{file("a", "1"), file("./a", "22"), symlink("b", "x"), file("b", "3"), {name: "c", typ: tar.TypeFifo}, symlink("c", "y")}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n1 "22"`, `/b 100644 0:0 n1 "3"`, "/c 120777 0:0 n1 -> y",
		}},
		{"a file takes the place of a directory and of all in it", []ent{file("a/b/c", "1"), file("a/.wh.x", ""), hardlink("d", "a/b/c"), file("a", "2")}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n1 "2"`, `/d 100644 0:0 n1 "1"`,
		}},
		{"a directory takes the place of a link", []ent{symlink("a", "/b"), dir("a"), file("a/x", "1")}, []string{
			"/ 40755 0:0 n3", "/a 40755 0:0 n2", `/a/x 100644 0:0 n1 "1"`,
		}},
		{"a name given again leaves the other hard links alone", []ent{file("a", "1"), hardlink("b", "a"), hardlink("c", "a"), file("a", "2"), hardlink("b", "a"), hardlink("b", "b")}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n2 "2"`, `/b 100644 0:0 n2 "2" = /a`, `/c 100644 0:0 n1 "1"`,
		}},
		{"names lead through links of their own layer", []ent{
			dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/a", "1"), symlink("usr/up", ".."), file("usr/up/usr/lib/b", "2"), symlink("m", "/new/dir"), file("m/c", "3"),
			hardlink("d", "lib/a"), file("lib/.wh.gone", ""),
		}, []string{
			"/ 40755 0:0 n4", `/d 100644 0:0 n2 "1"`, "/lib 120777 0:0 n1 -> usr/lib", "/m 120777 0:0 n1 -> /new/dir", "/new 40755 0:0 n3", "/new/dir 40755 0:0 n2",
			`/new/dir/c 100644 0:0 n1 "3"`, "/usr 40755 0:0 n3", "/usr/lib 40755 0:0 n2", `/usr/lib/a 100644 0:0 n2 "1" = /d`, `/usr/lib/b 100644 0:0 n1 "2"`, "/usr/up 120777 0:0 n1 -> ..",
		}},
		{"links that lead out of the root end at it", []ent{symlink("l", "../../.."), file("l/etc/passwd", "x")}, []string{
			"/ 40755 0:0 n3", "/etc 40755 0:0 n2", `/etc/passwd 100644 0:0 n1 "x"`, "/l 120777 0:0 n1 -> ../../..",
		}},
		{"the table of contents of eStargz is left out", []ent{file("a", "1"), file(".no.prefetch.landmark", "\xf0"), file("d/stargz.index.json", "2"), file("stargz.index.json", "{}")}, []string{
			"/ 40755 0:0 n3", `/a 100644 0:0 n1 "1"`, "/d 40755 0:0 n2", `/d/stargz.index.json 100644 0:0 n1 "2"`,
		}},
		{"a file that only has the name of one is not", []ent{file("stargz.index.json", "{}"), file(".prefetch.landmark", "")}, []string{
			"/ 40755 0:0 n2", `/.prefetch.landmark 100644 0:0 n1 ""`, `/stargz.index.json 100644 0:0 n1 "{}"`,
		}},
		{"aufs bookkeeping is left out", []ent{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("a", "")}, []string{
			"/ 40755 0:0 n2", `/a 100644 0:0 n1 ""`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := listing(t, openTars(t, makeTar(t, c.ents...)))
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestTimesKeepTheirNanoseconds(t *testing.T) {
	tree := openTars(t, makeTar(t, file("a", "")))
	st, err := tree.Lstat("a")
	if err != nil || !st.Mtime.Equal(testTime) {
		t.Errorf("mtime %v, %v", st.Mtime, err)
	}
}

func TestLongPathsAreKept(t *testing.T) {
	long := strings.Repeat(strings.Repeat("d", 200)+"/", 20) + "file" // 4024 bytes
	st, err := openTars(t, makeTar(t, file(long, "x"))).Lstat(long)
	if err != nil || st.Size != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}

// rawTar writes headers that archive/tar's writer refuses.
func rawTar(t testing.TB, edit func(block []byte), ents ...ent) []byte {
	b := makeTar(t, ents...)
	block := b[len(b)-1024-512:]
	if body := len(ents[len(ents)-1].body); body > 0 {
		block = b[len(b)-1024-(body+511)/512*512-512:]
	}
	block = block[:512]
	edit(block)
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHostileTarsAreRefused(t *testing.T) {
	plain := func(ents ...ent) []byte { return makeTar(t, ents...) }
	edit := func(e ent, fn func(b []byte)) []byte { return rawTar(t, fn, e) }
	for _, c := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"a name with ..", plain(file("a/../../etc/passwd", "")), "out of the root"},
		{"a root that is a file", plain(ent{name: "./.", typ: tar.TypeReg}), "root is not a directory"},
		{"a root that is a link", plain(symlink("./", "/etc")), "root is not a directory"},
		{"a hard link out of the root", plain(hardlink("a", "../../etc/shadow")), "out of the root"},
		{"a hard link to a directory", plain(dir("d"), hardlink("a", "d")), "a directory"},
		{"a hard link to the root", plain(hardlink("a", "/")), "a directory"},
		{"a hard link to itself", plain(hardlink("a", "a")), "no such entry"},
		{"a hard link to nothing", plain(hardlink("a", "b")), "no such entry"},
		{"a hard link to a later entry", plain(hardlink("a", "b"), file("b", "")), "no such entry"},
		{"a name through links that lead around", plain(symlink("l", "m"), symlink("m", "l"), file("l/x", "")), "too many levels"},
		{"links that nest deeper than any path", plain(
			dir(strings.Repeat("d/", 2000)+"e"), symlink("l", strings.Repeat("d/", 2000)), file("l/"+strings.Repeat("x/", 200)+"f", ""),
		), "nested more than 2048 deep"},
		{"a link with a component that is too long, gone through", plain(symlink("l", strings.Repeat("x", 256)), file("l/f", "")), "name too long"},
		{"a name through a file", plain(file("f", ""), file("f/x", "")), "not a directory in the same layer"},
		{"a name component that is too long", plain(file(strings.Repeat("x", 256), "")), "longer than 255"},
		{"a path that is too long", plain(file(strings.Repeat("x/", 2100), "")), "longer than 4096"},
		{"a link to nowhere at all", edit(symlink("a", "b"), func(b []byte) { b[157] = 0 }), "symbolic link to"},
		{"a link that is too long", plain(symlink("a", strings.Repeat("x", 4096))), "symbolic link to"},
		{"a whiteout of no name", plain(file("a/.wh.", "")), "whiteout of no name"},
		{"a whiteout of .", plain(file("a/.wh..", "")), "whiteout of no name"},
		{"a whiteout of ..", plain(file("a/.wh...", "")), "whiteout of no name"},
		{"an entry below a whiteout", plain(file(".wh.a/b", "")), "below a whiteout"},
		{"an unknown type", edit(file("a", ""), func(b []byte) { b[156] = 'Z' }), "type flag 'Z' is not known"},
		{"a negative size", edit(file("a", ""), func(b []byte) { copy(b[124:136], bytes.Repeat([]byte{0xff}, 12)) }), "invalid tar header"},
		{"a negative owner", edit(file("a", ""), func(b []byte) { copy(b[108:116], bytes.Repeat([]byte{0xff}, 8)) }), "owner -1:0 is out of range"},
		{"an owner that is (uid_t)-1", plain(ent{name: "a", uid: 1<<32 - 1}), "out of range"},
		{"a device number out of range", edit(ent{name: "a", typ: tar.TypeChar, major: 1}, func(b []byte) { copy(b[329:337], "7777777\x00") }), "device number"},
		{"a negative device number", edit(ent{name: "a", typ: tar.TypeChar, major: 1}, func(b []byte) { copy(b[329:337], bytes.Repeat([]byte{0xff}, 8)) }), "device number"},
		{"a checksum that is wrong", func() []byte { b := plain(file("a", "")); b[len(b)-1536]++; return b }(), "invalid tar header"},
		{"an archive cut in a file", plain(file("a", strings.Repeat("x", 2000)))[:2000], "unexpected EOF"},
		{"an archive cut in a header", plain(file("a", ""))[:700], "unexpected EOF"},
		{"an archive cut in padding", func() []byte { b := plain(file("a", "xyz")); return b[:len(b)-1024-100] }(), "unexpected EOF"},
		{"no archive at all", bytes.Repeat([]byte("not a tar "), 1000), "invalid tar header"},
		{"an attribute that is too large", plain(ent{name: "a", xattrs: map[string]string{"user.x": strings.Repeat("x", 70000)}}), "extended attribute"},
		{"an attribute name that is too long", plain(ent{name: "a", xattrs: map[string]string{"user." + strings.Repeat("x", 300): "1"}}), "extended attribute"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := writeTree(t.TempDir(), c.tar)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want a line with %q", err, c.want)
			}
		})
	}
}

func TestLimitsStopBombs(t *testing.T) {
	var ents []ent
	for i := range 100 {
		ents = append(ents, ent{name: fmt.Sprintf("name%d", i), xattrs: map[string]string{"user.x": strings.Repeat("x", 100)}})
	}
	deep := file(strings.Repeat("d/", 2000)+"f", "")
	for _, c := range []struct {
		ents []ent
		opt  IndexOptions
		want string
	}{
		{ents, IndexOptions{MaxNodes: 50}, "more than 50 names"},
		{[]ent{deep}, IndexOptions{MaxNodes: 1000}, "more than 1000 names"},
		{ents, IndexOptions{MaxNameBytes: 200}, "more than 200 bytes of names"},
		{ents, IndexOptions{MaxXattrBytes: 1000}, "more than 1000 bytes of extended attributes"},
	} {
		_, err := IndexTar(bytes.NewReader(makeTar(t, c.ents...)), io.Discard, io.Discard, c.opt)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestEveryByteOfTheTarIsReadAndCopied(t *testing.T) {
	tarball := append(makeTar(t, file("a", "x")), bytes.Repeat([]byte("garbage"), 1<<18)...)
	var data, index bytes.Buffer
	// One byte at a time: no result may hang on how the reader cuts its pieces.
	st, err := IndexTar(iotest.OneByteReader(bytes.NewReader(tarball)), &data, &index, IndexOptions{})
	if err != nil || !bytes.Equal(data.Bytes(), tarball) || st.TarBytes != int64(len(tarball)) {
		t.Errorf("%d of %d bytes copied, %+v, %v", data.Len(), len(tarball), st, err)
	}
	if want := (Stats{Nodes: 2, Names: 1, TarBytes: int64(len(tarball)), ContentBytes: 1}); st != want {
		t.Errorf("stats %+v, want %+v", st, want)
	}
}

func TestErrorsOfTheReaderAndTheWritersAreReturned(t *testing.T) {
	tarball := makeTar(t, file("a", strings.Repeat("x", 3<<20)))
	broken := errors.New("connection lost")
	src := io.MultiReader(bytes.NewReader(tarball[:2<<20]), iotest.ErrReader(broken))
	if _, err := IndexTar(src, io.Discard, io.Discard, IndexOptions{}); !errors.Is(err, broken) {
		t.Errorf("reader: %v", err)
	}
	src = io.MultiReader(bytes.NewReader(tarball), iotest.ErrReader(broken))
	if _, err := IndexTar(src, io.Discard, io.Discard, IndexOptions{}); !errors.Is(err, broken) {
		t.Errorf("reader behind the archive: %v", err)
	}
	full := writerFunc(func([]byte) (int, error) { return 0, unix.ENOSPC })
	if _, err := IndexTar(bytes.NewReader(tarball), full, io.Discard, IndexOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("data: %v", err)
	}
	if _, err := IndexTar(bytes.NewReader(tarball), io.Discard, full, IndexOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("index: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestSparseFilesOfGNUTarReadAsTheyWere(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar")
	}
	dir := t.TempDir()
	files := map[string][]byte{
		"hole-first": append(make([]byte, 1<<20), "end"...),
		"hole-last":  append([]byte("start"), make([]byte, 1<<20)...),
		"all-hole":   make([]byte, 1<<20),
		"dense":      bytes.Repeat([]byte("abc"), 10000),
		"empty":      nil,
	}
	many := make([]byte, 8<<20) // more pieces than fit into one header
	for i := 0; i < 100; i++ {
		copy(many[i*80<<10:], fmt.Sprintf("piece %d", i))
	}
	files["many"] = many
	for name, b := range files {
		writeSparse(t, filepath.Join(dir, name), b)
	}
	for _, format := range [][]string{
		{"--format=gnu"},
		{"--format=posix", "--sparse-version=0.0"},
		{"--format=posix", "--sparse-version=0.1"},
		{"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(strings.Join(format, " "), func(t *testing.T) {
			tarball, err := exec.Command("tar", append(format, "-S", "-C", dir, "-cf", "-", ".")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(tarball) > 2<<20 {
				t.Fatalf("the archive of %d bytes is not sparse", len(tarball))
			}
			tree := openTars(t, tarball)
			for name, want := range files {
				got, err := tree.ReadFile(name, 1<<30)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
				}
				checkReads(t, tree, name, want)
			}
		})
	}
}

func writeSparse(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(b); off += 4096 {
		if p := b[off:min(len(b), off+4096)]; len(bytes.Trim(p, "\x00")) > 0 {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkReads reads pieces of a file at awkward places.
func checkReads(t *testing.T, tree *Tree, name string, want []byte) {
	t.Helper()
	st, err := tree.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 4095, 70001} {
		for off := 0; off <= len(want); off += 40 << 10 {
			b := bytes.Repeat([]byte{0xaa}, size)
			n, err := tree.ReadAt(st.Ino, b, int64(off))
			if end := min(len(want), off+size); err != nil || !bytes.Equal(b[:n], want[off:end]) {
				t.Fatalf("%s: read %d at %d: %d, %v", name, size, off, n, err)
			}
		}
	}
}

func TestSparseMapsThatLieAreRefused(t *testing.T) {
	sparse := func(m string, size int, body string) []byte {
		var b bytes.Buffer
		records := ""
		for _, kv := range []string{
			"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.name=f", fmt.Sprintf("GNU.sparse.size=%d", size),
			fmt.Sprintf("GNU.sparse.numblocks=%d", (strings.Count(m, ",")+1)/2), "GNU.sparse.map=" + m,
		} {
			n := len(kv) + 3
			for len(fmt.Sprintf("%d %s\n", n, kv)) != n {
				n++
			}
			records += fmt.Sprintf("%d %s\n", n, kv)
		}
		x := rawTar(t, func(b []byte) { b[156] = 'x' }, ent{name: "pax", body: records})
		b.Write(x[:len(x)-1024])
		// A time without a fraction needs no PAX header, which would take the other's place.
		b.Write(makeTar(t, ent{name: "f", body: body, mtime: time.Unix(1, 0)}))
		return b.Bytes()
	}
	if _, _, err := writeTree(t.TempDir(), sparse("0,3,100,2", 200, "abcde")); err != nil {
		t.Errorf("a sound map: %v", err)
	}
	for _, c := range []struct{ name, m, body string }{
		{"pieces that overlap", "0,10,5,10", strings.Repeat("x", 20)},
		{"pieces out of order", "50,10,0,10", strings.Repeat("x", 20)},
		{"a piece behind the end", "0,1,190,20", strings.Repeat("x", 21)},
		{"a negative offset", "-5,10", strings.Repeat("x", 10)},
		{"a negative length", "5,-10", ""},
		{"an offset that overflows", "9223372036854775807,10", strings.Repeat("x", 10)},
		{"less than is stored", "0,5", strings.Repeat("x", 10)},
		{"more than is stored", "0,50", strings.Repeat("x", 10)},
		{"no numbers", "a,b", ""},
	} {
		if _, _, err := writeTree(t.TempDir(), sparse(c.m, 200, c.body)); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
}
