// Package sessions proves what needs root to set the scene: login sessions that end, and cgroups that somebody else than systemd
// delegates. urun itself runs as the ordinary users of the virtual host (make integration).
package sessions

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// patience bounds every wait for something that ought to happen soon; the harness lengthens it on slow machines.
const patience = 20 * time.Second

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// needsRoot skips the test where this is not root of a machine that runs systemd and has the users of the virtual host.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv("URUN_VIRTUAL_HOST") == "" {
		t.Skip("not root in the virtual host")
	}
}

// login runs a script in a login session of a user, as sshd makes one, and returns its output when the session has ended.
func login(t *testing.T, user, script string) string {
	t.Helper()
	// systemd takes a word that begins with a dollar sign for one of its own variables.
	script = "\n" + script
	return run(t, exec.Command("systemd-run", "--pipe", "--wait", "--quiet", "--collect", "--uid="+user, "--property=PAMName=login",
		"--working-directory=/home/"+user, "--setenv=urun="+harness.Binary, "--setenv=demo=oci:"+harness.DemoLayout()+":latest", "sh", "-ec", script))
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	cmd.WaitDelay = 5 * time.Second // what stays may have our pipe
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}
