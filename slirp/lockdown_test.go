package slirp

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	lockedArg = "__locked"
	helperArg = "__helper"
)

var helperConfig = Config{AllowHostLoopback: true, Ports: []PortMapping{{ContainerPort: 80}}}

// helper serves the TUN that it inherits as a locked down process of its own, as in life.
func helper() error {
	runtime.GOMAXPROCS(WantedProcs(DriverKernel))
	n, err := New(helperConfig, os.NewFile(3, "tun"), nil)
	if err != nil {
		return err
	}
	if len(os.Args) > 2 {
		files, err := strconv.Atoi(os.Args[2])
		if err != nil {
			return err
		}
		r := &Redirect{}
		for i := range files {
			r.Files = append(r.Files, os.NewFile(uintptr(4+i), "redirect"))
		}
		if err := n.UseKernel(r); err != nil {
			return err
		}
	}
	if err := Lockdown(); err != nil {
		return err
	}
	fmt.Println(n.Ports()[0].HostPort)
	return n.Serve(context.Background())
}

// startHelper starts a helper of its own process for s, and returns it with the port that it publishes.
func (s *space) startHelper(t *testing.T, driver string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", helperArg)
	cmd.ExtraFiles = []*os.File{s.tun}
	if driver == DriverKernel {
		if s.redirect == nil {
			t.Skip("no nftables with NAT for this user")
		}
		cmd.Args = append(cmd.Args, strconv.Itoa(len(s.redirect.Files)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.redirect.Files...)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var published int
	if _, err := fmt.Fscan(out, &published); err != nil {
		t.Skipf("the helper does not start (built with cgo?): %v", err)
	}
	return cmd, published
}

func TestServeAfterLockdown(t *testing.T) {
	for _, driver := range []string{DriverKernel, DriverNetstack} {
		t.Run(driver, func(t *testing.T) { serveAfterLockdown(t, driver) })
	}
}

func serveAfterLockdown(t *testing.T, driver string) {
	s := startSpace(t, helperConfig)
	_, published := s.startHelper(t, driver)
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("out"))
	u, err := s.dial("udp", fmt.Sprintf("10.0.2.2:%d", hostUDP(t, "127.0.0.1:0", echoUDP)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	roundTrip(t, u, []byte("datagram"))
	l := s.listen("0.0.0.0:80")
	go func() {
		if c, err := l.Accept(); err == nil {
			echoTCP(c.(*net.TCPConn))
		}
	}()
	in, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", published))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	roundTrip(t, in, []byte("in"))
}

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
	for _, domain := range []int{unix.AF_UNIX, unix.AF_NETLINK, unix.AF_PACKET} {
		if fd, err := unix.Socket(domain, unix.SOCK_RAW, 0); err != unix.EPERM {
			complain("socket of family %d: %d, %v", domain, fd, err)
		}
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
