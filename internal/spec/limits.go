package spec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	minMemory  = 6 << 20 // docker's minimum
	cpuPeriod  = 100_000 // µs, the kernel's default
	minPeriod  = 1_000   // µs, kernel/sched/core.c
	maxPeriod  = 1_000_000
	minQuota   = 1_000
	minShares  = 2
	maxShares  = 262_144
	maxWeight  = 10_000 // of cgroup v2
	maxCPUList = 8192   // NR_CPUS is never larger
)

// CgroupMode says what a cgroup is needed for.
type CgroupMode string

const (
	// CgroupAuto: limits must be kept, or it is an error; a container without
	// limits gets a cgroup where systemd gives one.
	CgroupAuto CgroupMode = ""
	// CgroupTry: what cannot be had is left out and named.
	CgroupTry CgroupMode = "try"
	// CgroupEnforce: there must be a cgroup.
	CgroupEnforce CgroupMode = "enforce"
	// CgroupDisabled: there is none.
	CgroupDisabled CgroupMode = "disabled"
)

// limits parses the flags for the cgroup, with docker's checks.
func (b *builder) limits() error {
	r, err := ParseResources(b.opt.Resources, b.facts.NumCPU, b.facts.Host)
	if err != nil {
		return err
	}
	if b.c.Cgroups == CgroupDisabled && Limited(r) {
		return conflict("--cgroups=disabled and resource limits")
	}
	b.linux.Resources = r
	parent := b.opt.Resources.CgroupParent
	if parent != "" && !strings.HasSuffix(parent, ".slice") && !strings.HasPrefix(parent, "/sys/fs/cgroup/") {
		return hint("a slice such as batch.slice, or the directory of a cgroup that is yours, below /sys/fs/cgroup",
			"--cgroup-parent %s: neither a slice nor a cgroup's directory", parent)
	}
	b.linux.CgroupsPath = parent
	return b.oomScore()
}

func (b *builder) oomScore() error {
	adj := b.opt.Resources.OOMScoreAdj
	if adj == nil {
		return nil
	}
	if *adj < -1000 || *adj > 1000 {
		return fmt.Errorf("--oom-score-adj %d: must be from -1000 to 1000", *adj)
	}
	b.proc.OOMScoreAdj = adj
	return nil
}

// Limited reports whether there is something for a cgroup to enforce; that
// something is explicitly unlimited (-1) is not.
func Limited(r *specs.LinuxResources) bool {
	if r == nil {
		return false
	}
	m, c, pids := r.Memory, r.CPU, r.Pids
	switch {
	case m != nil && (above0(m.Limit) || above0(m.Reservation) || above0(m.Swap)),
		c != nil && (above0(c.Quota) || c.Period != nil || c.Shares != nil || c.Cpus != "" || c.Mems != ""),
		pids != nil && above0(pids.Limit),
		r.BlockIO != nil, len(r.HugepageLimits) > 0, len(r.Unified) > 0:
		return true
	}
	return false
}

func above0(n *int64) bool { return n != nil && *n > 0 }

// ParseResources makes OCI resources of the flags. NumCPU is how many CPUs there
// are, 0 if that is not known; the host is asked for devices' numbers.
func ParseResources(o ResourceOptions, numCPU int, host Host) (*specs.LinuxResources, error) {
	p := resourceParser{o: o, numCPU: numCPU, host: host, r: &specs.LinuxResources{}}
	for _, parse := range []func() error{p.memory, p.cpu, p.pids, p.blockIO, p.hugetlb, p.unified} {
		if err := parse(); err != nil {
			return nil, err
		}
	}
	return p.r, nil
}

type resourceParser struct {
	o      ResourceOptions
	numCPU int
	host   Host
	r      *specs.LinuxResources
}

func (p *resourceParser) put(file, value string) {
	if p.r.Unified == nil {
		p.r.Unified = map[string]string{}
	}
	p.r.Unified[file] = value
}

func (p *resourceParser) memory() error {
	memory, err := bytesFlag("--memory", p.o.Memory)
	if err != nil {
		return err
	}
	reservation, err := bytesFlag("--memory-reservation", p.o.MemoryReservation)
	if err != nil {
		return err
	}
	high, err := bytesFlag("--memory-high", p.o.MemoryHigh)
	if err != nil {
		return err
	}
	swap, err := bytesFlag("--memory-swap", p.o.MemorySwap)
	if err != nil {
		return err
	}
	switch {
	case memory > 0 && memory < minMemory:
		return fmt.Errorf("--memory: minimum memory limit allowed is 6MB")
	case reservation > 0 && reservation < minMemory || reservation < 0:
		return fmt.Errorf("--memory-reservation: minimum memory reservation allowed is 6MB")
	case swap > 0 && memory <= 0:
		return fmt.Errorf("--memory-swap: you should always set the memory limit when using the memory-swap limit")
	case swap > 0 && swap < memory:
		return fmt.Errorf("--memory-swap: minimum memory-swap limit should be larger than the memory limit")
	case memory > 0 && reservation > memory:
		return fmt.Errorf("--memory: minimum memory limit can not be less than the memory reservation limit")
	case memory > 0 && high > memory:
		return fmt.Errorf("--memory-high: it can not be more than the memory limit, which would be met first")
	}
	if memory > 0 && swap == 0 {
		swap = 2 * memory // docker: as much swap as memory
	}
	if memory != 0 || reservation != 0 || swap != 0 {
		p.r.Memory = &specs.LinuxMemory{Limit: nonZero(memory), Swap: nonZero(swap), Reservation: nonZero(reservation)}
	}
	switch {
	case high > 0:
		p.put("memory.high", strconv.FormatInt(high, 10))
	case high < 0:
		p.put("memory.high", "max")
	}
	return nil
}

// bytesFlag parses a size; -1 is "unlimited".
func bytesFlag(flag, s string) (int64, error) {
	switch s {
	case "":
		return 0, nil
	case "-1":
		return -1, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %s: not a size such as 512m", flag, s)
	}
	return n, nil
}

func (p *resourceParser) cpu() error {
	c := specs.LinuxCPU{Cpus: p.o.CPUSet, Mems: p.o.CPUSetMems}
	if err := p.quota(&c); err != nil {
		return err
	}
	if s := p.o.CPUShares; s != 0 && (s < minShares || s > maxShares) {
		return fmt.Errorf("--cpu-shares %d: must be from %d to %d", s, minShares, maxShares)
	}
	if p.o.CPUWeight > maxWeight {
		return fmt.Errorf("--cpu-weight %d: must be from 1 to %d", p.o.CPUWeight, maxWeight)
	}
	if p.o.CPUShares != 0 && p.o.CPUWeight != 0 {
		return conflict("--cpu-shares and --cpu-weight are two units for one thing")
	}
	c.Shares = nonZero(uint64(p.o.CPUShares))
	if err := checkCPUSet("--cpuset-cpus", c.Cpus, p.numCPU); err != nil {
		return err
	}
	if err := checkCPUSet("--cpuset-mems", c.Mems, 0); err != nil {
		return err
	}
	if c != (specs.LinuxCPU{}) {
		p.r.CPU = &c
	}
	if p.o.CPUWeight != 0 {
		p.put("cpu.weight", strconv.FormatUint(p.o.CPUWeight, 10))
	}
	return nil
}

func (p *resourceParser) quota(c *specs.LinuxCPU) error {
	quota, period := p.o.CPUQuota, p.o.CPUPeriod
	if p.o.CPUs != "" {
		if quota != 0 || period != 0 {
			return conflict("--cpus and --cpu-quota or --cpu-period cannot both be set")
		}
		cpus, err := strconv.ParseFloat(p.o.CPUs, 64)
		if err != nil || cpus < 0 || cpus != cpus {
			return fmt.Errorf("--cpus %s: not a number of CPUs such as 1.5", p.o.CPUs)
		}
		if cpus > 0 && cpus < 0.01 || p.numCPU > 0 && cpus > float64(p.numCPU) || cpus > maxCPUList {
			return fmt.Errorf("--cpus %s: range of CPUs is from 0.01 to %d.00", p.o.CPUs, max(p.numCPU, 1))
		}
		if cpus > 0 {
			quota, period = int64(cpus*cpuPeriod+0.5), cpuPeriod
		}
	}
	if quota != 0 && quota < minQuota && quota != -1 {
		return fmt.Errorf("--cpu-quota %d: can not be less than 1ms (i.e. 1000)", quota)
	}
	if period != 0 && (period < minPeriod || period > maxPeriod) {
		return fmt.Errorf("--cpu-period %d: can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)", period)
	}
	c.Quota, c.Period = nonZero(quota), nonZero(uint64(period))
	return nil
}

// checkCPUSet checks the kernel's list format: 0-2,4.
func checkCPUSet(flag, s string, cpus int) error {
	if s == "" {
		return nil
	}
	for _, part := range strings.Split(s, ",") {
		a, z, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(a, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(z, 10, 16)
		}
		if err != nil || last < first {
			return fmt.Errorf("%s %s: not a list such as 0-2,4", flag, s)
		}
		if last >= maxCPUList || cpus > 0 && int(last) >= cpus {
			return fmt.Errorf("%s %s: requested CPUs are not available, there are %d", flag, s, cpus)
		}
	}
	return nil
}

func (p *resourceParser) pids() error {
	n := p.o.PidsLimit
	if n == nil {
		return nil
	}
	limit := *n
	if limit < -1 {
		return fmt.Errorf("--pids-limit %d: less than -1, which is no limit", limit)
	}
	if limit <= 0 {
		limit = -1
	}
	p.r.Pids = &specs.LinuxPids{Limit: &limit}
	return nil
}

func nonZero[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}
