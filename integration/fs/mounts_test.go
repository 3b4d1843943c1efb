package fs

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
)

// image is one image in the forms that the file systems under test need.
type image struct {
	tree string // a merged tree and the data of its layers
	data []string
	dir  string // the same, unpacked
}

// newImage makes an image of one layer below base.
func newImage(t *testing.T, base string, layer []byte) *image {
	t.Helper()
	im := &image{tree: filepath.Join(base, "tree"), data: []string{filepath.Join(base, "data")}, dir: filepath.Join(base, "unpacked")}
	index := filepath.Join(base, "index")
	var data, idx, tree bytes.Buffer
	_, err := fuseunion.IndexTar(bytes.NewReader(layer), &data, &idx, fuseunion.IndexOptions{})
	ok(t, err)
	ok(t, os.WriteFile(im.data[0], data.Bytes(), 0o644))
	ok(t, os.WriteFile(index, idx.Bytes(), 0o644))
	ok(t, fuseunion.MergeTree([]fuseunion.Layer{{Data: im.data[0], Index: index}}, &tree))
	ok(t, os.WriteFile(im.tree, tree.Bytes(), 0o644))
	ok(t, os.Mkdir(im.dir, 0o755))
	unpack(t, layer, im.dir)
	return im
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unpack is a tar extractor for the tests' own tars.
func unpack(t *testing.T, layer []byte, dir string) {
	t.Helper()
	var dirs []*tar.Header
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		ok(t, err)
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			if h.Name != "./" {
				ok(t, os.Mkdir(path, 0o755))
			}
			dirs = append(dirs, h)
			continue
		case tar.TypeSymlink:
			ok(t, os.Symlink(h.Linkname, path))
		case tar.TypeLink:
			ok(t, os.Link(filepath.Join(dir, h.Linkname), path))
			continue
		case tar.TypeFifo:
			ok(t, unix.Mkfifo(path, 0o644))
		default:
			b, err := io.ReadAll(r)
			ok(t, err)
			ok(t, os.WriteFile(path, b, 0o644))
		}
		attributes(t, path, h)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		attributes(t, filepath.Join(dir, dirs[i].Name), dirs[i])
	}
}

func attributes(t *testing.T, path string, h *tar.Header) {
	t.Helper()
	ok(t, os.Lchown(path, h.Uid, h.Gid))
	for k, v := range h.PAXRecords {
		if len(k) > 13 && k[:13] == "SCHILY.xattr." {
			ok(t, unix.Lsetxattr(path, k[13:], []byte(v), 0))
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		ok(t, unix.Chmod(path, uint32(h.Mode)))
	}
	ts := unix.NsecToTimespec(h.ModTime.UnixNano())
	ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// mounted is a file system under test.
type mounted struct {
	name string
	at   string
	// remount unmounts it, lets its server end, and mounts it again; nil if it can not.
	remount func(t *testing.T)
	unmount func(t *testing.T)
	server  *exec.Cmd
}

// tmpfs mounts one and removes it at the end of the test.
func tmpfs(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	ok(t, os.Chmod(filepath.Dir(base), 0o755)) // others than root go through
	ok(t, unix.Mount("tmpfs", base, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	return base
}

func subdirs(t *testing.T, base string, names ...string) {
	t.Helper()
	for _, n := range names {
		ok(t, os.MkdirAll(filepath.Join(base, n), 0o755))
	}
}

// plain is a copy of the image on the file system below.
func plain(t *testing.T, layer []byte) *mounted {
	t.Helper()
	base := tmpfs(t)
	subdirs(t, base, "root")
	unpack(t, layer, filepath.Join(base, "root"))
	return &mounted{name: "plain", at: filepath.Join(base, "root")}
}

// overlay mounts the kernel's overlayfs over a directory, as urun does.
func overlay(t *testing.T, name, base, lower string) *mounted {
	t.Helper()
	subdirs(t, base, "upper", "work", "merged")
	likeLower(t, filepath.Join(base, "upper"), lower)
	m := &mounted{name: name, at: filepath.Join(base, "merged")}
	opts := fmt.Sprintf("userxattr,lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)
	mount := func(t *testing.T) {
		t.Helper()
		if err := unix.Mount("overlay", m.at, "overlay", 0, opts); err != nil {
			t.Fatalf("mount overlay (userxattr needs Linux 5.11): %v", err)
		}
	}
	m.unmount = func(t *testing.T) {
		t.Helper()
		ok(t, unix.Unmount(m.at, 0))
	}
	m.remount = func(t *testing.T) {
		t.Helper()
		m.unmount(t)
		mount(t)
	}
	mount(t)
	t.Cleanup(func() { _ = unix.Unmount(m.at, unix.MNT_DETACH) })
	return m
}

func likeLower(t *testing.T, upper, lower string) {
	t.Helper()
	var st unix.Stat_t
	ok(t, unix.Stat(lower, &st))
	ok(t, unix.Chown(upper, int(st.Uid), int(st.Gid)))
	ok(t, unix.Chmod(upper, st.Mode&0o7777))
	ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, upper, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// kernel is overlayfs over the unpacked image.
func kernel(t *testing.T, im *image) *mounted { return overlay(t, "kernel", tmpfs(t), im.dir) }

// overFUSE is overlayfs over the served image: urun's storage "overlay".
func overFUSE(t *testing.T, im *image) *mounted {
	t.Helper()
	base := tmpfs(t)
	subdirs(t, base, "lower")
	l := &fuseMount{at: filepath.Join(base, "lower"), what: served{Tree: im.tree, Data: im.data}}
	l.mount(t)
	t.Cleanup(func() { l.kill() })
	return overlay(t, "overlay", base, l.at)
}

// union is the storage "fuse".
func union(t *testing.T, im *image, opt fuseunion.UnionOptions) *mounted {
	t.Helper()
	return unionAt(t, tmpfs(t), served{Tree: im.tree, Data: im.data, Options: opt})
}

// unionAt mounts a union with its directories in base.
func unionAt(t *testing.T, base string, what served) *mounted {
	t.Helper()
	subdirs(t, base, "upper", "work", "merged")
	what.Upper, what.Work = filepath.Join(base, "upper"), filepath.Join(base, "work")
	f := &fuseMount{at: filepath.Join(base, "merged"), what: what}
	f.mount(t)
	m := &mounted{name: "union", at: f.at, server: f.server}
	m.unmount = func(t *testing.T) {
		t.Helper()
		f.unmount(t)
	}
	m.remount = func(t *testing.T) {
		t.Helper()
		f.unmount(t)
		f.mount(t)
		m.server = f.server
	}
	t.Cleanup(func() { f.kill() })
	return m
}

// fuseMount is a FUSE mount with its server, a process of its own: a process that
// serves must not touch its mount.
type fuseMount struct {
	at     string
	what   served
	server *exec.Cmd
}

func (f *fuseMount) mount(t *testing.T) {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	ok(t, err)
	mnt, err := fuseunion.Mount(dev, fuseunion.MountOptions{Writable: f.what.Upper != ""})
	ok(t, err)
	self, err := os.Executable()
	ok(t, err)
	spec, err := json.Marshal(f.what)
	ok(t, err)
	f.server = exec.Command(self)
	f.server.Env = append(os.Environ(), envServe+"="+string(spec))
	f.server.ExtraFiles = []*os.File{dev}
	f.server.Stderr = os.Stderr
	ok(t, f.server.Start())
	ok(t, dev.Close())
	ok(t, unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, f.at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	ok(t, mnt.Close())
}

// unmount unmounts and waits for the server, which must end well.
func (f *fuseMount) unmount(t *testing.T) {
	t.Helper()
	if err := unix.Unmount(f.at, 0); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.server.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("server: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the server outlives its mount")
	}
	f.server = nil
}

func (f *fuseMount) kill() {
	_ = unix.Unmount(f.at, unix.MNT_DETACH|unix.MNT_FORCE)
	if f.server != nil {
		_ = f.server.Process.Kill()
		_ = f.server.Wait()
	}
}
