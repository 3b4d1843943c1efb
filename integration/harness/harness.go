// Package harness is what the integration tests share: where the things under test are, and how urun is called.
//
// The driver (integration/runtests) names them in the environment. Under a plain "go test" they are bin/urun and what
// Main builds; that way tests run as the caller.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	// Binary is the urun under test.
	Binary string
	// Probe is the static program that looks from inside; the demo image has it as /probe.
	Probe string
	// HardFS is the program that mounts a directory as a file system that can do little.
	HardFS string
	// DemoImage names, in the store, the image of four layers with a shell, coreutils and the probe.
	DemoImage string
	// Store is the image and container store that the tests of one package share.
	Store string
	// Cache is a directory that outlives the tests, for what takes long to make.
	Cache string
)

// Timeout ends every call of urun that a test makes, so that one that hangs is named.
var Timeout = 120 * slow() * time.Second

// Patience lengthens a time limit on slow machines.
func Patience(limit time.Duration) time.Duration { return limit * slow() }

// slow is by how much more patient to be than on an ordinary machine ($URUN_TEST_SLOW): emulated ones are ten times slower.
func slow() time.Duration {
	n, err := strconv.Atoi(os.Getenv("URUN_TEST_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}

// Main runs the tests of a package between making and removing what they share. It is called by TestMain.
func Main(m *testing.M) int {
	code, err := run(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "harness: %v\n", err)
		return 1
	}
	return code
}

func run(m *testing.M) (code int, err error) {
	work, err := os.MkdirTemp("", "urun-it-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove(work)) }()

	Binary, Probe, Cache = os.Getenv("URUN_BINARY"), os.Getenv("URUN_PROBE"), os.Getenv("URUN_TEST_CACHE")
	demo := os.Getenv("URUN_DEMO_IMAGE")
	if Binary == "" {
		top, err := output("go", "list", "-m", "-f", "{{.Dir}}")
		if err != nil {
			return 0, err
		}
		Binary = filepath.Join(strings.TrimSpace(top), "bin/urun")
		Probe, demo = filepath.Join(work, "probe"), filepath.Join(work, "demo")
		if _, err := output("go", "build", "-o", filepath.Join(work, "hardfs"), "github.com/urun-dev/urun/integration/hardfs"); err != nil {
			return 0, err
		}
		if _, err := output("go", "build", "-o", Probe, "github.com/urun-dev/urun/integration/probe"); err != nil {
			return 0, err
		}
		if _, err := output("go", "run", "github.com/urun-dev/urun/integration/demoimage", "-probe", Probe, demo); err != nil {
			return 0, err
		}
	}
	if Cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return 0, err
		}
		Cache = filepath.Join(dir, "urun-test")
	}
	if _, err := os.Stat(Binary); err != nil {
		return 0, fmt.Errorf("the binary under test: %w (make build)", err)
	}
	demoLayout, HardFS = demo, filepath.Join(filepath.Dir(Probe), "hardfs")
	Store = filepath.Join(work, "store")
	if err := errors.Join(os.MkdirAll(Cache, 0o755), os.Setenv("URUN_ROOT", Store)); err != nil {
		return 0, err
	}
	id, err := output(Binary, "pull", "--quiet", "oci:"+demo+":latest")
	if err != nil {
		return 0, err
	}
	DemoImage = "localhost/demo:latest"
	if _, err := output(Binary, "tag", strings.TrimSpace(id), DemoImage); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// remove deletes a tree in which overlayfs has left directories that nobody may read.
func remove(dir string) error {
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(p, 0o700)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return string(out), nil
}

// Result is how a call of urun ended.
type Result struct {
	t              testing.TB
	args           []string
	Stdout, Stderr string
	Code           int
}

// Urun calls urun with the arguments and no input.
func Urun(t testing.TB, args ...string) *Result {
	t.Helper()
	return UrunInput(t, nil, args...)
}

// UrunInput calls urun with input on stdin; nil is /dev/null.
func UrunInput(t testing.TB, stdin io.Reader, args ...string) *Result {
	t.Helper()
	return call(t, stdin, nil, args)
}

func call(t testing.TB, stdin io.Reader, files []*os.File, args []string) *Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdin, &stdout, &stderr, files
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	r := &Result{t: t, args: args, Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", r, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s: no end after %v", r, Timeout)
	}
	return r
}

// Run is "urun run --rm" of the demo image: first the flags, then, after "--", the command.
func Run(t testing.TB, args ...string) *Result {
	t.Helper()
	return Urun(t, RunArgs(args...)...)
}

// RunArgs puts the demo image between flags and command: "-e", "A=1", "--", "env" gives run --rm -e A=1 IMAGE env.
func RunArgs(args ...string) []string {
	full := []string{"run", "--rm"}
	for i, a := range args {
		if a == "--" {
			full = append(full, args[:i]...)
			full = append(full, DemoImage)
			return append(full, args[i+1:]...)
		}
	}
	return append(append(full, DemoImage), args...)
}

// Sh is Run of a shell script; the flags come first.
func Sh(t testing.TB, args ...string) *Result {
	t.Helper()
	n := len(args) - 1
	full := append(append([]string{}, args[:n]...), "--", "sh", "-c", args[n])
	return Run(t, full...)
}

func (r *Result) String() string {
	return fmt.Sprintf("urun %s\nstatus %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.Code, cut(r.Stdout), cut(r.Stderr))
}

func cut(s string) string {
	const most = 4000
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// OK ends the test unless the call succeeded; it returns stdout without the space around it.
func (r *Result) OK() string {
	r.t.Helper()
	return r.Exits(0)
}

// Exits ends the test unless the call ended with the status; it returns stdout without the space around it.
func (r *Result) Exits(code int) string {
	r.t.Helper()
	if r.Code != code {
		r.t.Fatalf("%s\nwant status %d", r, code)
	}
	return strings.TrimSpace(r.Stdout)
}

// Says ends the test unless stdout, without the space around it, is want.
func (r *Result) Says(want string) {
	r.t.Helper()
	if got := r.OK(); got != want {
		r.t.Fatalf("%s\nwant stdout: %s", r, want)
	}
}

// Refused ends the test unless urun itself refused (status 125, nothing on stdout) and named each of the words.
func (r *Result) Refused(words ...string) {
	r.t.Helper()
	r.Exits(125)
	if r.Stdout != "" {
		r.t.Errorf("%s\nwant nothing on stdout", r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			r.t.Errorf("%s\nwant an error that names %q", r, w)
		}
	}
}

// Has ends the test unless stdout contains every one of the words.
func (r *Result) Has(words ...string) {
	r.t.Helper()
	r.OK()
	for _, w := range words {
		if !strings.Contains(r.Stdout, w) {
			r.t.Fatalf("%s\nwant stdout with %q", r, w)
		}
	}
}

// Fails ends the test unless the call failed with one error, without a sign of a crash, that names each of the words.
func (r *Result) Fails(words ...string) {
	r.t.Helper()
	if r.Code == 0 || strings.Contains(r.Stderr, "goroutine ") {
		r.t.Fatalf("%s\nwant it to fail", r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			r.t.Fatalf("%s\nwant an error that names %q", r, w)
		}
	}
}

// Need skips the test, naming the program and its package, where the machine has not got it.
func Need(t testing.TB, program, debian string) string {
	t.Helper()
	p, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("no %s: apt-get install %s", program, debian)
	}
	return p
}

// Ranges reports whether the calling user has subordinate ids, by what urun's own containers see.
func Ranges(t testing.TB) bool {
	t.Helper()
	fields := strings.Fields(Run(t, "cat", "/proc/self/uid_map").OK())
	return len(fields) > 3 || fields[2] != "1"
}

// Eventually waits, at most for the time (longer on slow machines), until the condition holds.
func Eventually(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	limit = Patience(limit)
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
	}
}

// RunLeaking calls urun with open files besides the three, from descriptor 3 on, as a careless caller would.
func RunLeaking(t testing.TB, files []*os.File, args ...string) *Result {
	t.Helper()
	return call(t, nil, files, args)
}

// DemoLayout is the directory of the demo image's OCI layout.
func DemoLayout() string { return demoLayout }

var demoLayout string
