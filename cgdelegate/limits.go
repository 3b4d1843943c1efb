package cgdelegate

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits of a container. The zero value of a field leaves the setting alone;
// where -1 is said to be allowed it means "no limit".
type Limits struct {
	Memory            int64 // bytes, memory.max; -1
	MemoryReservation int64 // bytes, memory.low
	MemoryHigh        int64 // bytes, memory.high; -1
	// MemorySwap is memory and swap together, in bytes, as docker counts: 0 with a
	// Memory is twice that; equal to Memory is no swap; -1 is all swap there is.
	MemorySwap int64

	CPUQuota  int64  // microseconds of CPU time a period, all CPUs together; -1
	CPUPeriod uint64 // microseconds, 1000 to 1000000; 0 is 100000
	CPUWeight uint64 // cpu.weight, 1 to 10000, 100 is normal
	CPUShares uint64 // docker's unit, 2 to 262144, 1024 is normal; not with CPUWeight

	CpusetCPUs, CpusetMems string // lists such as "0-2,7"

	Pids int64 // processes and threads; -1

	IOWeight  uint64 // io.weight, 1 to 10000, 100 is normal
	IODevices []IOLimit
	Hugetlb   []HugetlbLimit

	// Unified are further files of the payload's cgroup and what to write to them,
	// such as "memory.zswap.max": "0".
	Unified map[string]string
}

// IOLimit limits one block device; 0 is no limit.
type IOLimit struct {
	Major, Minor        uint32
	ReadBPS, WriteBPS   uint64 // bytes a second
	ReadIOPS, WriteIOPS uint64 // operations a second
}

// HugetlbLimit limits huge pages of one size.
type HugetlbLimit struct {
	PageSize string // as in the file name: "2MB", "1GB"
	Bytes    uint64
}

// setting is one write to one file.
type setting struct {
	file, value string
	optional    bool // not asked for, but follows from what was: absent file is fine
}

// Empty says whether no limit is set.
func (l Limits) Empty() bool {
	s, err := l.settings()
	return err == nil && len(s) == 0
}

// Controllers returns the names of the controllers that l needs, sorted.
func (l Limits) Controllers() []string {
	s, err := l.settings()
	if err != nil {
		return nil
	}
	set := map[string]bool{}
	for _, w := range s {
		if c, _, _ := strings.Cut(w.file, "."); c != "cgroup" {
			set[c] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// Only returns l without those limits whose controller is not in the list, and the
// names of the controllers that they would have needed, sorted.
func (l Limits) Only(controllers []string) (kept Limits, missing []string) {
	for _, c := range l.Controllers() {
		if slices.Contains(controllers, c) {
			continue
		}
		missing = append(missing, c)
		switch c {
		case "memory":
			l.Memory, l.MemoryReservation, l.MemoryHigh, l.MemorySwap = 0, 0, 0, 0
		case "cpu":
			l.CPUQuota, l.CPUPeriod, l.CPUWeight, l.CPUShares = 0, 0, 0, 0
		case "cpuset":
			l.CpusetCPUs, l.CpusetMems = "", ""
		case "pids":
			l.Pids = 0
		case "io":
			l.IOWeight, l.IODevices = 0, nil
		case "hugetlb":
			l.Hugetlb = nil
		}
		l.Unified = maps.Clone(l.Unified)
		maps.DeleteFunc(l.Unified, func(file, _ string) bool { return strings.HasPrefix(file, c+".") })
	}
	return l, missing
}

// Validate says what is wrong with l by itself.
func (l Limits) Validate() error {
	_, err := l.settings()
	return err
}

// Quota turns a number of CPUs, in billionths, into CPUQuota and CPUPeriod.
func Quota(nanoCPUs int64) (quota int64, period uint64) {
	const us = 100000
	return nanoCPUs * us / 1e9, us
}

// WeightFromShares turns docker's CPU shares (2 to 262144) into a cpu.weight (1 to
// 10000) such that 1024 becomes 100, the normal weight of both, as runc 1.3.2 and crun
// 1.23 do; the older linear formula made it 39.
func WeightFromShares(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// IOWeightFromBlkio turns docker's --blkio-weight (10 to 1000) into an io.weight.
func IOWeightFromBlkio(weight uint64) uint64 {
	if weight < 10 {
		return 0
	}
	return 1 + (weight-10)*9999/990
}

// settings returns what to write, in the order to write it.
func (l Limits) settings() ([]setting, error) {
	var out []setting
	put := func(file, value string) { out = append(out, setting{file: file, value: value}) }
	amount := func(file string, n int64) {
		switch {
		case n > 0:
			put(file, strconv.FormatInt(n, 10))
		case n == -1:
			put(file, "max")
		}
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	amount("memory.max", l.Memory)
	switch {
	case l.MemorySwap == -1:
		put("memory.swap.max", "max")
	case l.MemorySwap > 0:
		put("memory.swap.max", strconv.FormatInt(l.MemorySwap-l.Memory, 10))
	case l.Memory > 0:
		out = append(out, setting{"memory.swap.max", strconv.FormatInt(l.Memory, 10), true})
	case l.Memory == -1:
		out = append(out, setting{"memory.swap.max", "max", true})
	}
	amount("memory.high", l.MemoryHigh)
	amount("memory.low", l.MemoryReservation)
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		quota, period := "max", uint64(100000)
		if l.CPUQuota > 0 {
			quota = strconv.FormatInt(l.CPUQuota, 10)
		}
		if l.CPUPeriod != 0 {
			period = l.CPUPeriod
		}
		put("cpu.max", fmt.Sprintf("%s %d", quota, period))
	}
	if l.CPUShares != 0 {
		put("cpu.weight", strconv.FormatUint(WeightFromShares(l.CPUShares), 10))
	}
	if l.CPUWeight != 0 {
		put("cpu.weight", strconv.FormatUint(l.CPUWeight, 10))
	}
	if l.CpusetCPUs != "" {
		put("cpuset.cpus", l.CpusetCPUs)
	}
	if l.CpusetMems != "" {
		put("cpuset.mems", l.CpusetMems)
	}
	amount("pids.max", l.Pids)
	if l.IOWeight != 0 {
		put("io.weight", "default "+strconv.FormatUint(l.IOWeight, 10))
	}
	for _, d := range l.IODevices {
		if s := d.value(); s != "" {
			put("io.max", s)
		}
	}
	for _, h := range l.Hugetlb {
		put("hugetlb."+h.PageSize+".max", strconv.FormatUint(h.Bytes, 10))
	}
	for _, file := range slices.Sorted(maps.Keys(l.Unified)) {
		put(file, l.Unified[file])
	}
	return out, nil
}

func (d IOLimit) value() string {
	var b strings.Builder
	for _, f := range []struct {
		key string
		n   uint64
	}{{"rbps", d.ReadBPS}, {"wbps", d.WriteBPS}, {"riops", d.ReadIOPS}, {"wiops", d.WriteIOPS}} {
		if f.n != 0 {
			fmt.Fprintf(&b, " %s=%d", f.key, f.n)
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d%s", d.Major, d.Minor, b.String())
}

func (l Limits) check() error {
	bad := func(what string, args ...any) error { return fmt.Errorf("limits: "+what, args...) }
	var errs []error
	for _, f := range []struct {
		name string
		n    int64
		min  int64
	}{
		{"memory", l.Memory, -1},
		{"memory reservation", l.MemoryReservation, 0},
		{"memory high", l.MemoryHigh, -1},
		{"memory and swap", l.MemorySwap, -1},
		{"cpu quota", l.CPUQuota, -1},
		{"pids", l.Pids, -1},
	} {
		if f.n < f.min {
			errs = append(errs, bad("%s is %d", f.name, f.n))
		}
	}
	if l.MemorySwap > 0 && l.Memory <= 0 {
		errs = append(errs, bad("memory and swap together need a memory limit"))
	} else if l.MemorySwap > 0 && l.MemorySwap < l.Memory {
		errs = append(errs, bad("memory and swap together (%d) are less than the memory (%d)", l.MemorySwap, l.Memory))
	}
	if l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1000000) {
		errs = append(errs, bad("cpu period of %d µs is not within 1000 to 1000000", l.CPUPeriod))
	}
	if l.CPUQuota > 0 && l.CPUQuota < 1000 {
		errs = append(errs, bad("cpu quota of %d µs is less than 1000", l.CPUQuota))
	}
	if l.CPUShares != 0 && l.CPUWeight != 0 {
		errs = append(errs, bad("cpu shares and cpu weight are two units for one thing"))
	}
	if l.CPUWeight > 10000 || l.IOWeight > 10000 {
		errs = append(errs, bad("a weight is not within 1 to 10000"))
	}
	for _, list := range []string{l.CpusetCPUs, l.CpusetMems} {
		if strings.Trim(list, "0123456789,-") != "" {
			errs = append(errs, bad("%q is not a list such as 0-2,7", list))
		}
	}
	for _, h := range l.Hugetlb {
		if h.PageSize == "" || strings.ContainsAny(h.PageSize, "/.") {
			errs = append(errs, bad("huge page size %q", h.PageSize))
		}
	}
	for file := range l.Unified {
		// cgroup.* would move processes, freeze or kill.
		if c, _, ok := strings.Cut(file, "."); !ok || c == "" || c == "cgroup" || strings.Contains(file, "/") {
			errs = append(errs, bad("%q is not a file of a cgroup controller", file))
		}
	}
	return errors.Join(errs...)
}
