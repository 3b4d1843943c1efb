package userns

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the child: the first argument is a stage.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if stage, ok := stages[os.Args[1]]; ok {
			if err := stage(); err != nil {
				os.Stderr.WriteString(err.Error() + "\n")
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

var stages = map[string]func() error{
	"__report":  childReport,
	"__exe":     childExe,
	"__wait":    func() error { _, err := io.Copy(io.Discard, os.Stdin); return err },
	"__pdeath":  childPdeath,
	"__nested":  childNested,
	"__limits":  childLimits,
	"__plan":    childPlan,
	"__nothing": func() error { return nil },
}

// report is what a child in a new namespace sees.
type report struct {
	UID, GID                int
	UIDMap, GIDMap          []Range
	CapEff, AmbAfterDrop    string
	MountErr, WriteFileErr  string
	Hostname, Setgroups     string
	PdeathsigOfAWrongParent string
}

// waitForParent reads the one message that a stage waits for.
func waitForParent() error {
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

func childReport() error {
	if err := waitForParent(); err != nil {
		return err
	}
	var r report
	var err error
	r.UID, r.GID = os.Getuid(), os.Getgid()
	if r.UIDMap, err = readMap("/proc/self/uid_map"); err != nil {
		return err
	}
	if r.GIDMap, err = readMap("/proc/self/gid_map"); err != nil {
		return err
	}
	r.CapEff = statusField("CapEff")
	text := func(err error) string {
		if err != nil {
			return err.Error()
		}
		return ""
	}
	r.MountErr = text(unix.Mount("none", "/tmp", "tmpfs", 0, ""))
	r.WriteFileErr = text(os.WriteFile("/tmp/x", nil, 0o600))
	if err := unix.Sethostname([]byte("inside")); err != nil {
		return err
	}
	r.Hostname, _ = os.Hostname()
	sg, _ := os.ReadFile("/proc/self/setgroups")
	r.Setgroups = strings.TrimSpace(string(sg))
	r.PdeathsigOfAWrongParent = text(SetPdeathsig(1 << 21))
	if err := DropAmbient(); err != nil {
		return err
	}
	r.AmbAfterDrop = statusField("CapAmb")
	return json.NewEncoder(os.Stdout).Encode(r)
}

// childNested does within a user namespace what urun does outside: plan and start.
func childNested() error {
	if err := waitForParent(); err != nil {
		return err
	}
	m, err := Plan(Request{}, Current())
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "__report")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("go\n"), os.Stdout, os.Stderr
	// The message may come before the maps here, so the child's view of them may
	// be early; what counts is that Start succeeds and the child has power.
	if err := Start(cmd, m, syscall.CLONE_NEWNS|syscall.CLONE_NEWUTS); err != nil {
		return err
	}
	return cmd.Wait()
}

func TestStartWorksWithinAUserNamespace(t *testing.T) {
	needUserNS(t)
	for _, mode := range []string{ModeAuto, ModeSingle, ModeKeepID} {
		m, err := Plan(Request{Mode: mode}, Current())
		if err != nil {
			t.Fatal(err)
		}
		cmd := self(t, "__nested")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd.Stdout = &out
		if err := Start(cmd, m, syscall.CLONE_NEWNS); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(stdin, "go\n"); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("mode %s (%s): %v", mode, m, err)
		}
		t.Log(mode, m, strings.TrimSpace(out.String()))
	}
}

func TestAChildThatEndsAtOnceIsReported(t *testing.T) {
	needUserNS(t)
	id := Current()
	// Whether the maps are written before or after its end is a matter of luck;
	// both must leave a reaped or reapable child and a plain error.
	for range 20 {
		cmd := exec.Command("/bin/false")
		err := Start(cmd, Map{UIDs: one(0, uint32(id.UID)), GIDs: one(0, uint32(id.GID))}, 0)
		if err == nil {
			err = cmd.Wait()
		}
		if err == nil || cmd.ProcessState == nil {
			t.Fatal(err, cmd.ProcessState)
		}
	}
}

func self(t testing.TB, stage string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", stage)
	cmd.Stderr = os.Stderr
	return cmd
}

// needUserNS skips where the machine has no user namespaces for us.
func needUserNS(t testing.TB) {
	t.Helper()
	cmd := self(t, "__nothing")
	id := Current()
	m := Map{UIDs: one(0, uint32(id.UID)), GIDs: one(0, uint32(id.GID))}
	if err := Start(cmd, m, 0); err != nil {
		t.Skipf("missing: user namespaces: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func runReport(t *testing.T, m Map) report {
	t.Helper()
	cmd := self(t, "__report")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout = &out
	if err := Start(cmd, m, syscall.CLONE_NEWNS|syscall.CLONE_NEWUTS); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	return r
}

func TestAStartedChildHasItsMapAndAllCapabilities(t *testing.T) {
	needUserNS(t)
	id := Current()
	for _, req := range []Request{
		{},
		{Mode: ModeHost},
		{Mode: ModeSingle},
		{Mode: ModeKeepID},
		{Mode: ModeKeepID, UID: ptr(4321), GID: ptr(1234)},
	} {
		t.Run("mode "+req.Mode, func(t *testing.T) {
			m, err := Plan(req, id)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s", m, m.Note)
			r := runReport(t, m)
			if (Map{UIDs: r.UIDMap, GIDs: r.GIDMap}).Key() != (Map{UIDs: m.UIDs, GIDs: m.GIDs}).Key() {
				t.Errorf("map inside is %v %v, planned %s", r.UIDMap, r.GIDMap, m)
			}
			uid, _ := m.FromHost(uint32(id.UID))
			gid, _ := m.FromHostGID(uint32(id.GID))
			if r.UID != int(uid) || r.GID != int(gid) {
				t.Errorf("ids inside are %d:%d, want %d:%d", r.UID, r.GID, uid, gid)
			}
			if !strings.HasSuffix(r.CapEff, "1ffffffffff") || r.MountErr != "" || r.WriteFileErr != "" || r.Hostname != "inside" {
				t.Errorf("no power inside: %+v", r)
			}
			if strings.Trim(r.AmbAfterDrop, "0") != "" {
				t.Errorf("ambient capabilities are left: %s", r.AmbAfterDrop)
			}
			if !strings.Contains(r.PdeathsigOfAWrongParent, ErrParentGone.Error()) {
				t.Errorf("a wrong parent went unnoticed: %q", r.PdeathsigOfAWrongParent)
			}
			if host, _ := os.Hostname(); host == "inside" {
				t.Error("the host's name changed")
			}
		})
	}
}

func ptr(n uint32) *uint32 { return &n }

func TestAChildThatCannotBeMappedIsKilledAndReaped(t *testing.T) {
	needUserNS(t)
	id := Current()
	if id.UID == 0 {
		t.Skip("missing: an ordinary user (root may map any id)")
	}
	cmd := self(t, "__wait")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	rs := []Range{{0, uint32(id.UID), 1}, {1, 3000000000, 10}}
	err = Start(cmd, Map{UIDs: rs, GIDs: rs}, 0)
	if err == nil {
		t.Fatal("foreign ids were mapped")
	}
	t.Log(err, "hint:", cureOf(err))
	if cureOf(err) == "" {
		t.Error("no hint")
	}
	if cmd.ProcessState == nil {
		t.Error("the child was not reaped")
	}
}

func TestAProgramThatDoesNotExistIsNoFaultOfNamespaces(t *testing.T) {
	err := Start(exec.Command(filepath.Join(t.TempDir(), "none")), Map{UIDs: one(0, 0), GIDs: one(0, 0)}, 0)
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestStartTakesMilliseconds(t *testing.T) {
	needUserNS(t)
	m, err := Plan(Request{}, Current())
	if err != nil {
		t.Fatal(err)
	}
	const n = 20
	var total time.Duration
	for range n {
		cmd := self(t, "__wait")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t0 := time.Now()
		if err := Start(cmd, m, syscall.CLONE_NEWNS); err != nil {
			t.Fatal(err)
		}
		total += time.Since(t0)
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s: %v a start", m, total/n)
	if total/n > time.Second {
		t.Error("that is too slow")
	}
}
