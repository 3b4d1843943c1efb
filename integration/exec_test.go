package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

func TestExecIsInTheContainer(t *testing.T) {
	name := detach(t, []string{"-e", "A=1", "-w", "/tmp"}, "sleep", "1000")
	inside := func(args ...string) string { return harness.Urun(t, append([]string{"exec", name}, args...)...).OK() }
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"} {
		link := "/proc/self/ns/" + ns
		if got, want := inside("readlink", link), inside("readlink", "/proc/1/ns/"+ns); got != want {
			t.Errorf("%s namespace: %s, want %s", ns, got, want)
		}
	}
	for _, c := range []struct{ what, script, want string }{
		{"working directory", "pwd", "/tmp"},
		{"variables", "echo $A $HOME", "1 /root"},
		{"root", "cat /proc/1/comm", "sleep"},
		{"capabilities", "grep CapEff /proc/self/status", inside("grep", "CapEff", "/proc/1/status")},
		{"bounding set", "grep CapBnd /proc/self/status", inside("grep", "CapBnd", "/proc/1/status")},
		{"seccomp", "grep Seccomp: /proc/self/status", inside("grep", "Seccomp:", "/proc/1/status")},
		{"no_new_privs", "grep NoNewPrivs /proc/self/status", inside("grep", "NoNewPrivs", "/proc/1/status")},
		{"cgroup", "cat /proc/self/cgroup", inside("cat", "/proc/1/cgroup")},
	} {
		if got := inside("sh", "-c", c.script); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestExecFlags(t *testing.T) {
	name := detach(t, []string{"-e", "A=1", "-e", "B=2"}, "sleep", "1000")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("C=3\nA=file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Urun(t, "exec", "-e", "A=x", "--env-file", file, "-e", "URUN_NOT_SET", "-w", "/etc", name, "sh", "-c", "echo $A$B$C; pwd").Says("x23\n/etc")
	harness.UrunInput(t, strings.NewReader("typed"), "exec", "-i", name, "cat").Says("typed")
	harness.UrunInput(t, strings.NewReader("typed"), "exec", name, "cat").Says("")
	all := harness.Urun(t, "exec", "--privileged", name, "grep", "CapEff", "/proc/self/status").OK()
	if some := harness.Urun(t, "exec", name, "grep", "CapEff", "/proc/self/status").OK(); all <= some {
		t.Errorf("--privileged gives %s, without it is %s", all, some)
	}
	harness.Urun(t, "exec", "-d", name, "sh", "-c", "echo there > /tmp/detached; sleep 1000").Says("")
	harness.Eventually(t, 10*time.Second, "the detached command ran", func() bool {
		return harness.Urun(t, "exec", name, "cat", "/tmp/detached").Stdout == "there\n"
	})
	if harness.Ranges(t) {
		got := harness.Urun(t, "exec", "-u", "12:34", name, "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status").OK()
		if !strings.HasPrefix(got, "12\n34\n") || !strings.HasSuffix(got, "0000000000000000") {
			t.Errorf("-u 12:34: %s", got)
		}
	}
}

func TestExecExitStatus(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	harness.Urun(t, "exec", name, "sh", "-c", "ulimit -Sn").Says(strings.TrimSpace(harness.Sh(t, "ulimit -Sn").OK()))
	harness.Urun(t, "exec", name, "sh", "-c", "exit 42").Exits(42)
	harness.Urun(t, "exec", name, "sh", "-c", "kill -9 $$").Exits(137)
	harness.Urun(t, "exec", name, "nosuchcommand").Exits(127)
	harness.Urun(t, "exec", name, "/etc").Exits(126)
	harness.Urun(t, "exec", "-u", "nobodyknows", name, "true").Exits(126)
	for _, dir := range []string{"/nosuch/dir", "/proc/1/nosuch"} {
		r := harness.Urun(t, "exec", "-w", dir, name, "true")
		if r.Exits(127); !strings.Contains(r.Stderr, dir+": no such file or directory\nhint: ") {
			t.Errorf("%s", r)
		}
	}
	harness.Urun(t, "exec", name, "test", "-e", "/nosuch").Exits(1)
	harness.Urun(t, "exec", "nosuchcontainer", "true").Refused("nosuchcontainer", "hint: ")
	harness.Urun(t, "exec", name).Refused("command", "hint: ")
	harness.Urun(t, "stop", "-t", "0", name).OK()
	harness.Urun(t, "exec", name, "true").Refused("not running", "urun start")
}

// What leaked of the monitor or of the caller would be a way out (CVE-2024-21626).
func TestExecLeaksNoFiles(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	secret, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	r := harness.RunLeaking(t, []*os.File{secret, secret}, "exec", name, "/probe", "fds")
	for line := range strings.Lines(r.OK()) {
		if n, _, _ := strings.Cut(line, " "); n > "2" {
			t.Errorf("descriptor %s", line)
		}
	}
	harness.Urun(t, "exec", "-w", "/proc/self/fd/3", name, "pwd").Exits(127)
}

func TestExecWithATerminal(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	term := openTerminal(t, "exec", "-it", name, "sh")
	term.send("stty size; tty; echo $TERM; exit 5\r")
	term.expect("24 80")
	term.expect("/dev/pts/")
	if code := term.status(); code != 5 {
		t.Errorf("status %d: %s", code, term.seen())
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	cmd, out := start(t, "exec", name, "sh", "-c", "echo on; exec sleep 4321")
	awaitLine(t, out, "on")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	harness.Eventually(t, 10*time.Second, "the command is gone", func() bool {
		return !strings.Contains(harness.Urun(t, "exec", name, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").OK(), "sleep 4321")
	})
}
