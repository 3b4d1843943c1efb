package fuseunion

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lister lists the directories of walkedTree, and looks things up in them, as a program's requests do.
type lister struct {
	*ahead
	t       *testing.T
	tree    *Tree
	kernel  int // the other end of the device
	listed  []string
	without []string // listed without attributes
}

func newLister(t *testing.T) *lister {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &lister{t: t, tree: walkedTree(t), kernel: fds[1]}
	l.ahead = newAhead(fds[0], l.tree, func(dirs []string) { l.listed = append(l.listed, dirs...) }, slog.New(slog.DiscardHandler))
	l.makeOrder()
	l.start()
	t.Cleanup(func() {
		l.stop()
		for _, fd := range fds {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

func (l *lister) node(dir string) uint32 {
	l.t.Helper()
	i, _, err := l.tree.resolve(dir, false)
	if err != nil {
		l.t.Fatal(err)
	}
	return i
}

// list is both requests for a directory, and says whether they go without attributes.
func (l *lister) list(dir string) bool {
	l.t.Helper()
	i := l.node(dir)
	bare := l.bare(i, 0)
	if l.bare(i, 12) != bare {
		l.t.Errorf("%s: the first answer is bare: %v, the second is not", dir, bare)
	}
	if bare {
		l.without = append(l.without, dir)
	}
	return bare
}

func (l *lister) lookups(dir string, n int) {
	l.t.Helper()
	for range n {
		l.lookup(l.node(dir), aFile)
	}
}

// walked are the directories of walkedTree in the order of a walk, without those of many names.
func walked() (dirs []string) {
	for d := range 60 {
		if d%20 == 0 {
			dirs = append(dirs, fmt.Sprintf("p%d", d/20))
		}
		dirs = append(dirs, fmt.Sprintf("p%d/d%02d", d/20, d))
	}
	return dirs
}

func TestAWalkOfNamesGetsNoAttributes(t *testing.T) {
	l := newLister(t)
	for _, d := range walked() {
		l.list(d)
	}
	if want := walked()[bareAfter:]; !slices.Equal(l.without, want) {
		t.Errorf("without attributes: %q\nwant %q", l.without, want)
	}
	if !l.list("z") {
		t.Error("the large directory behind the walk gets attributes")
	}
	// They were listed once, and nothing was looked up in them.
	if !l.list("p0/d19") {
		t.Error("listed again it gets attributes")
	}
}

func TestWhoLooksFilesUpGetsAttributes(t *testing.T) {
	l := newLister(t)
	for range 3 { // the second and third time are of directories that have been listed
		for _, d := range walked() {
			if l.list(d) {
				l.lookups(d, lookupsIn+2)
			}
		}
	}
	// After 8 directories one is tried, after 16 more the next, then 32: each time.
	if len(l.without) > 3*3 {
		t.Errorf("without attributes: %q", l.without)
	}
	if len(l.without) == 0 {
		t.Error("nothing was tried")
	}
}

func TestOneDirectoryGetsAttributes(t *testing.T) {
	l := newLister(t)
	if l.list("z") {
		t.Error("a large directory that is listed alone")
	}
	for _, d := range walked()[:bareAfter] {
		if l.list(d) {
			t.Errorf("%s: after so few", d)
		}
	}
	if l.list("z") {
		t.Error("a large directory is tried first")
	}
}

// What was listed without attributes is dropped, and then listed with them, when files in it are looked up.
func TestWhatIsLookedUpIsListedAnew(t *testing.T) {
	l := newLister(t)
	for _, d := range walked() {
		l.list(d)
	}
	const dir = "p1/d33"
	l.lookups(dir, 1)
	l.lookups("p1/d34", lookupsIn)
	l.lookups(dir, lookupsIn)
	for _, want := range []string{"p1/d34", dir} {
		if got := l.dropped(); got != uint64(l.node(want))+1 {
			t.Errorf("node %d was dropped, want that of %s, %d", got, want, l.node(want)+1)
		}
	}
	l.stop()
	if want := []string{"p1/d34", dir}; !slices.Equal(l.listed, want) {
		t.Errorf("listed %q, want %q", l.listed, want)
	}
	if l.bare(l.node(dir), 0) {
		t.Error("listed anew it gets no attributes")
	}
}

// dropped is the node whose names the kernel is told to drop.
func (l *lister) dropped() uint64 {
	l.t.Helper()
	if err := unix.SetsockoptTimeval(l.kernel, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		l.t.Fatal(err)
	}
	var msg [64]byte
	n, err := unix.Read(l.kernel, msg[:])
	le := binary.NativeEndian
	if err != nil || n != 40 || le.Uint32(msg[0:]) != 40 || le.Uint32(msg[4:]) != 2 || le.Uint64(msg[8:]) != 0 || le.Uint64(msg[24:]) != 0 || le.Uint64(msg[32:]) != 0 {
		l.t.Fatalf("message %x: %v", msg[:n], err)
	}
	return le.Uint64(msg[16:])
}

// The kernel itself: names and types are those of the tree, attributes are asked for when they are wanted, and
// are known once a directory was listed anew.
func TestNamesWithoutAttributes(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	var ents []ent
	for d := range 40 {
		for f := range 8 {
			ents = append(ents, file(fmt.Sprintf("d%02d/f%d", d, f), "x"))
		}
		ents = append(ents, symlink(fmt.Sprintf("d%02d/link", d), "f0"), dir(fmt.Sprintf("d%02d/sub", d)))
	}
	for name, mount := range map[string]func(t *testing.T, w *os.File) string{
		"tree": func(t *testing.T, w *os.File) string { return mountTarsListed(t, []*os.File{w}, makeTar(t, ents...)) },
		"union": func(t *testing.T, w *os.File) string {
			u := newTestUnion(t, UnionOptions{}, makeTar(t, ents...))
			u.w = []*os.File{w}
			u.mount()
			t.Cleanup(u.unmount)
			return u.at
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := Listings()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			at := mount(t, w)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			// The order of the directories is made when something is first looked up.
			lstat(t, at+"/d00")
			time.Sleep(100 * time.Millisecond)
			if _, err := os.ReadDir(at); err != nil {
				t.Fatal(err)
			}
			for d := range 40 {
				checkNames(t, filepath.Join(at, fmt.Sprintf("d%02d", d)))
			}
			const dir = "d37"
			for f := range lookupsIn {
				if st := lstat(t, fmt.Sprintf("%s/%s/f%d", at, dir, f)); st.Mode != unix.S_IFREG|0o644 || st.Size != 1 {
					t.Errorf("f%d: mode %o, %d bytes", f, st.Mode, st.Size)
				}
			}
			if got := wished(t, r); got != dir {
				t.Fatalf("it wishes to have %q listed", got)
			}
			root, err := os.Open(at)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			l := dirLister{buf: make([]byte, listBuffer)}
			if err := l.list(int(root.Fd()), dir); err != nil {
				t.Fatal(err)
			}
			abort(t, at)
			for name, want := range map[string]error{
				"d37/f7": nil, "d37/link": nil, // listed anew
				"d35/sub": nil, "d35/f7": unix.ENOTCONN, "d35/link": unix.ENOTCONN, // without attributes
				"d03/f7": nil, "d03/link": nil, // at the beginning of the walk
			} {
				var st unix.Stat_t
				if err := unix.Lstat(filepath.Join(at, name), &st); err != want {
					t.Errorf("lstat %s: %v, want %v", name, err, want)
				}
			}
		})
	}
}

func checkNames(t *testing.T, dir string) {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range ents {
		got = append(got, e.Name()+" "+e.Type().String())
	}
	want := []string{}
	for f := range 8 {
		want = append(want, fmt.Sprintf("f%d ----------", f))
	}
	if want = append(want, "link L---------", "sub d---------"); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", dir, got, want)
	}
}

// wished is the directory that a server wishes to have listed.
func wished(t *testing.T, r *os.File) string {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, maxListing)
	n, err := r.Read(msg)
	if err != nil {
		t.Fatal(err)
	}
	return string(msg[:n])
}
