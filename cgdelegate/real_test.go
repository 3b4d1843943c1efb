package cgdelegate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the processes of a container.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if stage, ok := stages[os.Args[1]]; ok {
			if err := stage(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

var stages = map[string]func() error{
	"__wait":    func() error { _, err := io.Copy(io.Discard, os.Stdin); return err },
	"__count":   stageCount,
	"__subtree": stageSubtree,
	"__eat":     stageEat,
	"__forks":   stageForks,
}

func stageCount() error {
	for i := 0; ; i++ {
		if _, err := fmt.Println(i); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// stageSubtree lives in a delegated cgroup and uses it without systemd.
func stageSubtree() error {
	h := findHierarchy()
	home, err := writableSubtree(h)
	if err != nil {
		return err
	}
	s, err := createInSubtree(h, home, Options{Name: "urun-sub", PIDs: []int{os.Getpid()}})
	if err != nil {
		return err
	}
	cmd := exec.Command("sleep", "1000")
	if err := startIn(s, cmd); err != nil {
		return err
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(context.Background())); err != nil {
		return err
	}
	_ = cmd.Wait() // killed
	if err := s.Remove(); err != nil {
		return err
	}
	if now, err := h.dirOf("self"); err != nil || filepath.Dir(now) == s.Path() {
		return fmt.Errorf("this process is in %s (%w)", now, err)
	}
	if _, err := os.Stat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is still there (%w)", s.Path(), err)
	}
	return nil
}

// stageEat touches 100 MB.
func stageEat() error {
	var all [][]byte
	for range 100 {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(i)
		}
		all = append(all, b)
		time.Sleep(time.Millisecond)
	}
	fmt.Println(len(all))
	return nil
}

// stageForks starts processes until it may not and prints their number.
func stageForks() error {
	n := 0
	for ; n < 200; n++ {
		if err := exec.Command("sleep", "5").Start(); err != nil {
			break
		}
	}
	fmt.Println(n)
	return nil
}

func startIn(s *Scope, cmd *exec.Cmd) error {
	dir, err := s.PayloadFD()
	if err != nil {
		return err
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	return cmd.Start()
}

// moveSelf puts this process into a scope of the user's manager, once: cloning
// into a cgroup takes write access to the common ancestor's cgroup.procs, and a login
// session's is root's. In urun the supervisor does that, who is in the scope.
func moveSelf(t *testing.T) {
	t.Helper()
	if dir, err := findHierarchy().dirOf("self"); err == nil && strings.Contains(dir, "/user@") {
		return
	}
	_, err := Create(t.Context(), Options{Name: "urun-self-" + strconv.Itoa(os.Getpid()), PIDs: []int{os.Getpid()}})
	if err != nil {
		t.Fatal(err)
	}
}

// onSystemd runs body where this user's systemd manager answers. Root gets one by
// running the test again under integration/systemd-ns.sh.
func onSystemd(t *testing.T, body func(*testing.T, Support)) {
	t.Helper()
	s := Probe(t.Context())
	switch s.Way {
	case UserManager:
		moveSelf(t)
		body(t, s)
		return
	case SystemManager:
		body(t, s)
		return
	}
	const script = "../integration/systemd-ns.sh"
	if _, err := os.Stat(script); err != nil || os.Geteuid() != 0 {
		t.Skipf("missing: a systemd manager (root can run this by integration/systemd-ns.sh): %s", s.Reason)
	}
	out, err := exec.Command(script, publicCopy(t), "-test.v", "-test.run", "^"+t.Name()+"$").CombinedOutput()
	t.Logf("in systemd-ns.sh: %s", out)
	exit := (*exec.ExitError)(nil)
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 77, strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.SkipNow() // what is missing was logged
	case err != nil:
		t.Fatal(err)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatal("the test did not run there")
	}
}

// publicCopy copies this binary to where an ordinary user can execute it.
func publicCopy(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "cgdelegate.test")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(exe); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return exe
}

// supervisor is a process to be put into a scope; it ends with the test.
func supervisor(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

func testName(t *testing.T) string {
	return "urun-test-" + strconv.FormatInt(time.Now().UnixNano()%1e9, 36) + "-" + strconv.Itoa(os.Getpid())
}

func makeScope(t *testing.T, l Limits) (*Scope, *exec.Cmd) {
	t.Helper()
	sup := supervisor(t)
	start := time.Now()
	s, err := Create(t.Context(), Options{Name: testName(t), Description: "a test", PIDs: []int{sup.Process.Pid}, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s made in %v", s.Path(), time.Since(start))
	return s, sup
}

func awaitGone(t *testing.T, path string) {
	t.Helper()
	for range 500 {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is still there", path)
}

func TestRealScopeLivesAndDies(t *testing.T) { onSystemd(t, scopeLivesAndDies) }

func scopeLivesAndDies(t *testing.T, support Support) {
	t.Logf("%+v", support)
	s, sup := makeScope(t, Limits{})
	if got := strings.TrimSpace(read(t, filepath.Join(s.Path(), supervisorLeaf, "cgroup.procs"))); got != strconv.Itoa(sup.Process.Pid) {
		t.Errorf("the supervisor's cgroup holds %q", got)
	}
	counter := exec.Command("/proc/self/exe", "__count")
	out, err := counter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startIn(s, counter); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(read(t, s.file("cgroup.procs"))); got != strconv.Itoa(counter.Process.Pid) {
		t.Errorf("the payload's cgroup holds %q", got)
	}
	lines := make(chan string, 1<<16)
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			lines <- sc.Text()
		}
	}()
	<-lines
	ctx := t.Context()
	if err := s.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	for len(lines) > 0 {
		<-lines
	}
	time.Sleep(100 * time.Millisecond)
	if len(lines) > 0 {
		t.Error("the frozen process counts on")
	}
	if err := s.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lines:
	case <-time.After(5 * time.Second):
		t.Error("the thawed process does not go on")
	}
	if err := s.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Error("a living payload was removed:", err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	if err := counter.Wait(); err == nil {
		t.Error("the payload was not killed")
	}
	if _, err := s.Stats(); err != nil {
		t.Error(err)
	}
	if err := s.Remove(); err != nil {
		t.Error(err)
	}
	if err := sup.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("the supervisor did not survive:", err)
	}
	if err := errors.Join(sup.Process.Kill(), ignoreExit(sup.Wait())); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, s.Path())
	if err := errors.Join(s.Kill(), s.Remove(), Open(s.Path()).Remove(), s.WaitEmpty(ctx)); err != nil {
		t.Error("what is gone is no error:", err)
	}
}

func ignoreExit(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	return err
}

func TestRealScopeEndsAfterKillOfAll(t *testing.T) { onSystemd(t, scopeEndsAfterKillOfAll) }

func scopeEndsAfterKillOfAll(t *testing.T, _ Support) {
	s, sup := makeScope(t, Limits{})
	payload := exec.Command("sleep", "1000")
	if err := startIn(s, payload); err != nil {
		t.Fatal(err)
	}
	// The way without cgroup.kill, on kernels before 5.14.
	if err := killFrozen(s.Path()); err == nil {
		t.Log("all dead") // zombies until waited for, which leaves cgroup.procs empty
	} else {
		t.Error(err)
	}
	_, _ = payload.Process.Wait()
	_ = sup.Wait()
	awaitGone(t, s.Path())
}

func TestRealErrorsNameTheirCause(t *testing.T) { onSystemd(t, errorsNameTheirCause) }

func errorsNameTheirCause(t *testing.T, _ Support) {
	s, sup := makeScope(t, Limits{})
	unit := strings.TrimSuffix(filepath.Base(s.Path()), ".scope")
	var u *UnavailableError
	_, err := Create(t.Context(), Options{Name: unit, PIDs: []int{sup.Process.Pid}})
	if !errors.As(err, &u) || u.Cause != Exists || u.Hint() == "" {
		t.Error("the same name twice:", err)
	}
	t.Log(err)
	_, err = Create(t.Context(), Options{Name: testName(t), PIDs: []int{1 << 22}})
	if !errors.As(err, &u) || u.Cause != Refused {
		t.Error("no such process:", err)
	}
	t.Log(err)
	if err = s.Apply(Limits{Hugetlb: []HugetlbLimit{{"2MB", 0}}}); !errors.As(err, &u) || u.Cause != NoController || u.Controller != "hugetlb" {
		t.Error("a controller that nobody delegates:", err)
	}
	t.Log(err)
}

func TestRealPrivateSocketServesToo(t *testing.T) { onSystemd(t, privateSocketServesToo) }

func privateSocketServesToo(t *testing.T, _ Support) {
	ctx, cancel := limitTime(t.Context())
	defer cancel()
	var private []address
	for _, a := range addresses(os.Geteuid(), os.Getenv) {
		if !a.bus {
			private = append(private, a)
		}
	}
	m, err := connectManager(ctx, private)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s, err := createScope(ctx, findHierarchy(), m, Options{Name: testName(t), PIDs: []int{supervisor(t).Process.Pid}})
	if err := errors.Join(err, m.close()); err != nil {
		t.Fatal(err)
	}
	t.Log(s.Path(), time.Since(start))
}

func TestRealScopesAtOnce(t *testing.T) { onSystemd(t, scopesAtOnce) }

func scopesAtOnce(t *testing.T, _ Support) {
	var wg sync.WaitGroup
	start := time.Now()
	base := testName(t)
	for i := range 20 {
		sup := supervisor(t)
		wg.Go(func() {
			_, err := Create(t.Context(), Options{Name: base + "-" + strconv.Itoa(i), PIDs: []int{sup.Process.Pid}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Log("20 scopes at once:", time.Since(start))
}

func TestRealSubtreeWithoutSystemd(t *testing.T) { onSystemd(t, subtreeWithoutSystemd) }

func subtreeWithoutSystemd(t *testing.T, _ Support) {
	s, _ := makeScope(t, Limits{})
	cmd := exec.Command("/proc/self/exe", "__subtree")
	cmd.Stderr = os.Stderr
	if err := startIn(s, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if entries, err := filepath.Glob(s.PayloadPath() + "/urun*"); err != nil || len(entries) > 0 {
		t.Error("left over:", entries, err)
	}
}

func TestRealLimits(t *testing.T) {
	s := Probe(t.Context())
	if s.Way == Subtree && len(s.Controllers) > 2 {
		t.Logf("%+v", s)
		limitsHold(t, s) // as a container or a batch job would have it
		return
	}
	onSystemd(t, limitsHold)
}

func limitsHold(t *testing.T, support Support) {
	want := Limits{Memory: 50 << 20, MemorySwap: 50 << 20, Pids: 50, CPUQuota: 50000}
	for _, c := range want.Controllers() {
		if slices.Contains(support.Controllers, c) {
			continue
		}
		sup := supervisor(t)
		_, err := Create(t.Context(), Options{Name: testName(t), PIDs: []int{sup.Process.Pid}, Limits: want})
		var u *UnavailableError
		if !errors.As(err, &u) || u.Cause != NoController || u.Hint() == "" {
			t.Fatal("limits without controllers:", err)
		}
		t.Log(err, "/", u.Hint())
		t.Skipf("missing: controller %s (the refusal was tested)", c)
	}
	s, _ := makeScope(t, want)
	eat := exec.Command("/proc/self/exe", "__eat")
	oom := make(chan uint64, 1)
	go func() {
		n, err := s.WaitOOMKill(t.Context(), 0)
		if err != nil {
			t.Error(err)
		}
		oom <- n
	}()
	if err := startIn(s, eat); err != nil {
		t.Fatal(err)
	}
	if err := eat.Wait(); err == nil {
		t.Error("100 MB fit into 50")
	}
	if killed, err := s.OOMKilled(); !killed || err != nil {
		t.Error("no out-of-memory kill was counted:", err)
	}
	if n := <-oom; n == 0 {
		t.Error("the watch saw no kill")
	}
	forks := exec.Command("/proc/self/exe", "__forks")
	var out strings.Builder
	forks.Stdout = &out
	if err := startIn(s, forks); err != nil {
		t.Fatal(err)
	}
	if err := forks.Wait(); err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(out.String())); err != nil || n >= 50 || n < 20 {
		t.Error("under a limit of 50 were started", n, err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(t.Context()), s.Renew(Limits{CPUQuota: 50000})); err != nil {
		t.Fatal(err)
	}
	cpuLimitHolds(t, s)
}

func cpuLimitHolds(t *testing.T, s *Scope) {
	t.Helper()
	spin := exec.Command("sh", "-c", "while :; do :; done")
	if err := startIn(s, spin); err != nil {
		t.Fatal(err)
	}
	before, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	after, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if share := float64(after.CPU.Usage-before.CPU.Usage) / float64(after.Time.Sub(before.Time)); share < 0.4 || share > 0.6 {
		t.Errorf("%.2f CPUs were used under a limit of 0.5", share)
	}
	if err := s.Apply(Limits{CPUQuota: -1, Pids: -1}); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(t.Context()), ignoreExit(spin.Wait()), s.Remove()); err != nil {
		t.Error(err)
	}
}
