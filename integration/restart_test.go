package integration

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// inspect gives a field of a container.
func inspect(t *testing.T, name, field string) string {
	t.Helper()
	return harness.Urun(t, "inspect", "-f", "{{"+field+"}}", name).OK()
}

func create(t *testing.T, flags []string, command ...string) string {
	t.Helper()
	name := unique(t)
	args := append([]string{"create", "--name", name}, flags...)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	harness.Urun(t, append(append(args, harness.DemoImage), command...)...).OK()
	return name
}

func TestCreatedContainerStartsLater(t *testing.T) {
	name := create(t, []string{"-e", "A=1"}, "sh", "-c", "echo $A; exit 3")
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}").Has(name + " Created")
	harness.Urun(t, "logs", name).Says("")
	if r := harness.Urun(t, "start", "-a", name); r.Code != 3 || r.Stdout != "1\n" {
		t.Errorf("%s", r)
	}
	if r := harness.Urun(t, "start", "-a", name); r.Code != 3 || r.Stdout != "1\n" {
		t.Errorf("a second time: %s", r)
	}
	harness.Urun(t, "logs", name).Says("1\n1")
	harness.UrunInput(t, strings.NewReader("x"), "start", "-a", "nosuch").Refused("nosuch")
}

func TestStartPassesInputOn(t *testing.T) {
	name := create(t, []string{"-i"}, "cat")
	harness.UrunInput(t, strings.NewReader("typed"), "start", "-a", "-i", name).Says("typed")
}

func TestAStoppedContainerStartsAgainAsItWas(t *testing.T) {
	name := detach(t, []string{"--hostname", "keeper", "-v", "/vol"}, "sh", "-c", "test -e /made || { mkdir -m 700 /made; echo data > /made/file; chmod 4711 /made/file; echo v > /vol/file; }; exec sleep 1000")
	id := inspect(t, name, ".ID")
	look := func() string {
		return harness.Urun(t, "exec", name, "sh", "-c", "hostname; cat /made/file /vol/file; stat -c '%u:%g %a' /made /made/file").OK()
	}
	harness.Eventually(t, 10*time.Second, "the files are there", func() bool {
		return harness.Urun(t, "exec", name, "test", "-s", "/vol/file").Code == 0
	})
	if harness.Ranges(t) {
		harness.Urun(t, "exec", name, "chown", "12:34", "/made/file").OK()
		harness.Urun(t, "exec", name, "chmod", "4711", "/made/file").OK()
	}
	before := look()
	harness.Urun(t, "stop", "-t", "0", name).OK()
	harness.Urun(t, "start", name).Says(name)
	if after := look(); after != before {
		t.Errorf("before %q, after %q", before, after)
	}
	harness.Urun(t, "start", name).Says(name) // it runs: nothing to do
	harness.Urun(t, "restart", "-t", "0", name).Says(name)
	if after := look(); after != before || inspect(t, name, ".ID") != id {
		t.Errorf("before %q, after a restart %q", before, after)
	}
}

func TestRestartKeepsAContainerThatWouldBeRemoved(t *testing.T) {
	name := detach(t, []string{"--rm"}, "sleep", "1000")
	harness.Urun(t, "restart", "-t", "0", name).OK()
	harness.Urun(t, "exec", name, "true").OK()
	harness.Urun(t, "stop", "-t", "0", name).OK()
	harness.Eventually(t, 10*time.Second, "it is removed at last", func() bool {
		return !strings.Contains(harness.Urun(t, "ps", "-a", "--format", "{{.Names}}").OK(), name)
	})
}

func TestAStartThatFailsLeavesTheContainer(t *testing.T) {
	name := create(t, nil, "/made/later")
	harness.Urun(t, "start", name).Exits(1)
	harness.Urun(t, "start", "-a", name).Exits(127)
	harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}").Has(name + " Created")
	if got := inspect(t, name, ".State.Error"); !strings.Contains(got, "/made/later") {
		t.Errorf("its record says %q", got)
	}
}

func TestRestartPolicies(t *testing.T) {
	t.Run("on-failure stops trying", func(t *testing.T) {
		name := detach(t, []string{"--restart", "on-failure:2"}, "sh", "-c", "echo run; exit 3")
		harness.Urun(t, "wait", name).Says("3")
		harness.Urun(t, "logs", name).Says("run\nrun\nrun")
		if got := inspect(t, name, ".RestartCount"); got != "2" {
			t.Errorf("restarted %s times", got)
		}
	})
	t.Run("on-failure leaves a success alone", func(t *testing.T) {
		name := detach(t, []string{"--restart", "on-failure"}, "true")
		harness.Urun(t, "wait", name).Says("0")
	})
	t.Run("always goes on until it is stopped", func(t *testing.T) {
		name := detach(t, []string{"--restart", "always"}, "sh", "-c", "echo run; sleep 0.01")
		harness.Eventually(t, 20*time.Second, "it has run three times", func() bool {
			return strings.Count(harness.Urun(t, "logs", name).OK(), "run") >= 3
		})
		harness.Urun(t, "stop", name).OK()
		harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.State}}").Has(name + " exited")
		harness.Urun(t, "start", name).OK()
		harness.Eventually(t, 20*time.Second, "it restarts again", func() bool { return inspect(t, name, ".RestartCount") != "0" })
		harness.Urun(t, "rm", "-f", name).OK()
	})
	t.Run("not with --rm", func(t *testing.T) {
		harness.Run(t, "--restart", "always", "--", "true").Refused("--rm")
		harness.Run(t, "--restart", "sometimes", "--", "true").Refused("sometimes", "hint: ")
	})
	t.Run("what a reboot leaves", func(t *testing.T) {
		name := detach(t, []string{"--restart", "unless-stopped"}, "sleep", "1000")
		kill9(t, inspect(t, name, ".Monitor.PID"))
		harness.Eventually(t, 10*time.Second, "it is known to have ended", func() bool {
			return strings.Contains(harness.Urun(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}").OK(), name+" Exited (137)")
		})
		harness.Urun(t, "start", "--all", "--filter", "should-start-on-boot=true", "--filter", "name=^"+name+"$").OK()
		harness.Urun(t, "exec", name, "true").OK()
		harness.Urun(t, "stop", "-t", "0", name).OK()
		harness.Urun(t, "start", "--all", "--filter", "should-start-on-boot=true", "--filter", "name=^"+name+"$").Says("")
	})
}

func kill9(t *testing.T, pid string) {
	t.Helper()
	if out, err := exec.Command("kill", "-9", pid).CombinedOutput(); err != nil {
		t.Fatalf("kill -9 %s: %v %s", pid, err, out)
	}
}

func TestHealthCheck(t *testing.T) {
	name := detach(t, []string{"--health-cmd", "echo looked; test -e /well", "--health-interval", "100ms", "--health-retries", "2"}, "sleep", "1000")
	status := func(want string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "it is "+want, func() bool {
			return strings.Contains(harness.Urun(t, "ps", "--format", "{{.Names}} {{.Status}};").OK(), "("+want+")") && inspect(t, name, ".State.Health.Status") == want
		})
	}
	status("unhealthy")
	harness.Urun(t, "exec", name, "touch", "/well").OK()
	status("healthy")
	if got := inspect(t, name, "(index .State.Health.Log 0).Output"); got != "looked" {
		t.Errorf("output %q", got)
	}
	harness.Urun(t, "ps", "--filter", "health=healthy", "--format", "{{.Names}}").Has(name)
}

func TestRename(t *testing.T) {
	name := detach(t, nil, "sleep", "1000")
	other, third := unique(t), unique(t)
	harness.Urun(t, "rename", name, other).OK()
	harness.Urun(t, "exec", other, "true").OK()
	harness.Urun(t, "exec", name, "true").Refused(name)
	harness.Urun(t, "stop", "-t", "0", other).OK()
	harness.Urun(t, "rename", other, third).OK()
	taken := detach(t, nil, "sleep", "1000")
	if r := harness.Urun(t, "rename", third, taken); r.Code == 0 || !strings.Contains(r.Stderr, taken) {
		t.Errorf("%s", r)
	}
	if r := harness.Urun(t, "rename", third, "a/b"); r.Code == 0 {
		t.Errorf("%s", r)
	}
	harness.Urun(t, "rename", third, name).OK()
}

func TestAttachSeesOutputAndStatus(t *testing.T) {
	name := detach(t, []string{"-i"}, "sh", "-c", "read a; echo got $a; echo err >&2; exit 4")
	if r := harness.UrunInput(t, strings.NewReader("word\n"), "attach", name); r.Code != 4 || r.Stdout != "got word\n" || r.Stderr != "err\n" {
		t.Errorf("%s", r)
	}
	if r := harness.Urun(t, "attach", name); r.Code != 1 || !strings.Contains(r.Stderr, "not running") {
		t.Errorf("%s", r)
	}
}

func TestSeveralAttachAndOneThatDoesNotReadIsLetGo(t *testing.T) {
	name := detach(t, nil, "sh", "-c", "while ! test -e /go; do sleep 0.02; done; seq 300000; touch /done; sleep 1000")
	deaf, out := start(t, "attach", name) // never read
	defer out.Close()
	reader := exec.Command(harness.Binary, "attach", name)
	var got bytes.Buffer
	reader.Stdout = &got
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // attach has no sign of its own; later is no failure for who reads
	harness.Urun(t, "exec", name, "touch", "/go").OK()
	harness.Eventually(t, 30*time.Second, "the container is not stopped", func() bool {
		return harness.Urun(t, "exec", name, "test", "-e", "/done").Code == 0
	})
	harness.Urun(t, "rm", "-f", name).OK()
	_, _ = reader.Process.Wait()
	_ = deaf.Process.Kill()
	_ = deaf.Wait()
}

func TestDetachKeysLeaveTheContainerRunning(t *testing.T) {
	name := unique(t)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	term := openTerminal(t, "run", "-it", "--name", name, harness.DemoImage, "sh")
	term.send("echo fir''st\r")
	term.expect("first")
	term.send("\x10\x11")
	if code := term.status(); code != 0 {
		t.Fatalf("status %d: %s", code, term.seen())
	}
	harness.Urun(t, "ps", "--format", "{{.Names}}").Has(name)
	again := openTerminal(t, "attach", "--detach-keys", "ctrl-x", name)
	again.send("echo sec''ond; exit 6\r")
	again.expect("second")
	if code := again.status(); code != 6 {
		t.Fatalf("status %d: %s", code, again.seen())
	}
	harness.Urun(t, "logs", name).Has("first", "second")
}

func TestLogsAreRotatedAndRead(t *testing.T) {
	name := detach(t, []string{"--log-opt", "max-size=4k", "--log-opt", "max-file=3"}, "sh", "-c", "seq 1000; echo last")
	harness.Urun(t, "wait", name).Says("0")
	lines := strings.Fields(harness.Urun(t, "logs", name).OK())
	if n := len(lines); n < 50 || n > 300 || lines[n-1] != "last" || lines[n-2] != "1000" {
		t.Errorf("got %d lines: %v", n, lines)
	}
	harness.Urun(t, "logs", "-n", "2", name).Says("1000\nlast")
	harness.Urun(t, "logs", "--since", "2020-01-01", "--until", "2020-01-02", name).Says("")
	harness.Urun(t, "logs", "-t", "--tail", "1", name).Has("T", "Z last")
	if r := harness.Urun(t, "logs", "--since", "yesterday", name); r.Code == 0 {
		t.Errorf("%s", r)
	}
	quiet := detach(t, []string{"--log-driver", "none"}, "echo", "x")
	if r := harness.Urun(t, "logs", quiet); r.Code == 0 || !strings.Contains(r.Stderr, "log") {
		t.Errorf("%s", r)
	}
}

func TestLogsFollowUntilTheEnd(t *testing.T) {
	name := detach(t, nil, "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.05; done")
	if got := harness.Urun(t, "logs", "-f", name).OK(); got != "line 1\nline 2\nline 3\nline 4\nline 5" {
		t.Errorf("got %q", got)
	}
}

// A container without a pid namespace of its own ends what it leaves, but not those who share its namespaces.
func TestTheEndOfAContainerIsNotThatOfItsGuests(t *testing.T) {
	host := detach(t, []string{"--pid", "host", "--network", "none"}, "sleep", "1000")
	guest := detach(t, []string{"--network", "container:" + host}, "sleep", "1000")
	harness.Urun(t, "stop", "-t", "0", host).OK()
	harness.Urun(t, "exec", guest, "true").OK()
}
