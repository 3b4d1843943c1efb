// Agent runs in the virtual host and executes there, one after the other, the commands that come over its virtio-serial
// port. A user's commands are started by as-user, which integration/host/root.sh makes.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/host/wire"
)

func main() {
	fmt.Fprintln(os.Stderr, "agent:", run(os.Args[1:]))
	os.Exit(1)
}

// run serves the port until that fails; it waits first for the user buses whose sockets are named.
func run(await []string) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	for _, path := range await {
		if err := awaitFile(path); err != nil {
			return err
		}
	}
	c := wire.New(port)
	boot, err := booted()
	if err != nil {
		return err
	}
	if err := c.SendValue(wire.Ready, boot); err != nil {
		return err
	}
	return serve(c)
}

func openPort() (*os.File, error) {
	// The link is udev's, which may be a moment behind.
	path := filepath.Join("/dev/virtio-ports", wire.Port)
	if err := awaitFile(path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// bootTime bounds the wait for what the host needs to be up; it is generous: emulation on a loaded machine is slow.
const bootTime = 5 * time.Minute

func awaitFile(path string) error {
	for end := time.Now().Add(bootTime); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

func booted() (wire.Boot, error) {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return wire.Boot{}, err
	}
	up, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(up, 64)
	if err != nil {
		return wire.Boot{}, err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return wire.Boot{Uptime: seconds, Kernel: strings.TrimSpace(string(kernel))}, err
}

// serve reads frames for ever; those of a command's go to it.
func serve(c *wire.Conn) error {
	var now *job
	for {
		kind, data, err := c.Recv()
		if err != nil {
			return err
		}
		if kind == wire.Start {
			var cmd wire.Command
			if err := json.Unmarshal(data, &cmd); err != nil {
				return err
			}
			if now, err = start(c, cmd); err != nil {
				now = nil
				if err := c.SendValue(wire.Exit, wire.Status{Code: 127, Error: err.Error()}); err != nil {
					return err
				}
			}
			continue
		}
		if now != nil {
			now.take(kind, data)
		}
	}
}

// job is a command that runs.
type job struct {
	cmd    *exec.Cmd
	stdin  chan []byte // closed at the end of the input
	master *os.File    // of its terminal, or nil
}

// outputTime is how long output is waited for after a command's end, when a process that it left holds the pipe.
const outputTime = 2 * time.Second

func start(c *wire.Conn, what wire.Command) (*job, error) {
	args := what.Args
	if what.User != "" && what.User != "root" {
		args = append([]string{"as-user", what.User}, args...)
	}
	if len(args) == 0 {
		return nil, errors.New("no command")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), what.Env...)
	cmd.Dir = "/"
	cmd.WaitDelay = outputTime
	// Deep enough for more than is ever sent: a signal must not queue behind input that the command does not read.
	j := &job{cmd: cmd, stdin: make(chan []byte, 1<<16)}
	var in io.WriteCloser
	output := func() {}
	if what.TTY {
		slave, err := j.terminal(what.Window)
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		in = j.master
		output = func() { _, _ = io.Copy(c.Writer(wire.Stdout), j.master) } // EIO is a terminal's end
	} else {
		// Signals are for all of the command, as a terminal's would be.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = c.Writer(wire.Stdout), c.Writer(wire.Stderr)
		var err error
		if in, err = cmd.StdinPipe(); err != nil {
			return nil, err
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go j.feed(in)
	go j.wait(c, output)
	return j, nil
}

func (j *job) terminal(w wire.Window) (slave *os.File, err error) {
	if j.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, err
	}
	fd := int(j.master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	j.resize(w)
	return os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
}

func (j *job) resize(w wire.Window) {
	if j.master == nil || w.Rows == 0 {
		return
	}
	// A size that cannot be set leaves the terminal as it was.
	_ = unix.IoctlSetWinsize(int(j.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: w.Rows, Col: w.Cols})
}

func (j *job) feed(in io.WriteCloser) {
	for data := range j.stdin {
		// Who does not read his input, or is gone, misses it.
		if _, err := in.Write(data); err != nil {
			for range j.stdin {
			}
			return
		}
	}
	if j.master == nil {
		_ = in.Close()
	}
}

func (j *job) wait(c *wire.Conn, output func()) {
	done := make(chan struct{})
	go func() {
		output()
		close(done)
	}()
	err := j.cmd.Wait()
	if j.master != nil {
		select {
		case <-done:
		case <-time.After(outputTime):
		}
	}
	st := wire.Status{Code: j.cmd.ProcessState.ExitCode()}
	if ws, ok := j.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		st.Signal = int(ws.Signal())
		st.Code = 128 + st.Signal
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		st.Error = err.Error()
	}
	if err := c.SendValue(wire.Exit, st); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
	}
}

// take handles a frame that concerns the running command. One that has ended meanwhile takes nothing.
func (j *job) take(kind wire.Kind, data []byte) {
	switch kind {
	case wire.Stdin:
		j.stdin <- data
	case wire.EOF:
		close(j.stdin)
	case wire.Signal:
		var n int
		if json.Unmarshal(data, &n) == nil {
			_ = unix.Kill(-j.cmd.Process.Pid, unix.Signal(n))
		}
	case wire.Size:
		var w wire.Window
		if json.Unmarshal(data, &w) == nil {
			j.resize(w)
		}
	}
}
