package monitor

import (
	"context"
	"errors"

	"github.com/urun-dev/urun/cgdelegate"
)

// leaveCgroup notes whether the container ran out of memory and removes its
// cgroup. The monitor itself is in the supervisor's leaf: systemd's scope ends
// with it, and without systemd it goes back to where it came from.
func (c *container) leaveCgroup() error {
	if c.handle.Cgroup == "" {
		return nil
	}
	scope := cgdelegate.Open(c.handle.Cgroup)
	if killed, err := scope.OOMKilled(); err == nil {
		c.handle.OOMKilled = killed // without a memory limit there is nothing to be read
	}
	return scope.Remove()
}

// removeCgroup ends what is left in the cgroup of a container whose monitor is
// gone, and removes it.
func removeCgroup(path string) error {
	scope := cgdelegate.Open(path)
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	return errors.Join(scope.Kill(), scope.WaitEmpty(ctx), scope.Remove())
}
