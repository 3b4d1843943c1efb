package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain also is the child that installs a filter: a filter stays for the
// life of the process, so that the test itself cannot.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "install" {
		if err := child(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type job struct {
	Program Program
	Flags   uint
	NoPrivs bool
	Try     string
}

func child(arg string) error {
	var j job
	if err := json.Unmarshal([]byte(arg), &j); err != nil {
		return err
	}
	runtime.LockOSThread()
	if j.NoPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	if !j.NoPrivs {
		// Root has CAP_SYS_ADMIN: become an ordinary user, on this thread.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 && os.Geteuid() == 0 {
			return fmt.Errorf("setresuid: %w", errno)
		}
	}
	if err := j.Program.Install(j.Flags); err != nil {
		return err
	}
	errno := try(j.Try)
	fmt.Println(int(errno))
	return nil
}

// try makes one system call on this thread and returns its error.
func try(name string) syscall.Errno {
	var errno syscall.Errno
	switch name {
	case "mount":
		_, _, errno = unix.RawSyscall6(unix.SYS_MOUNT, 0, 0, 0, 0, 0, 0)
	case "unshare-user":
		_, _, errno = unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0)
	case "clone3":
		_, _, errno = unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	case "vsock":
		_, _, errno = unix.RawSyscall(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case "unix-socket":
		_, _, errno = unix.RawSyscall(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
	case "getpid":
		_, _, errno = unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	case "new":
		_, _, errno = unix.RawSyscall(2000, 0, 0, 0)
	case "chdir":
		_, _, errno = unix.RawSyscall(unix.SYS_CHDIR, 0, 0, 0)
	}
	return errno
}

func install(t *testing.T, j job) (string, error) {
	t.Helper()
	arg, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(self, "install", string(arg)).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestInstalledDefaultProfile(t *testing.T) {
	prog, flags, err := Compile(resolved(t, Default(), dockerCaps, runtime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		try  string
		want syscall.Errno
	}{
		{"getpid", 0},
		{"unix-socket", 0},
		{"mount", unix.EPERM},
		{"unshare-user", unix.EPERM},
		{"clone3", unix.ENOSYS},
		{"vsock", unix.EPERM},
		{"new", unix.ENOSYS},
	} {
		t.Run(c.try, func(t *testing.T) {
			out, err := install(t, job{prog, flags, true, c.try})
			if want := fmt.Sprint(int(c.want)); err != nil || out != want {
				t.Errorf("%s %v, want %s", out, err, want)
			}
		})
	}
}

func TestInstalledProfileKillsAndGivesItsOwnErrno(t *testing.T) {
	prog, flags, err := Compile(resolved(t, parse(t, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
		{"names": ["getpid"], "action": "SCMP_ACT_KILL_PROCESS"},
		{"names": ["chdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]}`), nil, runtime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := install(t, job{prog, flags, true, "chdir"}); err != nil || out != "42" {
		t.Errorf("%s %v", out, err)
	}
	_, err = install(t, job{prog, flags, true, "getpid"})
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
		t.Errorf("%v, want death by SIGSYS", err)
	}
}

func TestInstallNeedsNoNewPrivileges(t *testing.T) {
	prog, flags, err := Compile(resolved(t, Default(), dockerCaps, runtime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	out, err := install(t, job{prog, flags, false, "getpid"})
	if err == nil || !strings.Contains(out, "neither CAP_SYS_ADMIN nor no_new_privs") {
		t.Errorf("%s %v", out, err)
	}
}

func TestAnEmptyProgramIsNotInstalled(t *testing.T) {
	if err := (Program{}).Install(0); err == nil {
		t.Error("no error")
	}
}
