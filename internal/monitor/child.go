package monitor

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
)

// A source is where an event comes from.
type source string

const (
	fromCommand source = "the command"
	fromInit    source = "init"
	fromUnion   source = "the image server"
	fromServer  source = "the image server that containers share"
	fromNetwork source = "the network helper"
	fromTUN     source = "the TUN"
	fromCgroup  source = "the cgroup"
	fromBridges source = "the bridges"
	fromJob     source = "the batch job"
)

// event is a message, the end of a channel (neither msg nor ended), the end of
// a process, or the first use of the network.
type event struct {
	from   source
	msg    *handoff.Message
	ended  bool
	late   bool // it has been put off once
	status unix.WaitStatus
	frame  []byte // the first packet that the container sends
	// prepared is what the preparation of the network came to.
	prepared *preparedNetwork
	// joined is what connecting to networks came to.
	joined *joined

	// do is something that another goroutine wants done by the one that owns the
	// container; its error goes to answer.
	do     func() error
	answer chan<- error
}

func (e event) kind() string {
	if e.msg == nil {
		return ""
	}
	return e.msg.Kind
}

// saidError is a failure that another stage reported.
type saidError struct{ stage.Failed }

func (e *saidError) Error() string { return e.Failed.Error }
func (e *saidError) Hint() string  { return e.Failed.Hint }

// gracefully tells that a helper ended with success.
func (e event) gracefully() bool {
	return e.ended && e.from != fromInit && e.from != fromServer && stage.Status(e.status) == 0
}

// ask has f done by the goroutine that owns the container. It does not return
// when the container ends meanwhile: the process does.
func (c *container) ask(f func() error) error {
	answer := make(chan error, 1)
	c.events <- event{do: f, answer: answer}
	return <-answer
}

// unexpected is the error of a process that ended too early.
func (e event) unexpected() error {
	if e.from == fromServer { // whose status is its parent's
		return fmt.Errorf("%s ended", e.from)
	}
	return fmt.Errorf("%s ended at start: %s", e.from, describe(e.status))
}

// failed returns the failure that the event reports, or nil.
func (e event) failed() error {
	if e.kind() != KindFailed {
		return nil
	}
	f := &saidError{}
	if err := e.msg.Decode(&f.Failed); err != nil {
		return err
	}
	return f
}

// child is a stage that the monitor started.
type child struct {
	cmd  *exec.Cmd
	conn *handoff.Conn
	done chan struct{}
}

// await waits until the process has been reaped.
func (c *child) await() { <-c.done }

// childAttr is what every child of the monitor is started with: it dies with
// the monitor and has all capabilities in the user namespace, also when its
// uid is not root's there (keep-id).
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, AmbientCaps: handoff.AllCapabilities()}
}

// startHelper starts the union or the network stage and sends its first message.
func (c *container) startHelper(name, kind string, body any) (*child, error) {
	cmd, conn, err := handoff.Command(c.exePath(), name)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = childAttr()
	if c.Debug {
		cmd.Stderr = os.Stderr
	}
	// A terminal's ctrl-C is for the command alone.
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	handoff.Donated(cmd)
	from := fromUnion
	if name == handoff.Network {
		from = fromNetwork
	}
	ch := c.watch(cmd, conn, from)
	return ch, conn.Send(kind, body)
}

// watch turns what a child says, and its end, into events.
func (c *container) watch(cmd *exec.Cmd, conn *handoff.Conn, from source) *child {
	ch := &child{cmd: cmd, conn: conn, done: make(chan struct{})}
	said := make(chan struct{})
	go func() {
		c.listen(conn, from)
		close(said)
	}()
	go func() {
		// Wait's error only repeats the status.
		_ = cmd.Wait()
		close(ch.done)
		<-said // last words come before the end
		e := event{from: from, ended: true}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			e.status = unix.WaitStatus(ws)
		}
		c.events <- e
	}()
	return ch
}

func (c *container) listen(conn *handoff.Conn, from source) {
	for {
		m, err := conn.Recv()
		if err != nil {
			c.events <- event{from: from}
			return
		}
		c.events <- event{from: from, msg: m}
	}
}
