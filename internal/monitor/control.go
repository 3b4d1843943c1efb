package monitor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/state"
)

// A monitor's control socket takes requests of later commands of the same
// user. The first message of a connection says what is wanted: to attach to the
// output, to execute a command, to send a signal, to rename the container, to change its limits; or,
// handoff.KindSpawn, to start another stage in this one's user namespace, where a
// container must live that shares namespaces with this one, and where its files are read.

const controlFile = "control"

// serveControl makes the control socket and answers on it until the monitor ends.
func (c *container) serveControl() error {
	// That of a monitor before this one is dead.
	if err := os.Remove(filepath.Join(c.handle.Dir(), controlFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	dir, err := os.Open(c.handle.Dir())
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer dir.Close()
	door, err := handoff.Listen(dir, controlFile, c.Outside)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	go door.Serve(c.control) // the socket goes with the directory
	return nil
}

func (c *container) control(conn *handoff.Conn) {
	defer conn.Close()
	m, err := conn.Recv()
	if err != nil {
		return
	}
	defer m.Close()
	defer c.thrift.Busy()
	if err := c.answer(conn, m); err != nil {
		_ = conn.Send(KindFailed, failed(err)) // the asker may be gone
	}
}

// spawner starts monitors in this one's user namespace.
func (c *container) spawner() handoff.Spawner {
	return handoff.Spawner{Exe: c.exe, Allowed: []string{handoff.Monitor, handoff.Files}, Keeper: c.holder.Another}
}

// answer does what a connection's first message asks for. It returns when the
// connection is to be closed.
func (c *container) answer(conn *handoff.Conn, m *handoff.Message) error {
	switch m.Kind {
	case handoff.KindSpawn:
		if cmd := c.spawner().Answer(conn, m); cmd != nil {
			c.spawned.Store(cmd.Process.Pid, true)
			_ = cmd.Wait() // reaps it; its end concerns its own command
			c.spawned.Delete(cmd.Process.Pid)
		}
		return nil
	case KindJoin:
		return c.attach(conn, m)
	case KindExec:
		return c.exec(conn, m)
	case KindRank:
		return c.admit(conn, m)
	case KindSignal:
		var sig Signal
		if err := m.Decode(&sig); err != nil {
			return err
		}
		if err := c.ask(func() error { return c.deliver(sig) }); err != nil {
			return err
		}
	case KindRename:
		var req RenameRequest
		if err := m.Decode(&req); err != nil {
			return err
		}
		rename := func() error {
			old := c.handle.Name
			err := c.handle.Rename(req.Name)
			if err == nil && c.bridges.client != nil {
				err = c.bridges.client.Rename(req.Name)
			}
			if err == nil {
				c.tell("rename", "oldName", old)
			}
			return err
		}
		if err := c.ask(rename); err != nil {
			return err
		}
	case KindUpdate:
		var req UpdateRequest
		if err := m.Decode(&req); err != nil {
			return err
		}
		if err := c.update(req); errors.Is(err, errEnding) {
			return nil // no answer: who asks finds it ended
		} else if err != nil {
			return err
		}
	case KindConnect:
		var ep state.Endpoint
		if err := m.Decode(&ep); err != nil {
			return err
		}
		if err := c.ask(func() error { return c.connectNetwork(ep) }); err != nil {
			return err
		}
	case KindDisconnect:
		var name string
		if err := m.Decode(&name); err != nil {
			return err
		}
		if err := c.ask(func() error { return c.disconnectNetwork(name) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("control socket: unknown request %q", m.Kind)
	}
	return conn.Send(KindDone, nil)
}

// deliver sends a signal for another command. One that waits for its restart
// can only be told not to.
func (c *container) deliver(sig Signal) error {
	c.noteStop(sig)
	if c.running.Load() != nil || c.init != nil && !c.stopping {
		err := c.init.cmd.Process.Signal(unix.Signal(sig.Number))
		if errors.Is(err, os.ErrProcessDone) {
			return nil // its end is on its way
		}
		return err
	}
	if !c.handle.Restart.Stopped {
		return errors.New("container is not running: it waits to be restarted")
	}
	return nil
}

// serve obeys a client that is attached, until it leaves.
func (c *container) serve(conn *handoff.Conn) error {
	for {
		m, err := conn.Recv()
		if err != nil {
			return nil // it has gone
		}
		m.Close()
		switch m.Kind {
		case KindSignal:
			var sig Signal
			if err := m.Decode(&sig); err != nil {
				return err
			}
			// Its end may be on its way.
			_ = c.ask(func() error { return c.deliver(sig) })
		case KindResize:
			var size Size
			if err := m.Decode(&size); err != nil {
				return err
			}
			c.out.resize(&size)
		case KindDetach:
			return nil
		}
	}
}

// Spawn asks the monitor of the container in dir for a stage in its user
// namespace: a new monitor, or one for its files.
func Spawn(dir, stage string) (*handoff.Spawned, error) {
	conn, err := Dial(dir)
	if errors.Is(err, handoff.ErrNobody) {
		return nil, errors.New("join container: it is not running")
	}
	if err != nil {
		return nil, fmt.Errorf("join container %s: %w", filepath.Base(dir), err)
	}
	defer conn.Close()
	s, err := conn.Spawn(stage, nil)
	if err != nil {
		return nil, fmt.Errorf("join container: %w", err)
	}
	return s, nil
}

// Dial connects to the monitor of the container in dir. The error is
// handoff.ErrNobody if there is none, state.ErrNotFound if the container has been removed.
func Dial(dir string) (*handoff.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		err = state.Vanished(dir, err)
		return nil, err
	}
	defer d.Close()
	return handoff.Dial(d, controlFile)
}

// Ask sends a request to the monitor of the container in dir and waits for the
// word that it is done. It returns handoff.ErrNobody also when the monitor ends meanwhile.
func Ask(dir, kind string, body any) error {
	conn, err := Dial(dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Send(kind, body); err != nil {
		return handoff.ErrNobody
	}
	m, err := conn.Recv()
	if errors.Is(err, io.EOF) {
		return handoff.ErrNobody
	}
	if err != nil {
		return err
	}
	return event{msg: m}.failed()
}
