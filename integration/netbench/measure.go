package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

// figure is a column of the report.
type figure struct {
	name, unit string
	published  bool // by way of a published port
	measure    func(*measurer, context.Context, *network) (float64, error)
}

const (
	between                                         = "urun, between containers"
	before                                          = "urun before, kernel"
	out1, out8, outCPU, rtt, conn, wrkConn, lookups = "TCP out, 1 stream", "TCP out, 8 streams", "CPU seconds a gigabit", "round trip, p50", "connects", "connects, wrk, 8 at a time", "DNS lookups, dnsperf"
	otherLookups                                    = "DNS lookups, each of another name"
	pub1, pubConn, pubRTT                           = "published TCP", "published connects, each with an echo", "published round trip"
)

var figures = []figure{
	{out1, "Gbit/s", false, func(m *measurer, ctx context.Context, n *network) (float64, error) { return m.iperf(ctx, n, 1) }},
	{out8, "Gbit/s", false, func(m *measurer, ctx context.Context, n *network) (float64, error) { return m.iperf(ctx, n, 8) }},
	{rtt, "us", false, func(m *measurer, ctx context.Context, n *network) (float64, error) {
		return m.own(m.env.inside(ctx, n, m.self, loadStage, "rtt", addr(n.remote, echoPort), m.span.String()))
	}},
	{conn, "/s", false, func(m *measurer, ctx context.Context, n *network) (float64, error) {
		return m.own(m.env.inside(ctx, n, m.self, loadStage, "connects", addr(n.remote, echoPort), m.span.String()))
	}},
	{wrkConn, "/s", false, (*measurer).wrk},
	{lookups, "/s", false, func(m *measurer, ctx context.Context, n *network) (float64, error) { return m.dnsperf(ctx, n, 3) }},
	{otherLookups, "/s", false, func(m *measurer, ctx context.Context, n *network) (float64, error) { return m.dnsperf(ctx, n, 500_000) }},
	{pub1, "Gbit/s", true, func(m *measurer, ctx context.Context, n *network) (float64, error) {
		return m.iperf3(m.asUser(ctx, m.iperfArgs("127.0.0.1", n.published, 1)...))
	}},
	{pubConn, "/s", true, func(m *measurer, ctx context.Context, n *network) (float64, error) {
		return m.own(m.asUser(ctx, m.self, loadStage, "echoes", addr("127.0.0.1", n.published+1), m.span.String()))
	}},
	{pubRTT, "us", true, func(m *measurer, ctx context.Context, n *network) (float64, error) {
		return m.own(m.asUser(ctx, m.self, loadStage, "rtt", addr("127.0.0.1", n.published+1), m.span.String()))
	}},
}

func addr(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

type measurer struct {
	*env
	results
	servers  *servers
	networks []*network
}

func (m *measurer) all(ctx context.Context) error {
	start := time.Now()
	m.results = results{Got: map[string]map[string][]float64{}, Memory: map[string]memory{}, Rounds: m.rounds, Span: m.span, Pieces: 1}
	var err error
	if m.Load[0], err = benchkit.LoadAverage(); err != nil {
		return err
	}
	if err := m.machine(ctx); err != nil {
		return err
	}
	defer func() {
		for _, n := range m.networks {
			for _, stop := range slices.Backward(n.stops) {
				stop()
			}
		}
	}()
	for _, n := range m.env.networks() {
		if err := m.bring(ctx, n); err != nil {
			m.note("%s: not measured: %v", n.name, err)
		}
	}
	for i := range m.rounds {
		order := slices.Clone(m.networks)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		fmt.Fprintf(os.Stderr, "netbench: round %d of %d\n", i+1, m.rounds)
		for _, f := range figures {
			for _, n := range order {
				m.one(ctx, f, n)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for _, n := range m.networks {
		if n.helper != 0 {
			loaded, err := memoryOf(n.helper)
			if err != nil {
				m.note("%s: its helper has ended: %v", n.name, err)
				continue
			}
			m.Memory[n.name] = memory{m.Memory[n.name].Now, loaded.Highest}
		}
	}
	m.hundredThousand(ctx)
	m.Took = time.Since(start)
	m.Load[1], err = benchkit.LoadAverage()
	return err
}

func (m *measurer) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "netbench:", s)
	if !slices.Contains(m.Notes, s) {
		m.Notes = append(m.Notes, s)
	}
}

// bring starts a network and sends something through it.
func (m *measurer) bring(ctx context.Context, n *network) error {
	if n.start != nil {
		if err := n.start(ctx, n); err != nil {
			for _, stop := range slices.Backward(n.stops) {
				stop()
			}
			return err
		}
	}
	m.networks = append(m.networks, n)
	m.Networks = append(m.Networks, n.name)
	if n.published != 0 {
		if err := m.servers.startInside(ctx, m.env, n); err != nil {
			return err
		}
	}
	return eventually(n.name+" to carry something", func() error {
		_, err := m.own(m.env.inside(ctx, n, m.self, loadStage, "connects", addr(n.remote, echoPort), "1ms"))
		if err == nil && n.helper != 0 {
			var idle memory
			idle, err = memoryOf(n.helper)
			m.Memory[n.name] = idle
		}
		return err
	})
}

func (m *measurer) one(ctx context.Context, f figure, n *network) {
	if !m.figures.MatchString(f.name) || f.published && n.published == 0 || (f.name == lookups || f.name == otherLookups) && n.dns == "" || n.alone != "" && !f.published {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	spent := m.cpu(n)
	v, err := f.measure(m, ctx, n)
	if err != nil {
		m.note("%s, %s: %v", n.name, f.name, err)
		return
	}
	m.keep(f.name, n, v)
	if f.name == out1 {
		m.keep(outCPU, n, (m.cpu(n)-spent)/(v*m.span.Seconds()))
	}
}

func (m *measurer) keep(name string, n *network, v float64) {
	if m.Got[name] == nil {
		m.Got[name] = map[string][]float64{}
	}
	m.Got[name][n.name] = append(m.Got[name][n.name], v)
}

// cpu gives the CPU seconds that have gone into iperf3's clients, its server outside and the network's helper.
func (m *measurer) cpu(n *network) float64 {
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &self); err != nil {
		return 0
	}
	sum := float64(self.Utime.Nano()+self.Stime.Nano()) / 1e9
	server := n.iperf
	if server == 0 {
		server = m.servers.iperf
	}
	for _, pid := range []int{server, n.helper} {
		if pid != 0 {
			if s, err := procStat(fmt.Sprintf("/proc/%d", pid)); err == nil {
				sum += s.cpu
			}
		}
	}
	return sum
}

// own runs this program's own load, which prints a number.
func (m *measurer) own(cmd *exec.Cmd) (float64, error) {
	out, err := output(cmd)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		if text == "" {
			text = strings.TrimSpace(string(out[max(0, len(out)-300):]))
		}
		err = fmt.Errorf("%w: %s", err, text)
	}
	return out, err
}

func (m *measurer) iperfArgs(ip string, port, streams int) []string {
	return []string{"iperf3", "-J", "-c", ip, "-p", strconv.Itoa(port), "-t", strconv.Itoa(max(1, int(m.span.Seconds()))), "-P", strconv.Itoa(streams)}
}

func (m *measurer) iperf(ctx context.Context, n *network, streams int) (float64, error) {
	return m.iperf3(m.env.inside(ctx, n, m.iperfArgs(n.remote, iperfPort, streams)...))
}

func (m *measurer) iperf3(cmd *exec.Cmd) (float64, error) {
	out, err := output(cmd)
	if err != nil {
		return 0, err
	}
	var r struct {
		Error string // iperf3 -J reports a failure here, and exits with 0
		End   struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, fmt.Errorf("iperf3's report: %w", err)
	}
	if r.Error != "" {
		return 0, fmt.Errorf("iperf3: %s", r.Error)
	}
	return r.End.Received.Bits / 1e9, nil
}

var wrkRate = regexp.MustCompile(`Requests/sec:\s*([0-9.]+)`)

func (m *measurer) wrk(ctx context.Context, n *network) (float64, error) {
	out, err := output(m.env.inside(ctx, n, "wrk", "-t1", "-c8", "-d", m.span.String(), "-H", "Connection: close", "http://"+addr(n.remote, httpPort)+"/"))
	if err != nil {
		return 0, err
	}
	return rate(wrkRate, out)
}

var dnsperfRate = regexp.MustCompile(`Queries per second:\s*([0-9.]+)`)

// dnsperf asks for so many names by turns.
func (m *measurer) dnsperf(ctx context.Context, n *network, names int) (float64, error) {
	queries := filepath.Join(m.dir, fmt.Sprintf("queries-%d", names))
	if _, err := os.Stat(queries); err != nil {
		var b strings.Builder
		for i := range names {
			fmt.Fprintf(&b, "n%d.example.com A\n", i)
		}
		if err := os.WriteFile(queries, []byte(b.String()), 0o644); err != nil {
			return 0, err
		}
	}
	out, err := output(m.env.inside(ctx, n, "dnsperf", "-s", n.dns, "-d", queries, "-l", strconv.Itoa(max(1, int(m.span.Seconds()))), "-q", "16"))
	if err != nil {
		return 0, err
	}
	return rate(dnsperfRate, out)
}

func rate(re *regexp.Regexp, out []byte) (float64, error) {
	sub := re.FindSubmatch(out)
	if sub == nil {
		return 0, fmt.Errorf("no rate in %q", out)
	}
	return strconv.ParseFloat(string(sub[1]), 64)
}

// hundredThousand counts the connections of urun's best driver that fail.
func (m *measurer) hundredThousand(ctx context.Context) {
	const connections = 100_000
	if !m.figures.MatchString("100000 connections") {
		return
	}
	for _, n := range m.networks {
		if n.name != "urun, kernel" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		held, err := holdingsOf(n.helper)
		start := time.Now()
		var out []byte
		if err == nil {
			out, err = output(m.env.inside(ctx, n, m.self, loadStage, "many", addr(n.remote, echoPort), strconv.Itoa(connections)))
		}
		var after holdings
		if err == nil {
			after, err = holdingsOf(n.helper)
		}
		if err != nil {
			m.note("100,000 connections: %v", err)
			return
		}
		rate := connections / time.Since(start).Seconds()
		failed, why, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		m.Failed = fmt.Sprintf("%d connections of %s, 8 at a time, each with a byte there and back: %s failed, %.0f connections a second", connections, n.name, failed, rate)
		if why != "" {
			m.Failed += ". The first failure: " + why
		}
		m.Failed += fmt.Sprintf(". The helper had %v before and %v after", held, after)
	}
}

func (m *measurer) machine(ctx context.Context) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	m.Kernel = fmt.Sprintf("%s, %d CPUs", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU())
	out, err := exec.CommandContext(ctx, m.urun, "version").Output()
	if err != nil {
		return fmt.Errorf("urun version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	m.Versions = []string{line}
	out, err = exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Package} ${Version}\n", "slirp4netns", "passt", "iperf3", "wrk", "dnsperf").Output()
	if err != nil {
		return fmt.Errorf("dpkg-query: %w", err)
	}
	m.Versions = append(m.Versions, strings.Split(strings.TrimSpace(string(out)), "\n")...)
	out, err = exec.CommandContext(ctx, m.rootlesskit, "--version").Output()
	m.Versions = append(m.Versions, strings.TrimSpace(string(out)))
	return err
}
