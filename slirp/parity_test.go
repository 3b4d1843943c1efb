package slirp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// worldEnv marks the process whose network namespace stands for the world outside.
const worldEnv = "URUN_TEST_WORLD"

// inWorld runs the calling test in a process of its own, in a network namespace that has a route of every kind and stands for the host.
func inWorld(t *testing.T, test func()) {
	t.Helper()
	if os.Getenv(worldEnv) != "" {
		runtime.LockOSThread()
		makeWorld(t)
		test()
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), worldEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("user namespaces are not available (kernel.unprivileged_userns_clone, user.max_user_namespaces): %v", err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestErrorsAreThoseOfTheHost compares what connect(2) says inside with what it says outside.
func TestErrorsAreThoseOfTheHost(t *testing.T) {
	inWorld(t, func() { eachDriver(t, Config{}, compareErrors) })
}

// The world's addresses.
var (
	here       = netip.MustParsePrefix("198.51.100.10/32")
	here6      = netip.MustParsePrefix("2001:db8:1::10/128")
	unreach    = netip.MustParsePrefix("198.51.100.64/26")
	unreach6   = netip.MustParsePrefix("2001:db8:2::/48")
	prohibit6  = netip.MustParsePrefix("2001:db8:3::/48")
	silent     = netip.MustParsePrefix("198.51.100.128/26")
	silent6    = netip.MustParsePrefix("2001:db8:4::/48")
	noRoute    = netip.MustParseAddr("203.0.113.1")
	noRoute6   = netip.MustParseAddr("2001:db8:5::1")
	closedPort = uint16(9)
)

// makeWorld gives the namespace its routes. Behind a TUN that nobody reads all packets are lost.
func makeWorld(t *testing.T) {
	t.Helper()
	tun, err := openTUN("/dev/net/tun", "silent0")
	if err != nil {
		t.Skipf("no /dev/net/tun: %v", err)
	}
	t.Cleanup(func() { tun.Close() })
	index, err := linkIndex("silent0")
	if err != nil {
		t.Fatal(err)
	}
	var b batch
	b.linkUp("lo", loIndex, 0)
	b.noLinkLocal("silent0", index)
	b.linkUp("silent0", index, 1500)
	b.address("lo", loIndex, here)
	b.address("lo", loIndex, here6)
	b.localRoute("lo", loIndex, here6.Addr())
	route := func(p netip.Prefix, kind byte, oif int32) {
		body := make([]byte, unix.SizeofRtMsg)
		body[0], body[1] = rtFamily(p.Addr()), byte(p.Bits())
		body[4], body[5], body[6], body[7] = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, kind
		b.request("route "+p.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE, body,
			attr(unix.RTA_DST, p.Addr().AsSlice()), attrU32(unix.RTA_OIF, uint32(oif)))
	}
	route(unreach, unix.RTN_UNREACHABLE, 0)
	route(unreach6, unix.RTN_UNREACHABLE, loIndex)
	route(prohibit6, unix.RTN_PROHIBIT, loIndex)
	route(silent, unix.RTN_UNICAST, index)
	route(silent6, unix.RTN_UNICAST, index)
	if err := b.send(); err != nil {
		t.Fatal(err)
	}
}

func compareErrors(t *testing.T, s *space) {
	at := func(p netip.Prefix) netip.AddrPort { return netip.AddrPortFrom(p.Addr().Next(), closedPort) }
	for _, tt := range []struct {
		name string
		to   netip.AddrPort
		want error
	}{
		{"refused, IPv4", netip.AddrPortFrom(here.Addr(), closedPort), unix.ECONNREFUSED},
		{"refused, IPv6", netip.AddrPortFrom(here6.Addr(), closedPort), unix.ECONNREFUSED},
		{"host unreachable, IPv4", at(unreach), unix.EHOSTUNREACH},
		{"host unreachable, IPv6", at(unreach6), unix.EHOSTUNREACH},
		// Over IPv4 no ICMP message means EACCES: it is EHOSTUNREACH inside, as from a router.
		{"prohibited, IPv6", at(prohibit6), unix.EACCES},
		{"no route, IPv4", netip.AddrPortFrom(noRoute, closedPort), unix.ENETUNREACH},
		{"no route, IPv6", netip.AddrPortFrom(noRoute6, closedPort), unix.ENETUNREACH},
		{"timed out, IPv4", at(silent), unix.ETIMEDOUT},
		{"timed out, IPv6", at(silent6), unix.ETIMEDOUT},
	} {
		t.Run("tcp "+tt.name, func(t *testing.T) {
			t.Parallel()
			fd, err := unix.Socket(family46(tt.to.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan error)
			go func() { result <- tryConnect(fd, tt.to) }()
			ifd, err := s.socket(family46(tt.to.Addr()), unix.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			inside := tryConnect(ifd, tt.to)
			if outside := <-result; outside != tt.want || inside != outside {
				t.Errorf("connect to %v: %v inside, %v outside, want %v", tt.to, inside, outside, tt.want)
			}
		})
		if tt.want == unix.ETIMEDOUT {
			continue // datagrams do not time out
		}
		t.Run("udp "+tt.name, func(t *testing.T) {
			fd, err := s.socket(family46(tt.to.Addr()), unix.SOCK_DGRAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			tv := unix.NsecToTimeval(5e9)
			// Without it, the kernel keeps all but refusals to itself (udp_err, net/ipv4/udp.c).
			level, opt := unix.SOL_IP, unix.IP_RECVERR
			if tt.to.Addr().Is6() {
				level, opt = unix.SOL_IPV6, unix.IPV6_RECVERR
			}
			err = errors.Join(unix.SetsockoptInt(fd, level, opt, 1), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.Connect(fd, sockaddr(tt.to)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatal(err)
			}
			for err = unix.EINTR; err == unix.EINTR; {
				_, err = unix.Read(fd, make([]byte, 1))
			}
			if err != tt.want {
				t.Errorf("%v: %v inside, want %v", tt.to, err, tt.want)
			}
		})
	}
}

// tryConnect connects, with one repetition of the SYN at most, and closes.
func tryConnect(fd int, to netip.AddrPort) error {
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1); err != nil {
		return err
	}
	for {
		err := unix.Connect(fd, sockaddr(to))
		if err == unix.EALREADY || err == unix.EINTR {
			// Interrupted: the connect goes on, and is waited for (connect(2)).
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(p, 100); err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
			if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
				return unix.Errno(n)
			}
			continue
		}
		return err
	}
}
