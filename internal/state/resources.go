package state

import (
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ChangeResources puts into the container's OCI runtime spec the resources that change sets.
func (h *Handle) ChangeResources(change *specs.LinuxResources) error {
	s, err := readSpec(h.dir)
	if err != nil {
		return err
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	s.Linux.Resources = mergeResources(s.Linux.Resources, change)
	return SaveSpec(h.dir, s)
}

// mergeResources gives old with what is set in change.
func mergeResources(old, change *specs.LinuxResources) *specs.LinuxResources {
	if old == nil {
		return change
	}
	r := *old
	if m := change.Memory; m != nil {
		merged := value(r.Memory)
		replace(&merged.Limit, m.Limit)
		if m.Limit != nil && *m.Limit < 0 {
			merged.Swap = nil // the old limit's, which without one means nothing
		}
		replace(&merged.Swap, m.Swap)
		replace(&merged.Reservation, m.Reservation)
		r.Memory = &merged
	}
	if c := change.CPU; c != nil {
		merged := value(r.CPU)
		replace(&merged.Quota, c.Quota)
		replace(&merged.Period, c.Period)
		replace(&merged.Shares, c.Shares)
		if c.Cpus != "" {
			merged.Cpus = c.Cpus
		}
		if c.Mems != "" {
			merged.Mems = c.Mems
		}
		r.CPU = &merged
	}
	if change.Pids != nil {
		r.Pids = change.Pids
	}
	if b := change.BlockIO; b != nil {
		merged := value(r.BlockIO)
		replace(&merged.Weight, b.Weight)
		merged.ThrottleReadBpsDevice = mergeDevices(merged.ThrottleReadBpsDevice, b.ThrottleReadBpsDevice)
		merged.ThrottleWriteBpsDevice = mergeDevices(merged.ThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice)
		merged.ThrottleReadIOPSDevice = mergeDevices(merged.ThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice)
		merged.ThrottleWriteIOPSDevice = mergeDevices(merged.ThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice)
		r.BlockIO = &merged
	}
	for _, h := range change.HugepageLimits {
		r.HugepageLimits = mergeHuge(r.HugepageLimits, h)
	}
	if len(change.Unified) > 0 {
		merged := maps.Clone(r.Unified)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, change.Unified)
		r.Unified = merged
	}
	return &r
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func replace[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

func mergeDevices(old, change []specs.LinuxThrottleDevice) []specs.LinuxThrottleDevice {
	out := append([]specs.LinuxThrottleDevice{}, change...)
	for _, o := range old {
		again := false
		for _, c := range change {
			again = again || c.Major == o.Major && c.Minor == o.Minor
		}
		if !again {
			out = append(out, o)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func mergeHuge(old []specs.LinuxHugepageLimit, change specs.LinuxHugepageLimit) []specs.LinuxHugepageLimit {
	out := []specs.LinuxHugepageLimit{change}
	for _, o := range old {
		if o.Pagesize != change.Pagesize {
			out = append(out, o)
		}
	}
	return out
}
