package handoff

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const knockEnv = "HANDOFF_TEST_KNOCK"

func testDoor(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := UserNamespace()
	if err != nil {
		t.Fatal(err)
	}
	door, err := Listen(dir, "door", outside)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		door.Serve(func(c *Conn) {
			defer c.Close()
			_ = c.Send("welcome", nil)
		})
	}()
	t.Cleanup(func() {
		door.Close()
		<-served
		dir.Close()
	})
	return path
}

// knock returns what one hears at the door.
func knock(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	c, err := Dial(dir, "door")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Expect("welcome")
	return err
}

func TestADoorOpensToTheSameUserOutside(t *testing.T) {
	if err := knock(testDoor(t)); err != nil {
		t.Fatal(err)
	}
}

// Root of a container has the user's uid, and may see the socket.
func TestADoorStaysShutToAUserNamespaceBelow(t *testing.T) {
	if path := os.Getenv(knockEnv); path != "" {
		if err := knock(path); !errors.Is(err, io.EOF) && !errors.Is(err, ErrNobody) {
			t.Fatalf("let in: %v", err)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), knockEnv+"="+testDoor(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) && len(out) == 0 {
		t.Skipf("missing: unprivileged user namespaces: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestNobodyListensAtADoorThatIsClosed(t *testing.T) {
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := Dial(dir, "door"); !errors.Is(err, ErrNobody) {
		t.Errorf("no socket: %v", err)
	}
	door, err := Listen(dir, "door", Namespace{})
	if err != nil {
		t.Fatal(err)
	}
	if err := door.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(dir, "door"); !errors.Is(err, ErrNobody) {
		t.Errorf("stale socket: %v", err)
	}
}
