package fs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// randomLayer is a tar with the names that scripts use.
func randomLayer(t *testing.T, r *script, hardLinks bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, body string) {
		h.Size = int64(len(body))
		h.ModTime = time.Unix(int64(1e9+r.IntN(1e6)), int64(r.IntN(1e9)))
		h.Format = tar.FormatPAX
		if r.many && r.IntN(4) == 0 {
			h.Uid, h.Gid = []int{0, 33, 1000}[r.IntN(3)], []int{0, 33}[r.IntN(2)]
		}
		ok(t, w.WriteHeader(h))
		_, err := w.Write([]byte(body))
		ok(t, err)
	}
	add(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	var files []string
	var fill func(dir string, depth int)
	fill = func(dir string, depth int) {
		seen := map[string]bool{}
		for range 3 + r.IntN(6) {
			name := r.fileName()
			k := r.IntN(10)
			if k < 4 && depth < 4 {
				name = r.dirName()
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			path := dir + name
			switch {
			case k < 4 && depth < 4:
				add(&tar.Header{Name: path + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
				fill(path+"/", depth+1)
			case k == 4:
				add(&tar.Header{Name: path, Typeflag: tar.TypeSymlink, Linkname: r.path(), Mode: 0o777}, "")
			case k == 5 && hardLinks && len(files) > 0:
				add(&tar.Header{Name: path, Typeflag: tar.TypeLink, Linkname: files[r.IntN(len(files))]}, "")
			case k == 6 && r.IntN(4) == 0:
				add(&tar.Header{Name: path, Typeflag: tar.TypeFifo, Mode: 0o644}, "")
			default:
				h := &tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: []int64{0o644, 0o600, 0o4755, 0o444}[r.IntN(4)]}
				if r.IntN(4) == 0 {
					h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "of the image"}
				}
				r.seq++
				add(h, strings.Repeat(string(r.bytes()), 1+r.IntN(4)))
				files = append(files, path)
			}
		}
	}
	fill("", 0)
	ok(t, w.Close())
	return b.Bytes()
}

func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// operations returns how many are to be done: by default a short run.
func operations(short int) int {
	if n, err := strconv.Atoi(os.Getenv("URUN_FSOPS")); err == nil {
		return n
	}
	return short
}

func seed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("URUN_SEED"), 10, 64); err == nil {
		return n
	}
	return uint64(time.Now().UnixNano())
}

// play does the same random operations on all sides and holds what they come to
// against each other; the first side is the reference. ops is the number of operations
// for each of a few images.
func play(t *testing.T, s uint64, ops int, sides []*side, r *script) {
	t.Helper()
	for _, x := range sides {
		x.together = sides[0].name == "plain"
	}
	var log []string
	done := 0
	fail := func(format string, args ...any) {
		t.Helper()
		if len(log) > 60 {
			log = log[len(log)-60:]
		}
		t.Fatalf("seed %d: %s\nafter:\n%s", s, fmt.Sprintf(format, args...), strings.Join(log, "\n"))
	}
	check := func(when string) {
		t.Helper()
		for _, x := range sides[1:] {
			if !compare(t, sides[0], x) {
				fail("%s and %s differ %s", sides[0].name, x.name, when)
			}
		}
	}
	for i := range ops {
		o := r.next()
		want := o.run(sides[0])
		log = append(log, fmt.Sprintf("%6d %s: %v", i, o.text, want))
		if want.err == nil {
			done++
		}
		// Of overlayfs: EXDEV for a directory of the image, which the union would rename;
		// ESTALE for a rename to another name of the same file, which it should have left alone.
		if want.err == unix.EXDEV || want.err == unix.ESTALE {
			continue
		}
		for _, x := range sides[1:] {
			if got := o.run(x); got != want {
				fail("%s\n%-8s %v\n%-8s %v", o.text, sides[0].name, want, x.name, got)
			}
		}
		if i%1000 == 999 {
			check(fmt.Sprintf("after %d operations", i+1))
		}
		if i%3000 == 2999 {
			for _, x := range sides {
				for _, fd := range x.slots {
					unix.Close(fd)
				}
				clear(x.slots)
				x.again(t)
			}
			check("after a remount")
		}
	}
	check("at the end")
	t.Logf("%d of %d operations succeeded", done, ops)
	for _, x := range sides {
		x.again(t)
	}
	check("after the last remount")
	for _, x := range sides {
		x.close()
	}
}

// each runs a script for some images with operations each, until all are done.
func each(t *testing.T, total int, run func(t *testing.T, s uint64, ops int)) {
	t.Helper()
	first := seed()
	for i := uint64(0); total > 0; i++ {
		n := min(total, 9000)
		total -= n
		s := first + i
		t.Run(fmt.Sprintf("seed %d", s), func(t *testing.T) { run(t, s, n) })
		if t.Failed() {
			return
		}
	}
}

var lacking = []fuseunion.UnionOptions{
	{},
	{NoXattrs: true},
	{NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 3, LazySize: 1},
	{Volatile: true, MaxOpenFiles: 20, LazySize: 1},
	{LazySize: 1},
	{NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 3, LazySize: 1},
	{NoLinks: true, Volatile: true},
}

// The union is like a plain file system, in everything.
func TestRandomUnionAgainstPlain(t *testing.T) {
	if !inNamespaces(t, 40*time.Minute) {
		return
	}
	unix.Umask(0o022)
	each(t, operations(4000), func(t *testing.T, s uint64, ops int) {
		r := &script{Rand: rand.New(rand.NewPCG(s, 1)), many: manyIDs()}
		layer := randomLayer(t, r, true)
		im := newImage(t, tmpfs(t), layer)
		play(t, s, ops, []*side{newSide(t, plain(t, layer)), newSide(t, union(t, im, lacking[s%uint64(len(lacking))]))}, r)
	})
}

// Both storages are like overlayfs over an unpacked image, but for what overlayfs
// does not do: rename directories of the image, and keep hard links of the image together.
func TestRandomAgainstOverlayfs(t *testing.T) {
	if !inNamespaces(t, 40*time.Minute) {
		return
	}
	unix.Umask(0o022)
	each(t, operations(4000), func(t *testing.T, s uint64, ops int) {
		r := &script{Rand: rand.New(rand.NewPCG(s, 2)), many: manyIDs()}
		layer := randomLayer(t, r, false)
		im := newImage(t, tmpfs(t), layer)
		play(t, s, ops, []*side{newSide(t, kernel(t, im)), newSide(t, overFUSE(t, im)), newSide(t, union(t, im, lacking[s%uint64(len(lacking))]))}, r)
	})
}
