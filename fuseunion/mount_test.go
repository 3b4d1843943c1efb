package fuseunion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	envInside = "FUSEUNION_TEST_INSIDE" // set in the user namespace
	envServe  = "FUSEUNION_TEST_SERVE"  // tree and data files of a server process
	envWishes = "FUSEUNION_TEST_WISHES" // set where descriptor 4 is for ServeOptions.List
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(envServe); spec != "" {
		paths := strings.Split(spec, ":")
		if err := serveTest(paths[0], paths[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if spec := os.Getenv(envUnion); spec != "" {
		if err := serveUnionTest(spec); err != nil {
			fmt.Fprintln(os.Stderr, "serve union:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveTest is the server process: descriptor 3 is the device.
func serveTest(tree string, data []string) error {
	t, err := OpenTree(tree, data)
	if err != nil {
		return err
	}
	opt := ServeOptions{UIDs: mappedIDs("/proc/self/uid_map"), GIDs: mappedIDs("/proc/self/gid_map"), SquashUID: 65534, SquashGID: 65534}
	if len(opt.UIDs) == 1 && opt.UIDs[0].Count == 1 {
		opt.SquashUID, opt.SquashGID = 0, 0
	}
	if opt.List, err = wishes(); err != nil {
		return err
	}
	return errors.Join(Serve(context.Background(), os.NewFile(3, "fuse"), t, opt), t.Close())
}

// wishes is the ServeOptions.List of a server process.
func wishes() (func(dirs []string), error) {
	if os.Getenv(envWishes) == "" {
		return nil, nil
	}
	return SendListings(os.NewFile(4, "listings"))
}

func mappedIDs(path string) (ranges []IDRange) {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		var r IDRange
		var outer uint32
		if _, err := fmt.Sscan(line, &r.First, &outer, &r.Count); err != nil {
			panic(err)
		}
		ranges = append(ranges, r)
	}
	return ranges
}

// inNamespaces runs the calling test again in a new user and mount namespace and
// reports whether this is that run.
func inNamespaces(t testing.TB) bool {
	t.Helper()
	if os.Getenv(envInside) == t.Name() {
		return true
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=30s"}
	pass := "--- PASS"
	if _, ok := t.(*testing.B); ok {
		args = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$", "-test.benchtime=5x"}
		pass = "ns/op"
	}
	cmd := exec.Command(self, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	size := 1
	if os.Getuid() == 0 {
		size = 65536
	}
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: size}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: size}}
	cmd.SysProcAttr.GidMappingsEnableSetgroups = os.Getuid() == 0
	if os.Getuid() != 0 && hasSubIDs(t) {
		cmd = exec.Command("unshare", append([]string{"--user", "--map-root-user", "--map-auto", "--mount", self}, args...)...)
	}
	cmd.Env = append(os.Environ(), envInside+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) && len(out) == 0 {
		t.Skipf("needs unprivileged user namespaces: %v", err)
	}
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Fatalf("inside the namespaces: %v", err)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip("skipped inside the namespaces: see the log")
	}
	if !bytes.Contains(out, []byte(pass)) {
		t.Fatal("nothing ran inside the namespaces")
	}
	return false
}

func hasSubIDs(t testing.TB) bool {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return false
	}
	_, err = exec.LookPath("unshare")
	return err == nil && (strings.HasPrefix(string(b), u.Username+":") || strings.Contains(string(b), "\n"+u.Username+":"))
}

// mountTars serves the merged tars from a process of its own and returns where
// they are mounted. Only inside the namespaces.
func mountTars(t testing.TB, tars ...[]byte) string {
	t.Helper()
	return mountTarsListed(t, nil, tars...)
}

// mountTarsListed is mountTars with wishes that go to w.
func mountTarsListed(t testing.TB, w []*os.File, tars ...[]byte) string {
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
	at, unmount := mountTree(t, base, tree, data, w...)
	t.Cleanup(unmount)
	return at
}

// mountTree serves a tree; unmount waits for the server's end. The server's wishes go to w, if that is there.
func mountTree(t testing.TB, base, tree string, data []string, w ...*os.File) (at string, unmount func()) {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mnt, err := Mount(dev, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	srv := exec.Command(self)
	srv.Env = append(os.Environ(), envServe+"="+strings.Join(append([]string{tree}, data...), ":"))
	takeWishes(srv, dev, w...)
	srv.Stderr = os.Stderr
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	at = filepath.Join(base, "lower")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	if err := mnt.Close(); err != nil {
		t.Fatal(err)
	}
	return at, func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(at, unix.MNT_DETACH|unix.MNT_FORCE)
		}
		ended := make(chan error, 1)
		go func() { ended <- srv.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("server after the unmount: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("server outlives its mount")
		}
	}
}

// takeWishes gives a server process its device, and where its wishes go.
func takeWishes(srv *exec.Cmd, dev *os.File, w ...*os.File) {
	srv.ExtraFiles = append([]*os.File{dev}, w...)
	if len(w) > 0 {
		srv.Env = append(srv.Env, envWishes+"=1")
	}
}

func mountOverlay(t testing.TB, lower string) string {
	t.Helper()
	base := filepath.Dir(lower)
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(base, "merged")
	opts := fmt.Sprintf("userxattr,xino=on,lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)
	if err := unix.Mount("overlay", at, "overlay", 0, opts); err != nil {
		t.Fatalf("overlay with userxattr (Linux 5.11): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount overlay: %v", err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	return at
}

func imageTars(t testing.TB) [][]byte {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skipf("needs /bin/true: %v", err)
	}
	big := strings.Repeat("0123456789abcdef", 200_000) // 3.2 MB
	return [][]byte{
		makeTar(
			t, dir("."), dir("bin"), dir("etc"),
			ent{name: "bin/true", body: string(program), mode: 0o755},
			ent{name: "etc/passwd", body: "root:x:0:0::/root:/bin/sh\n", uid: 0},
			ent{name: "etc/shadow", body: "secret", mode: 0o640, gid: 42},
			ent{name: "etc/cron", body: "x", uid: 33, gid: 33, mode: 0o4755},
			ent{name: "etc/xattr", body: "x", xattrs: map[string]string{
				"user.color": "blue", "user.overlay.opaque": "y", "trusted.overlay.opaque": "y", "security.ima": "z",
			}},
			symlink("bin/sh", "true"), file("etc/gone", "gone"), file("etc/hard", "hard"), file("big", big),
			hardlink("etc/hard2", "etc/hard"),
			ent{name: "bad\xff\xfename", body: "not utf-8"},
			file(strings.Repeat("n", 255), "long"),
		),
		makeTar(t, file("etc/.wh.gone", ""), hardlink("etc/hard3", "etc/hard"), file("new", "new\n")),
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func lstat(t testing.TB, path string) (st unix.Stat_t) {
	t.Helper()
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func TestMountShowsWhatTheTreeHolds(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	at := mountTars(t, imageTars(t)...)
	full := mappedIDs("/proc/self/uid_map")
	all := full[len(full)-1].First+full[len(full)-1].Count > 1000

	if got := read(t, at+"/etc/passwd"); got != "root:x:0:0::/root:/bin/sh\n" {
		t.Errorf("passwd: %q", got)
	}
	if got := read(t, at+"/big"); got != strings.Repeat("0123456789abcdef", 200_000) {
		t.Errorf("big file of %d bytes differs", len(got))
	}
	if _, err := os.Lstat(at + "/etc/gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("whited out file: %v", err)
	}
	st := lstat(t, at+"/etc/shadow")
	if st.Mode != unix.S_IFREG|0o640 || st.Uid != 0 || all && st.Gid != 42 || !all && st.Gid != 0 {
		t.Errorf("shadow: %o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if st.Mtim.Sec != testTime.Unix() || st.Mtim.Nsec != int64(testTime.Nanosecond()) {
		t.Errorf("shadow: mtime %v", st.Mtim)
	}
	one, three := lstat(t, at+"/etc/hard"), lstat(t, at+"/etc/hard3")
	if one.Ino != three.Ino || one.Nlink != 3 {
		t.Errorf("hard links: inodes %d %d, nlink %d", one.Ino, three.Ino, one.Nlink)
	}
	if got, err := os.Readlink(at + "/bin/sh"); err != nil || got != "true" {
		t.Errorf("readlink: %q, %v", got, err)
	}
	for _, dir := range []string{at, at + "/etc"} {
		checkDir(t, dir)
	}
	if err := exec.Command(at + "/bin/true").Run(); err != nil {
		t.Errorf("execute from the mount: %v", err)
	}
	var buf [256]byte
	if n, err := unix.Lgetxattr(at+"/etc/xattr", "user.color", buf[:]); err != nil || string(buf[:n]) != "blue" {
		t.Errorf("user.color: %q, %v", buf[:n], err)
	}
	for _, name := range []string{"user.overlay.opaque", "security.ima"} {
		if _, err := unix.Lgetxattr(at+"/etc/xattr", name, buf[:]); err != unix.ENODATA {
			t.Errorf("%s: %v, want ENODATA", name, err)
		}
	}
	if n, err := unix.Llistxattr(at+"/etc/xattr", buf[:]); err != nil || string(buf[:n]) != "user.color\x00" {
		t.Errorf("listxattr: %q, %v", buf[:n], err)
	}
	if err := os.WriteFile(at+"/etc/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v, want EROFS", err)
	}
	checkMmap(t, at+"/big")
	var sfs unix.Statfs_t
	if err := unix.Statfs(at, &sfs); err != nil || sfs.Namelen != 255 || sfs.Blocks == 0 {
		t.Errorf("statfs: %+v, %v", sfs, err)
	}
}

// checkDir holds that what readdir says agrees with lstat.
func checkDir(t testing.TB, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	seen := 0
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			ino, reclen, typ := *(*uint64)(ptr(b)), *(*uint16)(ptr(b[16:])), b[18]
			name, _, _ := bytes.Cut(b[19:reclen], []byte{0})
			b = b[reclen:]
			seen++
			if string(name) == ".." {
				continue
			}
			st := lstat(t, dir+"/"+string(name))
			if st.Ino != ino || st.Mode>>12 != uint32(typ) {
				t.Errorf("%s/%s: readdir says inode %d type %d, lstat %d %d", dir, name, ino, typ, st.Ino, st.Mode>>12)
			}
		}
	}
	if seen < 3 {
		t.Errorf("%s: %d entries", dir, seen)
	}
}

func checkMmap(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if string(b[500_000:500_016]) != "0123456789abcdef" {
		t.Errorf("mmap: %q", b[500_000:500_016])
	}
	if err := unix.Munmap(b); err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mnt, err := Mount(dev, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree := openTars(t, makeTar(t, file("a", "")))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, dev, tree, ServeOptions{}) }()
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("got %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if err := mnt.Close(); err != nil {
		t.Error(err)
	}
}
