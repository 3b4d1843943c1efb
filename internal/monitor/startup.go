package monitor

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
)

// startup is a container between the start of its processes and the moment in
// which init has become the command.
type startup struct {
	*container
	ready     *stage.Ready // what init said when only the command was left
	master    *os.File     // the container's terminal
	listening bool         // published ports are bound
	signals   []event      // for the command, from before it was known to run
}

// untilStarted handles events until the command runs.
func (c *container) untilStarted() error {
	s := &startup{container: c, listening: c.helper == nil}
	for {
		if s.ready != nil && s.listening && !c.started {
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
	if err := e.failed(); err != nil {
		return false, err
	}
	switch e.from {
	case fromInit:
		return s.fromInit(e)
	case fromCommand:
		if e.msg == nil {
			return false, errors.New("the command is gone")
		}
		if s.started {
			// The command may run already, and must get it; or is about to, and
			// would never see what its predecessor, as pid 1, ignores.
			s.signals = append(s.signals, e)
			return false, nil
		}
		// A signal before the command runs ends it, as it would end a program
		// with no handler.
		return false, s.signalEarly(e)
	case fromTUN:
		s.wakeNetwork(e.frame)
		return false, nil
	case fromNetwork:
		if e.kind() == KindListening {
			s.listening = true
			return false, e.msg.Decode(&s.handle.Ports)
		}
	}
	if e.ended && !(s.started && e.gracefully()) {
		// Gracefully: the command has come and gone so fast that its mounts and
		// its TUN, and with them the helpers, went before anything else was heard.
		return false, e.unexpected()
	}
	return false, nil
}

func (s *startup) fromInit(e event) (done bool, err error) {
	switch {
	case e.kind() == stage.KindFuse:
		err := s.union.conn.Send(KindServe, nil, e.msg.Files...)
		e.msg.Close()
		return false, err
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
	if ready.HasTTY {
		s.master = files[want-1]
	}
	if !ready.HasTUN {
		return nil
	}
	s.tun = files[0]
	if s.helper == nil {
		go s.awaitTraffic()
		return nil
	}
	return s.helper.conn.Send(KindAttach, Attach{}, s.tun)
}

// execute writes the record and lets init go on to the command.
func (c *container) execute() error {
	var err error
	if c.handle.Init, err = state.ProcessOf(c.init.cmd.Process.Pid); err != nil {
		return err
	}
	c.handle.Status, c.handle.Started = state.Running, time.Now()
	if err := c.handle.Save(); err != nil {
		return err
	}
	return c.init.conn.Send(stage.KindExec, nil)
}

// announce tells the command that the container runs.
func (s *startup) announce() error {
	started := Started{HasTTY: s.master != nil && !s.Detach, Notices: s.ready.Notices, Ports: s.handle.Ports}
	var files []*os.File
	if started.HasTTY {
		files = []*os.File{s.master}
	} else if s.master != nil {
		s.log.follow(s.master, "stdout")
	}
	// Nobody is left to be told when the send fails; the end of the channel is
	// an event of its own.
	_ = s.parent.Send(KindStarted, started, files...)
	for _, e := range s.signals {
		s.signal(e)
	}
	if started.HasTTY {
		return s.master.Close()
	}
	return nil
}

func (c *container) signalEarly(e event) error {
	var sig Signal
	if err := e.msg.Decode(&sig); err != nil {
		return err
	}
	return &exitError{code: 128 + sig.Number}
}

type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }
