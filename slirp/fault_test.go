package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A full table of connection tracking drops the SYN that the helper gives back, and so does a rule: the size of the table is the
// machine's, which nobody here may change.
func TestUntrackableConnectionTimesOut(t *testing.T) {
	s := startSpace(t, loopbackAllowed)
	n := useKernel(t, s)
	n.kernel.offerFor = 2 * time.Second
	s.serve(n)
	s.run(t, "drop")
	ended := make(chan error, 16)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
		_, err := c.Read(make([]byte, 1))
		c.Close()
		ended <- err
	})
	fd, err := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1); err != nil {
		t.Fatal(err)
	}
	if err := connectBlocking(fd, port); err != unix.ETIMEDOUT {
		t.Errorf("connect: %v, want ETIMEDOUT", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the host sees %v, want ECONNRESET", err)
		}
	case <-time.After(patience):
		t.Fatal("the connection on the host, which nobody takes, does not end")
	}
	waitFor(t, "all offers to be given up", func() bool {
		n.kernel.mu.Lock()
		defer n.kernel.mu.Unlock()
		return len(n.kernel.pending) == 0
	})
	s.run(t, "undrop")
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("again"))
}

func connectBlocking(fd, port int) error {
	for {
		err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 2, 2}, Port: port})
		if err != unix.EINTR {
			return err
		}
	}
}

func TestMTUDropMidStream(t *testing.T) { eachDriver(t, loopbackAllowed, mtuDropMidStream) }

func mtuDropMidStream(t *testing.T, s *space) {
	const size = 32 << 20
	got := make(chan error, 1)
	half := make(chan struct{})
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
		defer c.Close()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { io.CopyN(c, newStream(2), size) })
		var start bytes.Buffer
		_, err := io.CopyN(&start, c, size/4)
		close(half)
		if err == nil {
			err = compare(io.MultiReader(&start, c), 1, size)
		}
		got <- err
	})
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		io.CopyN(c, newStream(1), size)
		c.(*net.TCPConn).CloseWrite()
	}()
	<-half
	// The namespace's owner may do this from outside: it is this user.
	fd, err := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(tunName)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint32(1280)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr); err != nil {
		t.Fatal(err)
	}
	want := newStream(2)
	a, b := make([]byte, size), make([]byte, size)
	if _, err := io.ReadFull(c, a); err != nil {
		t.Fatal(err)
	}
	want.Read(b)
	if !bytes.Equal(a, b) {
		t.Error("what came in is not what was sent")
	}
	if err := <-got; err != nil {
		t.Errorf("what went out: %v", err)
	}
	// And what begins after.
	next, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	roundTrip(t, next, bytes.Repeat([]byte("x"), 1<<16))
}

// A stopped process is to the network what a paused container is.
func TestStoppedServerGoesOn(t *testing.T) {
	eachDriver(t, Config{AllowHostLoopback: true, Ports: []PortMapping{{ContainerPort: 80}}}, stoppedServerGoesOn)
}

func stoppedServerGoesOn(t *testing.T, s *space) {
	fd, err := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := os.NewFile(uintptr(fd), "listener")
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 80}), unix.Listen(fd, 16)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", trafficArg, "echo")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{l}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", s.net.Ports()[0].HostPort))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	old := dial()
	roundTrip(t, old, []byte("before"))
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the server to stop", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", cmd.Process.Pid))
		return err == nil && !slices.ContainsFunc(stats, func(name string) bool {
			stat, err := os.ReadFile(name)
			return err != nil || !bytes.Contains(stat, []byte(") T "))
		})
	})
	fresh := dial()
	const size = 16 << 20
	go func() {
		io.CopyN(old, newStream(3), size)
		old.(*net.TCPConn).CloseWrite()
	}()
	if _, err := fresh.Write([]byte("fresh")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"old": old, "new": fresh} {
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the %s connection, while the server is stopped: %d bytes, %v", name, n, err)
		}
		c.SetReadDeadline(time.Time{})
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	fresh.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(fresh, got); err != nil || string(got) != "fresh" {
		t.Errorf("the new connection: %q, %v", got, err)
	}
	old.SetReadDeadline(time.Now().Add(patience))
	if err := compare(old, 3, size); err != nil {
		t.Errorf("the old connection: %v", err)
	}
}
