package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A power loss keeps of a file system what was synced, and of the rest any part. The tests here record with strace(1)
// what a pull and a removal do to the store, make stores that a loss after each step might leave, and use them.

// disk is a file system of which is known what is synced.
type disk struct {
	root    *inode
	pending []change // of directories, in order, which no fsync has covered
	inodes  int
}

type inode struct {
	id      int
	synced  bool              // of a file: all that was written is on the disk
	entries map[string]*inode // of a directory: as a running system sees it
	kept    map[string]*inode // of a directory: what a power loss leaves for sure
}

// change is an entry that comes, or goes (nil), in each of one or two directories at once.
type change []struct {
	dir  *inode
	name string
	to   *inode
}

func (d *disk) newInode(dir bool) *inode {
	d.inodes++
	n := &inode{id: d.inodes}
	if dir {
		n.entries, n.kept = map[string]*inode{}, map[string]*inode{}
	}
	return n
}

func (d *disk) find(rel string) *inode {
	n := d.root
	for c := range strings.SplitSeq(rel, "/") {
		if c != "" && c != "." {
			if n = n.entries[c]; n == nil {
				return nil
			}
		}
	}
	return n
}

// do makes a change that is seen now and not yet synced. Its parts are a path and what is to be there.
func (d *disk) do(parts map[string]*inode) {
	var c change
	for rel, to := range parts {
		dir := d.find(filepath.Dir(rel))
		name := filepath.Base(rel)
		if to == nil {
			delete(dir.entries, name)
		} else {
			dir.entries[name] = to
		}
		c = append(c, struct {
			dir  *inode
			name string
			to   *inode
		}{dir, name, to})
	}
	d.pending = append(d.pending, c)
}

func (c change) apply() {
	for _, p := range c {
		if p.to == nil {
			delete(p.dir.kept, p.name)
		} else {
			p.dir.kept[p.name] = p.to
		}
	}
}

// sync is fsync(2): of a directory it covers the changes in it.
func (d *disk) sync(n *inode) {
	if n.entries == nil {
		n.synced = true
		return
	}
	var rest []change
	for _, c := range d.pending {
		covered := false
		for _, p := range c {
			covered = covered || p.dir == n
		}
		if covered {
			c.apply()
		} else {
			rest = append(rest, c)
		}
	}
	d.pending = rest
}

var traced = regexp.MustCompile(`^(\d+) +(.*)$`)

// replay runs through a trace and calls after each step that changed something.
func replay(t *testing.T, d *disk, root, log string, after func()) {
	t.Helper()
	f, err := os.Open(log)
	must(t, err)
	defer f.Close()
	started := map[string]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		m := traced.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		pid, call := m[1], m[2]
		if begin, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			started[pid] = begin
			continue
		}
		if _, end, ok := strings.Cut(call, " resumed>"); ok && strings.HasPrefix(call, "<...") {
			call = started[pid] + end
		}
		if !strings.Contains(call, " = -1 ") && step(t, d, root, call) {
			after()
		}
	}
	must(t, lines.Err())
}

var (
	quoted = regexp.MustCompile(`"([^"]*)"`)
	opened = regexp.MustCompile(`<([^>]*)>`)
)

// step applies one system call and says whether it was one on the store.
func step(t *testing.T, d *disk, root, call string) bool {
	t.Helper()
	name, args, _ := strings.Cut(call, "(")
	var paths []string
	switch name {
	case "openat", "mkdirat", "unlinkat", "renameat", "renameat2":
		base := ""
		if m := opened.FindStringSubmatch(args); m != nil {
			base = m[1]
		}
		for _, m := range quoted.FindAllStringSubmatch(args, 2) {
			p := m[1]
			if !filepath.IsAbs(p) {
				p = filepath.Join(base, p)
			}
			paths = append(paths, p)
		}
	case "fsync", "fdatasync", "write", "pwrite64", "ftruncate":
		if m := opened.FindStringSubmatch(args); m != nil {
			paths = append(paths, m[1])
		}
	}
	for i, p := range paths {
		rel, err := filepath.Rel(root, p)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return false
		}
		paths[i] = rel
	}
	if len(paths) == 0 {
		return false
	}
	n := d.find(paths[0])
	switch name {
	case "openat":
		if !strings.Contains(args, "O_CREAT") || n != nil {
			return false
		}
		d.do(map[string]*inode{paths[0]: d.newInode(false)})
	case "mkdirat":
		if paths[0] == "." {
			return false // the root itself
		}
		d.do(map[string]*inode{paths[0]: d.newInode(true)})
	case "unlinkat":
		d.do(map[string]*inode{paths[0]: nil})
	case "renameat", "renameat2":
		d.do(map[string]*inode{paths[0]: nil, paths[1]: n})
	default:
		if n == nil {
			t.Fatalf("%s: not there", call)
		}
		if name == "fsync" || name == "fdatasync" {
			d.sync(n)
		} else {
			n.synced = false
		}
	}
	return true
}

// contents maps the inodes of the files that are there to their contents.
func contents(t *testing.T, n *inode, path string, into map[int][]byte) {
	t.Helper()
	for name, below := range n.entries {
		p := filepath.Join(path, name)
		if below.entries != nil {
			contents(t, below, p, into)
			continue
		}
		b, err := os.ReadFile(p)
		must(t, err)
		into[below.id] = b
	}
}

// adopt makes a disk of a store that is there, all of it synced.
func (d *disk) adopt(t *testing.T, path string) *inode {
	t.Helper()
	n := d.newInode(true)
	entries, err := os.ReadDir(path)
	must(t, err)
	for _, e := range entries {
		below := d.newInode(false)
		if e.IsDir() {
			below = d.adopt(t, filepath.Join(path, e.Name()))
		}
		below.synced = true
		n.entries[e.Name()], n.kept[e.Name()] = below, below
	}
	return n
}

// lost is what a power loss may leave: for each directory its entries, and which files are whole.
type lost struct {
	dirs   map[*inode]map[string]*inode
	synced map[*inode]bool
	root   *inode
}

// lose chooses which of the changes that are not synced are on the disk all the same.
func (d *disk) lose(keep func(i int) bool) *lost {
	l := &lost{dirs: map[*inode]map[string]*inode{}, synced: map[*inode]bool{}, root: d.root}
	var copyAll func(n *inode)
	copyAll = func(n *inode) {
		if _, ok := l.synced[n]; ok {
			return
		}
		l.synced[n] = n.synced
		if n.kept == nil {
			return
		}
		l.dirs[n] = map[string]*inode{}
		for name, below := range n.kept {
			l.dirs[n][name] = below
			copyAll(below)
		}
	}
	copyAll(d.root)
	for i, c := range d.pending {
		for _, p := range c {
			if copyAll(p.dir); p.to != nil {
				copyAll(p.to)
			}
		}
		for _, p := range c {
			if !keep(i) {
				break
			}
			if p.to == nil {
				delete(l.dirs[p.dir], p.name)
			} else {
				l.dirs[p.dir][p.name] = p.to
			}
		}
	}
	return l
}

// write makes the store. What was written to a file that is not synced is lost, or has become zeros.
func (l *lost) write(t *testing.T, dir string, content map[int][]byte, zeros bool) {
	t.Helper()
	var write func(n *inode, path string)
	write = func(n *inode, path string) {
		if n.entries != nil {
			must(t, os.MkdirAll(path, 0o755))
			for name, below := range l.dirs[n] {
				write(below, filepath.Join(path, name))
			}
			return
		}
		b := content[n.id]
		if !l.synced[n] {
			if zeros {
				b = make([]byte, len(b))
			} else {
				b = nil
			}
		}
		must(t, os.WriteFile(path, b, 0o644))
	}
	write(l.root, dir)
}

// trace runs this binary with an environment under strace.
func trace(t *testing.T, env ...string) (log string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace")
	}
	exe, err := os.Executable()
	must(t, err)
	log = filepath.Join(t.TempDir(), "log")
	calls := "openat,mkdirat,unlinkat,renameat,renameat2,fsync,fdatasync,write,pwrite64,ftruncate"
	cmd := exec.Command(strace, "-f", "-qq", "-y", "-s", "0", "-e", "signal=none", "-e", "trace="+calls, "-o", log, exe)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "Operation not permitted") {
		t.Skip("may not trace here")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return log
}

// afterEachLoss calls check with a store for each step at which the power may fail, in several ways each.
func afterEachLoss(t *testing.T, d *disk, root, log string, content map[int][]byte, check func(s *Store)) {
	t.Helper()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	// On a disk the syncs of all these stores would take minutes.
	parent := t.TempDir()
	if dir, err := os.MkdirTemp("/dev/shm", "urun-test-"); err == nil {
		parent = dir
		t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	}
	steps, stores := 0, 0
	replay(t, d, root, log, func() {
		steps++
		cut, mask := r.IntN(len(d.pending)+1), r.Uint64()
		for i, keep := range []func(i int) bool{
			func(int) bool { return false },                   // only what was synced
			func(int) bool { return true },                    // all names, but not what is in the files
			func(i int) bool { return i < cut },               // a journal that was written in part
			func(i int) bool { return mask>>(i%64)&1 == 0 },   // no order at all
			func(i int) bool { return i%2 == int(mask>>63) },  // nor here
			func(i int) bool { return i >= len(d.pending)/2 }, // the late without the early
		} {
			if os.Getenv("URUN_IMAGE_STRESS") == "" && r.IntN(3) > 0 {
				continue // others the next time
			}
			dir := filepath.Join(parent, fmt.Sprint(stores))
			stores++
			d.lose(keep).write(t, dir, content, r.IntN(2) == 0)
			s, err := Open(Options{Root: dir})
			if err == nil {
				err = s.Verify(context.Background(), nil, false, func(v Verified) error {
					if len(v.Damage) > 0 {
						return fmt.Errorf("damage: %+v", v)
					}
					return nil
				})
			}
			if err != nil {
				t.Fatalf("seed %d, step %d, loss %d: %v", seed, steps, i, err)
			}
			if check(s); t.Failed() {
				t.Fatalf("seed %d, step %d, loss %d", seed, steps, i)
			}
			must(t, os.RemoveAll(dir))
		}
	})
	t.Logf("%d steps, %d stores", steps, stores)
	if steps < 10 {
		t.Errorf("only %d steps were recorded", steps)
	}
}

// TestPowerLossDuringAPull: at any moment what is visible is whole, and the store can be used.
func TestPowerLossDuringAPull(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "test:1", build(t, nil, gzipLayer(t, "base", noise(1000, 1)), gzipLayer(t, "top", "2")))
	root := filepath.Join(t.TempDir(), "store")
	log := trace(t, "IMAGE_TEST_PULL_ROOT="+root, "IMAGE_TEST_PULL_REF="+ref)

	final := &disk{}
	final.root = final.newInode(true)
	replay(t, final, root, log, func() {})
	content := map[int][]byte{}
	contents(t, final.root, root, content)
	if len(content) < 8 {
		t.Fatalf("the trace leads to %d files", len(content))
	}
	d := &disk{}
	d.root = d.newInode(true)
	afterEachLoss(t, d, root, log, content, func(s *Store) {
		if img, err := s.Pull(context.Background(), ref, PullOptions{Policy: PolicyMissing, Platform: "linux/amd64"}); err != nil {
			t.Error(err)
		} else if got := topOf(t, img); got != "2" {
			t.Errorf("pulled %q", got)
		}
		checkStore(t, s)
	})
}

func topOf(t *testing.T, img *Image) string { return content(t, img, "top") }

// TestPowerLossDuringARemoval: of two images that share a layer one is removed; it is whole or gone, and the other is whole.
func TestPowerLossDuringARemoval(t *testing.T) {
	reg, s := newRegistry(t), newStore(t)
	base := gzipLayer(t, "base", noise(1000, 1))
	gone := reg.push(t, "gone:1", build(t, nil, base, gzipLayer(t, "top", "1")))
	stays := reg.push(t, "stays:1", build(t, nil, base, gzipLayer(t, "top", "2")))
	pull(t, s, gone)
	pull(t, s, stays)
	d := &disk{}
	d.root = d.adopt(t, s.Root())
	content := map[int][]byte{}
	contents(t, d.root, s.Root(), content)
	log := trace(t, "IMAGE_TEST_REMOVE_ROOT="+s.Root(), "IMAGE_TEST_REMOVE_REF="+gone)
	afterEachLoss(t, d, s.Root(), log, content, func(s *Store) {
		img, err := s.Resolve(stays)
		if err != nil || topOf(t, img) != "2" {
			t.Errorf("the other image: %v", err)
		}
		if img, err := s.Resolve(gone); err == nil && topOf(t, img) != "1" || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("the image that was removed: %v", err)
		}
		if _, err := s.Prune(context.Background(), false, nil); err != nil {
			t.Error(err)
		}
	})
}

func removeProcess(root, ref string) int {
	s, err := Open(Options{Root: root})
	if err == nil {
		_, err = s.Remove(context.Background(), ref, true)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
