package slirp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// parting is what is on the way when the container ends: more than the host's reader has room for.
const parting = 3 << 20

// part sends it from the container's end of a connection, which it closes.
func part(c net.Conn) error {
	defer c.Close()
	_, err := io.CopyN(c, newStream(7), parting)
	return err
}

// drained reads it from the host's end, later than it was sent, while the network is drained.
func drained(t *testing.T, s *space, host net.Conn) {
	t.Helper()
	defer host.Close()
	over := make(chan struct{})
	go func() {
		s.net.Drain(patience)
		close(over)
	}()
	time.Sleep(100 * time.Millisecond) // in which too much is left for the kernel's buffers
	if err := compare(host, 7, parting); err != nil {
		t.Error(err)
	}
	<-over
}

// connected is a connection to the host: the container's end, and where the host's will be.
func connected(t *testing.T, s *space) (net.Conn, <-chan net.Conn) {
	t.Helper()
	hosts := make(chan net.Conn, 1)
	port := hostTCP(t, "tcp4", func(c *net.TCPConn) { hosts <- c })
	c, err := s.dial("tcp", fmt.Sprintf("10.0.2.2:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	return c, hosts
}

func TestWhatWasSentIsDelivered(t *testing.T) {
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) {
		c, hosts := connected(t, s)
		if err := part(c); err != nil {
			t.Fatal(err)
		}
		drained(t, s, <-hosts)
	})
}

func TestWhatWasServedIsDelivered(t *testing.T) {
	withEachDriver(t, func(t *testing.T, space spaceMaker) {
		cfg := Config{Ports: []PortMapping{{ContainerPort: 80, Protocol: "tcp"}}}
		s := space(t, cfg)
		l := s.listen("10.0.2.100:80")
		var served errgroup.Group
		served.Go(func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			return part(c)
		})
		host, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.net.Ports()[0].HostPort))
		if err != nil {
			t.Fatal(err)
		}
		if err := served.Wait(); err != nil {
			t.Fatal(err)
		}
		drained(t, s, host)
	})
}

func TestLastDatagramIsDelivered(t *testing.T) {
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) {
		host, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		c, err := s.dial("udp", fmt.Sprintf("10.0.2.2:%d", host.LocalAddr().(*net.UDPAddr).Port))
		if err != nil {
			t.Fatal(err)
		}
		const datagrams = 20
		for i := range datagrams {
			if _, err := fmt.Fprintf(c, "%d", i); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		s.net.Drain(patience)
		if err := host.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		for i := range datagrams {
			n, _, err := host.ReadFrom(buf)
			if err != nil || string(buf[:n]) != fmt.Sprint(i) {
				t.Fatalf("datagram %d: %q, %v", i, buf[:n], err)
			}
		}
	})
}

// Who does not read is not waited for longer than was said, and hears that something is missing.
func TestDrainDoesNotWaitForEver(t *testing.T) {
	eachDriver(t, loopbackAllowed, func(t *testing.T, s *space) {
		c, hosts := connected(t, s)
		// Until nothing is taken any more.
		var sent int64
		var err error
		for err == nil {
			if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			var n int
			n, err = c.Write(make([]byte, 64<<10))
			sent += int64(n)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		host := <-hosts
		defer host.Close()
		s.net.Drain(50 * time.Millisecond)
		if n, err := io.Copy(io.Discard, host); err == nil && n != sent {
			t.Errorf("%d bytes of %d seem to be all", n, sent)
		}
	})
}

func TestWorthDelivering(t *testing.T) {
	frame := func(dst string, proto byte) []byte {
		p := make([]byte, vnetHdrLen+ipv4HdrLen+8)
		putIP(p[vnetHdrLen:], netip.MustParseAddr("10.0.2.100"), netip.MustParseAddr(dst), proto, 8)
		return p
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"datagram", frame("192.0.2.1", protoUDP), true},
		{"echo request", frame("192.0.2.1", protoICMP), true},
		{"question", frame("10.0.2.3", protoUDP), false},
		{"SYN", frame("192.0.2.1", protoTCP), false},
		{"nothing", nil, false},
		{"half a packet", frame("192.0.2.1", protoUDP)[:vnetHdrLen+4], false},
	} {
		if got := WorthDelivering(Config{}, c.frame); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
