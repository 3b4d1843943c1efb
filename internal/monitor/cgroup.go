package monitor

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/urun-dev/urun/cgdelegate"
)

// watchMemory makes an event of every time that the kernel kills in the container
// for want of memory.
func (c *container) watchMemory() {
	if c.handle.Cgroup == "" {
		return
	}
	scope := cgdelegate.Open(c.handle.Cgroup)
	go func() {
		for seen := c.oomKills; ; {
			n, err := scope.WaitOOMKill(context.Background(), seen)
			if err != nil || n <= seen {
				return // the cgroup has ended, or has no memory controller
			}
			seen = n
			c.events <- event{from: fromCgroup}
		}
	}()
}

// countOOM takes the number of kills of earlier runs in the same cgroup.
func (c *container) countOOM() {
	c.handle.OOMKilled = false
	if c.handle.Cgroup == "" {
		return
	}
	// Without the memory controller there is nothing to be read.
	if e, err := cgdelegate.Open(c.handle.Cgroup).Events(); err == nil {
		c.oomKills = e.OOMKill
	}
}

// lookForOOM notes a kill whose event has not been handled.
func (c *container) lookForOOM() {
	if c.handle.Cgroup == "" || c.handle.OOMKilled {
		return
	}
	if e, err := cgdelegate.Open(c.handle.Cgroup).Events(); err == nil && e.OOMKill > c.oomKills {
		c.noteOOM()
	}
}

// noteOOM puts into the record that the kernel killed for want of memory.
func (c *container) noteOOM() {
	c.tell("oom")
	if c.handle.OOMKilled {
		return
	}
	c.handle.OOMKilled = true
	// It is written again when the container ends.
	_ = c.handle.Save()
}

// leaveCgroup notes whether the container ran out of memory, ends what is left of
// it (with the host's pid namespace processes may outlive their first), and removes its
// cgroup. The monitor itself is in the supervisor's leaf: systemd's scope ends
// with it, and without systemd it goes back to where it came from.
func (c *container) leaveCgroup() error {
	if c.handle.Cgroup == "" {
		return nil
	}
	c.lookForOOM()
	return removeCgroup(c.handle.Cgroup)
}

// errEnding is the error of what comes too late.
var errEnding = errors.New("the container is ending")

// update changes limits of the container that runs, and then those of its configuration, by which it is started again. It is not done by
// the goroutine that owns the container: the kernel reclaims memory before it takes a limit.
func (c *container) update(req UpdateRequest) error {
	if req.Resources != nil {
		if err := c.updateLimits(req); err != nil {
			return err
		}
	}
	if req.Restart == nil {
		return nil
	}
	return c.ask(func() error { return c.handle.ChangeRestart(*req.Restart) })
}

func (c *container) updateLimits(req UpdateRequest) error {
	// One at a time: what the configuration says last is to be what the kernel has.
	c.updating.Lock()
	defer c.updating.Unlock()
	if c.handle.Cgroup == "" {
		return errors.New("it has no cgroup of its own")
	}
	scope := cgdelegate.Open(c.handle.Cgroup)
	if err := scope.Apply(req.Limits); err != nil {
		if _, statErr := os.Stat(scope.PayloadPath()); errors.Is(statErr, fs.ErrNotExist) {
			return errEnding
		}
		return err
	}
	return c.handle.ChangeResources(req.Resources)
}

// removeCgroup ends what is left in the cgroup of a container, and removes it.
func removeCgroup(path string) error {
	scope := cgdelegate.Open(path)
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	return errors.Join(scope.Kill(), scope.WaitEmpty(ctx), scope.Remove())
}
