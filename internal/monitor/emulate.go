package monitor

import (
	"errors"
	"fmt"
	"os"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/emulation"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
)

// emulate answers the calls that come in on the listener of init and what it starts. It does so on other threads: who
// waits for an answer is never waited for there.
func (c *container) emulate(m *handoff.Message) error {
	var l stage.Listener
	if len(m.Files) != 1 {
		m.Close()
		return fmt.Errorf("emulate root: got %d files", len(m.Files))
	}
	if err := m.Decode(&l); err != nil {
		m.Close()
		return err
	}
	return c.supervise(m.Files[0], l.Union)
}

// superviseVisitor does so for a command that comes into the container beside init.
func (c *container) superviseVisitor(listener *os.File) error { return c.supervise(listener, false) }

// supervise takes the listener. Union says that the container's root is a union that remembers owners, and matters the first time.
func (c *container) supervise(listener *os.File, union bool) error {
	c.supervising.Lock()
	defer c.supervising.Unlock()
	if c.supervisor == nil {
		var err error
		if c.supervisor, err = emulation.New(c.init.cmd.Process.Pid, union); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	c.supervisor.Serve(listener)
	return nil
}

// options are how the union stage serves a writable layer.
func (s *Serve) options() fuseunion.UnionOptions {
	o := fuseunion.UnionOptions{Volatile: s.Volatile}
	if s.Emulate {
		o.Emulate = &fuseunion.Emulation{Caller: caller}
	}
	return o
}

// caller is who a process shows itself as.
func caller(pid uint32) (uid, gid uint32, ok bool) {
	t, err := emulation.Of(int(pid))
	if err != nil {
		return 0, 0, false // it is gone, or of a pid namespace outside of this process's
	}
	return t.Files()
}
