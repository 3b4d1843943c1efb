package monitor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/emulation"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/orphans"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/thrift"
	"github.com/urun-dev/urun/userns"
)

// Main is the main function of the monitor stage (P1).
func Main() {
	// The children ask for SIGKILL when their parent dies, which for the kernel
	// is the thread that started them: this goroutine starts all of them and
	// keeps its thread to the end.
	runtime.LockOSThread()
	debug.SetGCPercent(gcPercent)
	parent, err := handoff.Parent()
	if err != nil {
		os.Exit(125)
	}
	m, err := parent.Expect(KindRequest)
	if err != nil {
		os.Exit(125) // the command gave up before it asked for anything
	}
	c := &container{parent: parent}
	if err = m.Decode(&c.Request); err == nil {
		err = c.adopt(m.Files)
	}
	if err == nil {
		err = c.start()
	}
	if err != nil {
		c.abort(err)
		os.Exit(125)
	}
	c.wait()
	os.Exit(0)
}

// container is a container from its monitor's point of view.
type container struct {
	Request
	parent *handoff.Conn
	handle *state.Handle
	out    *output // nil: the command's own files are the container's

	stdio     [3]*os.File
	cgroup    *os.File
	joins     []*os.File
	pidns     *os.File
	shm       *os.File   // detached mount
	shmNS     *os.File   // the mount namespace that it is from
	preserved []*os.File // for the command
	exe       *os.File
	holder    *holder.Link

	init, union, helper *child   // helper moves the network traffic
	listings            *os.File // the wishes of union; see list
	tun                 *os.File
	prepared            *preparedNetwork
	attached            bool // helper has the TUN
	bridges             bridges
	networkSince        time.Time // when the helper was started
	networkFailures     int       // of short-lived helpers in a row
	events              chan event
	started             bool
	stopping            bool
	stops               int                           // signals that are to end it
	cause               string                        // why the monitor ended the container
	running             atomic.Pointer[state.Process] // init, while it is the command
	thrift              thrift.Thrift
	ranks               attendance
	mounts              string   // the mount namespace of a container of ranks
	spawned             sync.Map // pids of children that are not the container's
	oomKills            uint64   // in the cgroup before this run
	updating            sync.Mutex
	supervising         sync.Mutex
	supervisor          *emulation.Supervisor // of emulated ids; guarded by supervising
}

func (c *container) adopt(files []*os.File) error {
	want := 4 + c.Joins + c.Preserved
	if c.HasCgroup {
		want++
	}
	if c.JoinPID {
		want++
	}
	if c.SharedShm {
		want++
	}
	if len(files) != want {
		return fmt.Errorf("monitor: got %d files, want %d", len(files), want)
	}
	copy(c.stdio[:], files)
	st, err := state.Open(c.StateRoot)
	if err != nil {
		return err
	}
	c.handle = st.Adopt(c.Record, files[3])
	files = files[4:]
	c.preserved, files = files[len(files)-c.Preserved:], files[:len(files)-c.Preserved]
	if c.HasCgroup {
		c.cgroup, files = files[0], files[1:]
	}
	if c.SharedShm {
		c.shmNS, files = files[len(files)-1], files[:len(files)-1]
		if c.shm, err = sharedShm(c.shmNS); err != nil {
			return err
		}
	}
	if c.JoinPID {
		c.pidns, files = files[len(files)-1], files[:len(files)-1]
	}
	c.joins = files
	c.countOOM()
	c.events = make(chan event, 64)
	return nil
}

// start starts the other processes and returns when the command runs.
func (c *container) start() error {
	// A container must not be able to write the binary that its init was
	// executed from (CVE-2019-5736): this one is protected.
	var err error
	if c.exe, err = handoff.Exe(); err != nil {
		return err
	}
	if c.holder, err = holder.NewLink(); err != nil {
		return err
	}
	if c.sharesPID() {
		if err := orphans.Adopt(); err != nil {
			return err
		}
	}
	if c.Again {
		if err := unparkStorage(c.handle.Dir(), c.handle.Storage); err != nil {
			return err
		}
	}
	c.handle.Monitor, err = state.ProcessOf(os.Getpid())
	if err != nil {
		return err
	}
	if err := errors.Join(c.openOutput(), c.serveControl()); err != nil {
		return err
	}
	// Init first: it has the most to do.
	if err := c.startInit(); err != nil {
		return err
	}
	if err := c.startBridges(); err != nil {
		return err
	}
	if err := c.below(); err != nil {
		return err
	}
	// Published ports must be bound before the container starts. Else the network
	// helper is started by the first packet, which most short commands never send.
	if len(c.Slirp.Ports) > 0 && c.Network == stage.NetworkSlirp {
		if c.helper, err = c.startHelper(handoff.Network, KindPorts, c.Slirp); err != nil {
			return err
		}
	}
	go c.listen(c.parent, fromCommand)
	return c.untilStarted()
}

// wait handles events until the container has ended, then cleans up.
func (c *container) wait() {
	c.watchMemory()
	c.awaitRanks()
	c.watchJob()
	for {
		e := <-c.events
		switch {
		case e.do != nil:
			e.answer <- e.do()
		case e.from == fromInit && e.ended:
			c.finish(e.status)
			return
		case e.from == fromCommand:
			c.obey(e)
		case e.from == fromBridges:
			c.noteNetwork(c.fromBridges(e))
		case e.gracefully():
			// Helpers end with success when the mount or the TUN goes away, which
			// is a moment before init is reaped.
		case e.from == fromServer:
			c.kill("the image server ended")
		case e.from == fromUnion && e.ended:
			c.kill("the image server ended: " + describe(e.status))
		case e.from == fromTUN:
			c.fromTUN(e)
		case e.from == fromCgroup:
			c.noteOOM()
		case e.from == fromJob:
			c.endWithJob()
		case e.from == fromNetwork && e.kind() == KindDriver:
			c.driverChanged(e)
		case e.from == fromNetwork && e.ended:
			c.restartNetwork(e)
		}
	}
}

// obey does what the command that started the container says.
func (c *container) obey(e event) {
	switch e.kind() {
	case "":
		if !c.Detach {
			c.handle.Restart.Stopped = true
			c.kill("the command that started the container is gone")
		} else if first := c.out.first(); first != nil {
			c.out.remove(first)
		}
	case KindSignal:
		var sig Signal
		if err := e.msg.Decode(&sig); err == nil {
			c.signal(sig)
		}
	case KindResize:
		var size Size
		if err := e.msg.Decode(&size); err == nil {
			c.out.resize(&size)
		}
	case KindDetach:
		c.Detach = true
		if first := c.out.first(); first != nil {
			c.out.remove(first)
		}
	}
}

// signal passes a signal on to the container's pid 1.
func (c *container) signal(sig Signal) {
	c.noteStop(sig)
	// It may have ended meanwhile, which is an event of its own.
	_ = c.init.cmd.Process.Signal(unix.Signal(sig.Number))
}

// noteStop notes that the user wants the container to end: then no policy
// starts it again. A signal from a terminal has the same meaning.
func (c *container) noteStop(sig Signal) {
	switch unix.Signal(sig.Number) {
	case unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGKILL, unix.Signal(c.handle.StopSignal):
		c.handle.Restart.Stopped = true
		c.stops++
	}
	if sig.Stop {
		c.handle.Restart.Stopped = true
	}
	if sig.Keep {
		c.handle.Record.Remove = false
	}
}

// sharesPID says that the container's processes do not end with its init by themselves.
func (c *container) sharesPID() bool { return c.Cloneflags&unix.CLONE_NEWPID == 0 }

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

func (c *container) kill(cause string) {
	if !c.stopping {
		c.stopping, c.cause = true, cause
	}
	_ = c.init.cmd.Process.Kill()
}

func (c *container) endHelpers() {
	c.bridges.close()
	endChildren(c.union, c.helper)
}

// endChildren kills and awaits those that there are.
func endChildren(children ...*child) {
	for _, h := range children {
		if h != nil {
			_ = h.cmd.Process.Kill()
		}
	}
	for _, h := range children {
		if h != nil {
			h.await()
		}
	}
}

// startInit starts init in the container's namespaces.
func (c *container) startInit() error {
	cmd, conn, err := handoff.Command(c.exePath(), handoff.Init)
	if err != nil {
		return err
	}
	cmd.SysProcAttr = childAttr()
	cmd.SysProcAttr.Cloneflags = c.Cloneflags
	cmd.SysProcAttr.Setsid = true
	if err := c.streams(cmd); err != nil {
		return err
	}
	start := func() error { return startIn(cmd, c.cgroup) }
	if c.pidns != nil {
		// Go checks after the fork that the parent still is the one it knew, and
		// ends a child that sees none because it is in another pid namespace. Init
		// asks for the signal itself.
		cmd.SysProcAttr.Pdeathsig = 0
		start = func() error { return startInPIDNamespace(cmd, c.pidns, c.cgroup) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start init: %w", userns.LimitReached(err))
	}
	handoff.Donated(cmd)
	c.closeStdio(cmd)
	c.init = c.watch(cmd, conn, fromInit)
	donated := c.joins
	if c.shm != nil {
		donated = append(donated, c.shm)
	}
	donated = append(donated, c.preserved...)
	err = conn.Send(stage.KindConfig, c.Init, donated...)
	for _, f := range c.preserved {
		f.Close() // whoever is at the other end is to see the command's end
	}
	return err
}

// startInPIDNamespace starts cmd in another pid namespace. The thread that
// joins it is spent: the way back is not open to it (setns(2) wants
// CAP_SYS_ADMIN in the owner of the namespace), and it stays until the end,
// since its end would be the parent's death for the child.
func startInPIDNamespace(cmd *exec.Cmd, ns, cgroup *os.File) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID)
		if err == nil {
			err = startIn(cmd, cgroup)
		} else {
			err = fmt.Errorf("join pid namespace: %w", err)
		}
		started <- err
		select {}
	}()
	return <-started
}

// sharedShm clones the mount at /dev/shm in another container's mount
// namespace. Only a thread in there may (open_tree(2)); it ends with that.
func sharedShm(ns *os.File) (*os.File, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		// A thread that shares its working directory with others can not change
		// its mount namespace.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/shm", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("share /dev/shm: %w", r.err)
	}
	return os.NewFile(uintptr(r.fd), "/dev/shm"), nil
}

// startIn starts cmd in a cgroup, which it is born into (clone3, Linux 5.7).
func startIn(cmd *exec.Cmd, cgroup *os.File) error {
	if cgroup == nil {
		return cmd.Start()
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	return cmd.Start()
}

func (c *container) exePath() string { return fmt.Sprintf("/proc/self/fd/%d", c.exe.Fd()) }
