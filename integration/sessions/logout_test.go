package sessions

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// stopDelay is logind's UserStopDelaySec: how long a user's manager stays after his last session.
const stopDelay = 10 * time.Second

// Of a user who does not linger. What is left of a session keeps it from closing, and with it the user's manager, whose the
// limited containers' scopes are: nothing ends at the logout itself (unless logind.conf has KillUserProcesses=yes).
func TestRootContainersOfWhoLogsOutWithoutLingering(t *testing.T) {
	needsRoot(t)
	out := login(t, "dave", `
		image=$($urun pull --quiet $demo)
		$urun run -d --name limited --memory 50m $image sleep 1000
		$urun run -d --name free $image sleep 1000
		$urun inspect -f '=limited {{.Init.PID}} {{.Cgroup}}' limited
		$urun inspect -f '=free {{.Init.PID}} {{.Cgroup}}' free`)
	if !strings.Contains(out, "loginctl enable-linger") {
		t.Errorf("%s\nwant a warning", out)
	}
	limited, scope := container(t, out, "limited")
	free, none := container(t, out, "free")
	if scope == "" || none != "" {
		t.Fatalf("cgroups: limited %q, free %q", scope, none)
	}
	time.Sleep(2 * stopDelay) // for what might end
	if !alive(limited) || !alive(free) {
		t.Fatalf("after the logout: limited %v, free %v", alive(limited), alive(free))
	}
	// He comes back, and finds both.
	out = login(t, "dave", `$urun ps --format '{{.Names}} {{.State}}'; $urun rm -f free`)
	for _, want := range []string{"limited running", "free running"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nwant %q", out, want)
		}
	}
	// With the last processes of his sessions, the holder and the image's server, go the sessions; with those the manager and its scopes.
	run(t, exec.Command("sh", "-ec", `for s in $(loginctl list-sessions --no-legend | awk '$3 == "dave" { print $1 }'); do loginctl kill-session --signal=KILL $s; done`))
	harness.Eventually(t, 3*stopDelay, "the limited container is ended", func() bool { return !alive(limited) })
	harness.Eventually(t, patience, "its cgroup is gone", func() bool {
		_, err := os.Stat(scope)
		return errors.Is(err, os.ErrNotExist)
	})
	login(t, "dave", `$urun ps -a --format '{{.Names}} {{.State}}' | grep 'limited exited'; $urun rm limited`)
}

// container reads the line that inspect printed of a container.
func container(t *testing.T, out, name string) (pid int, cgroup string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "="+name {
			pid, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return pid, strings.Join(f[2:], " ")
		}
	}
	t.Fatalf("nothing of %s in:\n%s", name, out)
	return 0, ""
}

func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }
