package slirp

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rawTUN sends packets as they are, past the kernel's own checks of addresses and routes: root of a container may.
type rawTUN struct {
	t     *testing.T
	fd    int
	index int
}

func (s *space) rawTUN(t *testing.T) *rawTUN {
	t.Helper()
	ctl, err := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ctl)
	ifr, err := unix.NewIfreq(tunName)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(ctl, unix.SIOCGIFINDEX, ifr); err != nil {
		t.Fatal(err)
	}
	fd, err := s.socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &rawTUN{t, fd, int(ifr.Uint32())}
}

func (r *rawTUN) send(p []byte) {
	r.t.Helper()
	proto := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, proto)), Ifindex: r.index}
	if err := unix.Sendto(r.fd, p, 0, to); err != nil {
		r.t.Fatal(err)
	}
}

func udpFrame(src, dst string, port uint16, text string) []byte {
	a, b := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	p := make([]byte, ipHdrLen(a)+udpHdrLen+len(text))
	u := p[putIP(p, a, b, protoUDP, udpHdrLen+len(text)):]
	binary.BigEndian.PutUint16(u, 4444)
	binary.BigEndian.PutUint16(u[2:], port)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[udpHdrLen:], text)
	if s := ^fold(sum(pseudoSum(a, b, protoUDP, len(u)), u)); s != 0 {
		binary.BigEndian.PutUint16(u[6:], s)
	}
	return p
}

// fragments cuts an IPv4 packet in two.
func fragments(p []byte) [][]byte {
	const first = 8
	cut := func(from, to, flags int) []byte {
		f := append(append([]byte(nil), p[:ipv4HdrLen]...), p[ipv4HdrLen+from:ipv4HdrLen+to]...)
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[4:], 7777)
		binary.BigEndian.PutUint16(f[6:], uint16(flags|from/8))
		f[10], f[11] = 0, 0
		binary.BigEndian.PutUint16(f[10:], ^fold(sum(0, f[:ipv4HdrLen])))
		return f
	}
	return [][]byte{cut(0, first, 1<<13), cut(first, len(p)-ipv4HdrLen, 0)}
}

// behindOptions puts an empty destination options header in front of what an IPv6 packet carries.
func behindOptions(p []byte) []byte {
	const destinationOptions = 60
	q := append(append([]byte(nil), p[:ipv6HdrLen]...), p[6], 0, 1, 4, 0, 0, 0, 0) // PadN of four
	q = append(q, p[ipv6HdrLen:]...)
	q[6] = destinationOptions
	binary.BigEndian.PutUint16(q[4:], uint16(len(q)-ipv6HdrLen))
	return q
}

// marks are servers at one port number of the host: those on its loopback are not to be reached, the one on its other address is.
type marks struct {
	port    uint16
	open    string
	reached chan string
	wanted  map[string]bool
}

func newMarks(t *testing.T) *marks {
	t.Helper()
	m := &marks{open: hostAddr(t), reached: make(chan string, 1024), wanted: map[string]bool{}}
	for tries := 1; ; tries++ {
		err := m.listen(t)
		if err == nil {
			return m
		}
		if !errors.Is(err, unix.EADDRINUSE) || tries == 20 {
			t.Fatal(err)
		}
	}
}

// listen makes all servers at a port that is free on the first address, and perhaps not on the others.
func (m *marks) listen(t *testing.T) (err error) {
	m.port = 0
	var opened []io.Closer
	defer func() {
		for _, c := range opened {
			if err != nil {
				c.Close()
			} else {
				t.Cleanup(func() { c.Close() })
			}
		}
	}()
	for name, host := range map[string]string{"open": m.open, "127.0.0.1": "127.0.0.1", "::1": "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(m.port))))
		if err != nil {
			return err
		}
		opened = append(opened, l)
		m.port = uint16(l.Addr().(*net.TCPAddr).Port)
		c, err := net.ListenPacket("udp", net.JoinHostPort(host, strconv.Itoa(int(m.port))))
		if err != nil {
			return err
		}
		opened = append(opened, c)
		go m.accept(name, l)
		go m.receive(name, c)
	}
	return nil
}

func (m *marks) accept(name string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		m.reached <- name + " tcp"
		c.Close()
	}
}

func (m *marks) receive(name string, c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		m.reached <- name + " udp " + string(buf[:n])
	}
}

// want waits until the servers have been reached in these ways, and no other than these and those wanted before: a SYN that no
// socket of the container has sent becomes up to four connections to where it was for. Where they lead is what matters.
func (m *marks) want(t *testing.T, ways ...string) {
	t.Helper()
	left := map[string]bool{}
	for _, w := range ways {
		left[w], m.wanted[w] = true, true
	}
	for len(left) > 0 {
		select {
		case got := <-m.reached:
			if !m.wanted[got] {
				t.Errorf("reached: %s", got)
			}
			delete(left, got)
		case <-time.After(patience):
			t.Fatalf("not reached: %v", left)
		}
	}
}

// Root of a container sends what it likes. Nothing of it may come to the host's loopback, or to anybody under another address than the container's.
func TestRawPacketsReachNothingForbidden(t *testing.T) {
	eachDriver(t, Config{}, rawPacketsReachNothingForbidden)
}

func rawPacketsReachNothingForbidden(t *testing.T, s *space) {
	m, raw := newMarks(t), s.rawTUN(t)
	const c4, c6 = "10.0.2.100", "fd75:7275:6e00::100"
	attack := func(src, dst string) {
		t.Helper()
		syn, datagram := synFrame(src, dst, m.port), udpFrame(src, dst, m.port, src+" to "+dst)
		raw.send(syn)
		raw.send(datagram)
		if netip.MustParseAddr(src).Is4() {
			for _, f := range fragments(datagram) {
				raw.send(f)
			}
			return
		}
		raw.send(behindOptions(syn))
		raw.send(behindOptions(datagram))
	}
	for _, dst := range []string{
		"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "169.254.169.254", "10.0.2.2", "10.0.2.3", "10.0.2.1", "10.0.2.100", "10.0.2.255", "224.0.0.1", "255.255.255.255",
	} {
		attack(c4, dst)
	}
	for _, dst := range []string{
		"::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254",
		"64:ff9b:1::127.0.0.1", "64:ff9b:1:7f00:0:100:808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "fe80::1", "fec0::1", "ff02::1",
		"fd75:7275:6e00::1", "fd75:7275:6e00::2", "fd75:7275:6e00::3", "fd75:7275:6e00::100", "fd00:ec2::254",
	} {
		attack(c6, dst)
	}
	for _, src := range []string{"127.0.0.1", "10.0.2.2", "10.0.2.1", "10.0.2.101", "0.0.0.0", "169.254.1.1", "224.0.0.1", m.open} {
		attack(src, m.open)
		attack(src, "10.0.2.2")
		attack(src, "127.0.0.1")
	}
	// A whole one from the container's own address is the last: all others have been looked at by then.
	raw.send(synFrame(c4, m.open, m.port))
	raw.send(udpFrame(c4, m.open, m.port, "mine"))
	m.want(t, "open tcp", "open udp mine")
	for _, f := range fragments(udpFrame(c4, m.open, m.port, "in pieces")) {
		raw.send(f)
	}
	m.want(t, "open udp in pieces")
	if n := spliced(s.net); n > 0 {
		t.Errorf("%d flows", n)
	}
}

// The relay listens in the container, where anybody may try its port.
func TestListenersOfTheRelayAreNobodysDoor(t *testing.T) {
	s := newDriverSpace(t, Config{}, DriverKernel)
	m, raw := newMarks(t), s.rawTUN(t)
	// The relay's own port, asked for by the TUN: it is an address of the TUN's prefix, and so no destination.
	for _, src := range []string{"10.0.2.100", "10.0.2.1", "127.0.0.1"} {
		raw.send(synFrame(src, "10.0.2.1", relayPort))
	}
	raw.send(synFrame("fd75:7275:6e00::100", "fd75:7275:6e00::1", relayPort))
	raw.send(udpFrame("10.0.2.100", m.open, m.port, "after"))
	m.want(t, "open udp after")
	s.net.kernel.mu.Lock()
	defer s.net.kernel.mu.Unlock()
	if n := len(s.net.kernel.pending); n != 0 {
		t.Errorf("%d connections are being made", n)
	}
}
