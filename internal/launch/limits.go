package launch

import (
	"context"
	"errors"
	"os"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// limit puts the monitor into a delegated cgroup with a leaf for the
// container, which has the limits, and returns the leaf for init to be started
// in; nil where nothing is limited.
func (p Plan) limit(pending *Pending, handle *state.Handle) (*os.File, error) {
	l := p.Container.Limits
	if !l.Any() || p.Container.Cgroups == "disabled" {
		return nil, nil
	}
	pid, err := pending.PID()
	if err != nil {
		return nil, err
	}
	scope, err := cgdelegate.Create(context.Background(), cgdelegate.Options{
		Name:        "urun-" + handle.ID,
		Description: "urun container " + handle.Name,
		PIDs:        []int{pid},
		Limits:      cgroupLimits(l),
	})
	if err != nil {
		return nil, err
	}
	// From here on whoever cleans up after us knows of it.
	handle.Cgroup = scope.Path()
	dir, err := scope.PayloadFD()
	if err == nil {
		err = handle.Save()
	}
	if err != nil {
		return nil, errors.Join(err, scope.Remove())
	}
	return dir, nil
}

func cgroupLimits(l spec.Limits) cgdelegate.Limits {
	c := cgdelegate.Limits{
		Memory: l.Memory, MemoryReservation: l.MemoryReservation, MemorySwap: l.MemorySwap,
		CPUQuota: l.CPUQuota, CPUPeriod: l.CPUPeriod, CPUShares: l.CPUShares,
		CpusetCPUs: l.CPUSet, Pids: l.PIDs,
	}
	if l.SwapDefault {
		c.MemorySwap = 0 // the library's own default, which knows whether swap is counted
	}
	return c
}
