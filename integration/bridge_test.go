package integration

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/harness"
)

// makeNetwork makes a network and removes it when the test ends.
func makeNetwork(t *testing.T, flags ...string) string {
	t.Helper()
	name := unique(t)
	t.Cleanup(func() { harness.Urun(t, "network", "rm", "-f", name).OK() })
	harness.Urun(t, append(append([]string{"network", "create"}, flags...), name)...).OK()
	return name
}

// reach connects from a running container until it is answered, and returns the answer.
func reach(t *testing.T, container, addr string) string {
	t.Helper()
	var answer string
	harness.Eventually(t, 20*time.Second, container+" reaches "+addr, func() bool {
		r := harness.Urun(t, "exec", container, "/probe", "connect", addr, "knock")
		answer = strings.TrimSpace(r.Stdout)
		return r.Code == 0
	})
	return answer
}

// unreachable checks that a connection fails, and that it does so soon.
func unreachable(t *testing.T, container, addr string) {
	t.Helper()
	start := time.Now()
	if r := harness.Urun(t, "exec", container, "/probe", "connect", addr, "knock"); r.Code == 0 {
		t.Errorf("%s\nwant no way to %s", r, addr)
	}
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("that there is no way to %s took %v to be known", addr, d)
	}
}

func addressOf(t *testing.T, container, network string) string {
	t.Helper()
	return harness.Urun(t, "inspect", "-f", `{{(index .NetworkSettings.Networks "`+network+`").IPAddress}}`, container).OK()
}

func TestNetworkNames(t *testing.T) {
	n := makeNetwork(t, "--ipv6")
	server := detach(t, []string{"--network", n, "--network-alias", "db"}, "sh", "-c", "while :; do /probe echo [::]:7000; done")
	client := detach(t, []string{"--network", n}, "sleep", "1000")
	id := harness.Urun(t, "inspect", "-f", "{{.ID}}", server).OK()
	for _, name := range []string{server, "db", "DB", id[:12], server + "." + n, addressOf(t, server, n)} {
		if got := reach(t, client, name+":7000"); !strings.HasPrefix(got, "knock echoed to ") {
			t.Errorf("%s answers %q", name, got)
		}
	}
	both := harness.Urun(t, "exec", client, "/probe", "resolve", server).OK()
	v6 := harness.Urun(t, "inspect", "-f", `{{(index .NetworkSettings.Networks "`+n+`").GlobalIPv6Address}}`, server).OK()
	if !strings.Contains(both, addressOf(t, server, n)) || v6 == "" || !strings.Contains(both, v6) {
		t.Errorf("%s resolves to %q, want both of its addresses, %s", server, both, v6)
	}
	reach(t, client, "["+v6+"]:7000")
	// Names come and go with the containers.
	harness.Urun(t, "rename", server, server+"x").OK()
	reach(t, client, server+"x:7000")
	harness.Urun(t, "rename", server+"x", server).OK()
	harness.Urun(t, "stop", "-t", "0", server).OK()
	harness.Eventually(t, 20*time.Second, "the name of a container that does not run is gone", func() bool {
		return harness.Urun(t, "exec", client, "/probe", "resolve", "db").Code != 0
	})
	harness.Urun(t, "start", server).OK()
	reach(t, client, "db:7000")

	if r := harness.Urun(t, "network", "rm", n); r.Code == 0 || !strings.Contains(r.Stderr, "in use") || !strings.Contains(r.Stderr, server) {
		t.Errorf("%s\nwant an error that names who is on the network", r)
	}
	harness.Urun(t, "network", "inspect", n).Has(server, client, id)
	harness.Urun(t, "network", "ls", "--filter", "name="+n, "--format", "{{.Name}} {{.Containers}} {{.IPv6}}").Says(n + " 2 true")
	harness.Urun(t, "ps", "--filter", "network="+n, "--format", "{{.Names}}").Has(server, client)
}

func TestNetworksAreApart(t *testing.T) {
	one, two, closed := makeNetwork(t), makeNetwork(t), makeNetwork(t, "--internal")
	server := detach(t, []string{"--network", one}, "sh", "-c", echoForEver)
	stranger := detach(t, []string{"--network", two}, "sleep", "1000")
	inside := detach(t, []string{"--network", closed}, "sh", "-c", echoForEver)
	addr := addressOf(t, server, one)
	unreachable(t, stranger, addr+":7000")
	unreachable(t, stranger, server+":7000")
	unreachable(t, inside, addr+":7000")
	unreachable(t, stranger, "127.0.0.1:7000")
	// The gateway, and the other network's, offer nothing.
	unreachable(t, stranger, "169.254.53.53:7000")

	// A container on both has a way to each. Connecting takes effect at once.
	harness.Urun(t, "network", "connect", "--alias", "guest", two, server).OK()
	reach(t, stranger, "guest:7000")
	harness.Urun(t, "network", "disconnect", two, server).OK()
	if r := harness.Urun(t, "exec", stranger, "/probe", "resolve", "guest"); r.Code == 0 {
		t.Errorf("%s\nthe name of a container that has left is there", r)
	}
	if r := harness.Urun(t, "network", "disconnect", two, server); r.Code == 0 || !strings.Contains(r.Stderr, "not on network") {
		t.Errorf("%s", r)
	}
	// The first network may go, and the resolver stays where it was.
	harness.Urun(t, "network", "connect", two, server).OK()
	harness.Urun(t, "network", "disconnect", one, server).OK()
	reach(t, stranger, server+":7000")
	reach(t, server, server+":7000")

	// An internal network works within, and has no way out.
	beside := detach(t, []string{"--network", closed}, "sleep", "1000")
	reach(t, beside, inside+":7000")
	if host := outward(t); host != "" {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go echoLines(l)
		unreachable(t, beside, l.Addr().String())
		reach(t, stranger, l.Addr().String())
	}
	harness.Run(t, "--network", closed, "-p", "80", "--", "true").Refused("internal")
}

// outward is an address of this host that is not its loopback's, "" if there is none.
func outward(t *testing.T) string {
	t.Helper()
	c, err := net.Dial("udp4", "203.0.113.1:9")
	if err != nil {
		return ""
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}

// echoLines answers each connection's first bytes with themselves.
func echoLines(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 1500)
			if n, err := c.Read(buf); err == nil {
				_, _ = c.Write(buf[:n])
			}
		}()
	}
}

func TestPublishedOnANetwork(t *testing.T) {
	n := makeNetwork(t)
	server := detach(t, []string{"--network", n, "-p", "7000"}, "sh", "-c", echoForEver)
	port := strings.TrimPrefix(strings.Fields(harness.Urun(t, "port", server, "7000").OK())[0], "0.0.0.0:")
	if got := knocks(t, "127.0.0.1:"+port); strings.TrimSpace(got) != "knock echoed to 10.0.2.2" {
		t.Errorf("a client on the host's loopback: %q, want the gateway", got)
	}
	if host := outward(t); host != "" {
		if got := knocks(t, host+":"+port); strings.TrimSpace(got) != "knock echoed to "+host {
			t.Errorf("a client with an address of its own: %q, want %s", got, host)
		}
	}
	harness.Run(t, "--network", n, "-p", port+":80", "--", "true").Refused(port, "address already in use", "hint:")
	harness.Urun(t, "stop", "-t", "0", server).OK()
	harness.Eventually(t, 10*time.Second, "the port is free", func() bool {
		l, err := net.Listen("tcp", ":"+port)
		return err == nil && l.Close() == nil
	})
}

// infraPID is the process that holds the bridges of this store; 0 if that cannot be told.
func infraPID(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(harness.Store, "networks", "infra.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) == 0 {
		return 0 // it is just being written
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// The process that holds the bridges is killed: interfaces and addresses stay as they are, and names, published ports
// and the way out are there again.
func TestBridgesOutliveTheirProcess(t *testing.T) {
	n := makeNetwork(t)
	server := detach(t, []string{"--network", n, "-p", "127.0.0.1::7000"}, "sh", "-c", echoForEver)
	client := detach(t, []string{"--network", n}, "sleep", "1000")
	reach(t, client, server+":7000")
	port := harness.Urun(t, "port", server, "7000").OK()
	before := harness.Urun(t, "exec", client, "cat", "/sys/class/net/eth0/ifindex", "/sys/class/net/eth0/address").OK()
	pid := infraPID(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "another process holds the bridges", func() bool {
		now := infraPID(t)
		return now != pid && now != 0
	})
	reach(t, client, server+":7000")
	knocks(t, port)
	if after := harness.Urun(t, "exec", client, "cat", "/sys/class/net/eth0/ifindex", "/sys/class/net/eth0/address").OK(); after != before {
		t.Errorf("the interface was %q, is %q", before, after)
	}
	// It ends with the last container.
	harness.Urun(t, "rm", "-f", server, client).OK()
	pid = infraPID(t)
	harness.Eventually(t, 30*time.Second, "the process ends", func() bool { return syscall.Kill(pid, 0) != nil })
	// For the cleanup of the test.
	for _, name := range []string{server, client} {
		harness.Urun(t, "create", "--name", name, harness.DemoImage, "true").OK()
	}
}

func TestAddressesOfANetwork(t *testing.T) {
	n := makeNetwork(t, "--subnet", "10.231.7.0/29", "--gateway", "10.231.7.6", "--label", "a=b")
	first := detach(t, []string{"--network", n + ":ip=10.231.7.3,mac=02:00:00:00:00:07"}, "sleep", "1000")
	if got := addressOf(t, first, n); got != "10.231.7.3" {
		t.Errorf("address %s", got)
	}
	harness.Urun(t, "exec", first, "cat", "/sys/class/net/eth0/address").Says("02:00:00:00:00:07")
	harness.Run(t, "--network", n, "--ip", "10.231.7.3", "--", "true").Refused("10.231.7.3 is in use", first)
	harness.Run(t, "--network", n, "--ip", "10.231.8.3", "--", "true").Refused("10.231.8.3")
	harness.Run(t, "--network", n, "--ip6", "fd00::1", "--", "true").Refused("no IPv6")
	second := detach(t, []string{"--network", n}, "sleep", "1000")
	third := detach(t, []string{"--network", n}, "sleep", "1000")
	if a, b := addressOf(t, second, n), addressOf(t, third, n); a != "10.231.7.1" || b != "10.231.7.2" {
		t.Errorf("addresses %s and %s, want the first two", a, b)
	}
	// The address of a container whose monitor was killed is free.
	monitor, err := strconv.Atoi(harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", first).OK())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(monitor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Urun(t, "rm", "-f", first).OK()
	harness.Urun(t, "run", "-d", "--name", first, "--network", n, "--ip", "10.231.7.3", harness.DemoImage, "sleep", "1000").OK()
	harness.Urun(t, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}} {{.Labels.a}}", n).Says("10.231.7.6 b")
}

func TestNetworkErrors(t *testing.T) {
	harness.Run(t, "--network", "no-such-network", "--", "true").Refused("no such network", "urun network create")
	harness.Run(t, "--ip", "10.1.1.1", "--", "true").Refused("--ip")
	n := makeNetwork(t)
	for _, tt := range [][]string{
		{"create", n},
		{"create", "host"},
		{"create", "--driver", "macvlan", "x"},
		{"create", "--subnet", "10.1.1.1/24", "x"},
		{"create", "--gateway", "10.1.1.1", "x"},
		{"create", "-o", "colour=red", "x"},
		{"rm", "no-such-network"},
		{"inspect", "no-such-network"},
	} {
		if r := harness.Urun(t, append([]string{"network"}, tt...)...); r.Code == 0 || r.Stderr == "" {
			t.Errorf("%s\nwant an error", r)
		}
	}
	harness.Urun(t, "network", "create", "--ignore", n).OK()
	own := detach(t, nil, "sleep", "1000")
	if r := harness.Urun(t, "network", "connect", n, own); r.Code == 0 || !strings.Contains(r.Stderr, "network of its own kind") {
		t.Errorf("%s", r)
	}
	plain := detach(t, []string{"--network", n}, "sleep", "1000")
	// Another id map is another user namespace, in which the bridges are not.
	harness.Run(t, "--network", n, "--userns", "keep-id", "--", "true").Refused("another id map", "--userns")
	harness.Urun(t, "network", "prune").OK()
	harness.Urun(t, "network", "inspect", n).Has(plain)
}

// Containers from different sessions, which differ in what they inherit, meet on a network all the same.
func TestNetworkAcrossSessions(t *testing.T) {
	n := makeNetwork(t)
	server := detach(t, []string{"--network", n}, "sh", "-c", echoForEver)
	// Lowering a soft limit is open to everybody.
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &before); err != nil {
		t.Fatal(err)
	}
	other := before
	other.Cur--
	if err := unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &other); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &before); err != nil {
			t.Error(err)
		}
	}()
	client := detach(t, []string{"--network", n}, "sleep", "1000")
	reach(t, client, server+":7000")
}

// A process that can see the socket of the bridges, as root of a container can by a bind mount, is not let in: it is
// not the monitor of the container for which it speaks.
func TestOnlyTheMonitorOfAContainerIsLetIn(t *testing.T) {
	n := makeNetwork(t)
	name := detach(t, []string{"--network", n}, "sleep", "1000")
	id := harness.Urun(t, "inspect", "-f", "{{.ID}}", name).OK()
	socket := filepath.Join(harness.Store, "networks", "infra.sock")
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(`{"kind":"hello","body":{"id":"` + id + `"}}`)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	size, err := c.Read(buf)
	if err != nil || !strings.Contains(string(buf[:size]), "is not the monitor") {
		t.Errorf("answer %q, %v", buf[:size], err)
	}
}
