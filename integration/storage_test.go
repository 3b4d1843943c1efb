package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// storages are both ways of merging a writable layer.
var storages = []string{"overlay", "fuse"}

func TestStorageIsShown(t *testing.T) {
	for _, storage := range storages {
		name := detach(t, []string{"--storage", storage}, "sleep", "1000")
		harness.Urun(t, "inspect", "-f", "{{.GraphDriver.Data.Storage}}", name).Says(storage)
	}
	harness.Urun(t, "info").Has("writable layer:", "overlay")
	harness.Run(t, "--storage", "vfs", "--", "true").Refused("vfs", "overlay", "fuse")
}

func TestStorageFuseIsTheRoot(t *testing.T) {
	script := `set -e
while read -r _ _ _ _ at _ rest; do [ "$at" != / ] || echo "${rest#*- }"; done </proc/self/mountinfo | cut -d " " -f 1
echo new >/etc/new
echo more >>/etc/passwd
mv /demo /moved
cat /moved/kept
chmod 600 /moved/kept
rm -rf /moved
ls / | tr "\n" " "
umask 077; : >/tmp/secret; stat -c %a /tmp/secret`
	out := harness.Sh(t, "--storage", "fuse", script).OK()
	if !strings.HasPrefix(out, "fuse.urun\n") || strings.Contains(out, "demo") || !strings.HasSuffix(out, "600") {
		t.Errorf("printed %q", out)
	}
}

// What a container wrote lies in the user's own files, whoever it belongs to inside.
func TestStorageFuseLeavesTheUsersFiles(t *testing.T) {
	name := unique(t)
	script := "echo kept >/kept; chown 0:0 /kept; mkdir /d; ln -s x /d/link; rm /demo/kept"
	if harness.Ranges(t) {
		script += "; chown 33:44 /kept; chown -h 33:44 /d/link"
	}
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	harness.Urun(t, "run", "--name", name, "--storage", "fuse", harness.DemoImage, "sh", "-c", script).OK()
	upper := harness.Urun(t, "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", name).OK()
	b, err := os.ReadFile(filepath.Join(upper, "kept"))
	if err != nil || string(b) != "kept\n" {
		t.Errorf("%q, %v", b, err)
	}
	err = filepath.Walk(filepath.Dir(upper), func(path string, fi os.FileInfo, err error) error {
		if err == nil && ownerOf(fi) != os.Getuid() {
			t.Errorf("%s belongs to %d", path, ownerOf(fi))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What was written is there after a restart, with its owners, in both storages.
func TestStorageOutlivesTheContainer(t *testing.T) {
	owner := "0:0"
	if harness.Ranges(t) {
		owner = "33:44"
	}
	for _, storage := range storages {
		name := unique(t)
		t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
		harness.Urun(t, "run", "--name", name, "--storage", storage, harness.DemoImage, "sh", "-c",
			"if [ -e /kept ]; then stat -c %u:%g:%a /kept; cat /kept; ls /demo; else echo text >/kept; chmod 4750 /kept; chown "+owner+" /kept; rm /demo/kept; fi").OK()
		out := harness.Urun(t, "start", "-a", name).OK()
		if !strings.HasPrefix(out, owner+":750\ntext\n") || strings.Contains(out, "kept") {
			t.Errorf("%s: printed %q", storage, out)
		}
	}
}

// A container whose own server is killed gets errors and ends, and nothing is left. For the one that containers share see
// TestAKilledServerEndsItsContainersAndIsReplaced.
func TestStorageServerKilled(t *testing.T) {
	name := unique(t)
	harness.Urun(t, "run", "-d", "--name", name, "--storage", "fuse", harness.DemoImage,
		"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/tmp/f$((i%100)); ls -lR /usr >/dev/null; done").OK()
	pid := unionOf(t, name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the container ends", func() bool {
		return harness.Urun(t, "inspect", "-f", "{{.State.Status}}", name).OK() == "exited"
	})
	harness.Urun(t, "inspect", "-f", "{{.State.Error}}", name).Has("image server")
	harness.Urun(t, "rm", name).OK()
}

// unionOf finds the server among the monitor's children.
func unionOf(t *testing.T, name string) int {
	t.Helper()
	monitor := harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", name).OK()
	tasks, err := filepath.Glob("/proc/" + monitor + "/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("monitor %q has no tasks: %v", monitor, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for _, pid := range strings.Fields(string(b)) {
			args, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err == nil && strings.Contains(string(args), "__union") {
				var n int
				if _, err := fmt.Sscan(pid, &n); err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("monitor %s has no image server", monitor)
	return 0
}

// Where the store's file system can not be overlayfs's upper one, as overlayfs itself,
// the root of most containers, can not, "auto" is "fuse"; "overlay" says so.
func TestStorageAutoTakesFuseOnOverlayfs(t *testing.T) {
	unshare := harness.Need(t, "unshare", "util-linux")
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := `set -e
mount -t overlay overlay -o userxattr,lowerdir="$1/lower",upperdir="$1/upper",workdir="$1/work" "$1/merged"
export URUN_ROOT="$1/merged/store" URUN_LINGER=0s XDG_RUNTIME_DIR="$1/run"
"$2" run --rm -q "oci:$3" sh -c 'echo written >/new; cat /new; while read -r _ _ _ _ at _ rest; do [ "$at" != / ] || echo "${rest#*- }"; done </proc/self/mountinfo'
"$2" info
"$2" run --rm -q --storage overlay "oci:$3" true 2>&1 || echo "status $?"
umount -l "$1/merged"`
	out, err := exec.Command(unshare, "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", dir, harness.Binary, harness.DemoLayout()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"written\n", "fuse.urun", "urun's own union", "--storage=fuse can", "status 125"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("printed %s\nwant %q", out, want)
		}
	}
}
