package launch

import (
	"errors"
	"os"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/infra"
	"github.com/urun-dev/urun/internal/monitor"
)

// Pending is a monitor that is being started. Starting one takes a few
// milliseconds, more where newuidmap has to run first: the command finds out
// meanwhile what to ask it for.
type Pending struct {
	done  chan struct{}
	stage *handoff.Spawned
	err   error
}

// Begin has the holder that opt means start a monitor. Stderr is where the
// monitor may complain; nil for that of a detached container, whose caller may wait
// for the end of its own.
func Begin(opt holder.Options, stderr *os.File) *Pending {
	return pend(func() (*handoff.Spawned, error) { return holder.Spawn(opt, handoff.Monitor, stderr) })
}

// BeginBeside starts a monitor in the user namespace of a running container,
// whose directory is dir.
func BeginBeside(dir string) *Pending {
	return pend(func() (*handoff.Spawned, error) { return monitor.Spawn(dir, handoff.Monitor) })
}

// BeginOnNetworks starts a monitor for a container that is on networks: in the user
// namespace of all that are.
func BeginOnNetworks(opt holder.Options, stderr *os.File) *Pending {
	return pend(func() (*handoff.Spawned, error) {
		begin := func() (*handoff.Conn, error) {
			s, err := holder.Spawn(opt, handoff.Infra, nil)
			if err != nil {
				return nil, err
			}
			return s.Conn, s.Process.Close()
		}
		return infra.Spawn(opt.Store, opt.Map.Key(), begin, stderr)
	})
}

func pend(start func() (*handoff.Spawned, error)) *Pending {
	p := &Pending{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.stage, p.err = start()
	}()
	return p
}

// PID waits for the monitor and returns its pid.
func (p *Pending) PID() (int, error) {
	<-p.done
	if p.err != nil {
		return 0, p.err
	}
	return p.stage.PID, nil
}

// Cancel ends a monitor that was not asked for anything.
func (p *Pending) Cancel() {
	<-p.done
	if p.err == nil {
		// It ends at the end of the channel.
		_ = (&Session{stage: p.stage}).end()
	}
}

// Run asks the monitor for a container.
func (p *Pending) Run(req monitor.Request, files []*os.File) (*Session, error) {
	<-p.done
	if p.err != nil {
		return nil, p.err
	}
	s := &Session{stage: p.stage}
	if err := s.stage.Conn.Send(monitor.KindRequest, req, files...); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}
