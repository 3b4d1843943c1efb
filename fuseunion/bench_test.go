package fuseunion

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// benchTar is a layer of n files, about as many directories as an image has, and
// bodies of size bytes.
func benchTar(b *testing.B, n, size int) []byte {
	ents := make([]ent, 0, n)
	for i := range n {
		ents = append(ents, ent{
			name: fmt.Sprintf("usr/share/package-%03d/dir-%02d/file-with-some-name-%d", i%400, i%16, i),
			body: strings.Repeat("x", size), mtime: testTime.Truncate(1e9),
		})
	}
	return makeTar(b, ents...)
}

func BenchmarkIndexTar(b *testing.B) {
	for _, c := range []struct{ n, size int }{{50_000, 0}, {50_000, 4000}, {20, 10 << 20}} {
		b.Run(fmt.Sprintf("%dx%d", c.n, c.size), func(b *testing.B) {
			tarball := benchTar(b, c.n, c.size)
			b.SetBytes(int64(len(tarball)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := IndexTar(bytes.NewReader(tarball), io.Discard, io.Discard, IndexOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchLayers(b *testing.B) []Layer {
	l, err := writeLayer(b.TempDir(), benchTar(b, 50_000, 10))
	if err != nil {
		b.Fatal(err)
	}
	return []Layer{l}
}

func BenchmarkMergeTree(b *testing.B) {
	layers := benchLayers(b)
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("%d layers", n), func(b *testing.B) {
			all := layers
			for range n - 1 {
				all = append(all, layers[0])
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := MergeTree(all, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchTree(b *testing.B) (path string, data []string) {
	path, data, err := writeTree(b.TempDir(), benchTar(b, 50_000, 10))
	if err != nil {
		b.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d bytes a node", fi.Size()/50_000)
	return path, data
}

func BenchmarkOpenTree(b *testing.B) {
	path, data := benchTree(b)
	for b.Loop() {
		t, err := OpenTree(path, data)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := t.ReadFile("usr/share/package-007/dir-07/file-with-some-name-7", 100); err != nil {
			b.Fatal(err)
		}
		if err := t.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	path, data := benchTree(b)
	t, err := OpenTree(path, data)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := t.Lstat("usr/share/package-007/dir-07/file-with-some-name-7"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	path, data := benchTree(b)
	t, err := OpenTree(path, data)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	for b.Loop() {
		if err := t.Verify(); err != nil {
			b.Fatal(err)
		}
	}
}
