package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// durable is what a process was told is on disk: files that it synced and has not
// touched since, by name; nil for one that was removed.
type durable struct {
	mu    sync.Mutex
	files map[string][]byte
}

func (d *durable) set(name string, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[name] = b
}

// forget is called before a file is changed: until it is synced again, it may be
// anything.
func (d *durable) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
}

// work writes, syncs, renames and removes below dir until the server is gone. Each
// worker has names of its own. It returns the error that ended it.
func (d *durable) work(dir string, id int, r *rand.Rand) error {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s/w%d-%d", []string{"a", "lib", "new"}[r.IntN(3)], id, r.IntN(20))
		path := filepath.Join(dir, name)
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		d.forget(name)
		switch r.IntN(7) {
		case 2:
			if err := d.link(dir, filepath.Dir(name), id, r.IntN(20)); err != nil {
				return err
			}
		case 0:
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		case 1:
			to := fmt.Sprintf("lib/m%d-%d", id, r.IntN(20))
			d.forget(to)
			if err := os.Rename(path, filepath.Join(dir, to)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		default:
			b := bytes.Repeat([]byte{byte('a' + i%26)}, 1+r.IntN(9000))
			if err := writeSynced(path, b, r.IntN(2) == 0); err != nil {
				return err
			}
			d.set(name, b)
		}
	}
}

// link makes a file with two names, one of which goes the next time.
func (d *durable) link(dir, sub string, id, k int) error {
	one, two := fmt.Sprintf("%s/s%d-%d", sub, id, k), fmt.Sprintf("%s/l%d-%d", sub, id, k/2)
	d.forget(one)
	d.forget(two)
	for _, name := range []string{one, two} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	b := bytes.Repeat([]byte{byte('A' + k)}, 100+k)
	if err := writeSynced(filepath.Join(dir, one), b, false); err != nil {
		return err
	}
	d.set(one, b)
	if err := os.Link(filepath.Join(dir, one), filepath.Join(dir, two)); err != nil {
		return err
	}
	d.set(two, b)
	return nil
}

// writeSynced writes a file in place, or as careful programs do: beside it, and then
// renamed.
func writeSynced(path string, b []byte, careful bool) error {
	at := path
	if careful {
		at = path + ".tmp"
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o604), f.Sync(), f.Close()); err != nil || !careful {
		return err
	}
	if err := os.Rename(at, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// A server that is killed at any moment leaves processes with errors, and an upper
// directory that mounts, with everything that was synced.
func TestServerIsKilled(t *testing.T) {
	if !inNamespaces(t, 10*time.Minute) {
		return
	}
	s := seed()
	t.Logf("seed %d", s)
	r := rand.New(rand.NewPCG(s, 3))
	im := newImage(t, tmpfs(t), randomLayer(t, &script{Rand: r}, true))
	for name, opt := range map[string]fuseunion.UnionOptions{"attributes": {LazySize: 1}, "ledger": {NoXattrs: true, NoDeviceWhiteouts: true}, "references": {NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true}} {
		t.Run(name, func(t *testing.T) {
			base := tmpfs(t)
			subdirs(t, base, "upper", "work", "merged")
			f := &fuseMount{at: filepath.Join(base, "merged"), what: served{
				Tree: im.tree, Data: im.data, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work"), Options: opt,
			}}
			t.Cleanup(f.kill)
			d := &durable{files: map[string][]byte{}}
			for round := range max(6, operations(0)/1000) {
				f.mount(t)
				d.check(t, f.at, round)
				endWhileWorking(t, f, d, r, func() {
					ok(t, f.server.Process.Kill())
					_ = f.server.Wait()
					f.server = nil
				})
				ok(t, unix.Unmount(f.at, unix.MNT_DETACH))
			}
			f.mount(t)
			d.check(t, f.at, -1)
			all, err := filepath.Glob(filepath.Join(f.at, "*"))
			ok(t, err)
			for _, name := range all {
				ok(t, os.RemoveAll(name))
			}
			f.unmount(t)
			// Whatever was killed, no file has outlived its last name.
			if left, err := os.ReadDir(filepath.Join(base, "work", "links")); err != nil || len(left) > 0 {
				t.Errorf("the work directory keeps links %v, %v", left, err)
			}
			if left, err := os.ReadDir(filepath.Join(base, "work", "tmp")); err != nil || len(left) > 0 {
				t.Errorf("the work directory keeps %v, %v", left, err)
			}
		})
	}
}

// A connection that is aborted leaves processes with errors, a server that ends well, and an upper directory that
// mounts, with everything that was synced.
func TestConnectionIsAborted(t *testing.T) {
	if !inNamespaces(t, 10*time.Minute) {
		return
	}
	s := seed()
	t.Logf("seed %d", s)
	r := rand.New(rand.NewPCG(s, 4))
	im := newImage(t, tmpfs(t), randomLayer(t, &script{Rand: r}, true))
	base := tmpfs(t)
	subdirs(t, base, "upper", "work", "merged")
	f := &fuseMount{at: filepath.Join(base, "merged"), what: served{
		Tree: im.tree, Data: im.data, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work"),
	}}
	t.Cleanup(f.kill)
	d := &durable{files: map[string][]byte{}}
	for round := range 4 {
		f.mount(t)
		d.check(t, f.at, round)
		held, err := os.Create(filepath.Join(f.at, "held"))
		ok(t, err)
		endWhileWorking(t, f, d, r, func() {
			if err := abort(f.at); err != nil {
				t.Fatal(err)
			}
		})
		if _, err := held.WriteAt([]byte("x"), 1<<20); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("write to a file that is open: %v", err)
		}
		_ = held.Close()
		if _, err := os.Stat(filepath.Join(f.at, "nothing")); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("stat: %v", err)
		}
		f.unmount(t)
	}
	f.mount(t)
	d.check(t, f.at, -1)
	f.unmount(t)
}

// abort aborts the connection of a busy mount: through fusectl, whose files belong to the mount's owner, or, where that is not mounted, as
// umount --force does.
func abort(at string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return err
	}
	err := os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", st.Dev&0xff|st.Dev>>12&^0xff), []byte("1"), 0)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Unmount(at, unix.MNT_FORCE); err != unix.EBUSY {
		return fmt.Errorf("umount --force of a busy mount: %w", err)
	}
	return nil
}

// endWhileWorking has end end a mount on which processes work; all of them must get errors.
func endWhileWorking(t *testing.T, f *fuseMount, d *durable, r *rand.Rand, end func()) {
	t.Helper()
	ended := make(chan error, 4)
	for id := range cap(ended) {
		rr := rand.New(rand.NewPCG(r.Uint64(), uint64(id)))
		go func() { ended <- d.work(f.at, id, rr) }()
	}
	// Not synchronization: the moment is meant to be any.
	time.Sleep(time.Duration(5+r.IntN(150)) * time.Millisecond)
	end()
	for range cap(ended) {
		select {
		case err := <-ended:
			if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EIO) {
				t.Errorf("a worker ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a process hangs in a file system whose connection is gone")
		}
	}
}

// check holds what is there against what was synced, and looks at everything else.
func (d *durable) check(t *testing.T, at string, round int) {
	t.Helper()
	for name, want := range d.files {
		got, err := os.ReadFile(filepath.Join(at, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("round %d: %s has %d bytes %.20q, %v; synced were %d bytes %.20q", round, name, len(got), got, err, len(want), want)
		}
		if fi, err := os.Stat(filepath.Join(at, name)); err == nil && fi.Mode().Perm() != 0o604 {
			t.Errorf("round %d: %s has mode %v", round, name, fi.Mode())
		}
	}
	s := newSide(t, &mounted{name: "union", at: at})
	s.listing(t)
	s.close()
}
