package main

import (
	"os"
	"testing"
	"time"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/state"
)

func TestStatsRowsAreInDockersForm(t *testing.T) {
	start := time.Now()
	before := cgdelegate.Stats{Time: start}
	now := cgdelegate.Stats{Time: start.Add(2 * time.Second), Controllers: []string{"cpu", "memory", "pids"}}
	now.CPU.Usage, now.CPU.Periods, now.CPU.Throttled = time.Second, 20, 5
	now.Memory.Usage, now.Memory.InactiveFile, now.Memory.Limit = 30<<20, 5<<20, 50<<20
	now.Pids.Current = 3
	now.Pressure = map[string]cgdelegate.Pressure{"cpu": {Some: [3]float64{12.34, 0, 0}}}
	r := newStatsRow("0123", &state.Record{Name: "web"}, now, before, 8<<30)
	for _, c := range []struct{ what, got, want string }{
		{"CPU", r.CPUPerc, "50.00%"},
		{"CPU time", r.CPUTime, "1s"},
		{"throttled", r.Throttled, "25.00%"},
		{"memory", r.MemUsage, "25MiB / 50MiB"},
		{"memory in percent", r.MemPerc, "50.00%"},
		{"processes", r.PIDs, "3"},
		{"pressure", r.PSICPU, "12.3%"},
		{"pressure that the kernel does not tell", r.PSIIO, "--"},
		{"disks without the controller", r.BlockIO, "--"},
		{"network of no process", r.NetIO, "--"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, want %q", c.what, c.got, c.want)
		}
	}
	now.Memory.Limit = -1
	if r := newStatsRow("0123", &state.Record{}, now, cgdelegate.Stats{}, 1<<30); r.MemUsage != "25MiB / 1GiB" || r.CPUPerc != "--" {
		t.Errorf("without a limit and an earlier reading: %+v", r)
	}
	if _, _, ok := traffic(os.Getpid()); ok {
		t.Error("the machine's own traffic is nobody's")
	}
}
