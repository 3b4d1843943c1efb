package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childExe runs as root of a new user and mount namespace, executes a protected
// copy of the binary and tries to write to it as a container's root would.
func childExe() error {
	if err := waitForParent(); err != nil {
		return err
	}
	for name, protect := range map[string]func() (*os.File, error){"mount": cloneExeMount, "memfd": copyExe} {
		f, err := protect()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), "__wait")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s: execute: %w", name, err)
		}
		running := fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)
		held, err := os.Open(running)
		if err != nil {
			return err
		}
		// While it runs ETXTBSY alone would protect it; afterwards nothing but the
		// read-only mount or the seal does.
		if err := mustNotWrite(name+" while it runs", running); err != nil {
			return err
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			return err
		}
		if err := mustNotWrite(name+" after its end", fmt.Sprintf("/proc/self/fd/%d", held.Fd())); err != nil {
			return err
		}
		held.Close()
		f.Close()
	}
	return nil
}

func mustNotWrite(what, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("evil")
		f.Close()
	}
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ETXTBSY) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: writing gave %v", what, err)
	}
	fmt.Printf("%s: %v\n", what, err)
	// ETXTBSY lasts only while something executes the file, and here something always
	// does. A change of the inode passes that by and meets the mount itself.
	if strings.HasPrefix(what, "mount") {
		if err := os.Chmod(path, 0o777); !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("%s: chmod gave %v", what, err)
		}
	}
	return nil
}

func TestTheExecutableCannotBeOverwrittenThroughProc(t *testing.T) {
	needUserNS(t)
	// A copy that this user owns: the case in which only CloneExe protects.
	copied := t.TempDir() + "/urun"
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		t.Fatal(err)
	}
	id := Current()
	cmd := exec.Command(copied, "__exe")
	cmd.Stdin = strings.NewReader("go\n")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	m := Map{UIDs: one(0, uint32(id.UID)), GIDs: one(0, uint32(id.GID))}
	if err := Start(cmd, m, syscall.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(copied); err != nil || string(now) != string(data) {
		t.Fatalf("the binary changed (%v)", err)
	}
}

func childPdeath() error {
	if err := SetPdeathsig(os.Getppid()); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func TestAChildDiesWithItsParent(t *testing.T) {
	// The shell is the parent; its child holds the write end of out, so out's
	// end is the child's death.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sleep, sleepW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer sleepW.Close()
	cmd := exec.Command("sh", "-c", `"$0" __pdeath <&3 & wait`, exe)
	cmd.Stdout, cmd.ExtraFiles = w, []*os.File{sleep}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	sleep.Close()
	buf := make([]byte, 16)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("%q %v", buf[:n], err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(buf); err != io.EOF {
		t.Fatalf("the child outlived its parent: %v", err)
	}
}
