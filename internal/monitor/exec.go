package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/program"
	"github.com/urun-dev/urun/internal/stage"
)

var errNotRunning = errors.New("container is not running")

// visitor is a process that was started in the container beside its init.
type visitor struct {
	became chan error    // gets one value when it has become its command: nil, or why it has not
	ended  chan struct{} // closed when it has ended, and code is its status
	code   int
	master *os.File // its terminal, nil without one; there once it has become its command

	mu      sync.Mutex
	process *os.Process // nil until it has started
	dead    bool        // it is not to start any more
}

// enter has a command started in the container. The standard files are the command's, and closed here once it has them;
// nil is /dev/null. It returns when the command is on its way; become tells how it went on.
func (c *container) enter(e stage.Exec, stdio program.Files) (*visitor, error) {
	visit := &stage.Visit{Config: c.Init, Exec: e, Files: stdio, Cgroup: c.cgroup, Supervise: c.superviseVisitor}
	if err := c.target(visit); err != nil {
		return nil, errors.Join(err, closeFiles(visit))
	}
	for i, f := range stdio {
		if f != nil || e.TTY {
			continue
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, errors.Join(err, closeFiles(visit))
		}
		visit.Files[i] = null
	}
	v := &visitor{became: make(chan error, 1), ended: make(chan struct{}), code: 125}
	go v.live(visit)
	return v, nil
}

// target says where a visit goes.
func (c *container) target(visit *stage.Visit) error {
	init := c.running.Load()
	if init == nil {
		return errNotRunning
	}
	pidfd, err := init.Open()
	if err != nil {
		return err
	}
	if pidfd == nil {
		return errNotRunning
	}
	visit.Target = pidfd
	if c.Chroot {
		visit.Target, err = c.rootDir()
		return errors.Join(err, pidfd.Close())
	}
	visit.Namespaces, err = foreignNamespaces(init.PID)
	return err
}

// closeFiles closes what a visit has got. One file may be in several places.
func closeFiles(visit *stage.Visit) error {
	var errs []error
	files := append(visit.Files[:], visit.Target)
	for i, f := range files {
		if f != nil && !slices.Contains(files[:i], f) {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
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

// live starts the command and waits for its end, on a thread of its own: one
// that has joined a container is of no other use, and its
// end would be the parent's death for the child.
func (v *visitor) live(visit *stage.Visit) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	defer close(v.ended)
	process, err := v.start(visit)
	if err == nil {
		v.became <- nil
	}
	if process != nil {
		// The error only repeats the status.
		state, _ := process.Wait()
		if ws, ok := state.Sys().(syscall.WaitStatus); ok {
			v.code = stage.Status(unix.WaitStatus(ws))
		}
	}
	if err != nil {
		v.became <- err
	}
}

// start returns the process, if there is one, and why it is not its command, if it is not.
func (v *visitor) start(visit *stage.Visit) (*os.Process, error) {
	started, err := visit.Start()
	// A whole container's set-up need not stay in memory for as long as the command runs.
	err = errors.Join(err, closeFiles(visit))
	*visit = stage.Visit{}
	if started == nil {
		return nil, err
	}
	v.master = started.Master
	process, findErr := os.FindProcess(started.PID)
	if findErr != nil { // no system has that: it is our child, and not waited for
		return nil, errors.Join(err, findErr)
	}
	v.mu.Lock()
	v.process = process
	if v.dead {
		_ = process.Kill()
	}
	v.mu.Unlock()
	return process, errors.Join(err, started.Executed())
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

// become waits until the process is its command. If it does not become that, it has ended.
func (v *visitor) become() error {
	err := <-v.became
	if err != nil {
		v.closeMaster()
	}
	return err
}

// kill ends the process, at once or as soon as it is there, and waits for its end if it is there.
func (v *visitor) kill() {
	v.mu.Lock()
	process := v.process
	v.dead = true
	v.mu.Unlock()
	// Until then it looks around in the container, whose file systems may be slow or stalled.
	if process != nil {
		_ = process.Kill()
		<-v.ended
	}
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
	stdio := program.Files(m.Files)
	v, err := c.enter(req.Exec, stdio)
	if err == nil {
		err = v.become()
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
			_ = v.process.Kill()
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
				_ = v.process.Signal(unix.Signal(sig.Number))
			}
		case KindDetach:
			return true
		}
	}
}
