package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// ownHolder gives the test holders that no other test has, and ends them afterwards.
func ownHolder(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Cleanup(func() {
		for _, pid := range holders(t) {
			endHolder(t, pid)
		}
	})
	return filepath.Join(dir, "urun")
}

var infoLine = regexp.MustCompile(`(?m)^(holder|image server): +process (\d+)(?: in (\S+))?: (?:\w+ for )?(\d+) containers`)

// lingerers are the processes of the test's own holders that urun info shows, with their number of containers. Others
// than these are of earlier tests and linger.
func lingerers(t *testing.T, kind string) map[int]int {
	t.Helper()
	all, own := map[int]int{}, false
	for _, m := range infoLine.FindAllStringSubmatch(harness.Urun(t, "info").OK(), -1) {
		if m[1] == "holder" { // the image servers below it are its own
			own = strings.HasPrefix(m[3], os.Getenv("XDG_RUNTIME_DIR")+"/")
		}
		pid, err1 := strconv.Atoi(m[2])
		users, err2 := strconv.Atoi(m[4])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if own && m[1] == kind {
			all[pid] = users
		}
	}
	return all
}

// holders are the pids of those that run.
func holders(t *testing.T) []int {
	t.Helper()
	return slices.Collect(maps.Keys(lingerers(t, "holder")))
}

const userNS = "readlink /proc/self/ns/user"

func TestContainersOfOneMapShareAUserNamespaceFromRunToRun(t *testing.T) {
	ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	first := harness.Sh(t, userNS).OK()
	harness.Sh(t, userNS).Says(first)
	if other := harness.Sh(t, "--userns", "keep-id", userNS).OK(); other == first {
		t.Errorf("another id map has the same user namespace %s", first)
	}
	pids := holders(t)
	if len(pids) != 2 {
		t.Errorf("%d holders for two maps", len(pids))
	}
}

// endHolder ends a holder as an administrator may.
func endHolder(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, fmt.Sprintf("process %d is gone", pid), func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestAHolderEndsWithItsLastContainerWhenItIsNotToLinger(t *testing.T) {
	dir := ownHolder(t)
	t.Setenv("URUN_LINGER", "0s")
	harness.Run(t, "true").OK()
	harness.Eventually(t, 10*time.Second, "the holder's directory is gone", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
	t.Setenv("URUN_LINGER", "1m")
	t.Setenv("SLURM_JOB_ID", "77")
	if err := os.Unsetenv("URUN_LINGER"); err != nil { // t.Setenv brings it back
		t.Fatal(err)
	}
	harness.Run(t, "true").OK()
	harness.Eventually(t, 10*time.Second, "the holder of a batch job is gone", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
}

func TestAKilledHolderHurtsNobody(t *testing.T) {
	dir := ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	name := detach(t, nil, "sh", "-c", userNS+"; sleep 1000")
	harness.Eventually(t, 10*time.Second, "the container says its namespace", func() bool {
		return strings.Contains(harness.Urun(t, "logs", name).OK(), "user:")
	})
	ns := harness.Urun(t, "logs", name).OK()
	pids := holders(t)
	if len(pids) != 1 {
		t.Fatalf("holders: %v", pids)
	}
	endHolder(t, pids[0])
	harness.Eventually(t, 10*time.Second, "a command takes away what it left", func() bool {
		harness.Urun(t, "ps").Has(name)
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
	// The running container can be joined all the same; others have a new holder.
	harness.Sh(t, "--network", "container:"+name, userNS).Says(ns)
	if other := harness.Sh(t, userNS).OK(); other == ns {
		t.Errorf("the namespace of the killed holder: %s", other)
	}
	harness.Urun(t, "stop", "-t", "0", name).OK()
}

func TestManyFirstContainersAtOnceStartOneHolder(t *testing.T) {
	ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	var wg sync.WaitGroup
	seen := make([]string, 6)
	for i := range seen {
		wg.Go(func() {
			out, err := exec.Command(harness.Binary, harness.RunArgs("--", "sh", "-c", userNS)...).CombinedOutput()
			if seen[i] = string(out); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	for _, s := range seen {
		if s != seen[0] {
			t.Errorf("different user namespaces: %q", seen)
			break
		}
	}
	pids := holders(t)
	if len(pids) != 1 {
		t.Errorf("%d holders", len(pids))
	}
}

// A container must not differ from one that the command itself had started.
func TestAContainerInheritsFromItsCommandAndNotFromAnEarlierOne(t *testing.T) {
	ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	inherit := func(setting, command string) string {
		t.Helper()
		args := append([]string{"-c", setting + ` && exec "$0" "$@"`, harness.Binary}, harness.RunArgs("--", "sh", "-c", command)...)
		out, err := exec.Command("sh", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, c := range []struct{ setting, command, want string }{
		{"ulimit -Sn 444", "ulimit -Sn", "444"},
		{"ulimit -Sn 555", "ulimit -Sn", "555"},
		{"ulimit -c 0", "ulimit -c", "0"},
		{"renice -n 7 $$ >/dev/null", "cut -d' ' -f19 /proc/self/stat", "7"},
		{"echo 300 >/proc/self/oom_score_adj", "cat /proc/self/oom_score_adj", "300"},
	} {
		if got := inherit(c.setting, c.command); got != c.want {
			t.Errorf("%s: got %s, want %s", c.setting, got, c.want)
		}
	}
}

func TestANewBinaryDoesNotSpeakToAnOldHolder(t *testing.T) {
	ownHolder(t)
	t.Setenv("URUN_LINGER", "1m")
	old := harness.Sh(t, userNS).OK()
	upgraded := filepath.Join(t.TempDir(), "urun")
	data, err := os.ReadFile(harness.Binary)
	if err == nil {
		err = os.WriteFile(upgraded, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(upgraded, harness.RunArgs("--", "sh", "-c", userNS)...).Output()
	if err != nil || strings.TrimSpace(string(out)) == old {
		t.Errorf("%s, %v: the namespace of the other binary's holder", out, err)
	}
}
