package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// inJobs are some rows of docs/where-it-runs.md: what urun stands on in them, or why it does not run.
var inJobs = []struct {
	fixture, who string
	rung         string
	refused      string
}{
	{fixture: "docker", who: "root", rung: "chroot"},
	{fixture: "docker", who: "job1", refused: "seccomp filter around this process forbids it"},
	{fixture: "docker-devices", who: "root", rung: "chroot"},
	{fixture: "sys-admin", who: "root", rung: "user namespace, FUSE, the job's /proc"},
	{fixture: "unconfined", who: "root", rung: "user namespace, unpacked, the job's /proc"},
	{fixture: "unconfined", who: "job1", rung: "user namespace of one id, unpacked, the job's /proc"},
	{fixture: "unmasked-devices", who: "root", rung: "user namespace, FUSE"},
	{fixture: "no-new-privs", who: "job1", rung: "user namespace of one id, FUSE"},
	{fixture: "privileged", who: "root", rung: "user namespace, FUSE"},
}

// Urun runs in containers as docker makes them, on the rung that they leave, or says what keeps it from it; and doctor says the same.
func TestJobsInContainersByRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("missing: root, who makes containers as docker's daemon does")
	}
	harness.Need(t, "crun", "crun")
	c := cell{work: publicDir(t), rootfs: hostTree(t)}
	c.binds = map[string]string{"/usr/local/bin/urun": copied(t, c.work, harness.Binary), "/image": filepath.Join(c.work, "image"), "/job.sh": filepath.Join(c.work, "job.sh")}
	if err := errors.Join(os.CopyFS(c.binds["/image"], os.DirFS(harness.DemoLayout())), os.WriteFile(c.binds["/job.sh"], []byte(job), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range hostDirs() {
		c.binds[dir] = dir
	}
	for _, j := range inJobs {
		t.Run(j.fixture+" "+j.who, func(t *testing.T) {
			for _, f := range fixtures() {
				if f.name == j.fixture {
					c.fixture = f
				}
			}
			for _, p := range people() {
				if p.userName == j.who {
					c.who = p
				}
			}
			r := row{Words: j.fixture, Who: j.who, user: j.who, alone: true}
			if err := c.examine(&r); err != nil {
				if !strings.Contains(err.Error(), "attempts were not made") && strings.Contains(err.Error(), "crun") {
					t.Skipf("missing: containers by crun: %v", err)
				}
				t.Fatal(err)
			}
			s, err := r.doctor()
			if err != nil {
				t.Fatal(err)
			}
			if j.refused != "" {
				if v := r.Run.verdict(); r.Run.works() || !strings.Contains(v, j.refused) || !strings.Contains(r.Run.Errors, "hint: ") {
					t.Errorf("run: %s\n%s", v, r.Run.Errors)
				}
				return
			}
			if got := r.rung(s); got != j.rung {
				t.Errorf("it stands on %q, not on %q", got, j.rung)
			}
			for what, a := range map[string]attempt{"run": r.Run, "run -d": r.Detached, "exec": r.Exec, "rm": r.Rm} {
				if !a.works() {
					t.Errorf("%s: %s", what, a.verdict())
				}
			}
		})
	}
}

// publicDir is a directory that everybody may look into.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "urun-jobs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copied(t *testing.T, dir, program string) string {
	t.Helper()
	to := filepath.Join(dir, filepath.Base(program))
	if out, err := exec.Command("install", program, to).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return to
}

// hostDirs are the directories with this machine's programs. Nothing is mounted below one of them: crun would make the place for it there.
func hostDirs() []string {
	var dirs []string
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/bin", "/sbin", "/lib", "/lib64", "/etc"} {
		if fi, err := os.Lstat(dir); err == nil && fi.IsDir() {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// hostTree is a root directory for this machine's programs.
func hostTree(t *testing.T) string {
	t.Helper()
	root := publicDir(t)
	if err := os.MkdirAll(filepath.Join(root, "usr/local/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64", "etc", "proc", "sys", "dev", "tmp", "home", "image", "root", "run", "var"} {
		target, err := os.Readlink("/" + dir)
		if err == nil && !filepath.IsAbs(target) {
			err = os.Symlink(target, filepath.Join(root, dir))
		} else {
			err = os.Mkdir(filepath.Join(root, dir), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "job.sh"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}
