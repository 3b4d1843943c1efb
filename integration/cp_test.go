package integration

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// A command is killed, and then all that belongs to it, while the layer of a
// container that does not run is put back.
func TestKilledCopyLeavesTheLayerParked(t *testing.T) {
	for _, whom := range []string{"the command", "all of it"} {
		t.Run(whom, func(t *testing.T) {
			name := unique(t)
			harness.Urun(t, "run", "--name", name, harness.DemoImage, "sh", "-c", "mkdir -m 700 /d; echo x > /d/f; chown 7:7 /d/f 2>/dev/null; true").OK()
			t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
			dir := filepath.Join(harness.Store, "containers", harness.Urun(t, "inspect", "-f", "{{.Id}}", name).OK())
			cmd := exec.Command(harness.Binary, "cp", "-", name+":/d")
			stdin, err := cmd.StdinPipe() // never written to: the copy waits
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			record := filepath.Join(dir, "state.json")
			harness.Eventually(t, 20*time.Second, "the layer is put back", func() bool {
				raw, err := os.ReadFile(record)
				return err == nil && bytes.Contains(raw, []byte(`"unparked":true`)) && len(stagesOf(t, dir)) > 0
			})
			if whom == "all of it" {
				for _, pid := range stagesOf(t, dir) {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may just be ending
				}
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			harness.Eventually(t, 20*time.Second, "the next command has parked it", func() bool {
				harness.Urun(t, "ps", "-a").OK()
				raw, err := os.ReadFile(record)
				return err == nil && !bytes.Contains(raw, []byte(`"unparked":true`))
			})
			err = filepath.WalkDir(filepath.Join(dir, "upper"), func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := d.Info()
				if err == nil && ownerOf(info) != os.Getuid() {
					t.Errorf("%s belongs to %d", p, ownerOf(info))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			harness.Urun(t, "cp", name+":/d/f", filepath.Join(t.TempDir(), "f")).OK()
		})
	}
}

// stagesOf are the processes that work in a container's directory.
func stagesOf(t *testing.T, dir string) (pids []int) {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(e)
		if err != nil || !strings.HasPrefix(string(raw), "urun\x00__files") {
			continue
		}
		cwd, err := os.Readlink(filepath.Join(filepath.Dir(e), "cwd"))
		if err != nil || cwd != dir {
			continue
		}
		pid := 0
		for _, c := range filepath.Base(filepath.Dir(e)) {
			pid = pid*10 + int(c-'0')
		}
		pids = append(pids, pid)
	}
	return pids
}

// A program inside exchanges a directory for a link to the host's files, again and
// again: neither is read through it, nor written.
func TestCopyDoesNotFollowLinksThatChange(t *testing.T) {
	work := t.TempDir()
	secret := filepath.Join(work, "secret")
	if err := os.Mkdir(secret, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secret, "f"), []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(work, "g")
	if err := os.WriteFile(src, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	name := detach(t, nil, "sh", "-c", "mkdir -p /d/a; echo inside > /d/a/f; ln -s '"+secret+"' /d/b; "+
		"echo ready; while :; do mv -T /d/a /d/c; mv -T /d/b /d/a; mv -T /d/a /d/b; mv -T /d/c /d/a; done")
	harness.Eventually(t, 20*time.Second, "it has begun", func() bool {
		return strings.Contains(harness.Urun(t, "logs", name).OK(), "ready")
	})
	for i := range 15 {
		out := filepath.Join(t.TempDir(), "out")
		// They may fail: there are moments without /d/a, or with a link to nowhere.
		harness.Urun(t, "cp", "-L", name+":/d/a/f", out)
		if raw, err := os.ReadFile(out); err == nil && string(raw) == "outside" {
			t.Fatalf("round %d: read %q", i, raw)
		}
		harness.Urun(t, "cp", src, name+":/d/a/g")
		harness.Urun(t, "cp", src, name+":/d/a/f")
		harness.Urun(t, "cp", name+":/d", filepath.Join(t.TempDir(), "d"))
	}
	if left, err := os.ReadDir(secret); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	if raw, err := os.ReadFile(filepath.Join(secret, "f")); err != nil || string(raw) != "outside" {
		t.Errorf("%q, %v", raw, err)
	}
}
