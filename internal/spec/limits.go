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
	maxCPUList = 8192 // NR_CPUS is never larger
)

// limits parses the flags for the cgroup, with docker's checks.
func (b *builder) limits() error {
	l := &b.c.Limits
	if err := b.memory(l); err != nil {
		return err
	}
	if err := b.cpu(l); err != nil {
		return err
	}
	if p := b.opt.PidsLimit; p != nil {
		l.PIDs = *p
		if *p <= 0 {
			l.PIDs = -1
		}
	}
	if b.c.Cgroups == "disabled" && l.Any() {
		return conflict("--cgroups=disabled and resource limits")
	}
	return nil
}

func (b *builder) memory(l *Limits) error {
	var err error
	if l.Memory, err = bytesFlag("--memory", b.opt.Memory); err != nil {
		return err
	}
	if l.MemoryReservation, err = bytesFlag("--memory-reservation", b.opt.MemoryReservation); err != nil {
		return err
	}
	if b.opt.MemorySwap == "-1" {
		l.MemorySwap = -1
	} else if l.MemorySwap, err = bytesFlag("--memory-swap", b.opt.MemorySwap); err != nil {
		return err
	}
	switch {
	case l.Memory != 0 && l.Memory < minMemory:
		return fmt.Errorf("--memory: minimum memory limit allowed is 6MB")
	case l.MemoryReservation != 0 && l.MemoryReservation < minMemory:
		return fmt.Errorf("--memory-reservation: minimum memory reservation allowed is 6MB")
	case l.MemorySwap > 0 && l.Memory == 0:
		return fmt.Errorf("--memory-swap: you should always set the memory limit when using the memory-swap limit")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return fmt.Errorf("--memory-swap: minimum memory-swap limit should be larger than the memory limit")
	case l.Memory > 0 && l.MemoryReservation > l.Memory:
		return fmt.Errorf("--memory: minimum memory limit can not be less than the memory reservation limit")
	}
	if l.Memory > 0 && l.MemorySwap == 0 {
		// docker: as much swap as memory.
		l.MemorySwap, l.SwapDefault = 2*l.Memory, true
	}
	return nil
}

func bytesFlag(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %s: not a size such as 512m", flag, s)
	}
	return n, nil
}

func (b *builder) cpu(l *Limits) error {
	o := &b.opt
	if o.CPUs != "" {
		if o.CPUQuota != 0 || o.CPUPeriod != 0 {
			return conflict("--cpus and --cpu-quota or --cpu-period cannot both be set")
		}
		cpus, err := strconv.ParseFloat(o.CPUs, 64)
		if err != nil || cpus < 0 || cpus != cpus {
			return fmt.Errorf("--cpus %s: not a number of CPUs such as 1.5", o.CPUs)
		}
		if cpus > 0 && cpus < 0.01 || b.facts.NumCPU > 0 && cpus > float64(b.facts.NumCPU) || cpus > maxCPUList {
			return fmt.Errorf("--cpus %s: range of CPUs is from 0.01 to %d.00", o.CPUs, max(b.facts.NumCPU, 1))
		}
		if cpus > 0 {
			l.CPUPeriod, l.CPUQuota = cpuPeriod, int64(cpus*cpuPeriod+0.5)
		}
	}
	if q := o.CPUQuota; q != 0 && q < minQuota && q != -1 {
		return fmt.Errorf("--cpu-quota %d: can not be less than 1ms (i.e. 1000)", q)
	}
	if p := o.CPUPeriod; p != 0 && (p < minPeriod || p > maxPeriod) {
		return fmt.Errorf("--cpu-period %d: can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)", p)
	}
	if o.CPUQuota > 0 {
		l.CPUQuota = o.CPUQuota
	}
	if o.CPUPeriod > 0 {
		l.CPUPeriod = uint64(o.CPUPeriod)
	}
	if s := o.CPUShares; s != 0 && (s < minShares || s > maxShares) {
		return fmt.Errorf("--cpu-shares %d: must be from %d to %d", s, minShares, maxShares)
	}
	l.CPUShares = uint64(o.CPUShares)
	l.CPUSet = o.CPUSet
	return checkCPUSet(o.CPUSet, b.facts.NumCPU)
}

// checkCPUSet checks the kernel's list format: 0-2,4.
func checkCPUSet(s string, cpus int) error {
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
			return fmt.Errorf("--cpuset-cpus %s: not a list such as 0-2,4", s)
		}
		if last >= maxCPUList || cpus > 0 && int(last) >= cpus {
			return fmt.Errorf("--cpuset-cpus %s: requested CPUs are not available, there are %d", s, cpus)
		}
	}
	return nil
}

// resources is the same in OCI's form.
func (l Limits) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if l.Memory != 0 || l.MemorySwap != 0 || l.MemoryReservation != 0 {
		r.Memory = &specs.LinuxMemory{Limit: nonZero(l.Memory), Swap: nonZero(l.MemorySwap), Reservation: nonZero(l.MemoryReservation)}
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 || l.CPUShares != 0 || l.CPUSet != "" {
		r.CPU = &specs.LinuxCPU{Quota: nonZero(l.CPUQuota), Period: nonZero(l.CPUPeriod), Shares: nonZero(l.CPUShares), Cpus: l.CPUSet}
	}
	if l.PIDs != 0 {
		r.Pids = &specs.LinuxPids{Limit: nonZero(l.PIDs)}
	}
	return r
}

func nonZero[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}
