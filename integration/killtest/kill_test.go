// Package killtest kills processes of urun at random moments and checks what is left.
package killtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
	"github.com/urun-dev/urun/integration/ocilayout"
)

// TestMain puts the tests below a process that adopts and reaps orphans, as init does: so all that a run started can
// be found, and what is dead does not stay as a zombie.
func TestMain(m *testing.M) {
	const below = "URUN_KILLTEST_BELOW"
	// Nothing that stays ready for the next container is to be taken for a leftover.
	if err := os.Setenv("URUN_LINGER", "0s"); err != nil {
		fmt.Fprintf(os.Stderr, "killtest: %v\n", err)
		os.Exit(1)
	}
	if os.Getenv(below) != "" {
		os.Exit(harness.Main(m))
	}
	status, err := adopt(append(os.Environ(), below+"=1"))
	if err != nil {
		fmt.Fprintf(os.Stderr, "killtest: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

func adopt(env []string) (status int, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	tests, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 0, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case pid == tests.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case pid == tests.Pid:
			return ws.ExitStatus(), nil
		}
	}
}

// A scenario is a call of urun that is broken off by a kill.
type scenario struct {
	name   string
	args   []string
	before func(t *testing.T)
	window time.Duration // the kill comes at a random moment of it
}

// TestKillAtRandomMoments kills, again and again, one process of a pull or of a run: whichever, whenever. After the
// next urun command nothing of it may be left, and the store must work.
func TestKillAtRandomMoments(t *testing.T) {
	kills := number(t, "URUN_KILLS", 24)
	seed := uint64(number(t, "URUN_SEED", int(time.Now().UnixNano()%1e9)))
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("URUN_SEED=%d URUN_KILLS=%d", seed, kills)

	layout := ownImage(t)
	full := timed(t, "run", "--rm", harness.DemoImage, "true")
	start := time.Now()
	id := harness.Urun(t, "pull", "--quiet", layout).OK()
	pull := time.Since(start)
	t.Logf("a run takes %v, a pull %v", full, pull)

	scenarios := []scenario{
		{"pull", []string{"pull", "--quiet", layout}, func(t *testing.T) {
			t.Helper()
			harness.Urun(t, "rmi", id).OK()
		}, pull},
		{"start and exit", []string{"run", "--rm", harness.DemoImage, "true"}, nil, full + full/4},
		{"running", []string{"run", "--rm", "--init", harness.DemoImage, "sh", "-c", "sleep 1000 & while :; do echo x >/tmp/x; done"}, nil, 2 * full},
		{"detached", []string{"run", "-d", "--rm", harness.DemoImage, "sleep", "1000"}, nil, full + full/4},
	}
	victims := map[string]int{}
	hits := 0
	for i := 0; hits < kills; i++ {
		if i > 5*kills {
			t.Fatalf("of %d tries only %d met a process to kill", i, hits)
		}
		sc := scenarios[i%len(scenarios)]
		if sc.before != nil {
			sc.before(t)
		}
		before := look(t)
		wait := time.Duration(rnd.Int64N(int64(sc.window) + 1))
		victim := strike(t, sc, wait, rnd)
		if victim != none {
			hits++
		}
		victims[sc.name+": "+victim]++
		harness.Urun(t, "ps", "-a").OK()
		what := fmt.Sprintf("kill %d: %s of %q after %v", i, victim, sc.name, wait)
		if sc.name == "pull" {
			// What a broken-off pull has fetched may stay until the next one has used it.
			harness.Urun(t, "pull", "--quiet", layout).OK()
		}
		settle(t, what, before, sc.name == "detached")
		harness.Run(t, "sh", "-c", "cat /demo/kept && echo usable").Says("from layer 3\nusable")
		if t.Failed() {
			t.Fatalf("%s (URUN_SEED=%d)", what, seed)
		}
	}
	for _, v := range sortedKeys(victims) {
		t.Logf("%3d killed: %s", victims[v], v)
	}
}

func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// ownImage makes an image that shares no layer with the demo image: pulling it has work to do each time.
func ownImage(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	fill := func(layer int) ocilayout.Layer {
		return ocilayout.Entries(func(tw *tar.Writer) error {
			rnd := rand.New(rand.NewPCG(uint64(layer), 7))
			content := make([]byte, 64<<10)
			for i := range 200 {
				for j := range content {
					content[j] = byte('a' + rnd.IntN(16))
				}
				if err := ocilayout.File(tw, fmt.Sprintf("layer%d-%d", layer, i), 0o644, string(content)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	opt := ocilayout.Options{Tag: "latest", Architecture: runtime.GOARCH, GzipLevel: 1}
	if _, err := ocilayout.Write(dir, opt, fill(1), fill(2), fill(3)); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":latest"
}

func timed(t *testing.T, args ...string) time.Duration {
	t.Helper()
	start := time.Now()
	harness.Urun(t, args...).OK()
	return time.Since(start)
}

// strike calls urun, waits, kills one of the processes that there are then, and sees the call end. A call that goes on
// all the same (the network helper is replaced) or had left the stage (detached) is ended by another kill.
func strike(t *testing.T, sc scenario, wait time.Duration, rnd *rand.Rand) (victim string) {
	t.Helper()
	before := descendants(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Binary, sc.args...)
	// Not a pipe: a process that is left would hold it, and the wait would hide that.
	var out *os.File
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, most likely
		close(done)
	}()
	time.Sleep(wait)

	victim = killOne(t, before, rnd)
	select {
	case <-done:
	case <-time.After(500 * time.Millisecond):
		victim += ", then " + killOne(t, before, rnd)
		select {
		case <-done:
		case <-time.After(time.Second):
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
			}
			victim += ", then urun itself"
			<-done
		}
	}
	if ctx.Err() != nil {
		t.Errorf("no end in %v after the kill of %s", harness.Timeout, victim)
	}
	return victim
}

// none is the victim where the call had ended before the kill.
const none = "none (it had ended)"

func killOne(t *testing.T, before map[int]string, rnd *rand.Rand) string {
	t.Helper()
	now := descendants(t)
	var pids []int
	for pid := range now {
		if _, ok := before[pid]; !ok {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return none
	}
	slices.Sort(pids)
	pid := pids[rnd.IntN(len(pids))]
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Errorf("kill %d (%s): %v", pid, now[pid], err)
	}
	return now[pid]
}

// world is what a broken-off run could leave behind.
type world struct {
	processes map[int]string
	mounts    string
	files     []string
}

func look(t *testing.T) world {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	w := world{processes: descendants(t), mounts: string(mounts)}
	scopes := "/sys/fs/cgroup/user.slice/user-" + strconv.Itoa(os.Getuid()) + ".slice/user@*/*/*urun*"
	for _, pattern := range []string{
		filepath.Join(harness.Store, "tmp", "*"), filepath.Join(harness.Store, "containers", "*"),
		"/tmp/urun-" + strconv.Itoa(os.Getuid()) + "*/*",
		"/sys/fs/cgroup/*urun*", "/sys/fs/cgroup/*/*urun*", scopes, filepath.Join(scopes, "urun-*"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		// The scope of a holder stays as long as the holder, for the next container.
		w.files = append(w.files, slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(filepath.Base(name), "urun-holder-") })...)
	}
	return w
}

// settle waits for the kernel to end what is dying and for systemd to remove the scopes that have run empty, then compares.
func settle(t *testing.T, what string, before world, detached bool) {
	t.Helper()
	var now world
	for end := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		now = look(t)
		if detached {
			// A detached container that no kill hit lives on, rightly: it is removed by name.
			for _, id := range strings.Fields(harness.Urun(t, "ps", "-q").OK()) {
				harness.Urun(t, "rm", "-f", id).OK()
			}
		}
		if len(extra(now, before)) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	t.Errorf("%s: left behind:\n%s", what, strings.Join(extra(now, before), "\n"))
}

func extra(now, before world) (all []string) {
	for pid, name := range now.processes {
		if _, ok := before.processes[pid]; !ok {
			all = append(all, fmt.Sprintf("process %d %s", pid, name))
		}
	}
	for _, f := range now.files {
		if !slices.Contains(before.files, f) {
			all = append(all, "file "+f)
		}
	}
	if now.mounts != before.mounts {
		all = append(all, "mounts were:\n"+before.mounts+"are:\n"+now.mounts)
	}
	return all
}

// descendants are all live processes below the one that adopts, with their command lines, but this one.
func descendants(t *testing.T) map[int]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // gone
		}
		// "pid (name) state ppid": the name may hold anything.
		rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(dir))
		ppid, err2 := strconv.Atoi(rest[1])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if rest[0] != "Z" && rest[0] != "X" {
			parents[pid] = ppid
		}
	}
	own := map[int]string{}
	for pid := range parents {
		for p := pid; p != 0; p = parents[p] {
			if p == os.Getpid() && pid == p {
				break
			}
			if parents[p] == os.Getppid() {
				own[pid] = commandLine(pid)
				break
			}
		}
	}
	return own
}

func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "(gone)"
	}
	words := strings.Split(string(data), "\x00")
	if filepath.Base(words[0]) == "urun" && len(words) > 1 {
		return "urun " + words[1]
	}
	return words[0]
}

func sortedKeys(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
