package monitor

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/jsonlog"
	"github.com/urun-dev/urun/internal/state"
)

func TestTreesThatTheirOwnerMayNotWriteAreRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "upper")
	inner := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "f"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{inner, filepath.Dir(inner), dir} {
		if err := os.Chmod(d, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeTrees([]string{dir, filepath.Join(dir, "missing")}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Fatalf("still there: %v", err)
	}
}

func TestSweepEndsWhatAKilledMonitorLeft(t *testing.T) {
	st, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command("sleep", "1000")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = orphan.Wait(); close(ended) }()
	init, err := state.ProcessOf(orphan.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	keep := state.Record{ID: state.NewID(), Name: "keep", Status: state.Running, Init: init}
	gone := state.Record{ID: state.NewID(), Name: "gone", Status: state.Running, Remove: true}
	for _, rec := range []state.Record{keep, gone} {
		h, err := st.Create(rec, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(st, "/nonexistent"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the container's process lives on")
	}
	all, err := st.List()
	if err != nil || len(all) != 1 || all[0].Name != "keep" || all[0].Status != state.Exited || all[0].ExitCode != 137 {
		t.Fatalf("got %+v, %v", all, err)
	}
}

func TestAReusedPidIsNotKilled(t *testing.T) {
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	p, err := state.ProcessOf(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p.Start--
	if err := end(p); err != nil {
		t.Fatal(err)
	}
	if err := other.Process.Signal(unix.Signal(0)); err != nil {
		t.Fatalf("it was: %v", err)
	}
}

func TestTheLogKeepsStreamsApartAndLongLinesWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), LogFile)
	log, err := jsonlog.Open(file, jsonlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := &output{log: log, clients: map[*client]bool{}}
	cmd := exec.Command("sh", "-c", "echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; printf end")
	if err := o.pipes(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.Writer{cmd.Stdout, cmd.Stderr} {
		w.(*os.File).Close()
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := jsonlog.Read(file, jsonlog.Query{Tail: -1}, func(l jsonlog.Line) error {
		got[l.Stream] += l.Log
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got["stderr"] != "err\n" || len(got["stdout"]) != len("out\n")+40000+len("end") {
		t.Errorf("stderr %q, stdout %d bytes", got["stderr"], len(got["stdout"]))
	}
}
