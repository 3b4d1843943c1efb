package monitor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/slirp"
)

// startExternal starts the program that is the container's network driver, and waits until the
// network is there: the command must not run before.
func (c *container) startExternal() error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.init.cmd.Process.Pid))
	if err != nil {
		return fmt.Errorf("open the container's network namespace: %w", err)
	}
	defer ns.Close()
	cmd := slirp.ExternalCommand(c.Slirp, c.Slirp.Program)
	cmd.SysProcAttr = childAttr()
	cmd.SysProcAttr.Setsid = true
	said := &lastWords{}
	cmd.Stdout, cmd.Stderr = said, said
	ready, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()
	cmd.ExtraFiles = []*os.File{w, ns}
	err = cmd.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("start network driver %s: %w", c.Slirp.Driver, err)
	}
	c.helper = &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		// Wait's error only repeats the status.
		_ = cmd.Wait()
		close(c.helper.done)
		e := event{from: fromNetwork, ended: true}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			e.status = unix.WaitStatus(ws)
		}
		c.events <- e
	}()
	if err := slirp.AwaitExternal(ready); err != nil {
		c.helper.await()
		return fmt.Errorf("network driver %s: %w: %s", c.Slirp.Driver, err, said)
	}
	c.handle.NetworkDriver = c.Slirp.Driver
	c.handle.Ports = published(c.Slirp.Ports)
	return nil
}

// lastWords keeps the end of what a program says.
type lastWords struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (l *lastWords) Write(p []byte) (int, error) {
	const most = 2048
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	l.buf = l.buf[max(0, len(l.buf)-most):]
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(strings.Fields(string(l.buf)), " ")
}
