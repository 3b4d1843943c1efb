package main

import (
	"errors"
	"fmt"
	"maps"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// UpdateCmd is urun update.
type UpdateCmd struct {
	LimitFlags `embed:""`
	Containers []string `arg:"" name:"container"`
}

// Run changes limits of containers: at once of those that run, at the next start of
// others.
func (u *UpdateCmd) Run(app *App) error {
	r, err := spec.ParseResources(u.options(), runtime.NumCPU(), spec.System{})
	if err != nil {
		return err
	}
	limits := launch.Limits(r)
	if limits.Empty() {
		return errors.New("say which limit to change, such as --memory 512m")
	}
	return each(app, u.Containers, func(st *state.Store, rec *state.Record) error {
		s, err := st.Spec(rec.ID)
		if err != nil {
			return err
		}
		if rec.Status == state.Running {
			scope, err := scopeOf(rec)
			if err != nil {
				return err
			}
			if err := scope.Apply(limits); err != nil {
				return fmt.Errorf("update container %s: %w", rec.Name, err)
			}
		}
		if s.Linux == nil {
			s.Linux = &specs.Linux{}
		}
		s.Linux.Resources = mergeResources(s.Linux.Resources, r)
		if err := state.SaveSpec(st.Dir(rec.ID), s); err != nil {
			return err
		}
		app.tell(containerEvent("update", rec))
		_, err = fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
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
