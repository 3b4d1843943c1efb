package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// asJobRoot runs a test again as root of a user namespace with the caller's ids, as in a job of docker's that runs as
// root, and tells whether this is that second run; capabilities are what setpriv takes away.
func asJobRoot(t *testing.T, capabilities string) (inside bool) {
	t.Helper()
	const marker = "URUN_TEST_JOB"
	if os.Getenv(marker) == t.Name() {
		return true
	}
	harness.Need(t, "setpriv", "util-linux")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := `exec setpriv --bounding-set ` + capabilities + ` "$0" -test.run "^$1\$" -test.v`
	args := []string{"--user", "--map-root-user", "--map-auto", "--mount", "--propagation", "private", "sh", "-ec", script, exe, t.Name()}
	if !harness.Ranges(t) {
		args = append([]string{"--user", "--map-root-user"}, args[3:]...)
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), marker+"="+t.Name(), "XDG_RUNTIME_DIR="+t.TempDir(), "URUN_LINGER=0s")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// Root that may make mounts but no user namespace has containers that lack nothing but that.
func TestRootWithoutUserNamespaces(t *testing.T) {
	if !asJobRoot(t, "+all") {
		return
	}
	ownStore(t)
	r := harness.Run(t, "--without", "userns", "--", "sh", "-c", "readlink /proc/self/ns/user; echo $$")
	outer, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	r.Says(outer + "\n1")
	if !strings.Contains(r.Stderr, "root of this job") {
		t.Errorf("%s\nwant a notice", r)
	}
	wholeLife(t, "--without", "userns")
	wholeLife(t, "--without", "userns,fuse")
}

// Root that may make neither has a chroot, and is told what that is not.
func TestRootWithoutNamespaces(t *testing.T) {
	if !asJobRoot(t, "-sys_admin") {
		return
	}
	ownStore(t)
	r := harness.Run(t, "--without", "userns", "--", "sh", "-c", "pwd; id -u; ls /proc | wc -l; grep -c . /etc/hostname; cat /etc/passwd | grep -c root")
	r.Says("/\n0\n0\n1\n1")
	if n := strings.Count(r.Stderr, "no namespaces can be made here"); n != 1 {
		t.Errorf("%s\nwant one notice", r)
	}
	wholeLife(t, "--without", "userns")
	for _, flags := range [][]string{{"-v", "/tmp:/x"}, {"-p", "80"}, {"--network", "none"}, {"--pid", "private"}, {"--read-only"}, {"--storage", "overlay"}} {
		args := append(append([]string{"--without", "userns"}, flags...), "--", "true")
		harness.Run(t, args...).Refused(strings.TrimPrefix(flags[0], "-"), "seccomp=unconfined")
	}
	harness.Run(t, "--without", "userns", "--", "sh", "-c", "exit 7").Exits(7)
	harness.Run(t, "--without", "userns", "--", "/none").Exits(127)
	visitsChroot(t)
	endsWithAll(t)
}

// visitsChroot has commands come into a container that is a directory: they are looked up in it, not around it.
func visitsChroot(t *testing.T) {
	t.Helper()
	name := harness.Urun(t, "run", "-d", "--without", "userns", harness.DemoImage, "sleep", "1000").OK()
	exec := func(args ...string) *harness.Result {
		return harness.Urun(t, append([]string{"exec"}, args...)...)
	}
	exec("-w", "/demo", "-u", "root", name, "sh", "-c", "pwd").Has("/demo")
	exec("-w", "/none", name, "true").Exits(127)
	exec("-w", "/etc/passwd", name, "true").Fails("not a directory")
	exec("-u", "nobody-there", name, "true").Exits(126)
	exec(name, "urun-is-not-in-there").Exits(127)
	exec(name, harness.Binary, "version").Exits(127)
	exec("-t", name, "sh", "-c", "[ -t 1 ] && echo terminal").Has("terminal")
	harness.Urun(t, "run", "--rm", "-t", "--without", "userns", harness.DemoImage, "sh", "-c", "[ -t 1 ] && echo terminal").Has("terminal")
	harness.Urun(t, "rm", "-f", name).OK()
}

// endsWithAll looks for processes that a container leaves behind: when it ends, and when its monitor is killed.
func endsWithAll(t *testing.T) {
	t.Helper()
	const seconds = "98761"
	// A shell gives what it puts into the background a /dev/null, which only real root can make as a device.
	script := "[ -e /dev/null ] || : >/dev/null; (sleep " + seconds + " &); exec sleep " + seconds
	name := harness.Urun(t, "run", "-d", "--without", "userns", harness.DemoImage, "sh", "-c", script).OK()
	running := func(n int) func() bool {
		return func() bool { return len(strings.Fields(sleepers(t, seconds))) == n }
	}
	harness.Eventually(t, 20*time.Second, "both processes run", running(2))
	harness.Urun(t, "stop", "-t", "0", name).OK()
	harness.Eventually(t, 20*time.Second, "a container that is stopped takes all of its processes with it", running(0))
	harness.Urun(t, "start", name).OK()
	harness.Eventually(t, 20*time.Second, "both processes run again", running(2))
	monitor := harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", name).OK()
	if out, err := exec.Command("kill", "-9", monitor).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v %s", err, out)
	}
	harness.Eventually(t, 20*time.Second, "a container whose monitor was killed ends with all of its processes", running(0))
	harness.Urun(t, "rm", "-f", name).OK()
}

// sleepers are the pids of the processes that sleep so many seconds.
func sleepers(t *testing.T, seconds string) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, name := range files {
		if raw, err := os.ReadFile(name); err == nil && string(raw) == "sleep\x00"+seconds+"\x00" {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return strings.Join(pids, " ")
}

func TestOnlyRootDoesWithoutAUserNamespace(t *testing.T) {
	harness.Run(t, "--without", "userns", "--", "true").Refused("only root")
}
