package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

// The part of the document between these lines is this program's.
// target is what a ratio of two medians is to reach.
type target struct {
	what         string
	figure, a, b string
	bound        float64
	atMost       bool
}

var targets = []target{
	{what: "3 x slirp4netns at MTU 65520", figure: out1, a: "urun, kernel", b: "slirp4netns, MTU 65520", bound: 3},
	{what: "the same, 8 streams", figure: out8, a: "urun, kernel", b: "slirp4netns, MTU 65520", bound: 3},
	{what: "1.2 x pasta's splice", figure: out1, a: "urun, kernel", b: "pasta, splice", bound: 1.2},
	{what: "the same, 8 streams", figure: out8, a: "urun, kernel", b: "pasta, splice", bound: 1.2},
	{what: "0.65 x a veth pair by root", figure: out1, a: "urun, kernel", b: "veth by root", bound: 0.65},
	{what: "the same, 8 streams", figure: out8, a: "urun, kernel", b: "veth by root", bound: 0.65},
	{what: "netstack at MTU 1500: 7 x slirp4netns at 1500", figure: out1, a: "urun, netstack", b: "slirp4netns, MTU 1500", bound: 7},
	{what: "published TCP: rootlesskit's builtin", figure: pub1, a: "urun, kernel", b: "rootlesskit builtin", bound: 1},
	{what: "between containers: 0.95 x a veth pair by root", figure: out1, a: between, b: "veth by root", bound: 0.95},
	{what: "the same, 8 streams", figure: out8, a: between, b: "veth by root", bound: 0.95},
	{what: "connects: 5,000 where loopback has 8,000", figure: conn, a: "urun, kernel", b: "host loopback", bound: 5.0 / 8},
	{what: "round trip: 60 us where pasta has 67", figure: rtt, a: "urun, kernel", b: "pasta, splice", bound: 60.0 / 67, atMost: true},
	{what: "DNS: 12,000 where pasta has 10,000", figure: lookups, a: "urun, kernel", b: "pasta, tap", bound: 1.2},
}

func (m *results) render() string {
	var b strings.Builder
	how := "in one run of " + m.Took.Round(time.Second).String()
	if m.Pieces > 1 {
		how = fmt.Sprintf("in %d runs of together %s, each figure on all networks in one of them", m.Pieces, m.Took.Round(time.Second))
	}
	fmt.Fprintf(&b, "Made by `make bench-net` %s; load average at most %.2f before, %.2f after. Kernel %s.\n", how, m.Load[0], m.Load[1], m.Kernel)
	if m.Load[0] > 0.5*float64(runtime.NumCPU()) {
		b.WriteString("**The machine was busy with other work**, which meets those most that need the most processes for a byte: only a quiet machine's figures say anything.\n")
	}
	fmt.Fprintf(&b, "%s.\nMedians of %d rounds, each measurement %s long, by turns.\n\n", strings.Join(m.Versions, "; "), m.Rounds, m.Span)
	columns := []struct{ name, unit string }{}
	for _, f := range figures {
		columns = append(columns, struct{ name, unit string }{f.name, f.unit})
		if f.name == out8 {
			columns = append(columns, struct{ name, unit string }{outCPU, ""})
		}
	}
	b.WriteString("| |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", strings.TrimSpace(c.name+" "+c.unit))
	}
	b.WriteString(" helper's memory MB, idle / highest |\n|---|" + strings.Repeat("---|", len(columns)+1) + "\n")
	for _, n := range m.Networks {
		fmt.Fprintf(&b, "| %s |", n)
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", number(m.Got[c.name][n]))
		}
		if mem, ok := m.Memory[n]; ok {
			fmt.Fprintf(&b, " %.0f / %.0f |\n", mem.Now, mem.Highest)
		} else {
			b.WriteString(" |\n")
		}
	}
	b.WriteString("\n| target | ratio | to reach | |\n|---|---|---|---|\n")
	for _, t := range targets {
		m.verdict(&b, t)
	}
	m.absolute(&b)
	m.compare(&b)
	if m.Failed != "" {
		fmt.Fprintf(&b, "\n%s.\n", m.Failed)
	}
	for _, n := range m.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	return b.String()
}

// ratio is the median of the ratios of each round: other work on the machine meets both sides alike.
func (m *results) ratio(figure, a, b string) (r float64, ok bool) {
	x, y := m.Got[figure][a], m.Got[figure][b]
	var ratios []float64
	for i := range min(len(x), len(y)) {
		ratios = append(ratios, x[i]/y[i])
	}
	if len(ratios) == 0 {
		return 0, false
	}
	return benchkit.Median(ratios), true
}

// compare sets this urun beside the one of -against.
func (m *results) compare(b *strings.Builder) {
	var head bool
	for _, f := range figures {
		r, ok := m.ratio(f.name, "urun, kernel", before)
		if !ok {
			continue
		}
		if !head {
			head = true
			b.WriteString("\n| urun, kernel | of the one before |\n|---|---|\n")
		}
		fmt.Fprintf(b, "| %s | %.2f |\n", f.name, r)
	}
}

func (m *results) verdict(b *strings.Builder, t target) {
	r, ok := m.ratio(t.figure, t.a, t.b)
	if !ok {
		return
	}
	sign, met := "≥", r >= t.bound
	if t.atMost {
		sign, met = "≤", r <= t.bound
	}
	fmt.Fprintf(b, "| %s | **%.2f** | %s %.2f | %s |\n", t.what, r, sign, t.bound, verdict(met))
}

func (m *results) absolute(b *strings.Builder) {
	if v := m.Got[outCPU]["urun, kernel"]; len(v) > 0 {
		fmt.Fprintf(b, "| CPU seconds a gigabit | **%.3f** | ≤ 0.09 | %s |\n", benchkit.Median(v), verdict(benchkit.Median(v) <= 0.09))
	}
	if mem, ok := m.Memory["urun, kernel"]; ok {
		fmt.Fprintf(b, "| memory idle, MB | **%.0f** | ≤ 40 | %s |\n", mem.Now, verdict(mem.Now <= 40))
		fmt.Fprintf(b, "| memory loaded, MB | **%.0f** | ≤ 120 | %s |\n", mem.Highest, verdict(mem.Highest <= 120))
	}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**missed**"
}

func number(v []float64) string {
	if len(v) == 0 {
		return ""
	}
	switch x := benchkit.Median(v); {
	case x < 1:
		return fmt.Sprintf("%.3f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.0f", x)
	}
}
