package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

func TestExitStatusIsTheCommands(t *testing.T) {
	for script, want := range map[string]int{
		"exit 0": 0, "exit 1": 1, "exit 42": 42, "exit 255": 255, "sh -c 'kill -KILL $$'; exit $?": 137,
	} {
		harness.Sh(t, script).Exits(want)
	}
	harness.Run(t, "true").Exits(0)
	harness.Run(t, "false").Exits(1)
}

func TestExitStatusOfUrunsOwnFailures(t *testing.T) {
	harness.Run(t, "/no/such/program").Exits(127)
	harness.Run(t, "nosuchprogram").Exits(127)
	harness.Run(t, "/etc/passwd").Exits(126) // not executable
	harness.Run(t, "/etc").Exits(126)        // a directory
	harness.Run(t, "-w", "/etc/passwd", "--", "true").Refused("/etc/passwd")
	harness.Urun(t, "run", "--rm", "oci:/no/such/layout", "true").Refused("/no/such/layout")
	harness.Run(t, "--no-such-flag", "--", "true").Refused("no-such-flag")
	harness.Run(t, "--network=teleport", "--", "true").Refused("teleport")
}

// A signal's death is 128 and its number; SIGTERM to pid 1 needs a handler or init, SIGKILL from outside needs none.
func TestExitStatusOfASignal(t *testing.T) {
	for sig, want := range map[string]int{"KILL": 137, "TERM": 143} {
		name := unique(t)
		cmd, stdout := start(t, harness.RunArgs("--init", "--name", name, "--", "/probe", "sleep-forever")...)
		awaitLine(t, stdout, "sleeping")
		harness.Urun(t, "kill", "--signal", sig, name).OK()
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("killed by SIG%s: status %d, want %d", sig, got, want)
		}
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		cmd, stdout := start(t, harness.RunArgs("sh", "-c",
			`trap 'echo got TERM; exit 21' TERM; trap 'echo got INT; exit 22' INT; trap 'echo got HUP; exit 23' HUP
			 trap 'echo got USR1; exit 24' USR1; echo ready; while :; do sleep 0.05; done`)...)
		awaitLine(t, stdout, "ready")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(stdout)
		if err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code < 21 || code > 24 || !strings.Contains(string(rest), "got ") {
			t.Errorf("%v: status %d, output %q", sig, code, rest)
		}
	}
}

func TestSigProxyOff(t *testing.T) {
	cmd, stdout := start(t, harness.RunArgs("--sig-proxy=false", "--", "sh", "-c",
		`trap 'echo got USR1' USR1; echo ready; sleep 1; echo end`)...)
	awaitLine(t, stdout, "ready")
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if strings.Contains(string(rest), "got") {
		t.Errorf("the signal reached the command: %q", rest)
	}
}

// start calls urun with a pipe from its stdout; it is killed when the test takes too long.
func start(t *testing.T, args ...string) (*exec.Cmd, io.ReadCloser) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), harness.Timeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, harness.Binary, args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout
}

// awaitLine reads up to and with the line.
func awaitLine(t *testing.T, r io.Reader, line string) {
	t.Helper()
	found := make(chan string, 1)
	go func() {
		var got []byte
		one := make([]byte, 1)
		for !bytes.HasSuffix(got, []byte(line+"\n")) && !bytes.HasSuffix(got, []byte(line+"\r\n")) {
			if _, err := r.Read(one); err != nil {
				found <- fmt.Sprintf("%v after %q", err, got)
				return
			}
			got = append(got, one[0])
		}
		found <- ""
	}()
	select {
	case bad := <-found:
		if bad != "" {
			t.Fatalf("no line %q: %s", line, bad)
		}
	case <-time.After(harness.Timeout):
		t.Fatalf("no line %q in %v", line, harness.Timeout)
	}
}

func TestStdoutAndStderrStayApart(t *testing.T) {
	r := harness.Sh(t, "echo one; echo two >&2; echo three")
	r.Says("one\nthree")
	if r.Stderr != "two\n" {
		t.Errorf("stderr %q", r.Stderr)
	}
}

func TestStdin(t *testing.T) {
	harness.UrunInput(t, strings.NewReader("from outside\n"), harness.RunArgs("-i", "--", "cat")...).Says("from outside")
	// Without -i the command's stdin is empty, whatever urun's is.
	harness.UrunInput(t, strings.NewReader("from outside\n"), harness.RunArgs("cat")...).Says("")
	// The end of input reaches the command, and one that does not read it ends all the same.
	harness.UrunInput(t, strings.NewReader(""), harness.RunArgs("-i", "--", "sh", "-c", "cat; echo end")...).Says("end")
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	defer pw.Close()
	harness.UrunInput(t, pr, harness.RunArgs("-i", "--", "echo", "unread")...).Says("unread")
}

// 1 GiB in and 1 GiB out, each digest compared with that of the same bytes without a container.
func TestAGigabyteThroughAPipeArrivesWhole(t *testing.T) {
	const size = "1073741824"
	want := sha256.New()
	gen := exec.Command(harness.Probe, "gen", size)
	gen.Stdout = want
	if err := gen.Run(); err != nil {
		t.Fatal(err)
	}

	got := sha256.New()
	out := exec.Command(harness.Binary, harness.RunArgs("/probe", "gen", size)...)
	out.Stdout, out.Stderr = got, os.Stderr
	if err := out.Run(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("out: %x, want %x", got.Sum(nil), want.Sum(nil))
	}

	gen = exec.Command(harness.Probe, "gen", size)
	pipe, err := gen.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gen.Start(); err != nil {
		t.Fatal(err)
	}
	harness.UrunInput(t, pipe, harness.RunArgs("-i", "--", "/probe", "sha256")...).Says(fmt.Sprintf("%x %s", want.Sum(nil), size))
	if err := gen.Wait(); err != nil {
		t.Error(err)
	}
}

// A reader that goes away ends the writer by SIGPIPE, as in any pipeline.
func TestClosedStdoutEndsTheCommand(t *testing.T) {
	cmd, stdout := start(t, harness.RunArgs("yes")...)
	if _, err := io.ReadFull(stdout, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := stdout.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		if cmd.ProcessState.ExitCode() == 0 {
			t.Error("status 0")
		}
	case <-time.After(20 * time.Second):
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		t.Error("still running")
	}
}
