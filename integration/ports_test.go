package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

const echoForEver = "while :; do /probe echo 0.0.0.0:7000; done"

// knocks connects to an address until it is answered, and returns the answer.
func knocks(t *testing.T, addr string) string {
	t.Helper()
	var answer string
	harness.Eventually(t, 20*time.Second, addr+" answers", func() bool {
		out, err := exec.Command(harness.Probe, "connect", addr, "knock").Output()
		answer = string(out)
		return err == nil
	})
	return answer
}

func TestRandomAndRangedPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first := taken.Addr().(*net.TCPAddr).Port
	if first > 65000 {
		t.Skip("no ports are left above the one that this test was given")
	}
	name := detach(t, []string{
		"-p", fmt.Sprintf("127.0.0.1:%d-%d:7000", first, first+100), "-p", "127.0.0.1::7001", "-p", "7002/udp",
	}, "sh", "-c", echoForEver)
	ranged := netip.MustParseAddrPort(harness.Urun(t, "port", name, "7000").OK())
	if p := int(ranged.Port()); p <= first || p > first+100 {
		t.Errorf("port %d is not of the range behind %d, which is taken", p, first)
	}
	knocks(t, ranged.String())
	random := netip.MustParseAddrPort(harness.Urun(t, "port", name, "7001/tcp").OK())
	if !random.Addr().IsLoopback() || random.Port() == 0 {
		t.Errorf("random port %s", random)
	}
	both := strings.Fields(harness.Urun(t, "port", name, "7002/udp").OK())
	if len(both) == 0 || !strings.HasPrefix(both[0], "0.0.0.0:") || len(both) == 2 && !strings.HasPrefix(both[1], "[::]:") {
		t.Errorf("all addresses are %q", both)
	}
	harness.Urun(t, "ps", "--no-trunc", "--format", "{{.Ports}}", "--filter", "name="+name).Has(ranged.String()+"->7000/tcp", "->7002/udp")
	if r := harness.Urun(t, "port", name, "9"); r.Code == 0 || !strings.Contains(r.Stderr, "9") {
		t.Errorf("%s\nwant an error that names the port", r)
	}
}

// The helper that serves ports may be killed. Its successor listens on the same ones.
func TestRandomPortsOutliveTheNetworkHelper(t *testing.T) {
	name := detach(t, []string{"-p", "127.0.0.1::7000"}, "sh", "-c", echoForEver)
	addr := harness.Urun(t, "port", name, "7000").OK()
	knocks(t, addr)
	monitor := harness.Urun(t, "inspect", "-f", "{{.Monitor.PID}}", name).OK()
	helper := childOf(t, monitor, "__network")
	if err := exec.Command("kill", "-9", helper).Run(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "another helper is there", func() bool {
		next := childOf(t, monitor, "__network")
		return next != "" && next != helper
	})
	if got := harness.Urun(t, "port", name, "7000").OK(); got != addr {
		t.Errorf("the port is %s, was %s", got, addr)
	}
	knocks(t, addr)
}

// childOf finds the child of a process that runs a stage; "" if there is none.
func childOf(t *testing.T, pid, stage string) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range strings.Fields(string(raw)) {
		if line, err := os.ReadFile("/proc/" + child + "/cmdline"); err == nil && strings.Contains(string(line), stage) {
			return child
		}
	}
	return ""
}

func TestPortErrorsNameTheCure(t *testing.T) {
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil && len(strings.TrimSpace(string(raw))) > 2 {
		harness.Run(t, "-p", "81:81", "--", "true").Refused("81", "net.ipv4.ip_unprivileged_port_start=81")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	harness.Run(t, "-p", fmt.Sprintf("%d:80", port), "--", "true").Refused(fmt.Sprint(port), "address already in use", "hint:")
	harness.Run(t, "-p", "80:80/sctp", "--", "true").Refused("sctp")
	harness.Run(t, "--network", "slirp:colour=red", "--", "true").Refused("colour", "allow_host_loopback")
}

func TestAllExposedPorts(t *testing.T) {
	name := detach(t, []string{"-P", "--expose", "7000-7001"}, "sh", "-c", echoForEver)
	harness.Urun(t, "port", name).Has("7000/tcp -> 0.0.0.0:", "7001/tcp -> 0.0.0.0:")
}

// The host's loopback is reached on request, by the names that docker and podman have for it.
func TestNamesOfTheHost(t *testing.T) {
	port := listen(t)
	for _, name := range []string{"host.containers.internal", "host.docker.internal"} {
		harness.Run(t, "--network", "slirp4netns:allow_host_loopback=true", "--", "/probe", "connect", fmt.Sprintf("%s:%d", name, port), "hello").Says("hello seen")
		if r := harness.Run(t, "/probe", "resolve", name); r.Code == 0 {
			t.Errorf("%s\n%s is there though nobody asked for it", r, name)
		}
	}
	if r := harness.Run(t, "--add-host", "h:host-gateway", "--", "/probe", "connect", fmt.Sprintf("h:%d", port), "hello"); r.Code == 0 {
		t.Errorf("%s\nthe host's loopback is open", r)
	}
	harness.Run(t, "--network", toHost, "--add-host", "h:host-gateway", "--", "/probe", "connect", fmt.Sprintf("h:%d", port), "hello").Says("hello seen")
}
