package launch

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/cgdelegate"
)

// Limits are OCI resources in the cgroup's terms.
func Limits(r *specs.LinuxResources) cgdelegate.Limits {
	var l cgdelegate.Limits
	if r == nil {
		return l
	}
	l.Unified = r.Unified
	if m := r.Memory; m != nil {
		l.Memory, l.MemoryReservation, l.MemorySwap = value(m.Limit), value(m.Reservation), value(m.Swap)
		if l.Memory > 0 && l.MemorySwap == 2*l.Memory {
			l.MemorySwap = 0 // the library's own default, which knows whether swap is counted
		}
	}
	if c := r.CPU; c != nil {
		l.CPUQuota, l.CPUPeriod, l.CPUShares = value(c.Quota), value(c.Period), value(c.Shares)
		l.CpusetCPUs, l.CpusetMems = c.Cpus, c.Mems
	}
	if r.Pids != nil {
		l.Pids = value(r.Pids.Limit)
	}
	if b := r.BlockIO; b != nil {
		l.IOWeight = cgdelegate.IOWeightFromBlkio(uint64(value(b.Weight)))
		l.IODevices = ioLimits(b)
	}
	for _, h := range r.HugepageLimits {
		l.Hugetlb = append(l.Hugetlb, cgdelegate.HugetlbLimit{PageSize: h.Pagesize, Bytes: h.Limit})
	}
	return l
}

func ioLimits(b *specs.LinuxBlockIO) []cgdelegate.IOLimit {
	var all []cgdelegate.IOLimit
	add := func(devices []specs.LinuxThrottleDevice, set func(*cgdelegate.IOLimit, uint64)) {
		for _, d := range devices {
			l := cgdelegate.IOLimit{Major: uint32(d.Major), Minor: uint32(d.Minor)}
			set(&l, d.Rate)
			all = append(all, l)
		}
	}
	add(b.ThrottleReadBpsDevice, func(l *cgdelegate.IOLimit, n uint64) { l.ReadBPS = n })
	add(b.ThrottleWriteBpsDevice, func(l *cgdelegate.IOLimit, n uint64) { l.WriteBPS = n })
	add(b.ThrottleReadIOPSDevice, func(l *cgdelegate.IOLimit, n uint64) { l.ReadIOPS = n })
	add(b.ThrottleWriteIOPSDevice, func(l *cgdelegate.IOLimit, n uint64) { l.WriteIOPS = n })
	return all
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
