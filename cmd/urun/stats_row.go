package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/state"
)

// statsRow is what urun stats shows of a container, in docker's form, and beyond
// that how much it was held back (Throttled) and had to wait (PSI).
type statsRow struct {
	ID, Container, Name, CPUPerc, CPUTime, Throttled, MemUsage, MemPerc, MemPeak, Swap string
	NetIO, BlockIO, PIDs, PSICPU, PSIMem, PSIIO, OOMKills                              string
}

var statsHeadings = statsRow{
	ID: "CONTAINER ID", Container: "CONTAINER", Name: "NAME", CPUPerc: "CPU %", CPUTime: "CPU TIME", Throttled: "THROTTLED",
	MemUsage: "MEM USAGE / LIMIT", MemPerc: "MEM %", MemPeak: "MEM PEAK", Swap: "SWAP", NetIO: "NET I/O", BlockIO: "BLOCK I/O",
	PIDs: "PIDS", PSICPU: "PSI CPU", PSIMem: "PSI MEM", PSIIO: "PSI IO", OOMKills: "OOM KILLS",
}

const notKnown = "--"

func noStats(id, name string) statsRow {
	return statsRow{
		id, id, name, notKnown, notKnown, notKnown, notKnown, notKnown, notKnown, notKnown,
		notKnown, notKnown, notKnown, notKnown, notKnown, notKnown, notKnown,
	}
}

// newStatsRow makes a row of two readings; the earlier one may be empty.
func newStatsRow(id string, rec *state.Record, now, before cgdelegate.Stats, total uint64) statsRow {
	r := noStats(id, rec.Name)
	has := func(controller string) bool { return slices.Contains(now.Controllers, controller) }
	r.CPUTime = now.CPU.Usage.Round(time.Millisecond).String()
	if took := now.Time.Sub(before.Time); !before.Time.IsZero() && took > 0 {
		r.CPUPerc = percent(float64(now.CPU.Usage-before.CPU.Usage) / float64(took))
		if has("cpu") {
			r.Throttled = percent(ratio(now.CPU.Throttled-before.CPU.Throttled, now.CPU.Periods-before.CPU.Periods))
		}
	}
	if has("memory") {
		limit := total
		if now.Memory.Limit >= 0 {
			limit = min(limit, uint64(now.Memory.Limit))
		}
		// As docker counts: what the kernel would give up at once is not used.
		used := now.Memory.Usage - min(now.Memory.Usage, now.Memory.InactiveFile)
		r.MemUsage = bytesText(used) + " / " + bytesText(limit)
		r.MemPerc = percent(ratio(used, limit))
		r.Swap = bytesText(now.Memory.Swap)
		if now.Memory.Peak > 0 { // Linux 5.19
			r.MemPeak = bytesText(now.Memory.Peak)
		}
	}
	if has("io") {
		r.BlockIO = units.HumanSizeWithPrecision(float64(now.IO.ReadBytes), 3) + " / " + units.HumanSizeWithPrecision(float64(now.IO.WriteBytes), 3)
	}
	if has("pids") {
		r.PIDs = strconv.FormatUint(now.Pids.Current, 10)
	}
	for resource, into := range map[string]*string{"cpu": &r.PSICPU, "memory": &r.PSIMem, "io": &r.PSIIO} {
		if p, ok := now.Pressure[resource]; ok {
			*into = fmt.Sprintf("%.1f%%", p.Some[0])
		}
	}
	if received, sent, ok := traffic(rec.Init.PID); ok {
		r.NetIO = units.HumanSizeWithPrecision(float64(received), 3) + " / " + units.HumanSizeWithPrecision(float64(sent), 3)
	}
	return r
}

func bytesText(n uint64) string { return units.BytesSize(float64(n)) }

func percent(share float64) string { return fmt.Sprintf("%.2f%%", 100*share) }

func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// traffic adds up what went through the interfaces of a process's network
// namespace, in bytes, unless that is our own.
func traffic(pid int) (received, sent uint64, ok bool) {
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0, 0, false
	}
	if ours, err := os.Readlink("/proc/self/ns/net"); err != nil || ours == theirs {
		return 0, 0, false
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0, false
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// "  eth0: BYTES PACKETS ... (8 of what came in) BYTES ..."; two lines of headings have no colon so.
		name, counters, found := strings.Cut(sc.Text(), ":")
		fields := strings.Fields(counters)
		if !found || strings.TrimSpace(name) == "lo" || len(fields) < 9 {
			continue
		}
		in, err1 := strconv.ParseUint(fields[0], 10, 64)
		out, err2 := strconv.ParseUint(fields[8], 10, 64)
		if err1 != nil || err2 != nil {
			return 0, 0, false
		}
		received, sent = received+in, sent+out
	}
	return received, sent, sc.Err() == nil
}
