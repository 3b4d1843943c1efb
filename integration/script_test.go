package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/urun-dev/urun/integration/harness"
)

// TestScript runs testdata/script/*.txtar: what people do with urun, written as they
// type it. Each script has a store and a home of its own; $DEMO names the demo image.
//
//	urun ARGS                      must work; ! urun ARGS must not
//	eventually REGEXP urun ARGS    again and again until the output matches
func TestScript(t *testing.T) {
	subids := harness.Ranges(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setupScript,
		// One that hangs is named, by the line.
		Deadline: time.Now().Add(scriptTime),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"urun":       scriptUrun,
			"eventually": scriptEventually,
		},
		Condition: func(name string) (bool, error) {
			if name == "subids" {
				return subids, nil
			}
			return false, errors.New("unknown condition")
		},
	})
}

// scriptTime bounds all scripts together, which take seconds.
const scriptTime = 4 * time.Minute

func setupScript(env *testscript.Env) error {
	bin := filepath.Join(env.WorkDir, "bin")
	home := filepath.Join(env.WorkDir, "home")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Mkdir(home, 0o755), os.Symlink(harness.Binary, filepath.Join(bin, "urun"))); err != nil {
		return err
	}
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	env.Setenv("HOME", home)
	env.Setenv("URUN_ROOT", filepath.Join(home, "store"))
	env.Setenv("USER", strconv.Itoa(os.Getuid()))
	env.Setenv("DEMO", harness.DemoImage)
	for _, name := range []string{"XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "URUN_LINGER"} {
		env.Setenv(name, os.Getenv(name))
	}
	call := func(args ...string) (string, error) {
		cmd := exec.Command(harness.Binary, args...)
		cmd.Env = env.Vars
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	env.Defer(func() {
		// Files of subordinate ids are not to be left to the test's own clean-up.
		for _, args := range [][]string{{"rm", "--all", "--force", "--volumes"}, {"volume", "rm", "--all"}} {
			if _, err := call(args...); err != nil {
				env.T().Fatal(err)
			}
		}
	})
	id, err := call("pull", "--quiet", "oci:"+harness.DemoLayout()+":latest")
	if err != nil {
		return err
	}
	_, err = call("tag", id, harness.DemoImage)
	return err
}

func scriptUrun(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("urun", args...)
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		ts.Fatalf("urun: %v", err)
	case err != nil && !neg:
		ts.Fatalf("urun %s: %v", strings.Join(args, " "), err)
	case err == nil && neg:
		ts.Fatalf("urun %s: it worked", strings.Join(args, " "))
	}
}

// scriptPatience bounds the wait of eventually.
const scriptPatience = 20 * time.Second

func scriptEventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || args[1] != "urun" {
		ts.Fatalf("usage: eventually REGEXP urun ARGS")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(scriptPatience); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("urun", args[2:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("never: urun %s gives %s", strings.Join(args[2:], " "), args[0])
		}
	}
}
