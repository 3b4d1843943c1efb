package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// upperOf lists what is on disk of a container's changes.
func upperOf(t *testing.T, name string) []string {
	t.Helper()
	dir := harness.Urun(t, "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", name).OK()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestWritableInMemory(t *testing.T) {
	for _, storage := range append([]string{"auto"}, storages...) {
		name := unique(t)
		t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
		script := `[ ! -e /kept ] && [ -e /demo/kept ] || exit 9
echo text >/kept; chmod 640 /kept; rm /demo/kept; echo more >>/etc/passwd; mkdir /d; mv /d /e; echo ready; exec sleep 1000`
		r := harness.Urun(t, "run", "-d", "--name", name, "--storage", storage, "--writable", "tmpfs", harness.DemoImage, "sh", "-c", script)
		r.OK()
		if !strings.Contains(r.Stderr, "kept in memory") {
			t.Errorf("%s: nobody says so: %s", storage, r)
		}
		harness.Eventually(t, 20*time.Second, "the script is through", func() bool {
			return strings.Contains(harness.Urun(t, "logs", name).OK(), "ready")
		})
		harness.Urun(t, "exec", name, "sh", "-c", "cat /kept; stat -c %a /kept; tail -n 1 /etc/passwd").Says("text\n640\nmore")
		harness.Urun(t, "diff", name).Says("C /demo\nD /demo/kept\nA /e\nC /etc\nC /etc/passwd\nA /kept")
		harness.Urun(t, "inspect", "-f", "{{.HostConfig.Writable}}", name).Says("tmpfs")
		if on := upperOf(t, name); len(on) > 0 {
			t.Errorf("%s: on disk are %v", storage, on)
		}
		// An image of it has what was in memory.
		image := "localhost/" + name
		harness.Urun(t, "commit", "-q", name, image).OK()
		harness.Urun(t, "run", "--rm", image, "sh", "-c", "cat /kept; ls /demo").Has("text")
		harness.Urun(t, "rmi", image).OK()

		harness.Urun(t, "stop", "-t", "0", name).OK()
		harness.Urun(t, "diff", name).Says("")
		harness.Urun(t, "cp", "/etc/passwd", name+":/p").Fails("in memory", "urun start")
		// Another start begins with the image: the script has found nothing of itself.
		harness.Urun(t, "start", name).OK()
		harness.Eventually(t, 20*time.Second, "the script is through again", func() bool {
			return strings.Count(harness.Urun(t, "logs", name).OK(), "ready") == 2
		})
	}
}

func TestWritableNone(t *testing.T) {
	for _, storage := range append([]string{"auto"}, storages...) {
		dir := t.TempDir()
		out := harness.Sh(t, "--storage", storage, "--writable", "none", "-v", dir+":/not/in/the/image", "--tmpfs", "/run/x", `
(: >/new) || echo refused
rm /demo/kept || echo refused
echo mounted >/not/in/the/image/f; : >/run/x/f; cat /etc/hostname >/dev/null && echo generated`).OK()
		if out != "refused\nrefused\ngenerated" {
			t.Errorf("%s: printed %q", storage, out)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "mounted\n" {
			t.Errorf("%s: %q %v", storage, b, err)
		}
		name := detach(t, []string{"--storage", storage, "--writable", "none"}, "sleep", "1000")
		if on := upperOf(t, name); len(on) > 0 {
			t.Errorf("%s: on disk are %v", storage, on)
		}
		harness.Urun(t, "inspect", "-f", "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Writable}}", name).Says("true none")
	}
	harness.Run(t, "--writable", "some", "--", "true").Refused("--writable some", "disk, tmpfs, none")
	harness.Run(t, "--writable", "tmpfs", "--storage", "copy", "--", "true").Refused("--writable=tmpfs", "--storage=copy")
}

func TestWritableIsASetting(t *testing.T) {
	config := filepath.Join(t.TempDir(), "urun")
	if err := os.MkdirAll(config, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config, "config.toml"), []byte("writable = \"none\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Dir(config))
	harness.Sh(t, "(: >/new) || echo refused").Says("refused")
	harness.Sh(t, "--writable", "disk", ": >/new && echo made").Says("made")
	harness.Urun(t, "info").Has("writable = none, from " + config)
}

// A store that many nodes mount read-only, on a node whose home is read-only as well.
func TestAReadOnlyStoreAndHome(t *testing.T) {
	inNamespaces(t, func(t *testing.T) {
		home := t.TempDir()
		t.Setenv("HOME", home)
		t.Setenv("XDG_DATA_HOME", "")
		runtime := t.TempDir()
		if err := os.Chmod(runtime, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("XDG_RUNTIME_DIR", runtime)
		for _, dir := range []string{harness.Store, home} {
			readOnly(t, dir)
		}
		for _, storage := range storages {
			for _, where := range []string{"disk", "tmpfs", "none"} {
				name := storage + "-" + where
				harness.Urun(t, "run", "-d", "--name", name, "--network", "none", "--storage", storage, "--writable", where, harness.DemoImage, "sleep", "1000").OK()
				harness.Urun(t, "exec", name, "sh", "-c", "[ -e /demo/kept ]").OK()
				if where != "none" {
					harness.Urun(t, "exec", name, "sh", "-c", "echo x >/demo/kept").OK()
				}
				harness.Urun(t, "ps", "--format", "{{.Names}}").Says(name)
				harness.Urun(t, "rm", "-f", name).OK()
			}
		}
		harness.Urun(t, "pull", "-q", "oci:"+harness.DemoLayout()+":latest").Fails("read-only", "--root")
		harness.Urun(t, "rmi", harness.DemoImage).Fails("read-only")
		if left, err := os.ReadDir(filepath.Join(runtime, "urun-state", "containers")); err != nil || len(left) > 0 {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}

// readOnly mounts a directory on itself, read-only.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	// What the mount has from outside stays: ST_* are MS_* for these.
	keep := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	if st.Flags&unix.ST_RELATIME != 0 {
		keep |= unix.MS_RELATIME
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|keep, ""); err != nil {
		t.Fatal(err)
	}
}

// Where the store is full, the hint leads out: containers elsewhere, their changes in memory.
func TestAFullStoreAndTheWayOut(t *testing.T) {
	inNamespaces(t, func(t *testing.T) {
		dir := filepath.Join(harness.Store, "containers")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		filler, err := os.Create(filepath.Join(dir, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer filler.Close()
		for n := 0; err == nil; n++ {
			_, err = filler.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		harness.Run(t, "--network", "none", "--", "true").Refused("no space left on device", "--state DIR", "--writable=tmpfs")
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("left are %v, %v", left, err)
		}
		state := t.TempDir()
		for _, storage := range storages {
			r := harness.Urun(t, "--state", state, "run", "--rm", "--network", "none", "--storage", storage, "--writable", "tmpfs", harness.DemoImage,
				"sh", "-c", "head -c 1000000 /dev/zero >/big; stat -c %s /big")
			r.Says(fmt.Sprint(1000000))
		}
	})
}
