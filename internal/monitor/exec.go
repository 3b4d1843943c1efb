package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/stage"
)

var errNotRunning = errors.New("container is not running")

// visitor is a process that was started in the container beside its init.
type visitor struct {
	cmd    *exec.Cmd
	conn   *handoff.Conn // ends when it has become its command
	ended  chan struct{} // closed when it has ended, and code is its status
	code   int
	master *os.File // its terminal, nil without one
}

// enter starts the stage that joins the container and becomes a command there.
// It returns when the stage is on its way; become tells how it went on.
func (c *container) enter(e stage.Exec, stdio [3]*os.File) (*visitor, error) {
	init := c.running.Load()
	if init == nil {
		return nil, errNotRunning
	}
	pidfd, err := init.Open()
	if err != nil {
		return nil, err
	}
	if pidfd == nil {
		return nil, errNotRunning
	}
	defer pidfd.Close()
	flags, to := 0, pidfd
	if c.Chroot {
		if to, err = c.rootDir(); err != nil {
			return nil, err
		}
		defer to.Close()
	} else if flags, err = foreignNamespaces(init.PID); err != nil {
		return nil, err
	}
	cmd, conn, err := handoff.Command(c.exePath(), handoff.Exec)
	if err != nil {
		return nil, err
	}
	v := &visitor{cmd: cmd, conn: conn, ended: make(chan struct{}), code: 125}
	setStdio(cmd, stdio)
	cmd.SysProcAttr = childAttr()
	cmd.SysProcAttr.Pdeathsig = 0 // the stage asks for it, see startInit
	cmd.SysProcAttr.Setsid = true
	started := make(chan error)
	go v.live(c, pidfd, flags, started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("exec: %w", err), conn.Close())
	}
	handoff.Donated(cmd)
	// setns(2) takes the namespaces of the process that the pidfd is of, whatever
	// has become of its pid.
	req := stage.EnterRequest{Config: c.Init, Namespaces: flags &^ unix.CLONE_NEWPID, Exec: e}
	if err := conn.Send(stage.KindEnter, req, to); err != nil {
		v.kill()
		return nil, fmt.Errorf("exec: %w", err)
	}
	return v, nil
}

// rootDir opens the root of a container that is a directory and no more.
func (c *container) rootDir() (*os.File, error) {
	name := writable(c.handle.Dir())[0]
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func setStdio(cmd *exec.Cmd, stdio [3]*os.File) {
	// A nil *os.File in an interface is not nil.
	if stdio[0] != nil {
		cmd.Stdin = stdio[0]
	}
	if stdio[1] != nil {
		cmd.Stdout = stdio[1]
	}
	if stdio[2] != nil {
		cmd.Stderr = stdio[2]
	}
}

// live starts the process and waits for its end, on a thread of its own: one
// that has joined a pid namespace for its children is of no other use, and its
// end would be the parent's death for the child.
func (v *visitor) live(c *container, pidfd *os.File, flags int, started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if flags&unix.CLONE_NEWPID != 0 {
		if err := unix.Setns(int(pidfd.Fd()), unix.CLONE_NEWPID); err != nil {
			started <- fmt.Errorf("join pid namespace: %w", err)
			return
		}
	}
	err := startIn(v.cmd, c.cgroup)
	started <- err
	if err != nil {
		return
	}
	// The error only repeats the status.
	_ = v.cmd.Wait()
	if ws, ok := v.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		v.code = stage.Status(unix.WaitStatus(ws))
	}
	close(v.ended)
}

// foreignNamespaces are those of process pid that are not this process's own, by
// their CLONE_NEW* flags: only into these it has to go, and only there it may.
func foreignNamespaces(pid int) (flags int, err error) {
	for _, ns := range []struct {
		name string
		flag int
	}{
		{"mnt", unix.CLONE_NEWNS},
		{"pid", unix.CLONE_NEWPID},
		{"uts", unix.CLONE_NEWUTS},
		{"ipc", unix.CLONE_NEWIPC},
		{"net", unix.CLONE_NEWNET},
		{"cgroup", unix.CLONE_NEWCGROUP},
	} {
		own, err := os.Readlink("/proc/self/ns/" + ns.name)
		if err != nil {
			return 0, fmt.Errorf("exec: %w", err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name))
		if errors.Is(err, os.ErrNotExist) {
			return 0, errNotRunning
		}
		if err != nil {
			return 0, fmt.Errorf("exec: %w", err)
		}
		if own != theirs {
			flags |= ns.flag
		}
	}
	return flags, nil
}

// become waits until the process is its command.
func (v *visitor) become(c *container) error {
	defer v.conn.Close()
	for {
		m, err := v.conn.Recv()
		if errors.Is(err, io.EOF) {
			return nil // closed by execve, or by its death, which has a status
		}
		if err != nil {
			return err
		}
		if err := (event{msg: m}).failed(); err != nil {
			<-v.ended
			return err
		}
		if m.Kind == stage.KindListener {
			if err := c.emulate(m); err != nil {
				v.kill()
				return err
			}
			continue
		}
		if m.Kind == stage.KindReady && len(m.Files) == 1 {
			v.master = m.Files[0]
			continue
		}
		m.Close()
	}
}

func (v *visitor) kill() {
	_ = v.cmd.Process.Kill()
	<-v.ended
}

// exec runs a command in the container for a client, and tells it how it ended.
func (c *container) exec(conn *handoff.Conn, m *handoff.Message) error {
	var req ExecRequest
	if err := m.Decode(&req); err != nil {
		return err
	}
	if len(m.Files) != 3 {
		return fmt.Errorf("exec: got %d files", len(m.Files))
	}
	stdio := [3]*os.File(m.Files)
	if req.TTY {
		stdio = [3]*os.File{}
	}
	v, err := c.enter(req.Exec, stdio)
	m.Close() // the command has them
	if err == nil {
		err = v.become(c)
	}
	if err != nil {
		return c.unlessEnded(err)
	}
	var files []*os.File
	if v.master != nil {
		files = append(files, v.master)
	}
	if err := conn.Send(KindStarted, Started{HasTTY: v.master != nil}, files...); err != nil {
		v.kill()
		return nil
	}
	left := make(chan bool, 1)
	go func() { left <- v.obey(conn) }()
	select {
	case <-v.ended:
		v.closeMaster()
		return conn.Send(KindExited, Exited{Code: v.code})
	case stays := <-left:
		if !stays && !req.Detach {
			_ = v.cmd.Process.Kill()
		} else if v.master != nil {
			go func() { _, _ = io.Copy(io.Discard, v.master) }() // nobody else reads it now
		}
		<-v.ended
		v.closeMaster()
		return nil
	}
}

// unlessEnded is the error of a command that could not be started, which may only
// mean that the container is just ending: namespaces of a dying process can not be
// joined (ESRCH), and a dying pid namespace takes no new process (ENOMEM,
// pid_namespaces(7)).
func (c *container) unlessEnded(err error) error {
	if c.running.Load() == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOMEM) && c.dying() {
		return errNotRunning
	}
	return err
}

// dying tells whether init ends within a moment.
func (c *container) dying() bool {
	init := c.running.Load()
	if init == nil {
		return true
	}
	pidfd, err := init.Open()
	if err != nil || pidfd == nil {
		return err == nil
	}
	defer pidfd.Close()
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(drainTime.Milliseconds()))
	return err == nil && n > 0
}

func (v *visitor) closeMaster() {
	if v.master != nil {
		v.master.Close()
	}
}

// obey does what the client says until it is gone, and tells whether it has
// left its command behind on purpose.
func (v *visitor) obey(conn *handoff.Conn) (stays bool) {
	for {
		m, err := conn.Recv()
		if err != nil {
			return false
		}
		m.Close()
		switch m.Kind {
		case KindSignal:
			var sig Signal
			if m.Decode(&sig) == nil {
				// Its end may be on its way.
				_ = v.cmd.Process.Signal(unix.Signal(sig.Number))
			}
		case KindDetach:
			return true
		}
	}
}
