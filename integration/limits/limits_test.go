package limits

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// hog needs a hundred megabytes: tail keeps what may be the end.
const hog = "head -c 104857600 /dev/zero | tail -c 104857600 >/dev/null"

func TestMemoryLimitKillsAndIsReported(t *testing.T) {
	needs(t, "memory")
	name := fmt.Sprintf("oom-%s", t.Name())
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	harness.Urun(t, "run", "--name", name, "--memory", "50m", harness.DemoImage, "sh", "-c", hog).Exits(137)
	harness.Urun(t, "inspect", "-f", "{{.OOMKilled}} {{.ExitCode}}", name).Says("true 137")
	// With room enough the same command is well.
	harness.Run(t, "--memory", "400m", "--", "sh", "-c", hog).OK()
}

func TestPidsLimitStopsAForkBomb(t *testing.T) {
	needs(t, "pids")
	name := detach(t, []string{"--pids-limit", "50"}, "(while :; do sleep 1000 & done) 2>/dev/null & exec sleep 1000")
	scope := cgroup(t, name)
	harness.Eventually(t, patience, "the limit is hit", func() bool { return field(t, scope, "pids.events", "max") > 0 })
	n := number(t, payload(t, scope, "pids.current"))
	t.Logf("%d processes under a limit of 50", n)
	if n > 50 || n < 40 {
		t.Errorf("not what the limit allows")
	}
}

func TestCPULimitIsKept(t *testing.T) {
	needs(t, "cpu")
	scope := cgroup(t, detach(t, []string{"--cpus", "0.5"}, "while :; do :; done"))
	harness.Eventually(t, patience, "it is throttled", func() bool { return field(t, scope, "cpu.stat", "nr_throttled") > 2 })
	// What else the machine does, or the one outside that emulates it, takes from a container; nothing gives it more. So the
	// limit has to hold each time, and what it promises has to be there once.
	for range 3 {
		before, start := field(t, scope, "cpu.stat", "usage_usec"), time.Now()
		time.Sleep(10 * time.Second) // the time over which the limit is proved
		took, after := time.Since(start), field(t, scope, "cpu.stat", "usage_usec")
		share := float64(after-before) / float64(took.Microseconds())
		t.Logf("%.3f CPUs under a limit of 0.5", share)
		if share > 0.55 {
			t.Fatal("it is exceeded")
		}
		if share >= 0.45 {
			return
		}
	}
	t.Error("the container never got what it may have")
}

func TestAKilledMonitorLeavesNeitherProcessNorScope(t *testing.T) {
	needs(t, "memory")
	name := detach(t, []string{"--memory", "50m"}, "sleep 1000 & sleep 1000")
	scope := cgroup(t, name)
	init := number(t, harness.Urun(t, "inspect", "-f", "{{.Init.PID}}", name).OK())
	if err := unix.Kill(number(t, harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", name).OK()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, "systemd removes the scope by itself", func() bool { return gone(scope) })
	harness.Eventually(t, patience, "the command is gone", func() bool { return !alive(init) })
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.State}}").Has(name + " exited")
}

func TestTwentyContainersAtOnceWithLimits(t *testing.T) {
	needs(t, "memory", "cpu", "pids")
	harness.Run(t, "--memory", "50m", "--", "true").OK() // what they share is there
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			r := harness.Run(t, "--memory", "50m", "--cpus", "1", "--pids-limit", "100", "--", "echo", fmt.Sprint(i))
			if r.Code != 0 || strings.TrimSpace(r.Stdout) != fmt.Sprint(i) {
				t.Error(r)
			}
		})
	}
	all.Wait()
}

func TestWithoutAUserManagerALimitIsAnErrorWithACure(t *testing.T) {
	if len(delegated()) > 0 {
		t.Skip("this user has a systemd manager")
	}
	r := harness.Run(t, "--memory", "50m", "--", "true")
	r.Refused("cgroup", "hint:")
	harness.Run(t, "--", "echo", "without").Says("without")
}
