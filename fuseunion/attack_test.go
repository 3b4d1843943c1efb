package fuseunion

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// entriesReader gives a tar of n entries made one by one, without holding it.
type entriesReader struct {
	n, size int
	entry   func(i int) []byte
	buf     []byte
}

func (r *entriesReader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.size == r.n+1 {
			return 0, io.EOF
		}
		if r.size == r.n {
			r.buf = make([]byte, 2*tarBlock)
		} else {
			r.buf = r.entry(r.size)
		}
		r.size++
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// TestAttacksCostNoMoreThanTheirSize feeds tars that are meant to take time or memory out of proportion. What makes
// them dear in an unpacker or a careless index is quadratic: each would then take hours.
func TestAttacksCostNoMoreThanTheirSize(t *testing.T) {
	n := 20_000
	if m, err := strconv.Atoi(os.Getenv("URUN_STRESS_ENTRIES")); err == nil {
		n = m
	}
	for _, c := range []struct {
		name  string
		entry func(i int) []byte
		want  string // error, "" if it is a layer that is taken
	}{
		{"one directory of many names", func(i int) []byte { return rawHeader(fmt.Sprintf("d/%d", i), "", '0', 0, nil) }, ""},
		{"one name given again and again", func(int) []byte { return rawHeader("d/x", "", '0', 0, nil) }, ""},
		{"a directory that is replaced by a file again and again", func(i int) []byte { return rawHeader([]string{"d", "d/f", "d"}[i%3], "", "500"[i%3], 0, nil) }, ""},
		{"hard links through links to what is not there", func(i int) []byte {
			if i == 0 {
				return rawHeader("l", "a/b/c/d", '2', 0, nil)
			}
			return rawHeader(fmt.Sprint("h", i), "l/x", '1', 0, nil)
		}, "no such "},
		{"hard links to one file", func(i int) []byte {
			if i == 0 {
				return rawHeader("f", "", '0', 0, nil)
			}
			return rawHeader(fmt.Sprint("h", i), "f", '1', 0, nil)
		}, ""},
		{"whiteouts of one name", func(int) []byte { return rawHeader("d/.wh.x", "", '0', 0, nil) }, ""},
		{"names that differ only at their ends", func(i int) []byte { return rawHeader(strings.Repeat("x", 90)+strconv.Itoa(i), "", '0', 0, nil) }, ""},
		{"a million levels, one name each", func(i int) []byte {
			return rawHeader(fmt.Sprintf("%d/%d", i, i+1), fmt.Sprintf("../%d/%d", i+1, i+2), '2', 0, nil)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var index bytes.Buffer
			_, err := IndexTar(&entriesReader{n: n, entry: c.entry}, io.Discard, &index, IndexOptions{})
			runtime.ReadMemStats(&after)
			if err == nil {
				dir := t.TempDir()
				writeFiles(t, dir+"/index", index.Bytes())
				err = MergeTree([]Layer{{Index: dir + "/index"}}, io.Discard)
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			// 512 bytes of tar an entry; slices that double leave garbage behind.
			if got := int(after.TotalAlloc-before.TotalAlloc) / n; got > 5000 {
				t.Errorf("%d bytes were allocated for an entry", got)
			}
		})
	}
}

// TestBombsAreRefused feeds single entries that claim what is not there.
func TestBombsAreRefused(t *testing.T) {
	pax := func(body string) []byte {
		b := append(rawHeader("x", "", 'x', int64(len(body)), nil), pad([]byte(body))...)
		return append(append(b, rawHeader("f", "", '0', 0, nil)...), make([]byte, 1024)...)
	}
	deep := strings.Repeat("d/", 10_000) + "f"
	long := func(typ byte, s string) []byte {
		b := append(rawHeader("././@LongLink", "", typ, int64(len(s)), nil), pad([]byte(s))...)
		return append(append(b, rawHeader("f", "l", '0', 0, nil)...), make([]byte, 1024)...)
	}
	for name, b := range map[string][]byte{
		"10,000 levels":          long('L', deep),
		"a long name of 64 MiB":  long('L', strings.Repeat("x", 64<<20)),
		"a PAX header of 64 MiB": pax(strings.Repeat("9 a=bcde\n", 64<<20/9)),
		"a size of 8 EiB":        append(rawHeader("f", "", '0', 0, func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }), make([]byte, 1024)...),
		"a sparse file of 8 EiB with no map": append(rawHeader("f", "", 'S', 0, func(b []byte) {
			copy(b[257:], "ustar  \x00")
			copy(b[483:495], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
			b[482] = 1
		}), make([]byte, 1024)...),
		"a sparse map that never ends":           append(rawHeader("f", "", 'S', 0, func(b []byte) { copy(b[257:], "ustar  \x00"); b[482] = 1 }), bytes.Repeat(append(append([]byte("00000000000\x0000000000001\x00"), make([]byte, 480)...), 1, 0, 0, 0, 0, 0, 0, 0), 40_000)...),
		"a name with a NUL, by PAX":              pax("11 path=a\x00\n"),
		"an attribute whose name holds a NUL":    pax("25 SCHILY.xattr.a\x00b=cdef\n"),
		"nothing but headers before a file":      bytes.Repeat(append(rawHeader("x", "", 'x', 11, nil), pad([]byte("11 path=ab\n"))...), 20_000),
		"a PAX record that is longer than it is": pax("99999999999999999999 path=a\n"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := IndexTar(bytes.NewReader(b), io.Discard, io.Discard, IndexOptions{})
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want a line", err)
			}
		})
	}
	// Names that are odd and can be had are kept.
	tree := openTars(t, makeTar(t, dir("a"), file("a\nb", "1"), file("-rf", "2"), file("\x1b[31m", "3"), file("..a", "4"), file("a/...", "5")))
	for name, want := range map[string]string{"a\nb": "1", "-rf": "2", "\x1b[31m": "3", "..a": "4", "a/...": "5"} {
		if got, err := tree.ReadFile(name, 10); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
