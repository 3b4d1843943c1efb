package slirp

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const lockedArg = "__locked"

// locked runs in a process of its own: a lockdown cannot be taken back. It prints what still works that must not,
// and what no longer works that must.
func locked() int {
	bad := 0
	complain := func(format string, args ...any) {
		fmt.Printf(format+"\n", args...)
		bad = 1
	}
	if err := Lockdown(); err != nil {
		complain("lockdown: %v", err)
		return bad
	}
	if err := syscall.Exec("/bin/true", []string{"true"}, nil); err != unix.EPERM && err != unix.EACCES {
		complain("execve: %v", err)
	}
	if err := os.WriteFile(filepath.Join(os.TempDir(), fmt.Sprintf("slirp-locked-%d", os.Getpid())), nil, 0o600); err == nil {
		complain("a file was written")
	}
	if _, err := os.ReadFile("/etc/resolv.conf"); err != nil {
		complain("resolv.conf cannot be read: %v", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWUSER); err != unix.EPERM {
		complain("unshare: %v", err)
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		complain("listen: %v", err)
	} else if c, err := net.Dial("tcp", l.Addr().String()); err != nil {
		complain("dial: %v", err)
	} else {
		c.Close()
	}
	// Every thread, old and new, is bound.
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 2 {
		complain("threads: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			complain("%v", err)
			continue
		}
		for _, want := range []string{"NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "Seccomp:\t2"} {
			if !strings.Contains(string(b), want) {
				complain("%s: no %q", task, want)
			}
		}
	}
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); n != 0 || err != nil {
		complain("dumpable: %d, %v", n, err)
	}
	return bad
}

func TestLockdown(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", lockedArg)
	// As root of a user namespace, the process has capabilities to lose.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "operation not supported") {
			t.Skipf("built with cgo: %s", out)
		}
		t.Errorf("%v\n%s", err, out)
	}
}
