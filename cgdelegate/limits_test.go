package cgdelegate

import (
	"strings"
	"testing"
)

func TestLimitsBecomeSettings(t *testing.T) {
	for _, tc := range []struct {
		name        string
		l           Limits
		want        string // "file=value;..." with "?" after the file if it is optional
		controllers string
	}{
		{"nothing", Limits{}, "", ""},
		{"memory alone allows as much swap again", Limits{Memory: 1 << 20}, "memory.max=1048576;memory.swap.max?=1048576", "memory"},
		{"memory and swap together", Limits{Memory: 100, MemorySwap: 150}, "memory.max=100;memory.swap.max=50", "memory"},
		{"no swap", Limits{Memory: 100, MemorySwap: 100}, "memory.max=100;memory.swap.max=0", "memory"},
		{"all swap", Limits{Memory: 100, MemorySwap: -1}, "memory.max=100;memory.swap.max=max", "memory"},
		{"memory limit lifted", Limits{Memory: -1}, "memory.max=max;memory.swap.max?=max", "memory"},
		{"high and reservation", Limits{MemoryHigh: 9, MemoryReservation: 5}, "memory.high=9;memory.low=5", "memory"},
		{"half a cpu", Limits{CPUQuota: 50000, CPUPeriod: 100000}, "cpu.max=50000 100000", "cpu"},
		{"quota alone", Limits{CPUQuota: 2000}, "cpu.max=2000 100000", "cpu"},
		{"quota lifted", Limits{CPUQuota: -1}, "cpu.max=max 100000", "cpu"},
		{"normal shares are the normal weight", Limits{CPUShares: 1024}, "cpu.weight=100", "cpu"},
		{"weight", Limits{CPUWeight: 7}, "cpu.weight=7", "cpu"},
		{"cpuset", Limits{CpusetCPUs: "0-1,3", CpusetMems: "0"}, "cpuset.cpus=0-1,3;cpuset.mems=0", "cpuset"},
		{"pids", Limits{Pids: 50}, "pids.max=50", "pids"},
		{"pids lifted", Limits{Pids: -1}, "pids.max=max", "pids"},
		{
			"io",
			Limits{IOWeight: 500, IODevices: []IOLimit{{Major: 8, ReadBPS: 1, WriteIOPS: 4}, {Major: 9}}},
			"io.weight=default 500;io.max=8:0 rbps=1 wiops=4", "io",
		},
		{"huge pages", Limits{Hugetlb: []HugetlbLimit{{"2MB", 4}}}, "hugetlb.2MB.max=4", "hugetlb"},
		{
			"unified comes last, sorted",
			Limits{Pids: 1, Unified: map[string]string{"memory.zswap.max": "0", "cpu.max": "max"}},
			"pids.max=1;cpu.max=max;memory.zswap.max=0", "cpu memory pids",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			settings, err := tc.l.settings()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range settings {
				mark := ""
				if s.optional {
					mark = "?"
				}
				got = append(got, s.file+mark+"="+s.value)
			}
			if g := strings.Join(got, ";"); g != tc.want {
				t.Errorf("got  %s\nwant %s", g, tc.want)
			}
			if g := strings.Join(tc.l.Controllers(), " "); g != tc.controllers {
				t.Errorf("controllers %q, want %q", g, tc.controllers)
			}
			if tc.l.Empty() != (tc.want == "") {
				t.Error("Empty is wrong")
			}
		})
	}
}

func TestNonsenseLimitsAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		l    Limits
		part string
	}{
		{"negative memory", Limits{Memory: -2}, "memory is -2"},
		{"negative reservation", Limits{MemoryReservation: -1}, "reservation"},
		{"swap without memory", Limits{MemorySwap: 5}, "need a memory limit"},
		{"swap below memory", Limits{Memory: 10, MemorySwap: 5}, "less than"},
		{"period too short", Limits{CPUPeriod: 10}, "period"},
		{"quota too small", Limits{CPUQuota: 10}, "quota"},
		{"shares and weight", Limits{CPUShares: 10, CPUWeight: 10}, "two units"},
		{"weight too big", Limits{CPUWeight: 10001}, "weight"},
		{"no list of cpus", Limits{CpusetCPUs: "all"}, "list"},
		{"a list with a newline", Limits{CpusetMems: "0\n1"}, "list"},
		{"page size with a path", Limits{Hugetlb: []HugetlbLimit{{"../x", 1}}}, "page size"},
		{"unified with a path", Limits{Unified: map[string]string{"../memory.max": "1"}}, "not a file"},
		{"unified that kills", Limits{Unified: map[string]string{"cgroup.kill": "1"}}, "not a file"},
		{"unified without a controller", Limits{Unified: map[string]string{"tasks": "1"}}, "not a file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.l.Validate(); err == nil || !strings.Contains(err.Error(), tc.part) {
				t.Fatal(err)
			}
			if tc.l.Empty() {
				t.Error("nonsense is not nothing")
			}
		})
	}
}

func TestUnitsAreConverted(t *testing.T) {
	for shares, weight := range map[uint64]uint64{1: 1, 2: 1, 512: 59, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := WeightFromShares(shares); got != weight {
			t.Errorf("%d shares are weight %d, want %d", shares, got, weight)
		}
	}
	if q, p := Quota(1_500_000_000); q != 150000 || p != 100000 {
		t.Error(q, p)
	}
	for blkio, io := range map[uint64]uint64{0: 0, 10: 1, 1000: 10000} {
		if got := IOWeightFromBlkio(blkio); got != io {
			t.Errorf("blkio weight %d is %d, want %d", blkio, got, io)
		}
	}
}

func TestOnlyLimitsOfTheControllersThatThereAreStay(t *testing.T) {
	l := Limits{Memory: 50 << 20, Pids: 50, CpusetCPUs: "0", Hugetlb: []HugetlbLimit{{"2MB", 0}}, Unified: map[string]string{"io.weight": "default 50", "memory.oom.group": "1"}}
	kept, missing := l.Only([]string{"cpu", "memory", "pids"})
	if got := strings.Join(missing, " "); got != "cpuset hugetlb io" {
		t.Errorf("missing: %s", got)
	}
	if got := strings.Join(kept.Controllers(), " "); got != "memory pids" {
		t.Errorf("kept: %s", got)
	}
	if kept.Unified["memory.oom.group"] != "1" || len(l.Unified) != 2 {
		t.Errorf("files: %v, and the caller's: %v", kept.Unified, l.Unified)
	}
	if all, none := l.Only(l.Controllers()); len(none) != 0 || len(all.Controllers()) != 5 {
		t.Errorf("%v %v", all, none)
	}
}
