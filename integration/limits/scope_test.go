package limits

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

func TestPauseStopsACounterAndUnpauseLetsItGoOn(t *testing.T) {
	needs(t, "cpu")
	name := detach(t, nil, "i=0; while :; do i=$((i+1)); echo $i >/tmp/n; done")
	scope := cgroup(t, name)
	used := func() int64 { return field(t, scope, "cpu.stat", "usage_usec") }
	harness.Urun(t, "pause", name).Says(name)
	harness.Urun(t, "ps", "--format", "{{.Names}} {{.State}} {{.Status}}").Has(name+" paused", "(Paused)")
	harness.Urun(t, "inspect", "-f", "{{.State.Status}} {{.State.Paused}}", name).Says("paused true")
	before := used()
	time.Sleep(500 * time.Millisecond) // in which it would count
	if after := used(); after != before {
		t.Errorf("paused, it used %d µs", after-before)
	}
	harness.Urun(t, "pause", name).Exits(1)
	harness.Urun(t, "unpause", name).Says(name)
	harness.Eventually(t, patience, "it counts on", func() bool { return used() > before })
	harness.Urun(t, "unpause", name).Exits(1)
	// What is paused can be killed.
	harness.Urun(t, "pause", name).OK()
	harness.Urun(t, "kill", name).OK()
	harness.Urun(t, "wait", name).Says("137")
}

// What is on the way to a paused container waits in buffers that have an end, and nothing of it is lost.
func TestAPausedContainerKeepsItsConnections(t *testing.T) {
	needs(t, "cpu")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name := detach(t, []string{"--network", "slirp:allow_host_loopback=true"}, fmt.Sprintf("/probe mirror 10.0.2.2:%d", l.Addr().(*net.TCPAddr).Port))
	err = l.(*net.TCPListener).SetDeadline(time.Now().Add(6 * patience))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	// Numbers go there and come back.
	const number = 8
	var sent, came atomic.Int64
	var stop atomic.Bool
	var both errgroup.Group
	both.Go(func() error {
		var n uint64
		for block := make([]byte, 0, 64<<10); !stop.Load(); block = block[:0] {
			for len(block) < cap(block) {
				block = binary.BigEndian.AppendUint64(block, n)
				n++
			}
			if _, err := c.Write(block); err != nil {
				return err
			}
			sent.Add(int64(len(block)))
		}
		return c.(*net.TCPConn).CloseWrite()
	})
	both.Go(func() error {
		r := bufio.NewReader(c)
		for n := uint64(0); ; n++ {
			var b [number]byte
			if _, err := io.ReadFull(r, b[:]); err == io.EOF {
				return nil
			} else if err != nil {
				return fmt.Errorf("number %d: %w", n, err)
			}
			if got := binary.BigEndian.Uint64(b[:]); got != n {
				return fmt.Errorf("%d instead of %d", got, n)
			}
			came.Add(number)
		}
	})
	harness.Eventually(t, patience, "numbers come back", func() bool { return came.Load() > 100_000 })
	harness.Urun(t, "pause", name).OK()
	harness.Eventually(t, 6*patience, "no more is taken", func() bool {
		before := sent.Load()
		time.Sleep(time.Second)
		return sent.Load() == before
	})
	before := came.Load()
	harness.Urun(t, "unpause", name).OK()
	harness.Eventually(t, patience, "numbers come back again", func() bool { return came.Load() > before })
	stop.Store(true)
	if err := both.Wait(); err != nil {
		t.Error(err)
	}
	if sent.Load() != came.Load() {
		t.Errorf("%d bytes were sent and %d came back", sent.Load(), came.Load())
	}
}

func TestUpdateChangesLimitsOfARunningContainer(t *testing.T) {
	needs(t, "memory", "pids")
	name := detach(t, []string{"--memory", "100m", "--pids-limit", "100"}, "sleep 1000")
	scope := cgroup(t, name)
	harness.Urun(t, "update", "--memory", "64m", "--pids-limit", "10", "--cpus", "0.5", name).Says(name)
	for file, want := range map[string]string{"memory.max": "67108864", "pids.max": "10", "cpu.max": "50000 100000"} {
		if got := payload(t, scope, file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	harness.Urun(t, "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}", name).Says("67108864 10 500000000")
	harness.Urun(t, "update", "--pids-limit", "-1", name).OK()
	if got := payload(t, scope, "pids.max"); got != "max" {
		t.Errorf("pids.max: %s", got)
	}
	for _, bad := range [][]string{{"--memory", "much"}, {"--cpus", "10000"}, {"--cpuset-cpus", "9999"}, {}} {
		r := harness.Urun(t, append(append([]string{"update"}, bad...), name)...)
		if r.Code == 0 {
			t.Errorf("%s", r)
		}
	}
	if got := payload(t, scope, "memory.max"); got != "67108864" {
		t.Errorf("after refused updates memory.max is %s", got)
	}
}

func TestALimitBelowTheUseIsRefused(t *testing.T) {
	needs(t, "memory")
	// A file in memory is use that cannot be reclaimed.
	name := detach(t, []string{"--memory", "100m", "--tmpfs", "/mem"}, "head -c 30000000 /dev/zero >/mem/file; sleep 1000")
	scope := cgroup(t, name)
	harness.Eventually(t, patience, "the file is there", func() bool { return number(t, payload(t, scope, "memory.current")) > 30000000 })
	r := harness.Urun(t, "update", "--memory", "10m", name)
	r.Exits(1)
	if !strings.Contains(r.Stderr, "are in use") {
		t.Errorf("%s", r)
	}
	harness.Urun(t, "inspect", "-f", "{{.State.Running}} {{.HostConfig.Memory}}", name).Says("true 104857600")
}

func TestStatsTellsWhatAContainerUses(t *testing.T) {
	needs(t, "memory", "cpu", "pids")
	name := detach(t, []string{"--memory", "200m", "--cpus", "0.5"}, "while :; do :; done")
	r := harness.Urun(t, "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}} {{.CPUPerc}} {{.Throttled}} {{.PSICPU}}", name)
	f := strings.Fields(r.OK())
	if len(f) != 8 || f[0] != name || f[3] != "200MiB" || f[4] != "1" || !strings.HasSuffix(f[5], "%") || f[6] == "--" || f[7] == "--" {
		t.Errorf("%s", r)
	}
	harness.Urun(t, "stats", "--no-stream", "--format", "json").Has(`"Name":"`+name+`"`, `"MemPerc"`)
	harness.Urun(t, "stats", "--no-stream").Has("CPU %", "THROTTLED", "PSI MEM", name)
}

func TestEveryContainerOfWhoLingersHasACgroup(t *testing.T) {
	needs(t, "cpu")
	name := detach(t, nil, "sleep 1000")
	scope := cgroup(t, name)
	if got := harness.Urun(t, "exec", name, "cat", "/proc/self/cgroup").OK(); got != "0::/" {
		t.Errorf("inside, exec is in %s", got)
	}
	if got := harness.Run(t, "--cgroupns=host", "--", "cat", "/proc/self/cgroup").OK(); !strings.HasSuffix(got, "/payload") {
		t.Errorf("with the host's namespace it is in %s", got)
	}
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Eventually(t, patience, "its cgroup is gone", func() bool { return gone(scope) })
	harness.Run(t, "--cgroups=disabled", "--", "true").OK()
}

func TestAContainerManagesItsOwnSubtree(t *testing.T) {
	needs(t, "pids")
	// Its own limits it can not lift.
	harness.Sh(t, "--security-opt", "unmask=/sys/fs/cgroup", "--pids-limit", "50", `set -e
		cd /sys/fs/cgroup
		! echo max >pids.max
		mkdir init work
		echo 0 >init/cgroup.procs
		echo +pids >cgroup.subtree_control
		echo 7 >work/pids.max
		cat work/pids.max`).Has("7")
}

func TestAScopeOfItsOwnInASlice(t *testing.T) {
	needs(t, "memory")
	name := detach(t, []string{"--cgroup-parent", "batch.slice", "--memory", "50m"}, "sleep 1000")
	scope := cgroup(t, name)
	if !strings.Contains(scope, "/batch.slice/urun-") || !strings.HasSuffix(scope, ".scope") {
		t.Fatalf("the cgroup is %s", scope)
	}
	if err := unix.Kill(number(t, harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", name).OK()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, "systemd removes it", func() bool { return gone(scope) })
}

func TestLimitsOutliveANewExecutionOfSystemd(t *testing.T) {
	needs(t, "memory")
	name := detach(t, []string{"--memory", "50m"}, "sleep 1000")
	scope := cgroup(t, name)
	systemctl(t, "daemon-reexec")
	harness.Eventually(t, patience, "systemd answers", func() bool { return harness.Run(t, "--memory", "50m", "--", "true").Code == 0 })
	if got := payload(t, scope, "memory.max"); got != "52428800" {
		t.Errorf("memory.max is %s", got)
	}
	harness.Urun(t, "update", "--memory", "60m", name).OK()
	harness.Urun(t, "rm", "-f", name).OK()
	harness.Eventually(t, patience, "its cgroup is gone", func() bool { return gone(scope) })
}

func TestABusThatNeverAnswersIsGivenUp(t *testing.T) {
	needs(t, "memory")
	// A socket whose connections nobody takes.
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "bus")}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+filepath.Join(dir, "bus"))
	start := time.Now()
	// In a slice: that takes a word with systemd in any case.
	harness.Run(t, "--memory", "50m", "--cgroup-parent", "x.slice", "--", "true").Refused("does not answer", "hint:")
	if took := time.Since(start); took < 5*time.Second {
		t.Errorf("given up after %v", took)
	}
}

func TestControllersThatAreNotDelegatedAreNamed(t *testing.T) {
	have := delegated()
	if len(have) == 0 || have["cpuset"] {
		t.Skip("this user has no manager, or all controllers")
	}
	r := harness.Run(t, "--cpuset-cpus", "0", "--", "true")
	r.Refused("cpuset", fmt.Sprintf("user@%d.service", os.Getuid()), "/etc/systemd/system/user@", "Delegate=")
	// To try is to go without, and to say so.
	r = harness.Run(t, "--cgroups=try", "--cpuset-cpus", "0", "--memory", "50m", "--", "echo", "went")
	r.Says("went")
	if !strings.Contains(r.Stderr, "cpuset") {
		t.Errorf("%s\nwant a warning", r)
	}
}

func TestCpusetAndIOAfterTheDropIn(t *testing.T) {
	needs(t, "cpuset", "io")
	harness.Run(t, "--cpuset-cpus", "1", "--", "sh", "-c", "grep Cpus_allowed_list /proc/self/status").Has("1")
	dir := t.TempDir()
	disk := diskOf(t, dir)
	name := detach(t, []string{"--device-write-bps", disk + ":1mb", "--device-read-iops", disk + ":500", "--io-weight", "50"}, "sleep 1000")
	if got := payload(t, cgroup(t, name), "io.max"); !strings.Contains(got, "wbps=1048576") || !strings.Contains(got, "riops=500") {
		t.Errorf("io.max: %s", got)
	}
	start := time.Now()
	harness.Run(t, "--device-write-bps", disk+":1mb", "-v", dir+":/v", "--", "sh", "-c", "dd if=/dev/zero of=/v/x bs=256k count=12 oflag=direct 2>/dev/null").OK()
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("3 MB at 1 MB a second were written in %v", took)
	}
}
