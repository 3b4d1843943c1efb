package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostUDP answers each datagram on the host's loopback.
func hostUDP(t testing.TB, addr string, answer func([]byte) []byte) int {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := answer(buf[:n]); b != nil {
				c.WriteTo(b, from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

func echoUDP(b []byte) []byte { return b }

func TestUDPOut(t *testing.T) { withEachDriver(t, udpOut) }

func udpOut(t *testing.T, newSpace spaceMaker) {
	s := newSpace(t, loopbackAllowed)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			host := "127.0.0.1:0"
			if f.network == "tcp6" {
				host = "[::1]:0"
			}
			c, err := s.dial("udp", fmt.Sprintf("%s:%d", f.gateway, hostUDP(t, host, echoUDP)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 65536)
			// Over the MTU a datagram leaves in fragments and comes back whole.
			for _, size := range []int{0, 1, 1400, 1473, 9000, 40000} {
				msg := bytes.Repeat([]byte{byte(size)}, size)
				if _, err := c.Write(msg); err != nil {
					t.Fatal(err)
				}
				c.SetReadDeadline(time.Now().Add(3 * time.Second))
				n, err := c.Read(buf)
				if err != nil || !bytes.Equal(buf[:n], msg) {
					t.Errorf("size %d: %d bytes, %v", size, n, err)
				}
			}
		})
	}
}

func TestUDPRefusedIsECONNREFUSED(t *testing.T) { withEachDriver(t, udpRefusedIsECONNREFUSED) }

func udpRefusedIsECONNREFUSED(t *testing.T, newSpace spaceMaker) {
	s := newSpace(t, loopbackAllowed)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			c, err := s.dial("udp", f.gateway+":9")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(3 * time.Second))
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("read: %v, want ECONNREFUSED", err)
			}
		})
	}
}

func TestUDPFlowsAreBounded(t *testing.T) { withEachDriver(t, udpFlowsAreBounded) }

func udpFlowsAreBounded(t *testing.T, newSpace spaceMaker) {
	cfg := loopbackAllowed
	cfg.MaxUDPFlows = 20
	s := newSpace(t, cfg)
	port := hostUDP(t, "127.0.0.1:0", echoUDP)
	refused := 0
	for range 40 {
		c, err := s.dial("udp", fmt.Sprintf("10.0.2.2:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			refused++
		}
	}
	if refused != 20 {
		t.Errorf("%d of 40 flows refused, want 20", refused)
	}
	s.net.udp.mu.Lock()
	n := len(s.net.udp.flows)
	s.net.udp.mu.Unlock()
	if n != 20 {
		t.Errorf("%d flows, want 20", n)
	}
	s.net.udp.mu.Lock()
	for _, f := range s.net.udp.flows {
		f.used.Store(time.Now().Add(-2 * time.Second).UnixNano())
	}
	s.net.udp.mu.Unlock()
	c, err := s.dial("udp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roundTrip(t, c, []byte("an idle flow makes room"))
}

// ping sends an echo request from inside.
func (s *space) ping(t *testing.T, to string) (reply bool) {
	t.Helper()
	a := netip.MustParseAddr(to)
	proto, typ := unix.IPPROTO_ICMP, byte(icmp4EchoRequest)
	if a.Is6() {
		proto, typ = unix.IPPROTO_ICMPV6, icmp6EchoRequest
	}
	fd, err := s.socket(family46(a), unix.SOCK_RAW, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	msg := append([]byte{typ, 0, 0, 0, 0x12, 0x34, 0, 1}, "payload"...)
	if proto == unix.IPPROTO_ICMP {
		c := ^fold(sum(0, msg))
		msg[2], msg[3] = byte(c>>8), byte(c)
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	if err := unix.Sendto(fd, msg, 0, sockaddr(netip.AddrPortFrom(a, 0))); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		p := buf[:n]
		if a.Is4() {
			p = p[20:]
		}
		if (p[0] == icmp4EchoReply && a.Is4() || p[0] == icmp6EchoReply && a.Is6()) && bytes.Equal(p[4:], msg[4:]) {
			return true
		}
	}
}

func TestEcho(t *testing.T) { withEachDriver(t, echoAnswers) }

func echoAnswers(t *testing.T, newSpace spaceMaker) {
	s := newSpace(t, Config{})
	for _, gw := range []string{"10.0.2.2", "10.0.2.3", "fd75:7275:6e00::2"} {
		if !s.ping(t, gw) {
			t.Errorf("no reply from the stack's own address %s", gw)
		}
	}
	if s.ping(t, "198.51.100.1") {
		t.Error("a reply from 198.51.100.1, which nobody has")
	}
}

// In a network namespace of one's own the sysctl is one's own to set.
func TestEchoReachesTheHost(t *testing.T) { withEachDriver(t, echoReachesTheHost) }

func echoReachesTheHost(t *testing.T, newSpace spaceMaker) {
	inWorld(t, func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := newSpace(t, Config{})
		for _, p := range []netip.Prefix{here, here6} {
			if !s.ping(t, p.Addr().String()) {
				t.Errorf("no reply from the host's address %s", p.Addr())
			}
		}
		for _, a := range []string{silent.Addr().Next().String(), noRoute.String(), "169.254.169.254"} {
			if s.ping(t, a) {
				t.Errorf("a reply from %s", a)
			}
		}
	})
}

// hostAddr is an address of the host other than loopback.
func hostAddr(t testing.TB) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && reachable(p.Addr()) {
			return p.Addr().String()
		}
	}
	t.Skip("the host has no IPv4 address but loopback")
	return ""
}
