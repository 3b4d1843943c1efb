package monitor

import (
	"fmt"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/emulation"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
)

// emulate answers the calls that come in on a listener: of init and what it starts, or
// of a visitor. It does so on other threads: who waits for an answer is never waited
// for there.
func (c *container) emulate(m *handoff.Message) error {
	if len(m.Files) != 1 {
		m.Close()
		return fmt.Errorf("emulate root: got %d files", len(m.Files))
	}
	c.supervising.Lock()
	defer c.supervising.Unlock()
	if c.supervisor == nil {
		var l stage.Listener
		err := m.Decode(&l)
		if err == nil {
			c.supervisor, err = emulation.New(c.init.cmd.Process.Pid, l.Union)
		}
		if err != nil {
			m.Close()
			return err
		}
	}
	c.supervisor.Serve(m.Files[0])
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
