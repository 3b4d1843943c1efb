package slirp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestConfiguredAddressesWorkAtOnce(t *testing.T) {
	port := map[string]int{}
	for _, f := range families {
		port[f.network] = hostTCP(t, f.network, echoTCP)
	}
	for range 10 {
		s := newSpace(t, loopbackAllowed)
		for _, f := range families {
			start := time.Now()
			c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port[f.network]))
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("%s: first connect took %v", f.name, d)
			}
		}
	}
}

// fromEnv is a number from the environment, or its default.
func fromEnv(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func TestManyConnectionsLeaveNothing(t *testing.T) {
	total := fromEnv(t, "URUN_CONNECTIONS", 4000) // URUN_CONNECTIONS=100000 is the long form
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) { manyConnectionsLeaveNothing(t, s, total) })
}

func manyConnectionsLeaveNothing(t *testing.T, s *space, total int) {
	port := hostTCP(t, "tcp4", echoTCP)
	one := func() error {
		c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	for range 10 {
		if err := one(); err != nil {
			t.Fatal(err)
		}
	}
	goroutines, fds, heap := runtime.NumGoroutine(), openFDs(t), heapInUse()
	start := time.Now()
	for i := range total {
		if err := one(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	t.Logf("%d connections in %v", total, time.Since(start))
	waitFor(t, "goroutines, descriptors and memory to go", func() bool {
		return s.net.tcp.flows.Load() == 0 && runtime.NumGoroutine() <= goroutines+10 && openFDs(t) <= fds+10 && heapInUse() <= heap+4<<20
	})
}

// None of many connections fails, although the ports of those before, which were reset, are taken again at once.
func TestPortsAreTakenAgain(t *testing.T) {
	total := fmt.Sprint(fromEnv(t, "URUN_CONNECTIONS", 4000))
	port := trafficServer(t)
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) {
		if failed := s.run(t, "many", "10.0.2.2:"+port, total); failed != 0 {
			t.Errorf("%v of %s connections failed", failed, total)
		}
	})
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestManyFlowsAtOnce(t *testing.T) { eachDriver(t, loopbackAllowed, manyFlowsAtOnce) }

func manyFlowsAtOnce(t *testing.T, s *space) {
	flows := fromEnv(t, "URUN_FLOWS", 1000) // URUN_FLOWS=10000 is the long form; each takes five descriptors
	port := hostTCP(t, "tcp4", echoTCP)
	conns := make([]net.Conn, flows)
	for i := range conns {
		c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		defer c.Close()
		conns[i] = c
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { roundTrip(t, c, fmt.Appendf(nil, "flow %d", i)) })
	}
	wg.Wait()
}

// Flows that move much change workers; nothing of theirs may be lost on the way.
func TestManyStreamsAtOnce(t *testing.T) { eachDriver(t, loopbackAllowed, manyStreamsAtOnce) }

func manyStreamsAtOnce(t *testing.T, s *space) {
	const streams, size = 8, 32 << 20
	got := make(chan error, 4*streams)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
		defer c.Close()
		got <- compare(c, 5, size)
	})
	for range 4 { // what may go wrong depends on the moment
		var conns []net.Conn
		for range streams {
			c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		for _, c := range conns {
			go func() {
				io.CopyN(c, newStream(5), size)
				c.(*net.TCPConn).CloseWrite()
			}()
		}
		for range streams {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSlowReaderHoldsTheWriterUp(t *testing.T) {
	eachDriver(t, loopbackAllowed, slowReaderHoldsTheWriterUp)
}

func slowReaderHoldsTheWriterUp(t *testing.T, s *space) {
	release := make(chan struct{})
	got := make(chan error, 1)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
		defer c.Close()
		<-release
		got <- compare(c, 7, 64<<20)
	})
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	go func() {
		src := newStream(7)
		buf := make([]byte, 64<<10)
		for range 1024 {
			src.Read(buf)
			n, err := c.Write(buf)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
		c.Close()
	}()
	var before int64 = -1
	waitFor(t, "the writer to stop", func() bool {
		time.Sleep(200 * time.Millisecond)
		now := sent.Load()
		stopped := now == before
		before = now
		return stopped
	})
	if before >= 48<<20 {
		t.Errorf("%d MB went out before anybody read", before>>20)
	}
	close(release)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestContainerKilledMidStream(t *testing.T) {
	eachDriver(t, loopbackAllowed, containerKilledMidStream)
}

func containerKilledMidStream(t *testing.T, s *space) {
	// Once through, so that everything that serves has started.
	first, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, first, []byte("first"))
	first.Close()
	waitFor(t, "the first flow to end", func() bool { return s.net.tcp.flows.Load() == 0 })
	goroutines := runtime.NumGoroutine()
	ended := make(chan error, 1)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		c.Close()
		ended <- err
	})
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(c, newStream(1))
	time.Sleep(50 * time.Millisecond)
	// What the kernel does to the sockets of a killed process that has unread or unsent data.
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the host sees %v, want ECONNRESET", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the host's connection does not end")
	}
	waitFor(t, "goroutines to go", func() bool { return runtime.NumGoroutine() <= goroutines+3 })
}

func TestDescriptorShortagePasses(t *testing.T) {
	eachDriver(t, Config{AllowHostLoopback: true, Ports: []PortMapping{{ContainerPort: 80}}}, descriptorShortagePasses)
}

func descriptorShortagePasses(t *testing.T, s *space) {
	port := hostTCP(t, "tcp4", echoTCP)
	// Inside needs a descriptor here, too: have the socket before there are none.
	fd, err := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if k := s.net.kernel; k != nil {
		waitFor(t, "sockets inside, which take descriptors too", func() bool {
			k.pool.mu.Lock()
			defer k.pool.mu.Unlock()
			return !k.pool.asked
		})
	}
	// The helper has all that it keeps as soon as it serves, and what a connection took is given back.
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, []byte("served"))
	held := 3 // by the client, the server and the stack
	if s.net.kernel != nil {
		held = 4
	}
	open := openFDs(t)
	c.Close()
	waitFor(t, "the connection's end", func() bool { return openFDs(t) <= open-held })
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	low := old
	low.Cur = uint64(free) // there is none below the lowest that is free
	restored := make(chan struct{})
	defer func() { <-restored }()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, (*syscall.Rlimit)(&low)); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(500*time.Millisecond, func() {
		defer close(restored)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, (*syscall.Rlimit)(&old)); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 0, 2, 2}, Port: port})
	}
	if err != nil {
		t.Errorf("connect while there are no descriptors: %v, want it to wait", err)
	}
	if d := time.Since(start); d < 400*time.Millisecond {
		t.Errorf("connected after %v: there was no shortage", d)
	}
	unix.Close(fd)
}

func TestKilledHelperMeansReset(t *testing.T) {
	s := startSpace(t, helperConfig)
	cmd, published := s.startHelper(t, DriverKernel)
	port := hostTCP(t, "tcp4", echoTCP)
	out, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	roundTrip(t, out, []byte("out"))
	l := s.listen("0.0.0.0:80")
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	client, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", published))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.Write([]byte("in"))
	in := <-accepted
	defer in.Close()
	if _, err := io.ReadFull(in, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"out, inside": out, "published, outside": client} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v, want ECONNRESET", name, err)
		}
	}
	// Another helper takes over what the first one had.
	cmd.Wait()
	s.startHelper(t, DriverKernel)
	again, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	roundTrip(t, again, []byte("again"))
}

func TestNewStackOnTheSameTUN(t *testing.T) {
	s := startSpace(t, loopbackAllowed)
	port := hostTCP(t, "tcp4", echoTCP)
	kept, err := unix.FcntlInt(s.tun.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	first, err := New(loopbackAllowed, s.tun, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- first.Serve(ctx) }()
	old, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	roundTrip(t, old, []byte("before"))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	second, err := New(loopbackAllowed, os.NewFile(uintptr(kept), "tun"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.serve(second)
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("after"))
	old.SetDeadline(time.Now().Add(5 * time.Second))
	old.Write([]byte("x"))
	if _, err := old.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of the first stack: %v, want it reset", err)
	}
}

func TestServeLeavesNothing(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), openFDs(t)
	t.Run("serve", func(t *testing.T) {
		s := newSpace(t, Config{AllowHostLoopback: true, Ports: []PortMapping{{ContainerPort: 80}, {ContainerPort: 80, Protocol: "udp"}}})
		port := hostTCP(t, "tcp4", echoTCP)
		for range 20 {
			c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			roundTrip(t, c, []byte("x"))
		}
		u, err := s.dial("udp", fmt.Sprintf("10.0.2.2:%d", hostUDP(t, "127.0.0.1:0", echoUDP)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		roundTrip(t, u, []byte("x"))
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, f := runtime.NumGoroutine(), openFDs(t)
		if g <= goroutines && f <= fds {
			return
		}
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines of %d, %d descriptors of %d:\n%s", g, goroutines, f, fds, buf[:runtime.Stack(buf, true)])
		}
	}
}

func TestConfigureLoopback(t *testing.T) {
	c, err := Config{}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if c.MTU != 1500 || c.Address4.String() != "10.0.2.100/24" || c.DNS6.String() != "fd75:7275:6e00::3" {
		t.Errorf("defaults: %+v", c)
	}
	for name, bad := range map[string]Config{
		"mtu":      {MTU: 100},
		"protocol": {Ports: []PortMapping{{ContainerPort: 1, Protocol: "sctp"}}},
		"port":     {Ports: []PortMapping{{HostPort: 1}}},
	} {
		if _, err := bad.WithDefaults(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
