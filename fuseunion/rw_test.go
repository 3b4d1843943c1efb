package fuseunion

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envUnion is the unionSpec of a server process.
const envUnion = "FUSEUNION_TEST_UNION"

// unionSpec is what a test serves read-write.
type unionSpec struct {
	Tree    string
	Data    []string
	Dir     string // instead of a tree
	Upper   string
	Work    string
	Options UnionOptions
}

// serveUnionTest is the server process: descriptor 3 is the device.
func serveUnionTest(spec string) error {
	var s unionSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	t, err := OpenTree(s.Tree, s.Data)
	if err != nil {
		return err
	}
	u, err := OpenUnion(t, s.Upper, s.Work, s.Options)
	if err != nil {
		return err
	}
	opt := ServeOptions{
		UIDs: mappedIDs("/proc/self/uid_map"), GIDs: mappedIDs("/proc/self/gid_map"), SquashUID: 65534, SquashGID: 65534,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if len(opt.UIDs) == 1 && opt.UIDs[0].Count == 1 {
		opt.SquashUID, opt.SquashGID = 0, 0
	}
	if opt.List, err = wishes(); err != nil {
		return err
	}
	return errors.Join(ServeUnion(context.Background(), os.NewFile(3, "fuse"), u, opt), u.Close(), t.Close())
}

// testUnion is a union that is mounted, and can be mounted again.
type testUnion struct {
	t    testing.TB
	spec unionSpec
	at   string
	srv  *exec.Cmd
	w    []*os.File // where the server's wishes go, if anywhere
}

// newTestUnion makes an image of tars and an empty writable layer in a tmpfs. Only
// inside the namespaces.
func newTestUnion(t testing.TB, opt UnionOptions, tars ...[]byte) *testUnion {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	tree, data, err := writeTree(filepath.Join(base, "store"), tars...)
	if err != nil {
		t.Fatal(err)
	}
	u := &testUnion{t: t, at: filepath.Join(base, "merged"), spec: unionSpec{
		Tree: tree, Data: data, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work"), Options: opt,
	}}
	for _, dir := range []string{u.at, u.spec.Upper, u.spec.Work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func (u *testUnion) mount() {
	u.t.Helper()
	t := u.t
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mnt, err := Mount(dev, MountOptions{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(u.spec)
	if err != nil {
		t.Fatal(err)
	}
	u.srv = exec.Command(self)
	u.srv.Env = append(os.Environ(), envUnion+"="+string(spec))
	takeWishes(u.srv, dev, u.w...)
	u.srv.Stderr = os.Stderr
	if err := u.srv.Start(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, u.at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	if err := mnt.Close(); err != nil {
		t.Fatal(err)
	}
}

func (u *testUnion) unmount() {
	u.t.Helper()
	if err := unix.Unmount(u.at, 0); err != nil {
		u.t.Errorf("unmount: %v", err)
		_ = unix.Unmount(u.at, unix.MNT_DETACH|unix.MNT_FORCE)
	}
	ended := make(chan error, 1)
	go func() { ended <- u.srv.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			u.t.Errorf("server after the unmount: %v", err)
		}
	case <-time.After(20 * time.Second):
		u.t.Error("server outlives its mount")
	}
}

// unionModes are the ways in which a host's file system may be lacking.
var unionModes = map[string]UnionOptions{
	"attributes":             {},
	"ledger":                 {NoXattrs: true},
	"ledger, link marks":     {NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 4},
	"references":             {NoLinks: true, NoXattrs: true, NoDeviceWhiteouts: true, MaxOpenFiles: 4},
	"references, attributes": {NoLinks: true},
}

func TestUnionBasics(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	for name, opt := range unionModes {
		t.Run(name, func(t *testing.T) {
			u := newTestUnion(t, opt, imageTars(t)...)
			u.mount()
			tryUnion(t, u.at)
			before := treeListing(t, u.at)
			u.unmount()
			u.mount()
			after := treeListing(t, u.at)
			diffListings(t, before, after)
			u.unmount()
		})
	}
}
