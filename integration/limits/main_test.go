// Package limits proves limits, statistics, freezing and the end of containers' cgroups, with the built binary. It needs a
// machine whose systemd delegates a cgroup to users, which the virtual host is (make integration).
package limits

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

var containers atomic.Int64

// patience bounds every wait for something that ought to happen soon; the harness lengthens it on slow machines.
const patience = 20 * time.Second

// needs skips the test where the controllers are not delegated to this user.
func needs(t *testing.T, controllers ...string) {
	t.Helper()
	have := delegated()
	for _, c := range controllers {
		if !have[c] {
			t.Skipf("no delegated cgroup with the controller %s", c)
		}
	}
}

// delegated are the controllers of this user's systemd manager.
func delegated() map[string]bool {
	uid := strconv.Itoa(os.Getuid())
	have := map[string]bool{}
	if _, err := os.Stat("/run/user/" + uid + "/bus"); err != nil {
		return have
	}
	data, err := os.ReadFile("/sys/fs/cgroup/user.slice/user-" + uid + ".slice/user@" + uid + ".service/cgroup.controllers")
	if err != nil {
		return have
	}
	for _, c := range strings.Fields(string(data)) {
		have[c] = true
	}
	return have
}

// detach starts a container in the background and removes it at the test's end; it returns its name.
func detach(t *testing.T, flags []string, script string) string {
	t.Helper()
	name := fmt.Sprintf("limits-%d-%d", os.Getpid(), containers.Add(1))
	args := append(append([]string{"run", "-d", "--name", name}, flags...), harness.DemoImage, "sh", "-c", script)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	harness.Urun(t, args...).OK()
	return name
}

// cgroup is a container's scope.
func cgroup(t *testing.T, name string) string {
	t.Helper()
	dir := harness.Urun(t, "inspect", "-f", "{{.Cgroup}}", name).OK()
	if !strings.HasPrefix(dir, "/sys/fs/cgroup/") {
		t.Fatalf("the cgroup of %s is %q", name, dir)
	}
	return dir
}

// payload reads a file of the container's own cgroup.
func payload(t *testing.T, scope, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(scope, "payload", file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// field reads a line "key number" of a file of the container's own cgroup.
func field(t *testing.T, scope, file, key string) int64 {
	t.Helper()
	for line := range strings.Lines(payload(t, scope, file) + "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %s", file, key)
	return 0
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// systemctl talks to this user's systemd manager.
func systemctl(t *testing.T, args ...string) {
	t.Helper()
	harness.Need(t, "systemctl", "systemd")
	out, err := exec.Command("systemctl", append([]string{"--user"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl --user %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
