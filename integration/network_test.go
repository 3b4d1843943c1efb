package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// listen serves one line a connection on the host's loopback: "TEXT seen\n".
func listen(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				line, err := bufio.NewReader(c).ReadString('\n')
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s seen\n", strings.TrimSpace(line))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

const toHost = "slirp:allow_host_loopback=true"

func TestOutboundToTheHost(t *testing.T) {
	port := listen(t)
	harness.Run(t, "--network", toHost, "--", "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "hello").Says("hello seen")
	// Not by default: the host's loopback is the user's own.
	if r := harness.Run(t, "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "hello"); r.Code == 0 {
		t.Errorf("%s\nthe host's loopback is open by default", r)
	}
	if r := harness.Run(t, "/probe", "connect", fmt.Sprintf("127.0.0.1:%d", port), "hello"); r.Code == 0 {
		t.Errorf("%s\nthe host's loopback is the container's", r)
	}
	harness.Run(t, "--network=host", "--", "/probe", "connect", fmt.Sprintf("127.0.0.1:%d", port), "hello").Says("hello seen")
}

func TestRefusedStaysRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := harness.Run(t, "--network", toHost, "--", "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "x")
	if r.Code != 1 || !strings.Contains(r.Stderr, "connection refused") {
		t.Errorf("%s", r)
	}
}

func TestDownloadArrivesWhole(t *testing.T) {
	const size = "200000000"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		gen := exec.Command(harness.Probe, "gen", size)
		gen.Stdout = w
		if err := gen.Run(); err != nil {
			t.Errorf("gen: %v", err)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	want, err := exec.Command("sh", "-c", harness.Probe+" gen "+size+" | "+harness.Probe+" sha256").Output()
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://10.0.2.2:%d/", l.Addr().(*net.TCPAddr).Port)
	harness.Run(t, "--network", toHost, "--", "sh", "-c", "/probe get "+url+" | /probe sha256").Says(strings.TrimSpace(string(want)))
}

func TestNames(t *testing.T) {
	harness.Run(t, "/probe", "resolve", "localhost").Has("127.0.0.1")
	// What this machine's name servers say of a name that there is not, or that none of them answers.
	want := "server misbehaving"
	var dnsErr *net.DNSError
	if _, err := net.LookupHost("no-such-name.invalid"); errors.As(err, &dnsErr) && dnsErr.IsNotFound {
		want = "no such host"
	}
	r := harness.Run(t, "/probe", "resolve", "no-such-name.invalid")
	if r.Code != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("%s\nwant %q", r, want)
	}
	harness.Run(t, "--add-host", "db.test:10.9.8.7", "--", "/probe", "resolve", "db.test").Says("10.9.8.7")
	// A name that this machine resolves, resolves inside alike.
	name := mirrorHost(t)
	if _, err := net.LookupHost(name); err != nil {
		t.Skipf("no name server answers for the package mirror: %v", err)
	}
	harness.Run(t, "/probe", "resolve", name).OK()
	// And not where --dns names a server that does not answer (TEST-NET-1).
	if r := harness.Run(t, "--dns", "192.0.2.53", "--", "/probe", "resolve", name); r.Code != 1 {
		t.Errorf("%s\nwant it to ask 192.0.2.53 alone", r)
	}
}

func TestPublishedPort(t *testing.T) { publishedPort(t) }

// Where there is no TUN the network is the same, in both directions, after another start too.
func TestNetworkWithoutTUN(t *testing.T) {
	noTUN := []string{"--without", "tun"}
	publishedPort(t, noTUN...)
	udp := udpServer(t)
	for _, driver := range []string{"", ",driver=netstack"} {
		run := func(script string) *harness.Result {
			t.Helper()
			return harness.Run(t, append(noTUN, "--network", toHost+driver, "--", "sh", "-c", script)...)
		}
		run(fmt.Sprintf("/probe connect 10.0.2.2:%d hello", listen(t))).Says("hello seen")
		run(fmt.Sprintf("/probe datagram 10.0.2.2:%d hello", udp)).Says("seen hello")
		run("/probe resolve localhost").Has("127.0.0.1")
		if r := run("/probe connect 10.0.2.2:1 hello"); !strings.Contains(r.Stderr, "refused") {
			t.Errorf("%s\nwant it to be refused", r)
		}
	}
	name := detach(t, append(noTUN, "--network", toHost), "sleep", "1000")
	for range 2 {
		port := listen(t)
		harness.Urun(t, "exec", name, "/probe", "connect", fmt.Sprintf("10.0.2.2:%d", port), "hello").Says("hello seen")
		harness.Urun(t, "restart", "-t", "0", name).OK()
	}
}

func publishedPort(t *testing.T, flags ...string) {
	t.Helper()
	port := freePort(t)
	name := detach(t, append(flags, "-p", fmt.Sprintf("127.0.0.1:%d:7000", port)), "sh", "-c", "while :; do /probe echo 0.0.0.0:7000; done")
	var answer string
	harness.Eventually(t, 10*time.Second, "the published port answers", func() bool {
		out, err := exec.Command(harness.Probe, "connect", fmt.Sprintf("127.0.0.1:%d", port), "knock").Output()
		answer = string(out)
		return err == nil
	})
	if !strings.HasPrefix(answer, "knock echoed to ") {
		t.Errorf("answer %q", answer)
	}
	harness.Urun(t, "port", name).Has(fmt.Sprint(port))
	r := harness.Run(t, "-p", fmt.Sprintf("127.0.0.1:%d:7000", port), "--", "true")
	r.Refused(fmt.Sprint(port))
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().(*net.TCPAddr).Port
}

func TestUDP(t *testing.T) {
	harness.Run(t, "--network", toHost, "--", "/probe", "datagram", fmt.Sprintf("10.0.2.2:%d", udpServer(t)), "hello").Says("seen hello")
}

// udpServer answers datagrams on a port of the host's loopback.
func udpServer(t *testing.T) (port int) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			if _, err := c.WriteTo(append([]byte("seen "), buf[:n]...), from); err != nil && !errors.Is(err, io.EOF) {
				return
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// What is on its way when the container ends arrives all the same, with its end.
func TestWhatWasSentBeforeTheEndArrives(t *testing.T) {
	type way struct{ network, listen, connect string }
	ways := []way{
		{toHost + ",driver=kernel", "127.0.0.1", "10.0.2.2"},
		{toHost + ",driver=netstack", "127.0.0.1", "10.0.2.2"},
	}
	if host := outward(t); host != "" {
		ways = append(ways, way{makeNetwork(t), host, host})
	}
	const size = 3 << 20
	for _, w := range ways {
		l, err := net.Listen("tcp", w.listen+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- err
				return
			}
			defer c.Close()
			time.Sleep(300 * time.Millisecond) // in which it would end
			n, err := io.Copy(io.Discard, c)
			if err == nil && n != size {
				err = fmt.Errorf("%d bytes of %d came", n, size)
			}
			got <- err
		}()
		harness.Run(t, "--network", w.network, "--", "/probe", "send", "tcp", fmt.Sprintf("%s:%d", w.connect, l.Addr().(*net.TCPAddr).Port), fmt.Sprint(size)).OK()
		if err := <-got; err != nil {
			t.Errorf("%s: %v", w.network, err)
		}
	}
}

// The first packet starts the network helper; it is not too late for a container that sends no other.
func TestADatagramIsSentThoughTheContainerEnds(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	harness.Run(t, "--network", toHost, "--", "/probe", "send", "udp", fmt.Sprintf("10.0.2.2:%d", c.LocalAddr().(*net.UDPAddr).Port), "3").OK()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := c.ReadFrom(make([]byte, 10)); err != nil || n != 3 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Who shares a container's network and goes on sending does not keep it from ending.
func TestTheEndDoesNotWaitForOthersInTheNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		close(accepted)
		defer c.Close()
		for buf := make([]byte, 64<<10); err == nil; time.Sleep(10 * time.Millisecond) {
			_, err = c.Read(buf)
		}
	}()
	first := detach(t, []string{"--network", toHost}, "sh", "-c", "until test -e /tmp/end; do sleep 0.1; done")
	detach(t, []string{"--network", "container:" + first}, "/probe", "send", "tcp", fmt.Sprintf("10.0.2.2:%d", l.Addr().(*net.TCPAddr).Port), fmt.Sprint(1<<30))
	<-accepted
	start := time.Now()
	harness.Urun(t, "exec", first, "touch", "/tmp/end").OK()
	harness.Urun(t, "wait", first).OK()
	if took := time.Since(start); took > 30*time.Second { // of the minute that it would be
		t.Errorf("it ended after %v", took)
	}
}
