package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// start starts a program with its output in a pipe, and returns that.
func start(t *testing.T, p *Program) (*Child, *os.File) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	c, err := p.Start(Files{null, w, w}, nil, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

// wait returns the status of a child.
func wait(t *testing.T, c *Child) unix.WaitStatus {
	t.Helper()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return ws
}

func shell(t *testing.T, p *Program, script string, env ...string) {
	t.Helper()
	if err := p.Execute([]string{"/bin/sh"}, []string{"sh", "-c", script}, env, nil); err != nil {
		t.Fatal(err)
	}
}

func TestACommandStartsWithItsArgumentsEnvironmentAndFilesAlone(t *testing.T) {
	p := &Program{}
	shell(t, p, `echo "$A $0 $(ls /proc/self/fd | wc -l)"; [ "$(cut -d ' ' -f 6 /proc/$$/stat)" = $$ ] && echo session; exit 3`, "A=b c")
	c, out := start(t, p)
	if err := c.Executed(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	// ls has a fourth: the directory.
	if want := "b c sh 4\nsession\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if ws := wait(t, c); ws.ExitStatus() != 3 {
		t.Errorf("status %v", ws)
	}
}

func TestACallThatFailsIsNamedAndTheCommandDoesNotRun(t *testing.T) {
	p := &Program{}
	p.Do("tolerate", unix.SYS_CLOSE, 99).Tolerate(unix.EBADF)
	p.Do("close nothing", unix.SYS_CLOSE, 99).Explain(func(e unix.Errno) error { return fmt.Errorf("explained: %w", e) })
	shell(t, p, "echo ran")
	c, out := start(t, p)
	err := c.Executed()
	if !errors.Is(err, unix.EBADF) || err.Error() != "close nothing: explained: bad file descriptor" {
		t.Errorf("got %v", err)
	}
	if got, _ := io.ReadAll(out); len(got) > 0 {
		t.Errorf("it wrote %q", got)
	}
	if ws := wait(t, c); ws.ExitStatus() != 125 {
		t.Errorf("status %v", ws)
	}
}

func TestTheNextFileHasItsTurnWhereOneMayNotBeExecuted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
		want  error
	}{
		{"the second", []string{"/etc/passwd", "/bin/true"}, nil},
		{"none", []string{"/etc/passwd", "/etc/group"}, unix.EACCES},
		{"what is not there is the end", []string{"/nothing", "/bin/true"}, unix.ENOENT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &Program{}
			if err := p.Execute(tt.files, []string{"x"}, nil, nil); err != nil {
				t.Fatal(err)
			}
			c, _ := start(t, p)
			if err := c.Executed(); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			wait(t, c)
		})
	}
}

func TestACallGetsWhatTheOneBeforeReturned(t *testing.T) {
	p := &Program{}
	name, err := p.String("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	// AT_FDCWD.
	p.Do("open", unix.SYS_OPENAT, ^uintptr(99), name, unix.O_WRONLY|unix.O_CLOEXEC)
	p.Do("write", unix.SYS_WRITE, 0, p.Bytes([]byte("named")), 5).OnLast()
	if err := inThread(p.Run); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("/proc/self/comm"); err != nil || string(got) != "named\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// inThread calls f on a thread that ends with it.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func TestSignalsAreAsOnesWithoutARuntime(t *testing.T) {
	p := &Program{}
	if err := p.Execute([]string{"/bin/cat"}, []string{"cat", "/proc/self/status"}, nil, nil); err != nil {
		t.Fatal(err)
	}
	c, out := start(t, p)
	if err := c.Executed(); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(out)
	for _, set := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		if !strings.Contains(string(got), set+":\t0000000000000000\n") {
			t.Errorf("%s is not empty in %s", set, got)
		}
	}
	wait(t, c)
}

func TestTheCallsHaveTheFileThatIsKeptForThemAndTheCommandHasNot(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &Program{}
	p.Do("enter directory", unix.SYS_FCHDIR, KeptFD)
	shell(t, p, "pwd -P; ls /proc/self/fd | wc -l")
	c, err := p.Start(Files{null, w, w}, dir, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Executed(); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(r); string(got) != dir.Name()+"\n4\n" {
		t.Errorf("got %q", got)
	}
	wait(t, c)
}

func TestZeroBytesAreRefused(t *testing.T) {
	p := &Program{}
	if _, err := p.String("a\x00b"); err == nil {
		t.Error("a name was cut off")
	}
	if err := p.Execute([]string{"/bin/true"}, []string{"a\x00b"}, nil, nil); err == nil {
		t.Error("an argument was cut off")
	}
}
