package limits

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// diskOf is the disk that a directory is on. The virtual host has several, and Linux 6.12 numbers them as it comes to them.
func diskOf(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		t.Fatalf("the disk of %s: %v", dir, err)
	}
	return "/dev/" + filepath.Base(name)
}

// Every limit that urun update takes, as far as this user has the controller, and what the kernel has of it then.
func TestUpdateChangesEveryLimit(t *testing.T) {
	needs(t, "memory", "cpu", "pids")
	have := delegated()
	disk := diskOf(t, t.TempDir())
	name := detach(t, []string{"--memory", "100m"}, "sleep 1000")
	scope := cgroup(t, name)
	for _, c := range []struct {
		needs string
		flags []string
		want  map[string]string // a part of the file, or all of it
	}{
		{"memory", []string{"--memory", "80m", "--memory-reservation", "32m", "--memory-high", "64m", "--cgroup-conf", "memory.oom.group=1"}, map[string]string{
			"memory.max": "83886080", "memory.low": "33554432", "memory.high": "67108864", "memory.oom.group": "1",
		}},
		{"memory", []string{"--memory", "80m", "--memory-swap", "100m"}, map[string]string{"memory.swap.max": "20971520"}},
		{"cpu", []string{"--cpus", "0.5", "--cpu-shares", "512", "--pids-limit", "42"}, map[string]string{"cpu.max": "50000 100000", "cpu.weight": "59", "pids.max": "42"}},
		{"cpu", []string{"--cpu-quota", "20000", "--cpu-period", "50000", "--cpu-weight", "300"}, map[string]string{"cpu.max": "20000 50000", "cpu.weight": "300"}},
		{"memory", []string{"--memory", "-1", "--memory-high", "-1", "--cpu-quota", "-1", "--pids-limit", "-1"}, map[string]string{
			"memory.max": "max", "memory.high": "max", "cpu.max": "max 100000", "pids.max": "max",
		}},
		{"cpuset", []string{"--cpuset-cpus", "1", "--cpuset-mems", "0"}, map[string]string{"cpuset.cpus": "1", "cpuset.mems": "0"}},
		{"io", []string{"--io-weight", "200"}, map[string]string{"io.weight": "default 200"}},
		{"io", []string{"--blkio-weight", "500"}, map[string]string{"io.weight": "default 4950"}},
		{"io", []string{
			"--device-read-bps", disk + ":1mb", "--device-write-bps", disk + ":2mb", "--device-read-iops", disk + ":300", "--device-write-iops", disk + ":400",
		}, map[string]string{"io.max": "rbps=1048576 wbps=2097152 riops=300 wiops=400"}},
	} {
		if !have[c.needs] {
			continue
		}
		r := harness.Urun(t, append(append([]string{"update"}, c.flags...), name)...)
		for file, want := range c.want {
			data, err := os.ReadFile(filepath.Join(scope, "payload", file))
			if os.IsNotExist(err) {
				// No swap accounting, or no cost model for disks: an error that says so.
				if r.Code == 0 || !strings.Contains(r.Stderr, file+": this kernel has no such limit") {
					t.Errorf("without %s: %s", file, r)
				}
				continue
			}
			if err != nil || r.Code != 0 || !strings.Contains(string(data), want) {
				t.Errorf("%s: %q, want %q; %v\n%s", file, data, want, err, r)
			}
		}
	}
}

// Each changes another limit; none is to be lost, in the configuration or in the kernel.
func TestUpdatesAtOnceAreAllKept(t *testing.T) {
	name := fmt.Sprintf("limits-created-%d", os.Getpid())
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	harness.Urun(t, "create", "--name", name, harness.DemoImage, "true").OK()
	t.Run("stopped", func(t *testing.T) { updateAtOnce(t, name) })
	t.Run("running", func(t *testing.T) {
		needs(t, "memory", "cpu", "pids")
		name := detach(t, nil, "sleep 1000")
		updateAtOnce(t, name)
		for file, want := range map[string]string{"memory.max": "104857600", "memory.low": "33554432", "memory.high": "67108864", "pids.max": "42", "cpu.max": "50000 100000"} {
			if got := payload(t, cgroup(t, name), file); got != want {
				t.Errorf("%s: %s, want %s", file, got, want)
			}
		}
	})
}

func updateAtOnce(t *testing.T, name string) {
	t.Helper()
	var all sync.WaitGroup
	for _, flags := range [][]string{{"--memory", "100m"}, {"--memory-reservation", "32m"}, {"--memory-high", "64m"}, {"--pids-limit", "42"}, {"--cpus", "0.5"}, {"--cpu-shares", "512"}} {
		all.Go(func() {
			if r := harness.Urun(t, append(append([]string{"update"}, flags...), name)...); r.Code != 0 {
				t.Error(r)
			}
		})
	}
	all.Wait()
	harness.Urun(t, "inspect", "-f", "{{with .HostConfig}}{{.Memory}} {{.MemoryReservation}} {{.PidsLimit}} {{.NanoCpus}} {{.CpuShares}}{{end}}", name).Says("104857600 33554432 42 500000000 512")
}

func TestLimitsThatNoMachineHasAreRefusedBeforeTheStart(t *testing.T) {
	for _, c := range []struct{ flag, value, says string }{
		{"--cpus", "10000", "CPU"},
		{"--cpus", "half", "half"},
		{"--memory", "much", "much"},
		{"--memory", "1k", "--memory"},
		{"--pids-limit", "-7", "-7"},
		{"--oom-score-adj", "2000", "2000"},
		{"--hugetlb", "2MB", "2MB"},
		{"--device-read-bps", "/dev/nonesuch:1mb", "/dev/nonesuch"},
	} {
		harness.Run(t, c.flag, c.value, "--", "true").Refused(c.says)
	}
}

func TestOOMScoreIsTheCommands(t *testing.T) {
	harness.Run(t, "--oom-score-adj", "987", "--", "cat", "/proc/self/oom_score_adj").Says("987")
	harness.Run(t, "--oom-score-adj", "-1000", "--", "true").Refused("oom score", "hint:")
}
