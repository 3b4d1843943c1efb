package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// A batch system ends a job by signals to the processes that came of its shell. What urun has put beside them, which are in
// sessions of their own, ends by itself: processes, image servers, mounts, and the containers' directories.
func TestNothingIsLeftOfAJobThatIsEnded(t *testing.T) {
	for _, c := range []struct {
		name string
		sig  unix.Signal
		to   int // the shell's pid times this
	}{
		{"SIGTERM", unix.SIGTERM, -1},
		{"SIGKILL", unix.SIGKILL, -1},
		{"SIGTERM to the shell alone", unix.SIGTERM, 1},
		{"SIGKILL to the shell alone", unix.SIGKILL, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := ownStore(t)
			before := stages(t)
			step(t, 3)
			meet := t.TempDir()
			job := startJob(t, meet)
			harness.Eventually(t, time.Minute, "all ranks and the container run", func() bool {
				up, err := filepath.Glob(filepath.Join(meet, "up-*"))
				return err == nil && len(up) == 5
			})
			if len(stages(t)) == len(before) {
				t.Fatal("no process of urun's is seen: this test would find nothing")
			}
			if err := unix.Kill(c.to*job.Process.Pid, c.sig); err != nil {
				t.Fatal(err)
			}
			_ = job.Wait() // it was killed
			harness.Eventually(t, 30*time.Second, "no process is left", func() bool {
				for pid := range stages(t) {
					if !before[pid] {
						return false
					}
				}
				return sleepers(t, sleep(meet)) == ""
			})
			for _, dir := range []string{"containers", "names"} {
				left, err := filepath.Glob(filepath.Join(store, dir, "*"))
				if err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil || bytes.Contains(mounts, []byte(store)) {
				t.Errorf("mounts are left (%v):\n%s", err, mounts)
			}
		})
	}
}

// sleep is a time that nobody else sleeps.
func sleep(meet string) string {
	n := 0
	for _, b := range []byte(meet) {
		n = (n*31 + int(b)) % 100000
	}
	return strconv.Itoa(1000000 + n)
}

// startJob starts a job's shell, which has three ranks and another container as children, and one that is detached.
func startJob(t *testing.T, meet string) *exec.Cmd {
	t.Helper()
	command := fmt.Sprintf(`trap 'exit 1' TERM; : >%s/up-$0; sleep %s & wait`, meet, sleep(meet))
	script := `for i in 0 1 2; do "$URUN" run --rm --hpc --join --bind "$MEET" "$IMAGE" sh -c "$COMMAND" $i & done
"$URUN" run --rm --bind "$MEET" "$IMAGE" sh -c "$COMMAND" alone &
"$URUN" run -d --rm --bind "$MEET" "$IMAGE" sh -c "$COMMAND" detached; wait`
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "URUN="+harness.Binary, "MEET="+meet, "IMAGE="+harness.DemoImage, "COMMAND="+command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }) // it has ended, if the test has gone well
	return cmd
}

// stages are the pids of this user's processes that are stages of urun.
func stages(t *testing.T) map[int]bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	pids := map[int]bool{}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(raw), "urun\x00__") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Dir(name), &st) != nil || int(st.Uid) != os.Getuid() {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids[pid] = true
		}
	}
	return pids
}
