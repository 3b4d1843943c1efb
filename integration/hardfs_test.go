package integration

import (
	"archive/tar"
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// hardStore mounts a file system that can do little but what is allowed, and has the store on it until the test ends.
func hardStore(t *testing.T, allow string) string {
	t.Helper()
	harness.Need(t, "fusermount3", "fuse3")
	back, mount := t.TempDir(), t.TempDir()
	cmd := exec.Command(harness.HardFS, "-allow", allow, back, mount)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("hardfs said %q: %v", line, err)
	}
	root := filepath.Join(mount, "store")
	t.Setenv("URUN_ROOT", root)
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("hardfs: %v", err)
		}
	})
	return root
}

// The file system refuses what it is there to refuse: else the tests below prove nothing.
func TestHardFileSystemIsHard(t *testing.T) {
	root := hardStore(t, "")
	dir := filepath.Dir(root)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(a, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"setxattr":         unix.Lsetxattr(a, "user.x", []byte("y"), 0),
		"link":             os.Link(a, b),
		"rename exchange":  unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_WHITEOUT),
		"rename noreplace": unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE),
		"mknod":            unix.Mknod(b, unix.S_IFCHR, 0),
	} {
		if err == nil {
			t.Errorf("%s is allowed", what)
		}
	}
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); err == nil {
		t.Errorf("O_TMPFILE is allowed")
		unix.Close(fd)
	}
	if err := os.Rename(a, b); err != nil {
		t.Error(err)
	}
}

// A life on a file system that can do little, of an image and of containers; in the end nothing is left of either.
func TestHardFileSystem(t *testing.T) {
	root := hardStore(t, "")
	id := harness.Urun(t, "pull", "-q", "oci:"+harness.DemoLayout()+":latest").OK()
	harness.Urun(t, "image", "verify", id).OK()
	script := `set -e
echo text >/f; chmod 4750 /f; ln -s f /l; mkdir -p /d/e; : >/d/e/x
mv /d /moved; mv /demo /image; rm /image/kept; echo more >>/etc/passwd
ln /f /moved/hard; sync; [ /f -ef /moved/hard ]; stat -c %h /f; [ "$(cat /f)" = text ]; stat -c %a /f; readlink /l; ls /moved/e; tail -n 1 /etc/passwd; ls -d /demo 2>/dev/null || echo gone`
	const printed = "2\n4750\nf\nx\nmore\ngone"
	harness.Urun(t, "run", "--rm", id, "sh", "-c", script).Says(printed)
	for _, where := range []string{"disk", "tmpfs"} {
		name := "hard-" + where
		harness.Urun(t, "run", "-d", "--name", name, "--writable", where, id, "sleep", "1000").OK()
		harness.Urun(t, "exec", name, "sh", "-c", script).Says(printed)
		harness.Urun(t, "cp", name+":/f", filepath.Join(t.TempDir(), "f")).OK()
		harness.Urun(t, "diff", name).Has("A /f", "A /moved", "A /moved/hard", "D /demo", "C /etc/passwd")
		harness.Urun(t, "stop", "-t", "0", name).OK()
		harness.Urun(t, "start", name).OK()
		kept := harness.Urun(t, "exec", name, "sh", "-c", "cat /f && stat -c %h /moved/hard || echo none").OK()
		if want := map[string]string{"disk": "text\n2", "tmpfs": "none"}[where]; kept != want {
			t.Errorf("%s: after a restart /f is %q, want %q", where, kept, want)
		}
		if where == "disk" {
			hardLinksLeave(t, name)
		}
		harness.Urun(t, "rm", "-f", name).OK()
	}
	harness.Urun(t, "run", "--rm", "--storage", "overlay", id, "true").Fails("overlay", "--storage=fuse")
	harness.Urun(t, "ps", "-aq").Says("")
	harness.Urun(t, "rmi", id).OK()
	for _, dir := range []string{"containers", "layers/sha256", "trees", "tmp"} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range left {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
}

// hardLinksLeave looks for the two names of /f in all that takes them out of a container.
func hardLinksLeave(t *testing.T, name string) {
	t.Helper()
	same := "[ /f -ef /moved/hard ] && stat -c %h /f"
	image := harness.Urun(t, "commit", name).OK()
	harness.Urun(t, "run", "--rm", "--storage", "fuse", image, "sh", "-c", same).Says("2")
	harness.Urun(t, "rmi", image).OK()
	for _, state := range []string{"running", "stopped"} {
		file := filepath.Join(t.TempDir(), "export.tar")
		harness.Urun(t, "export", "-o", file, name).OK()
		if links := linksIn(t, file); links["moved/hard"] != "f" && links["f"] != "moved/hard" {
			t.Errorf("%s: the export has links %v", state, links)
		}
		harness.Urun(t, "stop", "-t", "0", name).OK()
	}
	harness.Urun(t, "start", name).OK()
	harness.Urun(t, "exec", name, "sh", "-c", "rm /f && stat -c %h /moved/hard && ln /moved/hard /f").Says("1")
}

// linksIn are the hard links in a tar.
func linksIn(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	links := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return links
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink {
			links[strings.Trim(h.Name, "./")] = strings.Trim(h.Linkname, "./")
		}
	}
}

// Package managers with one id on a file system without attributes and without the hard links that dpkg makes.
func TestServicesInstallOnAHardFileSystem(t *testing.T) {
	if os.Getenv("URUN_SERVICES") == "" {
		t.Skip("takes minutes: URUN_SERVICES=1")
	}
	debianImage(t)
	hardStore(t, "")
	services(t)
}

// A pull that the store has no room for, by bytes and by inodes, is one error with nothing half made; what fits then works.
func TestAPullIntoASmallStore(t *testing.T) {
	inNamespaces(t, func(t *testing.T) {
		for _, limit := range []string{"size=256k", "nr_inodes=6", "nr_inodes=12", "nr_inodes=16"} {
			root := t.TempDir()
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, limit); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			args := []string{"--root", root, "pull", "-q", "oci:" + harness.DemoLayout() + ":latest"}
			harness.Urun(t, args...).Fails("no space left on device", "another store with --root")
			for _, dir := range []string{"layers/sha256", "tmp"} {
				left, err := os.ReadDir(filepath.Join(root, dir))
				if err != nil && !os.IsNotExist(err) {
					t.Error(err)
				}
				for _, e := range left {
					if dir == "tmp" || strings.HasPrefix(e.Name(), ".") {
						t.Errorf("%s: %s/%s is left", limit, dir, e.Name())
					}
				}
			}
			// With more room it goes on.
			if err := unix.Mount("", root, "", unix.MS_REMOUNT, "size=200m,nr_inodes=1000"); err != nil {
				t.Fatal(err)
			}
			harness.Urun(t, "--root", root, "images", "-q").Says("")
			id := harness.Urun(t, args...).OK()
			harness.Urun(t, "--root", root, "run", "--rm", "--network", "none", id, "echo", "runs").Says("runs")
			harness.Urun(t, "--root", root, "rmi", id).OK()
		}
	})
}
