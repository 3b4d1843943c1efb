package monitor

import (
	"errors"
	"fmt"
	"time"

	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// startup is a container between the start of its processes and the moment in
// which init has become the command.
type startup struct {
	*container
	ready     *stage.Ready // what init said when only the command was left
	listening bool         // published ports are bound
	connected bool         // the container is on its networks
	signals   []event      // for the command, from before it was known to run
}

// untilStarted handles events until the command runs.
func (c *container) untilStarted() error {
	s := &startup{container: c, listening: c.helper == nil, connected: !c.Bridge}
	for {
		if s.ready != nil && s.listening && s.connected && !c.started {
			if err := c.execute(); err != nil {
				return err
			}
			c.started = true
		}
		if done, err := s.take(<-c.events); done || err != nil {
			return err
		}
	}
}

func (s *startup) take(e event) (done bool, err error) {
	if e.do != nil {
		e.answer <- e.do()
		return false, nil
	}
	if err := e.failed(); err != nil {
		return false, s.reason(err)
	}
	switch e.from {
	case fromInit:
		return s.fromInit(e)
	case fromCommand:
		if e.msg == nil {
			if s.Backoff > 0 {
				return false, nil // there was none
			}
			return false, errors.New("the command is gone")
		}
		if s.started || e.kind() != KindSignal {
			// The command may run already, and must get it; or is about to, and
			// would never see what its predecessor, as pid 1, ignores.
			s.signals = append(s.signals, e)
			return false, nil
		}
		// A signal before the command runs ends it, as it would end a program
		// with no handler.
		return false, s.signalEarly(e)
	case fromTUN:
		s.fromTUN(e)
		return false, nil
	case fromUnion:
		if e.kind() == holder.KindMounted {
			defer e.msg.Close()
			return false, s.init.conn.Send(stage.KindImage, nil, e.msg.Files...)
		}
	case fromBridges:
		s.connected = s.connected || e.joined != nil
		return false, s.fromBridges(e)
	case fromNetwork:
		if e.kind() == KindDriver {
			s.driverChanged(e)
			return false, nil
		}
		if e.kind() == KindListening {
			s.listening = true
			return false, s.takePorts(e)
		}
	}
	if e.ended && !(s.started && e.gracefully()) {
		// Gracefully: the command has come and gone so fast that its mounts and
		// its TUN, and with them the helpers, went before anything else was heard.
		if e.gracefully() && !e.late {
			// Or init has failed: why is for init to say, which may be heard after the ends of what went with it.
			e.late = true
			time.AfterFunc(unionTime, func() { s.events <- e })
			return false, nil
		}
		return false, e.unexpected()
	}
	return false, nil
}

// reason is why init has failed: where the union has ended, what that says of it, which may be heard later.
func (s *startup) reason(err error) error {
	var said *saidError
	if s.union == nil || !errors.As(err, &said) || !said.Unserved {
		return err
	}
	// If another file system is meant, the union ends with its mount, and that with init.
	limit := time.After(unionTime)
	for {
		var e event
		select {
		case e = <-s.events:
		case <-limit:
			return err
		}
		switch {
		case e.do != nil:
			e.answer <- err
		case e.from != fromUnion:
		case e.failed() != nil:
			return e.failed()
		case e.ended:
			return err
		}
	}
}

func (s *startup) fromInit(e event) (done bool, err error) {
	switch {
	case e.kind() == stage.KindFuse:
		return false, s.serveUnion(e)
	case e.kind() == stage.KindListener:
		return false, s.emulate(e.msg)
	case e.kind() == stage.KindReady:
		return false, s.takeReady(e)
	case e.ended && s.started:
		// The command has come and gone before its channel was read: its end is
		// for later.
		s.events <- e
		return true, s.announce()
	case e.ended:
		return false, e.unexpected()
	case e.msg == nil && s.started:
		// The channel closed by execve: the command runs.
		return true, s.announce()
	}
	return false, nil
}

// takeReady takes what init gives when it is ready.
func (s *startup) takeReady(e event) error {
	ready := &stage.Ready{}
	if err := e.msg.Decode(ready); err != nil {
		return err
	}
	files := e.msg.Files
	want := 0
	for _, has := range []bool{ready.HasTUN, ready.HasTTY} {
		if has {
			want++
		}
	}
	if len(files) != want {
		return fmt.Errorf("init: got %d files, want %d", len(files), want)
	}
	s.ready = ready
	s.handle.Storage, s.handle.RootEmulation = string(ready.Storage), ready.Emulated
	if ready.HasTTY {
		if err := s.out.terminal(files[want-1], s.Size); err != nil {
			return err
		}
	}
	if slirp.External(s.Slirp.Driver) && s.Slirp.Program != "" {
		return s.startExternal()
	}
	if !ready.HasTUN {
		return nil
	}
	s.tun = files[0]
	if s.Slirp.Driver == slirp.DriverKernel {
		// Asked for by name: that it cannot be had is known before the command runs.
		if s.prepared = prepareNetwork(s.Slirp, s.tun); s.prepared.err != nil {
			return fmt.Errorf("network driver kernel: %w", s.prepared.err)
		}
	}
	if s.helper == nil {
		go s.awaitTraffic()
		return nil
	}
	if s.prepared == nil {
		go s.prepare(nil)
		return nil
	}
	return s.attachNetwork(nil)
}

// execute writes the record and lets init go on to the command.
func (c *container) execute() error {
	var err error
	if c.handle.Init, err = state.ProcessOf(c.init.cmd.Process.Pid); err != nil {
		return err
	}
	if c.Ranks != nil {
		if c.mounts, err = c.mountNamespace(); err != nil {
			return err
		}
	}
	c.handle.Status, c.handle.Started = state.Running, time.Now()
	c.handle.ExitCode, c.handle.Error = 0, "" // of the run before
	if err := c.handle.Save(); err != nil {
		return err
	}
	c.tell("start")
	return c.init.conn.Send(stage.KindExec, nil)
}

// announce tells the command that the container runs.
func (s *startup) announce() error {
	init := s.handle.Init
	s.running.Store(&init)
	// Nobody is left to be told when the send fails; the end of the channel is
	// an event of its own.
	_ = s.parent.Send(KindStarted, Started{Notices: s.ready.Notices, Ports: s.handle.Ports})
	for _, e := range s.signals {
		s.obey(e)
	}
	s.watchHealth()
	s.thrift.Busy()
	return nil
}

func (c *container) signalEarly(e event) error {
	var sig Signal
	if err := e.msg.Decode(&sig); err != nil {
		return err
	}
	c.noteStop(sig)
	return &exitError{code: 128 + sig.Number}
}

type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }
