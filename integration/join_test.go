package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// process is a call of urun that goes on.
type process struct {
	*exec.Cmd
	out, err bytes.Buffer
}

// launchRank calls urun as a launcher does.
func launchRank(t *testing.T, files []*os.File, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(harness.Binary, args...)}
	p.Stdout, p.Stderr, p.ExtraFiles = &p.out, &p.err, files
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() }) // it has ended, if the test has gone well
	return p
}

// gone tells whether it has ended, and does not wait for it.
func (p *process) gone(t *testing.T) bool {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return info.Signo != 0
}

// ends waits for its end and returns what it has printed.
func (p *process) ends(t *testing.T, status int) string {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	select {
	case <-done:
	case <-time.After(harness.Timeout):
		t.Fatalf("%v: no end", p.Args)
	}
	if code := p.ProcessState.ExitCode(); code != status {
		t.Fatalf("%v: status %d, want %d\nstdout: %s\nstderr: %s", p.Args, code, status, &p.out, &p.err)
	}
	return strings.TrimSpace(p.out.String())
}

// step makes this process one of a job step with so many ranks on this node, in which nothing is left in the end.
func step(t *testing.T, ranks int) {
	t.Helper()
	dir := ownHolder(t)
	inJob(t)
	t.Setenv("SLURM_STEP_ID", fmt.Sprint(containers.Add(1)))
	t.Setenv("SLURM_STEP_TASKS_PER_NODE", fmt.Sprint(ranks))
	t.Cleanup(func() {
		harness.Eventually(t, 30*time.Second, "nothing of the holder is left in "+dir, func() bool {
			left, err := os.ReadDir(dir)
			return err == nil && len(left) == 0
		})
	})
}

func TestRanksReadEachOthersMemory(t *testing.T) {
	const size = 8
	step(t, size)
	meet := t.TempDir()
	var all []*process
	for i := range size {
		args := harness.RunArgs("--hpc", "--join", "--bind", meet, "--", "/probe", "rank", fmt.Sprint(i), fmt.Sprint(size), meet)
		all = append(all, launchRank(t, nil, args...))
	}
	where := map[string]bool{}
	for i, p := range all {
		out := p.ends(t, 0)
		namespaces, ok := strings.CutPrefix(out, fmt.Sprintf("rank %d read %d ", i, size))
		if !ok {
			t.Errorf("rank %d: %s", i, out)
		}
		where[namespaces] = true
		// The rank is the process that its launcher has started.
		at, err := os.ReadFile(filepath.Join(meet, fmt.Sprintf("at-%d", i)))
		if err != nil || !strings.HasPrefix(string(at), fmt.Sprint(p.Process.Pid, " ")) {
			t.Errorf("rank %d was started as process %d and is %s (%v)", i, p.Process.Pid, at, err)
		}
	}
	if len(where) != 1 {
		t.Errorf("the ranks are in several namespaces: %v", where)
	}
}

func TestRanksStayWhenAnyOfThemIsKilled(t *testing.T) {
	step(t, 3)
	const mounts = "readlink /proc/self/ns/mnt; "
	stays := launchRank(t, nil, harness.RunArgs("--join", "--", "sh", "-c", mounts+"read line; "+mounts)...)
	stays.Process.Kill() // the first, which may be about to make the container
	if err := stays.Wait(); err == nil {
		t.Fatal("the first was not killed")
	}
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	second := launchRank(t, nil, harness.RunArgs("--join", "--bind", filepath.Dir(gate), "--", "sh", "-c", mounts+"cat "+gate+"; "+mounts+"exit 7")...)
	harness.Eventually(t, 30*time.Second, "the second rank runs", func() bool {
		out := harness.Urun(t, "ps", "--format", "{{.Names}}").OK()
		return strings.HasPrefix(out, "ranks-")
	})
	third := launchRank(t, nil, harness.RunArgs("--join", "--bind", filepath.Dir(gate), "--", "sh", "-c", "exec sleep 1000")...)
	var f *os.File
	harness.Eventually(t, 30*time.Second, "the second rank reads", func() (ok bool) {
		if second.gone(t) {
			t.Fatalf("the second rank has ended: %s", second.ends(t, -1))
		}
		var err error
		f, err = os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0) // ENXIO: nobody reads
		return err == nil
	})
	if err := third.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := third.Wait(); err == nil {
		t.Fatal("the third was not killed")
	}
	f.Close()
	if lines := strings.Fields(second.ends(t, 7)); len(lines) != 2 || lines[0] != lines[1] {
		t.Errorf("the rank that stayed says %v", lines)
	}
	harness.Eventually(t, 30*time.Second, "the container ends with its last rank", func() bool {
		return harness.Urun(t, "ps", "-aq").OK() == ""
	})
}

func TestARankKeepsWhatItsLauncherGaveIt(t *testing.T) {
	step(t, 1)
	t.Setenv("PMI_FD", "3")
	t.Setenv("SLURM_PROCID", "5")
	launchRank(t, []*os.File{launcher(t)}, harness.RunArgs("--hpc", "--join", "--", "/probe", "pmi")...).ends(t, 0)
	if err := os.Unsetenv("PMI_FD"); err != nil {
		t.Fatal(err)
	}
	group := unix.Getpgrp()
	out := launchRank(t, nil, harness.RunArgs("--hpc", "--join", "-e", "A=b", "-w", "/tmp", "--", "sh", "-c", "echo $SLURM_PROCID $A; pwd; cut -d' ' -f5 /proc/self/stat; exit 3")...).ends(t, 3)
	if want := fmt.Sprintf("5 b\n/tmp\n%d", group); out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	launchRank(t, nil, harness.RunArgs("--join", "--", "no-such-program")...).ends(t, 127)
}

func TestWhatRanksCannotShareIsRefused(t *testing.T) {
	step(t, 2)
	for _, flag := range []string{"-d", "-t", "--init", "--name=x1", "--restart=always", "--pid=private", "--root-emulation=on"} {
		harness.Run(t, "--join", flag, "--", "true").Refused("--join", "hint:")
	}
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	first := launchRank(t, nil, harness.RunArgs("--join", "--bind", filepath.Dir(gate), "--", "cat", gate)...)
	f, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "--join", "--", "true").Refused("other flags", "hint:")
	harness.Run(t, "--join", "--join-tag", "another", "--join-ct", "1", "--", "true").OK()
	harness.Run(t, "--join-pid", fmt.Sprint(first.Process.Pid), "--", "readlink", "/proc/self/ns/mnt").
		Says(mountNamespace(t, first.Process.Pid))
	f.Close()
	first.ends(t, 0)
	// The other rank is never going to come, and the container does not wait for ever.
}

func mountNamespace(t *testing.T, pid int) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	return link
}
