package fuseunion

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// walkedTree has 60 directories of 10 files, in 3 that hold them, and one of very many names.
func walkedTree(t *testing.T) *Tree {
	var ents []ent
	for d := range 60 {
		for f := range 10 {
			ents = append(ents, file(fmt.Sprintf("p%d/d%02d/f%d", d/20, d, f), "x"))
		}
	}
	for f := range manyNames + 1 {
		ents = append(ents, file(fmt.Sprintf("z/f%d", f), ""))
	}
	return openTars(t, makeTar(t, ents...))
}

// aFile is a node of walkedTree that is no directory: the last ones are files.
const aFile = 60*10 + manyNames

// testAhead returns one that knows the order already, and what it has listed.
func testAhead(t *testing.T) (lookups func(dir string, n int), listed func() []string) {
	t.Helper()
	tree := walkedTree(t)
	var all []string
	a := newAhead(-1, tree, func(dirs []string) { all = append(all, dirs...) }, slog.New(slog.DiscardHandler))
	a.makeOrder()
	if a.order.Load() == nil {
		t.Fatal("no order")
	}
	lookups = func(dir string, n int) {
		t.Helper()
		i, _, err := tree.resolve(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			a.lookup(i, aFile)
		}
	}
	return lookups, func() []string { l := all; all = nil; return l }
}

func TestLookupsInOneDirectoryHaveItListedOnce(t *testing.T) {
	lookups, listed := testAhead(t)
	lookups("p1/d25", lookupsIn-1)
	if got := listed(); len(got) > 0 {
		t.Errorf("too early: %q", got)
	}
	lookups("p1/d25", 5)
	if got := listed(); !slices.Equal(got, []string{"p1/d25"}) {
		t.Errorf("listed %q", got)
	}
	lookups("z", 50)
	if got := listed(); len(got) > 0 {
		t.Errorf("a directory of %d names is listed: %q", manyNames+1, got)
	}
}

func TestAWalkHasWhatFollowsListed(t *testing.T) {
	lookups, listed := testAhead(t)
	var all []string
	for d := range 60 {
		dir := fmt.Sprintf("p%d/d%02d", d/20, d)
		if slices.Contains(all, dir) {
			continue // its names are known: no LOOKUP
		}
		lookups(dir, 1)
		all = append(all, listed()...)
	}
	// The first steps, and then one for each batch.
	if n := len(all); n < 55 {
		t.Errorf("%d of 60 directories were listed: %q", n, all)
	}
	if s := slices.Clone(all); len(slices.Compact(slices.Sorted(slices.Values(s)))) != len(all) {
		t.Errorf("some were listed twice: %q", all)
	}
	if i, j := slices.Index(all, "p1/d39"), slices.Index(all, "p2"); i < 0 || j < i {
		t.Errorf("not in the order of a walk: %q", all)
	}
}

func TestLookupsHereAndThereHaveNothingListed(t *testing.T) {
	lookups, listed := testAhead(t)
	// Downwards, and in more places than walks are told apart.
	for _, dir := range []string{"p2/d59", "p1/d20", "", "p2/d40", "p0/d01", "p2/d58", "p1/d39"} {
		lookups(dir, 1)
	}
	if got := listed(); len(got) > 0 {
		t.Errorf("listed %q", got)
	}
}

func TestPathsOfTheOrderLeadToTheirDirectories(t *testing.T) {
	tree := openTars(t, imageTars(t)...)
	o, err := tree.dirOrder()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	err = tree.Walk(func(_ string, st Stat) error {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			count++
		}
		return nil
	})
	if err != nil || count != len(o.dirs) {
		t.Errorf("%d directories of %d; %v", len(o.dirs), count, err)
	}
	for place, d := range o.dirs {
		st, err := tree.Lstat(o.path(uint32(place)))
		if err != nil || st.Ino != uint64(d.node)+1 {
			t.Errorf("%s: node %d, want %d; %v", o.path(uint32(place)), st.Ino, d.node+1, err)
		}
	}
}

// What does not fit is dropped: a server must not wait for who waits for it.
func TestSendingListingsDoesNotWait(t *testing.T) {
	lister, server, err := Listings()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	list, err := SendListings(server)
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 { // more than any socket holds
		list([]string{"usr/share/doc", "usr/share/man"})
	}
	if err := lister.Close(); err != nil {
		t.Fatal(err)
	}
	list([]string{"."})
}

// What was listed is known without the server; and a connection that is aborted gives errors.
func TestListedNamesAreKnown(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	ents := []ent{file("a/f", "x"), file("a/b/g", "x"), file("c/h", "x")}
	const many = 9000 // more than one answer holds
	for i := range many {
		ents = append(ents, file(fmt.Sprintf("many/%d", i), ""))
	}
	at := mountTars(t, makeTar(t, ents...))
	lister, server, err := Listings()
	if err != nil {
		t.Fatal(err)
	}
	defer lister.Close()
	mount, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	list, err := SendListings(server)
	if err != nil {
		t.Fatal(err)
	}
	list([]string{".", "a", "nowhere", "../..", "a/b", "many"})
	if err := errors.Join(server.Close(), ReadListings(mount, lister), mount.Close()); err != nil {
		t.Fatal(err)
	}
	lstat(t, at+"/c")
	held, err := os.Open(at + "/c") // so that it is not unmounted
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	abort(t, at)
	known := map[string]error{"/a/f": nil, "/a/b/g": nil, "/c/h": unix.ENOTCONN}
	for i := range many {
		known[fmt.Sprintf("/many/%d", i)] = nil
	}
	for name, want := range known {
		var st unix.Stat_t
		if err := unix.Lstat(at+name, &st); err != want {
			t.Fatalf("lstat %s: %v, want %v", name, err, want)
		}
	}
	if _, err := os.ReadFile(at + "/a/f"); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("read after the connection was aborted: %v", err)
	}
}

// abort aborts the connection of a mount, through fusectl where that is mounted: its
// files belong to the mount's owner.
func abort(t *testing.T, at string) {
	t.Helper()
	dev := lstat(t, at).Dev
	ctl := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", dev&0xff|dev>>12&^0xff)
	err := os.WriteFile(ctl, []byte("1"), 0)
	if err == nil {
		return
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	t.Log("fusectl is not mounted: by umount --force")
	if err := unix.Unmount(at, unix.MNT_FORCE); err != unix.EBUSY {
		t.Fatalf("umount --force of a busy mount: %v", err)
	}
}
