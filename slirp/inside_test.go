package slirp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The container's side of a test is this binary again, in user and network namespaces of its own. It sets the
// namespace up with Configure, sends the TUN, and then makes sockets on request: a socket belongs to the
// network namespace that it was made in, so that the test itself can use it from outside.

const insideArg = "__inside"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case insideArg:
			runtime.LockOSThread()
			if err := inside(); err != nil {
				fmt.Fprintln(os.Stderr, "inside:", err)
				os.Exit(1)
			}
			os.Exit(0)
		case lockedArg:
			os.Exit(locked())
		case helperArg:
			if err := helper(); err != nil {
				fmt.Fprintln(os.Stderr, "helper:", err)
				os.Exit(1)
			}
			os.Exit(0)
		case trafficArg:
			os.Exit(traffic(os.Args[2:]))
		}
	}
	runtime.GOMAXPROCS(WantedProcs(DriverKernel))
	os.Exit(m.Run())
}

// insideRequest asks for a socket, or for a run of traffic.
type insideRequest struct {
	Domain, Type, Proto int
	Run                 []string
}

func inside() error {
	var cfg Config
	if err := json.Unmarshal([]byte(os.Args[2]), &cfg); err != nil {
		return err
	}
	const ctl = 3
	var tun *os.File
	var err error
	bare := len(os.Args) > 3 && os.Args[3] == "bare"
	if bare { // somebody else makes the network: send any descriptor
		tun, err = os.Open("/dev/null")
	} else {
		tun, err = Configure(cfg)
	}
	if err != nil {
		return err
	}
	fds := []int{int(tun.Fd())}
	if !bare {
		r, err := prepareOnThread(cfg, tun, len(os.Args) == 3)
		if err != nil {
			fmt.Fprintln(os.Stderr, "inside: no driver kernel:", err)
		} else {
			for _, f := range r.Files {
				fds = append(fds, int(f.Fd()))
			}
			defer r.Close()
		}
	}
	if err := unix.Sendmsg(ctl, []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
		return err
	}
	if err := tun.Close(); err != nil {
		return err
	}
	buf := make([]byte, 512)
	for {
		n, _, err := unix.Recvfrom(ctl, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		var req insideRequest
		if err := json.Unmarshal(buf[:n], &req); err != nil {
			return err
		}
		if req.Run != nil {
			cmd := exec.Command("/proc/self/exe", append([]string{trafficArg}, req.Run...)...)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				out = fmt.Appendf(nil, "error: %v", err)
			}
			if err := unix.Sendmsg(ctl, append(out, '\n'), nil, nil, 0); err != nil {
				return err
			}
			continue
		}
		fd, err := unix.Socket(req.Domain, req.Type|unix.SOCK_CLOEXEC, req.Proto)
		if err != nil {
			err = unix.Sendmsg(ctl, []byte(err.Error()), nil, nil, 0)
		} else {
			err = errors.Join(unix.Sendmsg(ctl, []byte{0}, unix.UnixRights(fd), nil, 0), unix.Close(fd))
		}
		if err != nil {
			return err
		}
	}
}

// space is a network namespace with a stack on its TUN.
type space struct {
	t        testing.TB
	cmd      *exec.Cmd
	tun      *os.File
	redirect *Redirect // nil where the machine has no nftables
	net      *Network
	cfg      Config

	mu  sync.Mutex
	ctl int
}

// startSpace makes the namespace and leaves the TUN to the caller.
func startSpace(t testing.TB, cfg Config, bare ...string) *space {
	t.Helper()
	js, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "ctl")
	s := &space{t: t, ctl: pair[0]}
	s.cmd = exec.Command("/proc/self/exe", append([]string{insideArg, string(js)}, bare...)...)
	s.cmd.Stderr = os.Stderr
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := s.cmd.Start(); err != nil {
		t.Skipf("user namespaces are not available (kernel.unprivileged_userns_clone, user.max_user_namespaces): %v", err)
	}
	theirs.Close()
	t.Cleanup(func() {
		unix.Close(s.ctl)
		s.cmd.Wait()
	})
	fds, err := s.receiveAll()
	if err != nil {
		if _, serr := os.Stat("/dev/net/tun"); serr != nil {
			t.Skipf("no /dev/net/tun: %v", serr)
		}
		t.Fatalf("receive tun: %v", err)
	}
	s.tun = os.NewFile(uintptr(fds[0]), "tun")
	if len(fds) > 1 {
		s.redirect = &Redirect{}
		for _, fd := range fds[1:] {
			s.redirect.Files = append(s.redirect.Files, os.NewFile(uintptr(fd), "redirect"))
		}
	}
	if s.cfg, err = cfg.WithDefaults(); err != nil {
		t.Fatal(err)
	}
	return s
}

// newSpace makes a namespace with a stack that serves it.
func newSpace(t testing.TB, cfg Config) *space {
	t.Helper()
	return newDriverSpace(t, cfg, DriverNetstack)
}

// newDriverSpace is newSpace with one of the drivers.
func newDriverSpace(t testing.TB, cfg Config, driver string) *space {
	t.Helper()
	s := startSpace(t, cfg)
	n, err := New(cfg, s.tun, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if driver == DriverKernel {
		if s.redirect == nil {
			t.Skip("no nftables with NAT for this user")
		}
		if err := n.UseKernel(s.redirect); err != nil {
			t.Fatal(err)
		}
	} else if s.redirect != nil {
		s.redirect.Close()
	}
	s.serve(n)
	return s
}

// eachDriver runs a test on every driver that carries TCP in this process, on either link.
func eachDriver(t *testing.T, cfg Config, test func(*testing.T, *space)) {
	t.Helper()
	withEachDriver(t, func(t *testing.T, make spaceMaker) { test(t, make(t, cfg)) })
}

// spaceMaker is newSpace with a driver chosen.
type spaceMaker func(testing.TB, Config) *space

// withEachDriver is eachDriver for a test that makes its spaces itself.
func withEachDriver(t *testing.T, test func(*testing.T, spaceMaker)) {
	t.Helper()
	for _, link := range []string{"", " on a veth pair"} {
		for _, driver := range []string{DriverKernel, DriverNetstack} {
			t.Run(driver+link, func(t *testing.T) {
				test(t, func(t testing.TB, cfg Config) *space {
					cfg.NoTUN = link != ""
					return newDriverSpace(t, cfg, driver)
				})
			})
		}
	}
}

func (s *space) serve(n *Network) {
	s.net = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				s.t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			buf := make([]byte, 1<<20)
			s.t.Fatalf("serve does not end:\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (s *space) receive() (int, error) {
	fds, err := s.receiveAll()
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

func (s *space) receiveAll() ([]int, error) {
	buf, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(8*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.ctl, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) == 0 {
			return nil, fmt.Errorf("no descriptor: %q", buf[:n])
		}
		return unix.ParseUnixRights(&msgs[0])
	}
}

// socket makes a socket inside.
func (s *space) socket(domain, typ, proto int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	js, err := json.Marshal(insideRequest{Domain: domain, Type: typ, Proto: proto})
	if err != nil {
		return -1, err
	}
	if err := unix.Sendmsg(s.ctl, js, nil, nil, 0); err != nil {
		return -1, err
	}
	return s.receive()
}

// run makes traffic inside and returns the figure that it prints.
func (s *space) run(t testing.TB, args ...string) float64 {
	t.Helper()
	js, err := json.Marshal(insideRequest{Run: args})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendmsg(s.ctl, js, nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	for {
		n, _, err := unix.Recvfrom(s.ctl, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(string(buf[:n])), 64)
		if err != nil {
			t.Fatalf("traffic %v: %s", args, buf[:n])
		}
		return v
	}
}

func family46(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// dial connects from inside; the error is the errno.
func (s *space) dial(network, addr string) (net.Conn, error) {
	to := netip.MustParseAddrPort(addr)
	typ := unix.SOCK_STREAM
	if strings.HasPrefix(network, "udp") {
		typ = unix.SOCK_DGRAM
	}
	fd, err := s.socket(family46(to.Addr()), typ, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	for {
		err = unix.Connect(fd, sockaddr(to))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// listen listens inside.
func (s *space) listen(addr string) net.Listener {
	s.t.Helper()
	at := netip.MustParseAddrPort(addr)
	fd, err := s.socket(family46(at.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, sockaddr(at)), unix.Listen(fd, 1024)); err != nil {
		s.t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	return l
}

func (s *space) listenPacket(addr string) net.PacketConn {
	s.t.Helper()
	at := netip.MustParseAddrPort(addr)
	fd, err := s.socket(family46(at.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		s.t.Fatal(err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// hostTCP listens on the host's loopback and handles each connection; it returns the port.
func hostTCP(t testing.TB, network string, handle func(*net.TCPConn)) int {
	t.Helper()
	host := "127.0.0.1:0"
	if network == "tcp6" {
		host = "[::1]:0"
	}
	l, err := net.Listen(network, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c.(*net.TCPConn))
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func echoTCP(c *net.TCPConn) {
	defer c.Close()
	io.Copy(c, struct{ io.Reader }{c})
}
