package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// kin are the processes that come from one, by their pid and what they are: "__monitor", or the command's name.
func kin(t *testing.T, of int) map[int]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	parents, names := map[int]int{}, map[int]string{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		cmdline, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || err2 != nil || len(cmdline) == 0 {
			continue // it has ended
		}
		var pid, parent int
		var state string
		behind := string(stat)[strings.LastIndexByte(string(stat), ')')+1:]
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(behind, &state, &parent); err != nil {
			t.Fatal(err)
		}
		words := strings.Split(string(cmdline), "\x00")
		parents[pid], names[pid] = parent, words[0]
		if len(words) > 1 && strings.HasPrefix(words[1], "__") {
			names[pid] = words[1]
		}
	}
	all := map[int]string{}
	for pid := range parents {
		for p, ok := pid, true; ok; p, ok = parents[p], parents[p] != 0 {
			if p == of {
				all[pid] = names[pid]
			}
		}
	}
	return all
}

// only is the one of the processes that is so called.
func only(t *testing.T, all map[int]string, name string) int {
	t.Helper()
	var found []int
	for pid, n := range all {
		if n == name {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		t.Fatalf("processes %q: %v, want one, of %v", name, found, all)
	}
	return found[0]
}

func gone(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return os.IsNotExist(err)
}

// inspected is what inspect says of the container's state.
func inspected(t *testing.T, name string) (status string, pid int) {
	t.Helper()
	got := strings.Fields(harness.Urun(t, "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name).OK())
	pid, err := strconv.Atoi(got[1])
	if err != nil {
		t.Fatal(err)
	}
	return got[0], pid
}

// inBackground starts urun and ends it with the test at the latest.
func inBackground(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(harness.Binary, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
}

// Whichever process of a container is killed, and whatever the container is doing: its record tells the truth, it can be
// removed, and the next one runs.
func TestAKillOfAnyProcessInAnyStateLeavesATrueRecordAndACleanStore(t *testing.T) {
	const still = "sleep 1001"
	states := []struct {
		name  string
		flags []string
		run   string
		reach func(t *testing.T, name string)
		// killed has, for each process that there is then, the state of the container after its end.
		killed map[string]string
	}{
		{"running", []string{"-p", "127.0.0.1::80"}, "exec " + still, nil, map[string]string{
			"__monitor": "exited", "__holder": "running", "__union": "exited", "__network": "running", "sleep": "exited",
		}},
		{"with a visitor", nil, "exec " + still, func(t *testing.T, name string) {
			inBackground(t, "exec", name, "tail", "-f", "/dev/null")
			harness.Eventually(t, 10*time.Second, "the visitor runs", func() bool {
				return strings.Contains(harness.Urun(t, "top", name).OK(), "tail -f")
			})
		}, map[string]string{"__monitor": "exited", "__holder": "running", "sleep": "exited", "tail": "running"}},
		{"being stopped", nil, "trap '' TERM; echo ready; while :; do sleep 0.05; done", func(t *testing.T, name string) {
			harness.Eventually(t, 10*time.Second, "the trap is set", func() bool {
				return strings.Contains(harness.Urun(t, "logs", name).OK(), "ready")
			})
			inBackground(t, "stop", "-t", "60", name)
			time.Sleep(100 * time.Millisecond) // wherever it is by then
		}, map[string]string{"__monitor": "exited", "__holder": "running", "sh": "exited"}},
		{"waiting for its restart", []string{"--restart", "always"}, "exit 1", func(t *testing.T, name string) {
			harness.Eventually(t, 30*time.Second, "it waits for long", func() bool {
				n, err := strconv.Atoi(strings.TrimSpace(harness.Urun(t, "inspect", "-f", "{{.RestartCount}}", name).OK()))
				status, _ := inspected(t, name)
				return err == nil && n >= 4 && status == "restarting"
			})
		}, map[string]string{"__monitor": "exited", "__holder": "restarting"}},
	}
	for _, st := range states {
		for role, want := range st.killed {
			t.Run(st.name+"/"+role, func(t *testing.T) {
				lingering(t)
				t.Setenv("URUN_LINGER", "0s")
				name := detach(t, st.flags, "sh", "-c", st.run)
				holder := holders(t)
				if len(holder) != 1 {
					t.Fatalf("holders: %v", holder)
				}
				if st.reach != nil {
					st.reach(t, name)
				}
				all := kin(t, holder[0])
				victim := only(t, all, role)
				if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				harness.Eventually(t, 10*time.Second, "the record says "+want, func() bool {
					status, pid := inspected(t, name)
					// Between the end of a process and the monitor's word of it are some milliseconds.
					return gone(victim) && status == want && (status != "running" || !gone(pid))
				})
				if got := strings.TrimSpace(harness.Urun(t, "ps", "-a", "--format", "{{.State}}", "--filter", "name="+name).OK()); got != want {
					t.Errorf("ps says %q, inspect %q", got, want)
				}
				harness.Urun(t, "rm", "-f", name).OK()
				if r := harness.Urun(t, "inspect", name); r.Code == 0 {
					t.Errorf("it is removed, and still there: %s", r)
				}
				harness.Eventually(t, 10*time.Second, "nothing is left of it", func() bool {
					for pid := range all {
						if !gone(pid) && !zombie(pid) {
							return false
						}
					}
					return true
				})
				harness.Run(t, "--", "true").OK()
			})
		}
	}
}

// zombie tells whether a process has ended and is not waited for: the tests' own pid 1 may not do so at once.
func zombie(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(status), "State:\tZ")
}
