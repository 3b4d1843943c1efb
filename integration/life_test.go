package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

func TestDetachedLife(t *testing.T) {
	name := detach(t, nil, "sh", "-c", "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done")
	harness.Urun(t, "ps", "--format", "{{.Names}}").Has(name)
	harness.Eventually(t, 10*time.Second, "the log has the output", func() bool {
		return strings.Contains(harness.Urun(t, "logs", name).OK(), "out")
	})
	logs := harness.Urun(t, "logs", name)
	if logs.Stdout != "out\n" || logs.Stderr != "err\n" {
		t.Errorf("%s", logs)
	}
	harness.Urun(t, "stop", name).OK()
	harness.Urun(t, "wait", name).Says("3")
	harness.Urun(t, "logs", name).Has("bye")
	if out := harness.Urun(t, "ps", "--format", "{{.Names}}").OK(); strings.Contains(out, name) {
		t.Errorf("ps shows it when it has ended: %s", out)
	}
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}").Has(name, "Exited (3)")
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	name := detach(t, nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
	start := time.Now()
	harness.Urun(t, "stop", "-t", "1", name).OK()
	if took := time.Since(start); took < 900*time.Millisecond || took > 8*time.Second {
		t.Errorf("took %v", took)
	}
	harness.Urun(t, "wait", name).Says("137")
}

func TestKill(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	harness.Urun(t, "kill", name).OK()
	harness.Urun(t, "wait", name).Says("137")
	if r := harness.Urun(t, "kill", name); r.Code == 0 {
		t.Errorf("%s\nit had ended before", r)
	}
}

func TestRemove(t *testing.T) {
	name := unique(t)
	harness.Urun(t, "run", "-d", "--name", name, harness.DemoImage, "sleep", "1000").OK()
	if r := harness.Urun(t, "rm", name); r.Code == 0 {
		t.Errorf("%s\nit runs", r)
	}
	harness.Urun(t, "rm", "-f", name).OK()
	if out := harness.Urun(t, "ps", "-a", "--format", "{{.Names}}").OK(); strings.Contains(out, name) {
		t.Errorf("still there: %s", out)
	}
	if r := harness.Urun(t, "rm", name); r.Code == 0 || !strings.Contains(r.Stderr, name) {
		t.Errorf("%s\nit is gone", r)
	}
}

func TestRmFlagLeavesNothing(t *testing.T) {
	containers := filepath.Join(harness.Store, "containers")
	before, err := os.ReadDir(containers)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	harness.Run(t, "true").OK()
	after, err := os.ReadDir(containers)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("containers before: %v, after: %v", before, after)
	}
	if entries, err := os.ReadDir(filepath.Join(harness.Store, "tmp")); err != nil || len(entries) > 0 {
		t.Errorf("tmp has %v (%v)", entries, err)
	}
}

func TestWithoutRmFlagTheContainerStays(t *testing.T) {
	name := unique(t)
	harness.Urun(t, "run", "--name", name, harness.DemoImage, "sh", "-c", "exit 4").Exits(4)
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}").Has(name + " Exited (4)")
	harness.Urun(t, "rm", name).OK()
}

func TestContainerIDFile(t *testing.T) {
	f := filepath.Join(t.TempDir(), "cid")
	name := detach(t, []string{"--cidfile", f}, "sleep", "1000")
	data, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(data))
	harness.Urun(t, "ps", "--no-trunc", "--format", "{{.ID}} {{.Names}}").Has(id + " " + name)
	harness.Run(t, "--cidfile", f, "--", "true").Refused(f)
}

func TestNamesAreUnique(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	harness.Run(t, "--name", name, "--", "true").Refused(name)
}

func TestStopSignal(t *testing.T) {
	name := detach(t, []string{"--stop-signal", "USR2"}, "sh", "-c", "trap 'exit 12' USR2; echo ready; while :; do sleep 0.05; done")
	harness.Eventually(t, 10*time.Second, "the trap is set", func() bool {
		return strings.Contains(harness.Urun(t, "logs", name).OK(), "ready")
	})
	harness.Urun(t, "stop", name).OK()
	harness.Urun(t, "wait", name).Says("12")
}

func TestVersionAndHelp(t *testing.T) {
	harness.Urun(t, "version").Has("urun")
	harness.Urun(t, "--help").Has("run", "pull", "ps")
	harness.Urun(t, "run", "--help").Has("--network", "--userns")
	if r := harness.Urun(t, "nosuchcommand"); r.Code == 0 || !strings.Contains(r.Stderr, "nosuchcommand") {
		t.Errorf("%s", r)
	}
}
