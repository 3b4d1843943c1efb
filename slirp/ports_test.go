package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPublishedTCP(t *testing.T) {
	eachDriver(t, Config{Ports: []PortMapping{{ContainerPort: 8080}}}, testPublishedTCP)
}

func testPublishedTCP(t *testing.T, s *space) {
	port := s.net.Ports()[0].HostPort
	if port == 0 {
		t.Fatal("no random port")
	}
	if k := s.net.kernel; k != nil {
		waitFor(t, "sockets inside", func() bool {
			k.pool.mu.Lock()
			defer k.pool.mu.Unlock()
			return len(k.pool.free['4']) > 0 && len(k.pool.free['6']) > 0
		})
	}
	sources := make(chan string, 8)
	for _, at := range []string{"0.0.0.0:8080", "[fd75:7275:6e00::100]:8080"} {
		l := s.listen(at)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				sources <- c.RemoteAddr().String()
				go echoTCP(c.(*net.TCPConn))
			}
		}()
	}
	dial := func(t *testing.T, addr string) (net.Conn, netip.AddrPort) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return c, c.LocalAddr().(*net.TCPAddr).AddrPort()
	}
	msg := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	for _, tt := range []struct{ name, to, source string }{
		{"a loopback client appears as the gateway", fmt.Sprintf("127.0.0.1:%d", port), "10.0.2.2"},
		{"so does one over IPv6", fmt.Sprintf("[::1]:%d", port), "fd75:7275:6e00::2"},
		{"another client keeps its address and port", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.to == "" {
				tt.source = hostAddr(t)
				tt.to = fmt.Sprintf("%s:%d", tt.source, port)
			}
			c, from := dial(t, tt.to)
			defer c.Close()
			roundTrip(t, c, msg)
			want := netip.AddrPortFrom(netip.MustParseAddr(tt.source), from.Port()).String()
			if got := <-sources; got != want {
				t.Errorf("the server sees %s, want %s", got, want)
			}
			if s.net.kernel != nil && spliced(s.net) == 0 {
				t.Error("the connection is not spliced")
			}
		})
	}
}

func TestPublishedPortWithoutServerResets(t *testing.T) {
	eachDriver(t, Config{Ports: []PortMapping{{ContainerPort: 8080}}}, testPublishedPortWithoutServerResets)
}

func testPublishedPortWithoutServerResets(t *testing.T, s *space) {
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", s.net.Ports()[0].HostPort))
	if errors.Is(err, unix.ECONNRESET) {
		return // it came before the dialer looked
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
}

func TestPublishedUDP(t *testing.T) {
	eachDriver(t, Config{Ports: []PortMapping{{ContainerPort: 5353, Protocol: "udp"}}}, testPublishedUDP)
}

func testPublishedUDP(t *testing.T, s *space) {
	port := s.net.Ports()[0].HostPort
	for _, at := range []string{"0.0.0.0:5353", "[fd75:7275:6e00::100]:5353"} {
		pc := s.listenPacket(at)
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(append([]byte(from.String()+" "), buf[:n]...), from)
			}
		}()
	}
	host := hostAddr(t)
	for _, tt := range []struct{ to, source string }{
		{"127.0.0.1", "10.0.2.2"}, {"::1", "fd75:7275:6e00::2"}, {host, host},
	} {
		t.Run(tt.to, func(t *testing.T) {
			to := netip.AddrPortFrom(netip.MustParseAddr(tt.to), port)
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			from := netip.AddrPortFrom(netip.MustParseAddr(tt.source), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			c.SetDeadline(time.Now().Add(3 * time.Second))
			for _, body := range []string{"one", strings.Repeat("x", 5000)} {
				c.Write([]byte(body))
				buf := make([]byte, 65536)
				n, err := c.Read(buf)
				if want := from.String() + " " + body; err != nil || string(buf[:n]) != want {
					t.Errorf("got %.60q, %v, want %.60q", buf[:n], err, want)
				}
			}
		})
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			first, err := Listen(Config{Ports: []PortMapping{{HostIP: netip.MustParseAddr("127.0.0.1"), ContainerPort: 1, Protocol: proto}}})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			port := first.Ports()[0].HostPort
			_, err = Listen(Config{Ports: []PortMapping{{HostPort: port, ContainerPort: 2, Protocol: proto}}})
			var pe *PortError
			if !errors.As(err, &pe) || !errors.Is(err, unix.EADDRINUSE) {
				t.Fatalf("got %v, want a PortError with EADDRINUSE", err)
			}
			for _, want := range []string{fmt.Sprint(port), "->2/" + proto, "address already in use"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestPrivilegedPortNamesTheSysctl(t *testing.T) {
	_, err := Listen(Config{Ports: []PortMapping{{HostPort: 81, ContainerPort: 81}}})
	if err == nil {
		t.Skip("this process may listen on port 81 (root, or a low net.ipv4.ip_unprivileged_port_start)")
	}
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "net.ipv4.ip_unprivileged_port_start=81") {
		t.Errorf("got %v", err)
	}
}

func TestFailedListenLeavesNothing(t *testing.T) {
	free, err := Listen(Config{Ports: []PortMapping{{ContainerPort: 1}, {ContainerPort: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	ports := free.Ports()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	taken, err := Listen(Config{Ports: ports[1:]})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := Listen(Config{Ports: ports}); err == nil {
		t.Fatal("a taken port was bound")
	}
	again, err := Listen(Config{Ports: ports[:1]})
	if err != nil {
		t.Fatalf("the port before the taken one is still bound: %v", err)
	}
	again.Close()
}
