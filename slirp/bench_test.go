package slirp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The benchmarks put client, server and stack in three processes, as they are in life.

const trafficArg = "__traffic"

// traffic is the other two processes: "serve" on the host's loopback, and the clients inside, which print one number.
func traffic(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		return 1
	}
	if args[0] == "serve" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fail(err)
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
		for {
			c, err := l.Accept()
			if err != nil {
				return fail(err)
			}
			go serveTraffic(c.(*net.TCPConn))
		}
	}
	if args[0] == "flush" {
		conn, err := nftables.New()
		if err != nil {
			return fail(err)
		}
		conn.FlushRuleset()
		if err := conn.Flush(); err != nil {
			return fail(err)
		}
		fmt.Println(0)
		return 0
	}
	if args[0] == "waiting" { // sockets in TIME_WAIT
		data, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return fail(err)
		}
		n := 0
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "06" {
				n++
			}
		}
		fmt.Println(n)
		return 0
	}
	if change := map[string]func() error{"drop": dropArriving, "undrop": undrop, "shut": dropRelayed}[args[0]]; change != nil {
		if err := change(); err != nil {
			return fail(err)
		}
		fmt.Println(0)
		return 0
	}
	if args[0] == "echo" { // on the listener that it inherits
		l, err := net.FileListener(os.NewFile(3, "listener"))
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err == nil {
				go echoTCP(c.(*net.TCPConn))
			}
		}
		return fail(err)
	}
	if args[0] == "configure" {
		runtime.LockOSThread()
		start := time.Now()
		if _, err := Configure(Config{}); err != nil {
			return fail(err)
		}
		fmt.Println(float64(time.Since(start).Nanoseconds()) / 1e3)
		return 0
	}
	const span = 2 * time.Second
	addr := args[1]
	switch args[0] {
	case "up", "down":
		streams, err := strconv.Atoi(args[2])
		if err != nil {
			return fail(err)
		}
		var moved atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range streams {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return fail(err)
			}
			c.SetDeadline(start.Add(span))
			io.WriteString(c, args[0][:1])
			wg.Go(func() {
				buf := make([]byte, 256<<10)
				for {
					var n int
					var err error
					if args[0] == "up" {
						n, err = c.Write(buf)
					} else {
						n, err = c.Read(buf)
					}
					moved.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		fmt.Println(float64(moved.Load()) * 8 / 1e9 / time.Since(start).Seconds())
	case "connect":
		start, n := time.Now(), 0
		for ; time.Since(start) < span; n++ {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return fail(err)
			}
			c.(*net.TCPConn).SetLinger(0) // or its port is in TIME_WAIT, and soon all are
			c.Close()
		}
		fmt.Println(float64(n) / time.Since(start).Seconds())
	case "many":
		// An echo and a reset, 8 at a time: ports are used again soon.
		total, err := strconv.Atoi(args[2])
		if err != nil {
			return fail(err)
		}
		var wg sync.WaitGroup
		var next, failed atomic.Int64
		for range 8 {
			wg.Go(func() {
				for next.Add(1) <= int64(total) {
					if err := echoAndReset(addr); err != nil {
						fmt.Fprintln(os.Stderr, "traffic:", err)
						failed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		fmt.Println(failed.Load())
	case "rtt":
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return fail(err)
		}
		io.WriteString(c, "e")
		b := make([]byte, 1)
		var took []float64
		for start := time.Now(); time.Since(start) < span; {
			t := time.Now()
			if _, err := c.Write(b); err != nil {
				return fail(err)
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return fail(err)
			}
			took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
		}
		sort.Float64s(took)
		fmt.Println(took[len(took)/2])
	}
	return 0
}

// dropArriving drops what comes from the TUN.
func dropArriving() error {
	tun, err := linkIndex(tunName)
	if err != nil {
		return err
	}
	return dropAt(nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, device(expr.MetaKeyIIF, expr.CmpOpEq, tun))
}

// dropRelayed drops what is for the relay of IPv4.
func dropRelayed() error {
	return dropAt(nftables.ChainHookInput, nftables.ChainPriorityMangle, destination(netip.MustParseAddr("10.0.2.1")))
}

func dropTable() *nftables.Table {
	return &nftables.Table{Name: "drop", Family: nftables.TableFamilyINet}
}

func dropAt(hook *nftables.ChainHook, priority *nftables.ChainPriority, what []expr.Any) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := conn.AddTable(dropTable())
	chain := conn.AddChain(&nftables.Chain{Name: "chain", Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority})
	conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(what, &expr.Verdict{Kind: expr.VerdictDrop})})
	return conn.Flush()
}

func undrop() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(dropTable())
	return conn.Flush()
}

func serveTraffic(c *net.TCPConn) {
	defer c.Close()
	mode := make([]byte, 1)
	if _, err := io.ReadFull(c, mode); err != nil {
		return
	}
	buf := make([]byte, 256<<10)
	for {
		n := len(buf)
		var err error
		if mode[0] != 'd' {
			n, err = c.Read(buf)
		}
		if err == nil && mode[0] != 'u' {
			_, err = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func echoAndReset(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	b := []byte("e?")
	if err := errors.Join(c.SetDeadline(time.Now().Add(patience)), c.(*net.TCPConn).SetLinger(0)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b[:1])
	return err
}

func trafficServer(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", trafficArg, "serve")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// slirp4netns makes a namespace whose network is slirp4netns, for comparison.
func slirp4netns(t testing.TB, mtu string) *space {
	t.Helper()
	path, err := exec.LookPath("slirp4netns")
	if err != nil {
		t.Skip("no slirp4netns (apt-get install slirp4netns)")
	}
	s := startSpace(t, Config{}, "bare")
	s.tun.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(path, "--configure", "--mtu="+mtu, "--ready-fd=3", strconv.Itoa(s.cmd.Process.Pid), "tap0")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Skipf("slirp4netns does not start: %v", err)
	}
	return s
}

// BenchmarkTraffic prints throughput, connects a second and round trips of this stack and of slirp4netns. Each round is
// two seconds for each figure; -benchtime=5x makes five rounds, whose medians count.
func BenchmarkTraffic(b *testing.B) {
	port := trafficServer(b)
	spaces := []struct {
		name, gateway string
		start         func(testing.TB) *space
	}{
		{"loopback", "127.0.0.1", nil},
		{"kernel", "10.0.2.2", func(t testing.TB) *space { return newDriverSpace(t, loopbackAllowed, DriverKernel) }},
		{"netstack", "10.0.2.2", func(t testing.TB) *space { return newSpace(t, loopbackAllowed) }},
		{"kernel-veth", "10.0.2.2", func(t testing.TB) *space {
			return newDriverSpace(t, Config{AllowHostLoopback: true, NoTUN: true}, DriverKernel)
		}},
		{"netstack-veth", "10.0.2.2", func(t testing.TB) *space {
			return newSpace(t, Config{AllowHostLoopback: true, NoTUN: true})
		}},
		{"slirp4netns-1500", "10.0.2.2", func(t testing.TB) *space { return slirp4netns(t, "1500") }},
		{"slirp4netns-65520", "10.0.2.2", func(t testing.TB) *space { return slirp4netns(t, "65520") }},
	}
	for _, sp := range spaces {
		b.Run(sp.name, func(b *testing.B) {
			run := func(args ...string) float64 {
				out, err := exec.Command("/proc/self/exe", append([]string{trafficArg}, args...)...).Output()
				if err != nil {
					b.Fatal(err)
				}
				v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
				if err != nil {
					b.Fatal(err)
				}
				return v
			}
			if sp.start != nil {
				s := sp.start(b)
				run = func(args ...string) float64 { return s.run(b, args...) }
			}
			addr := sp.gateway + ":" + port
			figures := []struct {
				unit string
				args []string
				vals []float64
			}{
				{"up1-Gbit/s", []string{"up", addr, "1"}, nil},
				{"up8-Gbit/s", []string{"up", addr, "8"}, nil},
				{"down1-Gbit/s", []string{"down", addr, "1"}, nil},
				{"connects/s", []string{"connect", addr}, nil},
				{"rtt-us", []string{"rtt", addr}, nil},
			}
			for b.Loop() {
				for i := range figures {
					figures[i].vals = append(figures[i].vals, run(figures[i].args...))
				}
			}
			b.ReportMetric(0, "ns/op")
			if sp.name == "kernel" || sp.name == "netstack" {
				var ru syscall.Rusage // this process is the stack, and a test
				if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(ru.Maxrss)/1024, "max-rss-MB")
			}
			for _, f := range figures {
				sort.Float64s(f.vals)
				b.ReportMetric(f.vals[len(f.vals)/2], f.unit)
			}
		})
	}
}

// BenchmarkAttach is what the helper does before it serves.
func BenchmarkAttach(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s := startSpace(b, Config{})
		b.StartTimer()
		n, err := New(Config{}, s.tun, nil)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		s.serve(n)
		b.StartTimer()
	}
}

// BenchmarkConfigure is what the start of a container waits for: the TUN, addresses and routes.
func BenchmarkConfigure(b *testing.B) {
	var total float64
	for b.Loop() {
		s := startSpace(b, Config{}, "bare")
		s.tun.Close()
		total += s.run(b, "configure")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(total/float64(b.N), "us/configure")
}

// cpuSeconds is what this process, which is the helper, has used.
func cpuSeconds(b *testing.B) float64 {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
}

// BenchmarkOne is one figure of this stack alone, for a profile.
func BenchmarkOne(b *testing.B) {
	port := trafficServer(b)
	for _, what := range []string{"connect", "rtt", "up", "down"} {
		for _, driver := range []string{DriverKernel, DriverNetstack} {
			b.Run(driver+"/"+what, func(b *testing.B) {
				s := newDriverSpace(b, loopbackAllowed, driver)
				before, total := cpuSeconds(b), 0.0
				for b.Loop() {
					v := s.run(b, what, "10.0.2.2:"+port, "1")
					b.ReportMetric(v, "figure")
					total += 2 * v // each run is two seconds
				}
				b.ReportMetric((cpuSeconds(b)-before)/total*1e3, "cpu-ms/unit")
			})
		}
	}
}
