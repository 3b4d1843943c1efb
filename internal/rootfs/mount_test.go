package rootfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// inside is set in a test binary that runs in namespaces of its own.
const inside = "URUN_ROOTFS_INSIDE"

// namespaced runs the calling test again as root of a new user and mount
// namespace, which any user can make, and returns true there.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		if err := Private(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Skipf("missing: user namespaces: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("inside: %v\n%s", err, out)
	}
	return false
}

// testRoot is a root in a tmpfs, with a directory "host" beside it that stands
// for what must not be touched.
func testRoot(t *testing.T) (root *Root, dir, host string) {
	t.Helper()
	top := t.TempDir()
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(top, unix.MNT_DETACH) })
	dir, host = filepath.Join(top, "root"), filepath.Join(top, "host")
	for _, d := range []string{dir, host, filepath.Join(dir, "etc"), filepath.Join(dir, "proc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir, host
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestSymlinksOfTheImageDoNotLeadAMountOut(t *testing.T) {
	if !namespaced(t) {
		return
	}
	root, dir, host := testRoot(t)
	write(t, filepath.Join(host, "f"), "host")
	for _, link := range [][2]string{{host, "abs"}, {"../host", "rel"}, {"/proc/self/root" + host, "magic"}} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
		p, err := Parse(specs.Mount{Destination: "/" + link[1] + "/x", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}})
		if err != nil {
			t.Fatal(err)
		}
		// Whether the mount is refused or lands inside, the host's directory stays as it was.
		merr := root.Mount(p, nil)
		if entries, _ := os.ReadDir(host); len(entries) != 1 {
			t.Errorf("%s: something was made outside (%v)", link[1], merr)
		}
	}
}

func TestABindMountIsReadOnlyWithWhatIsBelow(t *testing.T) {
	if !namespaced(t) {
		return
	}
	root, dir, host := testRoot(t)
	write(t, filepath.Join(host, "f"), "host")
	p, err := Parse(specs.Mount{Destination: "/new/dir", Type: "bind", Source: host, Options: []string{"rbind", "rro"}})
	if err != nil {
		t.Fatal(err)
	}
	src, err := Source(p)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := root.Mount(p, src); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "new/dir/f")); got != "host" {
		t.Errorf("got %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "new/dir/g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := os.WriteFile(filepath.Join(host, "g"), nil, 0o644); err != nil {
		t.Errorf("the source became read-only: %v", err)
	}
}

func TestMaskedFilesAreEmptyAndTheirTargetsStay(t *testing.T) {
	if !namespaced(t) {
		return
	}
	root, dir, host := testRoot(t)
	write(t, filepath.Join(dir, "secret"), "secret")
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "keys/k"), "secret")
	write(t, filepath.Join(host, "f"), "host")
	// A link of the image in the place of a path to be masked (CVE-2025-31133).
	if err := os.Symlink(filepath.Join(host, "f"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	null := os.NewFile(uintptr(fd), "/dev/null")
	defer null.Close()
	if err := root.Mask([]string{"/secret", "/keys", "/missing", "/link"}, null); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "secret")); got != "" {
		t.Errorf("read %q", got)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "keys")); err != nil || len(entries) != 0 {
		t.Errorf("read %v, %v", entries, err)
	}
	if got := read(t, filepath.Join(host, "f")); got != "host" {
		t.Errorf("a file outside was masked: %q", got)
	}
}

func TestSysctlWritesToProcfsOnly(t *testing.T) {
	if !namespaced(t) {
		return
	}
	root, dir, host := testRoot(t)
	fake := filepath.Join(dir, "proc/sys/net/ipv4")
	if err := os.MkdirAll(fake, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(fake, "ip_forward"), "0")
	if err := root.Sysctl(map[string]string{"net.ipv4.ip_forward": "1"}); err == nil {
		t.Error("a file that is not procfs's was written (CVE-2025-52881)")
	}
	write(t, filepath.Join(host, "f"), "host")
	if err := os.Symlink(filepath.Join(host, "f"), filepath.Join(fake, "link")); err != nil {
		t.Fatal(err)
	}
	if err := root.Sysctl(map[string]string{"net.ipv4.link": "1"}); err == nil || read(t, filepath.Join(host, "f")) != "host" {
		t.Errorf("a symlink was followed: %v", err)
	}
}

func TestANewVolumeGetsWhatTheImageHasThere(t *testing.T) {
	if !namespaced(t) {
		return
	}
	root, dir, host := testRoot(t)
	write(t, filepath.Join(dir, "etc/passwd"), "root")
	if err := os.Chmod(filepath.Join(dir, "etc/passwd"), os.ModeSetuid|0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("passwd", filepath.Join(dir, "etc/link")); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		t.Helper()
		p, err := Parse(specs.Mount{Destination: "/etc", Type: "bind", Source: host, Options: []string{"rbind", "copyup"}})
		if err != nil {
			t.Fatal(err)
		}
		src, err := Source(p)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if err := root.Mount(p, src); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	info, err := os.Stat(filepath.Join(host, "passwd"))
	if err != nil || info.Mode()&os.ModeSetuid == 0 || info.Mode().Perm() != 0o711 {
		t.Errorf("got %v, %v", info, err)
	}
	if got, err := os.Readlink(filepath.Join(host, "link")); err != nil || got != "passwd" {
		t.Errorf("got %q, %v", got, err)
	}
	// The second time the volume has something: nothing is copied again.
	if err := os.Remove(filepath.Join(host, "passwd")); err != nil {
		t.Fatal(err)
	}
	mount()
	if _, err := os.Stat(filepath.Join(host, "passwd")); !os.IsNotExist(err) {
		t.Error("a volume that was in use was filled again")
	}
}

func TestPivotLeavesNothingOfTheHost(t *testing.T) {
	if !namespaced(t) {
		return
	}
	top := t.TempDir()
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(top, "mark"), "inside")
	if err := os.Mkdir(filepath.Join(top, "tmp"), 0o1777); err != nil { // for the testing package's own
		t.Fatal(err)
	}
	root, err := Open(top)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Pivot(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/")
	if err != nil || len(entries) != 2 || read(t, "/mark") != "inside" {
		t.Errorf("got %v, %v", entries, err)
	}
}
