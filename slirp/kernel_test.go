package slirp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// spliced is how many flows the driver "kernel" carries.
func spliced(n *Network) (flows int) {
	if n.kernel == nil {
		return 0
	}
	for _, w := range n.kernel.relay.workers {
		w.mu.Lock()
		for _, s := range w.slots {
			if _, ok := s.p.(*kflow); ok {
				flows++
			}
		}
		w.mu.Unlock()
	}
	return flows
}

func TestKernelDriverSplices(t *testing.T) {
	s := newDriverSpace(t, loopbackAllowed, DriverKernel)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			port := hostTCP(t, f.network, echoTCP)
			c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			roundTrip(t, c, []byte("hello"))
			if n := spliced(s.net); n != 1 {
				t.Errorf("%d flows are spliced, want 1", n)
			}
			c.Close()
			waitFor(t, "the flow to end", func() bool { return spliced(s.net) == 0 && s.net.tcp.flows.Load() == 0 })
		})
	}
}

// What a process's runtime polls wakes that process for each packet or connection; of all that hold the TUN and the listeners, a worker of the
// helper alone is to be woken.
func TestPacketsWakeNobodyElse(t *testing.T) {
	s := startSpace(t, loopbackAllowed)
	if s.redirect == nil {
		t.Skip("no nftables with NAT for this user")
	}
	for _, f := range append([]*os.File{s.tun}, s.redirect.Files[:s.redirect.listeners()]...) {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if flags&unix.O_NONBLOCK != 0 {
			t.Errorf("%s does not block: whoever receives it polls it", f.Name())
		}
	}
	n, err := New(loopbackAllowed, s.tun, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.UseKernel(s.redirect); err != nil {
		t.Fatal(err)
	}
	s.serve(n)
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("hello"))
	for name, fd := range map[string]int{"TUN": int(n.link.file.Fd()), "listener": n.kernel.listeners[0]} {
		if got := pollers(t, fd); got != 1 {
			t.Errorf("the %s is in %d epoll instances of this process, want 1", name, got)
		}
	}
}

// pollers counts the epoll instances of this process that watch a descriptor (proc_pid_fdinfo(5)).
func pollers(t *testing.T, fd int) (n int) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range infos {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "tfd:" && f[1] == strconv.Itoa(fd) {
				n++
			}
		}
	}
	return n
}

func TestFlowsThatWantTooManyDescriptorsTakeTheStack(t *testing.T) {
	s := newDriverSpace(t, loopbackAllowed, DriverKernel)
	const most = 4
	s.net.kernel.most = most
	addr := fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP))
	var conns []net.Conn
	for range 3 * most {
		c, err := s.dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c, []byte("hello"))
		conns = append(conns, c)
	}
	if n := spliced(s.net); n != most {
		t.Errorf("%d flows are spliced, want %d", n, most)
	}
	for _, c := range conns {
		roundTrip(t, c, []byte("still there"))
		c.Close()
	}
	waitFor(t, "the flows to end", func() bool { return s.net.tcp.flows.Load() == 0 })
	c, err := s.dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("again"))
	if n := spliced(s.net); n != 1 {
		t.Errorf("%d flows are spliced after the others have ended, want 1", n)
	}
}

// Packets of the driver's flows go by loopback; a socket that is bound to the TUN is to get them all the same.
func TestSocketBoundToTheTUN(t *testing.T) { eachDriver(t, loopbackAllowed, socketBoundToTheTUN) }

func socketBoundToTheTUN(t *testing.T, s *space) {
	for _, f := range families {
		to := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", f.gateway, hostTCP(t, f.network, echoTCP)))
		fd, err := s.socket(family46(to.Addr()), unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), f.name)
		defer file.Close()
		if err := unix.BindToDevice(fd, tunName); err != nil {
			t.Fatal(err)
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Connect(fd, sockaddr(to))
		}
		if err != nil {
			t.Fatalf("%s: connect: %v", f.name, err)
		}
		c, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c, []byte("bound"))
	}
}

// useKernel is the network of a space with the driver kernel, not served yet.
func useKernel(t *testing.T, s *space) *Network {
	t.Helper()
	if s.redirect == nil {
		t.Skip("no nftables with NAT for this user")
	}
	n, err := New(loopbackAllowed, s.tun, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.UseKernel(s.redirect); err != nil {
		t.Fatal(err)
	}
	return n
}

// Root of the container may take away more than the rules.
func TestConnectionsThatTheKernelDoesNotTakeAreTheStacks(t *testing.T) {
	s := startSpace(t, loopbackAllowed)
	n := useKernel(t, s)
	fell := make(chan string, 1)
	n.OnFallback(func(driver, _ string) { fell <- driver })
	s.serve(n)
	addr := fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP))
	s.run(t, "shut")
	dial := func() error {
		c, err := s.dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		roundTrip(t, c, []byte("by the stack"))
		return nil
	}
	var all errgroup.Group
	for range mostInVain { // each waits for the container's kernel to repeat the SYN
		all.Go(dial)
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := spliced(n); got != 0 {
		t.Errorf("%d flows are spliced", got)
	}
	select {
	case driver := <-fell:
		if driver != DriverNetstack {
			t.Errorf("the next driver is %s", driver)
		}
	case <-time.After(patience):
		t.Fatal("the driver is kept, though it makes no connections")
	}
	if err := dial(); err != nil {
		t.Error(err)
	}
}

func TestRemovedRulesMeanTheNextDriver(t *testing.T) {
	// An older kernel, whose tables have no owner.
	s := startSpace(t, loopbackAllowed, "unowned")
	n := useKernel(t, s)
	fell := make(chan string, 1)
	n.OnFallback(func(driver, _ string) { fell <- driver })
	s.serve(n)
	addr := fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP))
	old, err := s.dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	roundTrip(t, old, []byte("before"))

	s.run(t, "flush")
	// At once, whether the helper has heard of it or not.
	c, err := s.dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("after"))
	if n := spliced(s.net); n > 1 {
		t.Errorf("%d flows are spliced, want the old one at most", n)
	}
	// Address translation is gone with the rules.
	old.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = old.Write([]byte("x"))
	if err == nil {
		_, err = old.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the old connection: %v, want ECONNRESET", err)
	}
	if driver := <-fell; driver != DriverNetstack {
		t.Errorf("fell to %q", driver)
	}
	if _, err := s.dial("tcp", "10.0.2.1:1"); err != unix.ECONNREFUSED {
		t.Errorf("connect to the relay's listener: %v, want ECONNREFUSED", err)
	}
}

func TestFlushedRulesetLeavesTheRulesAlone(t *testing.T) {
	s := newDriverSpace(t, loopbackAllowed, DriverKernel)
	s.run(t, "flush")
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", hostTCP(t, "tcp4", echoTCP)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("hello"))
	if n := spliced(s.net); n != 1 {
		t.Errorf("%d flows are spliced, want 1", n)
	}
}

func TestRelayRefusesWhatWasNotRedirected(t *testing.T) {
	s := newDriverSpace(t, loopbackAllowed, DriverKernel)
	for _, addr := range []string{"10.0.2.1:1", "[fd75:7275:6e00::1]:1"} {
		if c, err := s.dial("tcp", addr); err != unix.ECONNREFUSED {
			t.Errorf("connect to %s: %v, want ECONNREFUSED", addr, err)
			if err == nil {
				c.Close()
			}
		}
	}
	// Without the rule that refuses them, the helper does.
	s.net.kernel.accepted(dialed(t))
	if n := spliced(s.net); n != 0 {
		t.Errorf("%d flows", n)
	}
}

// dialed gives one end of a connection that nobody redirected, and its peer's address; the other end must be reset.
func dialed(t *testing.T) (int, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read: %v, want ECONNRESET", err)
		}
	})
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := a.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return fd, c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// A reset that says that there is no socket is not true of a connection that is just being made (earlyPackets), and is of others.
func TestEarlyResetsWithoutACKAreDropped(t *testing.T) {
	s := newDriverSpace(t, loopbackAllowed, DriverKernel)
	relays, err := relayAddrs(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range families {
		c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, hostTCP(t, f.network, echoTCP)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		relay := netip.AddrPortFrom(relays[i], relayPort)
		s.bareReset(t, relay, c)
		roundTrip(t, c, []byte("still there"))
		for range earlyPackets {
			roundTrip(t, c, []byte("old"))
		}
		s.bareReset(t, relay, c)
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: a read after a later reset: %v", f.name, err)
		}
	}
}

// A connection that its server has ended does not stand in the way of the next from its port.
func TestNothingWaitsAtTheRelay(t *testing.T) {
	for _, keep := range []bool{false, true} {
		cfg := loopbackAllowed
		cfg.KeepTimeWait = keep
		s := newDriverSpace(t, cfg, DriverKernel)
		port := hostTCP(t, "tcp4", func(c *net.TCPConn) { c.Close() })
		const connections = 20
		for range connections {
			c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("%d bytes, %v", n, err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, "the flows to end", func() bool { return s.net.tcp.flows.Load() == 0 })
		if n := s.run(t, "waiting"); (n > 0) != keep {
			t.Errorf("KeepTimeWait %v: %v sockets wait", keep, n)
		}
	}
}

// bareReset sends the container's end of a connection a reset without ACK, in the relay's name.
func (s *space) bareReset(t *testing.T, relay netip.AddrPort, c net.Conn) {
	t.Helper()
	to := c.LocalAddr().(*net.TCPAddr).AddrPort()
	frame := putReset(relay, to, make([]byte, tcpHdrLen), 0)
	tcp := frame[vnetHdrLen+ipHdrLen(to.Addr()):]
	binary.BigEndian.PutUint32(tcp[4:], nextSequence(t, c))
	clear(tcp[8:12])
	tcp[13] = tcpRST
	clear(tcp[16:18])
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(pseudoSum(relay.Addr(), to.Addr(), protoTCP, tcpHdrLen), tcp)))
	fd, err := s.socket(family46(to.Addr()), unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Sendto(fd, frame[vnetHdrLen:], 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0)))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// nextSequence is the number that the next byte to c will have.
func nextSequence(t *testing.T, c net.Conn) uint32 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const receiveQueue, offWithoutProbe = 1, -1 // TCP_RECV_QUEUE, TCP_REPAIR_OFF_NO_WP of linux/tcp.h
	var n int
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		if err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, receiveQueue)
		}
		if err == nil {
			n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
		err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, offWithoutProbe))
	})
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func TestOnePortToTwoDestinations(t *testing.T) {
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) {
		for _, name := range []string{"first", "second", "third"} {
			port := hostTCP(t, "tcp4", func(c *net.TCPConn) {
				defer c.Close()
				io.WriteString(c, name)
				io.Copy(io.Discard, c)
			})
			fd, err := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), name)
			defer f.Close()
			err = errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.Bind(fd, sockaddr(netip.MustParseAddrPort("10.0.2.100:5555"))),
			)
			if err == nil {
				err = unix.Connect(fd, sockaddr(netip.MustParseAddrPort(fmt.Sprintf("10.0.2.2:%d", port))))
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			c, err := net.FileConn(f)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b := make([]byte, len(name))
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != name {
				t.Errorf("%s: got %q, %v", name, b, err)
			}
		}
	})
}

func FuzzRulesTouched(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{28, 0, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 'u', 'r', 'u', 'n', 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, p []byte) { rulesTouched(p) })
}

func FuzzPutReset(f *testing.F) {
	f.Add([]byte{0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2}, 0)
	f.Fuzz(func(t *testing.T, syn []byte, payload int) {
		if len(syn) < tcpHdrLen {
			return
		}
		src, dst := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("10.0.2.100:1234")
		frame := putReset(src, dst, syn, payload)
		p, err := parseIP(frame[vnetHdrLen:], len(frame)-vnetHdrLen)
		if err != nil || p.src != src.Addr() || p.dst != dst.Addr() || fold(sum(pseudoSum(p.src, p.dst, protoTCP, tcpHdrLen), p.payload)) != 0xffff {
			t.Errorf("%x: %v", frame, err)
		}
	})
}

func FuzzSocketRequest(f *testing.F) {
	f.Add([]byte{'4', 3})
	f.Add([]byte{'6', 33})
	f.Fuzz(func(t *testing.T, req []byte) {
		if family, n, ok := parseSocketRequest(req); ok && (n > socketBatch || family != unix.AF_INET && family != unix.AF_INET6) {
			t.Errorf("%q: %d of family %d", req, n, family)
		}
	})
}

func FuzzReceivedFDs(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, oob []byte, flags int) {
		// Never with real descriptors: what is parsed would be closed.
		if msgs, err := unix.ParseSocketControlMessage(oob); err != nil || len(msgs) > 0 && msgs[0].Header.Type == unix.SCM_RIGHTS {
			return
		}
		if fds, err := receivedFDs(oob, flags); err == nil && len(fds) > 0 {
			t.Errorf("%d descriptors of none", len(fds))
		}
	})
}
