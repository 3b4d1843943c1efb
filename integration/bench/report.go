package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The part of the document between these lines is this program's.
func render(r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make bench` in one run of %s. Kernel %s, %d CPUs; load average %s before, %s after.\n", r.Took.Round(time.Second), r.Kernel, r.CPUs, r.Load[0], r.Load[1])
	if busy(r) {
		b.WriteString("**The machine was busy with other work**: the ratios hold (all were measured by turns), the times are high.\n")
	}
	fmt.Fprintf(&b, "%s.\nPodman: %s; %s.\n", strings.Join(r.Versions, "; "), r.Podman, r.Cgroup)
	fmt.Fprintf(&b, "The image: %.0f MB in %d layers, compressed.\n\n", float64(r.ImageBytes)/1e6, r.ImageLayers)
	table(&b, r.Lines)
	fmt.Fprintf(&b, "\n`urun version`: %s ms, of which user %s and system %s ms of CPU (target: under 5). The binary: %.1f MB (target: under 25).\n",
		ms(r.Version.Wall), ms(r.Version.User), ms(r.Version.Sys), float64(r.BinaryBytes)/1e6)
	return b.String()
}

func table(b *strings.Builder, lines []comparison) {
	b.WriteString("| what | A | B | A / B | middle half | target | rounds | A, ms | B, ms |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range lines {
		fmt.Fprintf(b, "| %s | %s | %s | **%.3f** | %.3f-%.3f | %s | %d | %s | %s |\n", c.What, c.A, c.B, c.Ratio, c.Q1, c.Q3, verdict(c), c.Rounds, ms(c.TimeA), ms(c.TimeB))
	}
}

func verdict(c comparison) string {
	switch {
	case c.Target == 0:
		return ""
	case c.Ratio <= c.Target:
		return fmt.Sprintf("≤ %.2f: met", c.Target)
	}
	return fmt.Sprintf("≤ %.2f: **missed**", c.Target)
}

func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	if v < 100 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// busy: more was running before the measurement than a quiet machine has.
func busy(r *results) bool {
	v, err := strconv.ParseFloat(r.Load[0], 64)
	return err != nil || v > 0.5*float64(r.CPUs)
}
