package monitor

import "github.com/urun-dev/urun/internal/orphans"

// endOrphans ends what a container without a pid namespace of its own has left. It is called when
// all children that anybody else waits for have been reaped; those that were started for others are left alone.
func (c *container) endOrphans() error {
	return orphans.End(func(pid int) bool { _, other := c.spawned.Load(pid); return other })
}
