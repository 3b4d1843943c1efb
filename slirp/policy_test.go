package slirp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testPolicy(t testing.TB, c Config) policy {
	t.Helper()
	c, err := c.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newPolicy(c)
}

func TestPolicy(t *testing.T) {
	p := testPolicy(t, Config{})
	const c4, c6 = "10.0.2.100", "fd75:7275:6e00::100"
	for _, tt := range []struct {
		src, dst string
		want     verdict
	}{
		{c4, "192.0.2.1", forward},
		{c4, "10.0.3.1", forward},
		{c6, "2001:db8::1", forward},
		{c6, "64:ff9b::192.0.2.1", forward},
		{c4, "10.0.2.2", local},
		{c6, "fd75:7275:6e00::3", local},
		{c4, "127.0.0.1", deny},
		{c4, "127.255.255.254", deny},
		{c4, "0.0.0.0", deny},
		{c4, "0.1.2.3", deny},
		{c4, "169.254.169.254", deny},
		{c4, "10.0.2.77", deny},
		{c6, "::1", deny},
		{c6, "::", deny},
		{c6, "::127.0.0.1", deny},
		{c6, "::ffff:127.0.0.1", deny},
		{c6, "::ffff:192.0.2.1", deny},
		{c6, "::ffff:0:127.0.0.1", deny},
		{c6, "64:ff9b::127.0.0.1", deny},
		{c6, "64:ff9b::169.254.169.254", deny},
		{c6, "64:ff9b:1::127.0.0.1", deny},
		{c6, "64:ff9b:1::192.0.2.1", forward},
		{c6, "64:ff9b:1:7f00:0:100:808:808", deny}, // /48
		{c6, "64:ff9b:1:7f:0:1:808:808", deny},     // /56
		{c6, "64:ff9b:1:8:a9:fea9:fe08:808", deny}, // /64
		{c6, "64:ff9b:1:808:8:800:808:808", forward},
		{c6, "fd00:ec2::254", deny},
		{c6, "fd20:ce::254", deny},
		{c6, "fd00:c1::a9fe:a9fe", deny},
		{c6, "fd00:ec2::253", forward},
		{c6, "2002:7f00:1::", deny},
		{c6, "2002:a9fe:a9fe::", deny},
		{c6, "fe80::1", deny},
		{c6, "fec0::1", deny},
		{c6, "fd75:7275:6e00::77", deny},
		{c4, "224.0.0.1", drop},
		{c4, "255.255.255.255", drop},
		{c6, "ff02::1", drop},
		{"10.0.2.101", "192.0.2.1", drop},
		{"127.0.0.1", "10.0.2.2", drop},
		{"10.0.2.2", "192.0.2.1", drop},
		{"fe80::1", "2001:db8::1", drop},
		{"::ffff:10.0.2.100", "2001:db8::1", drop},
		{"::", "2001:db8::1", drop},
	} {
		if got := p.check(netip.MustParseAddr(tt.src), netip.MustParseAddr(tt.dst)); got != tt.want {
			t.Errorf("check(%s, %s) = %d, want %d", tt.src, tt.dst, got, tt.want)
		}
	}
}

func TestPolicyWithoutIPv6(t *testing.T) {
	p := testPolicy(t, Config{NoIPv6: true})
	for _, src := range []string{"::", "fd75:7275:6e00::100", "::1"} {
		if got := p.check(netip.MustParseAddr(src), netip.MustParseAddr("2001:db8::1")); got != drop {
			t.Errorf("check from %s = %d, want drop", src, got)
		}
	}
}

func TestInside(t *testing.T) {
	p := testPolicy(t, Config{})
	for client, want := range map[string]string{
		"192.0.2.7":        "192.0.2.7",
		"::ffff:192.0.2.7": "192.0.2.7",
		"127.0.0.1":        "10.0.2.2",
		"10.0.2.100":       "10.0.2.2",
		"169.254.1.1":      "10.0.2.2",
		"2001:db8::7":      "2001:db8::7",
		"::1":              "fd75:7275:6e00::2",
		"fe80::1%eth0":     "fd75:7275:6e00::2",
	} {
		if _, got := p.inside(netip.MustParseAddr(client), false); got.String() != want {
			t.Errorf("client %s appears as %s, want %s", client, got, want)
		}
	}
}

// FuzzReachable holds that no address whose kernel meaning is loopback or link-local is let through.
func FuzzReachable(f *testing.F) {
	for _, s := range []string{"::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1"} {
		b := netip.MustParseAddr(s).As16()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || !reachable(a) {
			return
		}
		if u := a.Unmap(); u != a || u.IsLoopback() || u.IsUnspecified() || u.IsLinkLocalUnicast() || u.IsMulticast() {
			t.Errorf("%s is reachable", a)
		}
	})
}

// TestHostLoopbackIsOutOfReach connects to a server on the host's loopback in every way there is.
func TestHostLoopbackIsOutOfReach(t *testing.T) { eachDriver(t, Config{}, hostLoopbackIsOutOfReach) }

func hostLoopbackIsOutOfReach(t *testing.T, s *space) {
	for _, f := range families {
		port := hostTCP(t, f.network, func(c *net.TCPConn) {
			t.Errorf("a connection from %v reached the host's loopback", c.RemoteAddr())
			c.Close()
		})
		if c, err := s.dial("tcp", fmt.Sprintf("%s:%d", f.gateway, port)); err == nil {
			c.Close()
			t.Errorf("%s: connected to the gateway", f.name)
		} else if err != unix.ECONNREFUSED {
			t.Errorf("%s: %v, want ECONNREFUSED", f.name, err)
		}
	}
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) { t.Error("reached"); c.Close() })
	for _, dst := range []string{"127.0.0.1", "0.0.0.0", "127.1.2.3"} {
		frame := synFrame("10.0.2.100", dst, uint16(port))
		if !s.net.inspect(make([]byte, vnetHdrLen), frame, len(frame)) {
			t.Errorf("a SYN to %s went on to the stack", dst)
		}
	}
	for _, dst := range []string{"::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
		frame := synFrame("fd75:7275:6e00::100", dst, uint16(port))
		if !s.net.inspect(make([]byte, vnetHdrLen), frame, len(frame)) {
			t.Errorf("a SYN to %s went on to the stack", dst)
		}
	}
	for _, dst := range []string{"169.254.169.254:80", "10.0.2.77:80", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80"} {
		start := time.Now()
		c, err := s.dial("tcp", dst)
		if err == nil {
			c.Close()
		}
		if err != unix.EHOSTUNREACH && err != unix.EACCES {
			t.Errorf("%s: %v", dst, err)
		}
		// An answer that comes while connect(2) has the socket still locked is lost (tcp_v4_err), and the SYN is repeated after a second.
		if d := time.Since(start); d > 1500*time.Millisecond {
			t.Errorf("%s: took %v", dst, d)
		}
	}
	time.Sleep(100 * time.Millisecond)
}

func synFrame(src, dst string, port uint16) []byte {
	a, b := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	p := make([]byte, ipHdrLen(a)+20)
	n := putIP(p, a, b, protoTCP, 20)
	tcp := p[n:]
	tcp[0], tcp[1] = 4444>>8, 4444&0xff
	tcp[2], tcp[3] = byte(port>>8), byte(port)
	tcp[12], tcp[13] = 5<<4, 2
	return p
}

func TestHostAddressIsReachable(t *testing.T) { eachDriver(t, Config{}, hostAddressIsReachable) }

func hostAddressIsReachable(t *testing.T, s *space) {
	addr := hostAddr(t)
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c, err := s.dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestUnreachableIsReported(t *testing.T) { eachDriver(t, Config{}, unreachableIsReported) }

func unreachableIsReported(t *testing.T, s *space) {
	// The host answers for these by itself: prohibited to everybody, or without a route.
	probe := func(network, addr string) error {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, dst := range []string{"240.0.0.1:80", "[2001:db8::1]:80"} {
		want := probe("tcp", dst)
		if e, ok := want.(net.Error); want == nil || ok && e.Timeout() {
			continue
		}
		start := time.Now()
		_, err := s.dial("tcp", dst)
		if err != unix.ENETUNREACH && err != unix.EHOSTUNREACH && err != unix.ECONNREFUSED && err != unix.EACCES {
			t.Errorf("%s: %v inside, %v outside", dst, err, want)
		}
		t.Logf("%s: %v inside, %v outside, after %v", dst, err, want, time.Since(start))
	}
}
