package fuseunion

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// BenchmarkMount measures a mount of 50,000 files: its first answer, and a walk
// with a stat of everything, on the fresh mount and again.
func BenchmarkMount(b *testing.B) {
	if !inNamespaces(b) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		b.Fatal(err)
	}
	store := b.TempDir()
	if err := unix.Mount("tmpfs", store, "tmpfs", 0, ""); err != nil {
		b.Fatal(err)
	}
	defer unix.Unmount(store, unix.MNT_DETACH)
	tree, data, err := writeTree(store, benchTar(b, 50_000, 100))
	if err != nil {
		b.Fatal(err)
	}
	var first, fresh, warm, readFresh time.Duration
	for b.Loop() {
		base, err := os.MkdirTemp(store, "mount")
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		at, unmount := mountTree(b, base, tree, data)
		lstat(b, at+"/usr")
		first += time.Since(start)
		fresh += walkTime(b, at, false)
		warm += walkTime(b, at, false)
		readFresh += walkTime(b, at, true)
		unmount()
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(first), "ms-to-first-answer")
	b.ReportMetric(ms(fresh), "ms-walk-fresh")
	b.ReportMetric(ms(warm), "ms-walk-warm")
	b.ReportMetric(ms(readFresh), "ms-read-all-fresh")
}

func walkTime(b *testing.B, at string, read bool) time.Duration {
	start := time.Now()
	if err := filepath.WalkDir(at, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if read && d.Type().IsRegular() {
			_, err := os.ReadFile(p)
			return err
		}
		_, err = d.Info()
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkContent reads all files in order of their place, as tar does, and 4 KiB
// at random places: the first time, when chunks are checked, and again.
func BenchmarkContent(b *testing.B) {
	for _, c := range []struct{ n, size int }{{20_000, 6000}, {2, 64 << 20}} {
		path, data, err := writeTree(b.TempDir(), benchTar(b, c.n, c.size))
		if err != nil {
			b.Fatal(err)
		}
		var files []Stat
		list, err := OpenTree(path, data)
		if err != nil {
			b.Fatal(err)
		}
		if err := list.Walk(func(_ string, st Stat) error {
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				files = append(files, st)
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 128<<10)
		all := func(t *Tree) error {
			for _, st := range files {
				for off := int64(0); off < st.Size; off += int64(len(buf)) {
					if _, err := t.ReadAt(st.Ino, buf, off); err != nil {
						return err
					}
				}
			}
			return nil
		}
		random := func(t *Tree) error {
			r := rand.New(rand.NewPCG(1, 2))
			for range 5000 {
				st := files[r.IntN(len(files))]
				if _, err := t.ReadAt(st.Ino, buf[:4096], r.Int64N(st.Size)&^4095); err != nil {
					return err
				}
			}
			return nil
		}
		for name, pass := range map[string]func(*Tree) error{"all": all, "random": random} {
			b.Run(fmt.Sprintf("%dx%d/%s", c.n, c.size, name), func(b *testing.B) {
				var first, again time.Duration
				for b.Loop() {
					t, err := OpenTree(path, data)
					if err != nil {
						b.Fatal(err)
					}
					for i, into := range []*time.Duration{&first, &again} {
						start := time.Now()
						if err := pass(t); err != nil {
							b.Fatal(i, err)
						}
						*into += time.Since(start)
					}
					if err := t.Close(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(first.Microseconds())/1000/float64(b.N), "ms-first")
				b.ReportMetric(float64(again.Microseconds())/1000/float64(b.N), "ms-again")
			})
		}
		if err := list.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
