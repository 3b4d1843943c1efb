package monitor

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/state"
)

// executeAgain replaces this process by a new monitor, which finds a request to
// start the container again on its channel. It returns only on failure.
func (c *container) executeAgain(backoff time.Duration) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	req := c.Request
	req.Record = c.handle.Record
	req.Record.Init = state.Process{}
	req.Attached, req.Detach, req.Again, req.Backoff = false, true, true, backoff
	files := []*os.File{null, null, null, c.handle.File()}
	if c.cgroup != nil {
		files = append(files, c.cgroup)
	}
	files = append(files, c.joins...)
	for _, f := range []*os.File{c.pidns, c.shmNS} {
		if f != nil {
			files = append(files, f)
		}
	}
	ours, theirs, err := handoff.Pair()
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	// What is sent waits in theirs, also after ours is closed by the execve.
	if err := ours.Send(KindRequest, req, files...); err != nil {
		return errors.Join(fmt.Errorf("restart: %w", err), theirs.Close())
	}
	return fmt.Errorf("restart: %w", c.spawner().Execute(theirs, handoff.Monitor))
}
