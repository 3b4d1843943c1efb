package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

var containers atomic.Int64

// unique gives a container name that no other test has.
func unique(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("it-%d-%d", os.Getpid(), containers.Add(1))
}

// detach starts a container of the demo image in the background and removes it when the test ends.
func detach(t *testing.T, flags []string, command ...string) string {
	t.Helper()
	name := unique(t)
	args := append([]string{"run", "-d", "--name", name}, flags...)
	args = append(append(args, harness.DemoImage), command...)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	if id := harness.Urun(t, args...).OK(); id == "" || strings.ContainsAny(id, " \n") {
		t.Fatalf("run -d printed %q, want an id", id)
	}
	return name
}

func ownerOf(fi os.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }

// inNamespaces runs a test again as root of user and mount namespaces of its own, where it may mount.
func inNamespaces(t *testing.T, inside func(*testing.T)) {
	t.Helper()
	const again = "URUN_TEST_IN_NAMESPACES"
	if os.Getenv(again) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		inside(t)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), again+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: ") {
		t.Errorf("%v\n%s", err, out)
	}
}
