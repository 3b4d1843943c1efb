package monitor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
)

// A monitor's control socket takes requests of later commands of the same
// user. There is one so far, spawn: start another monitor in this one's user
// namespace. A container that shares namespaces with another must live in the
// same user namespace, and no process can enter one that has several threads,
// as every Go program has (setns(2)).

const (
	controlFile = "control"
	kindSpawn   = "spawn"
	kindSpawned = "spawned"
)

type spawned struct {
	PID   int    `json:"pid"`
	Error string `json:"error,omitempty"`
}

// controlPath is the path of a container's control socket, through an open
// directory: a socket's address holds 108 bytes, and stores may lie deep.
func controlPath(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), controlFile)
}

// serveControl makes the control socket and answers on it until the monitor ends.
func (c *container) serveControl() error {
	dir, err := os.Open(c.handle.Dir())
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer dir.Close()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: controlPath(dir), Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it goes with the directory
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go c.control(conn)
		}
	}()
	return nil
}

func (c *container) control(u *net.UnixConn) {
	defer u.Close()
	if err := checkPeer(u); err != nil {
		return
	}
	f, err := u.File()
	if err != nil {
		return
	}
	conn, err := handoff.FromFile(f)
	if err != nil {
		return
	}
	defer conn.Close()
	m, err := conn.Expect(kindSpawn)
	if err != nil {
		return
	}
	defer m.Close()
	pid, err := c.spawn(m.Files)
	answer := spawned{PID: pid}
	if err != nil {
		answer.Error = err.Error()
	}
	_ = conn.Send(kindSpawned, answer) // the asker may be gone
}

// checkPeer lets in nobody but the user whose container this is: as the
// monitor sees it, the uid that it has itself.
func checkPeer(u *net.UnixConn) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	if int(cred.Uid) != os.Getuid() {
		return fmt.Errorf("control socket: uid %d is not let in", cred.Uid)
	}
	return nil
}

// spawn starts a monitor that talks on the donated socket. It is independent of
// this one: it may outlive it.
func (c *container) spawn(files []*os.File) (int, error) {
	if len(files) != 1 {
		return 0, fmt.Errorf("spawn: got %d files", len(files))
	}
	cmd, conn, err := handoff.Command(c.exePath(), handoff.Monitor)
	if err != nil {
		return 0, err
	}
	handoff.Donated(cmd) // not this pair, but the asker's
	conn.Close()
	cmd.ExtraFiles = files
	attr := childAttr()
	attr.Pdeathsig = 0
	attr.Setsid = true
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("spawn: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaps it; its end concerns its own command
	return cmd.Process.Pid, nil
}

// Spawn asks the monitor of the container in dir for a new monitor in its user
// namespace, which is to talk on the socket theirs.
func Spawn(dir string, theirs *os.File) (pid int, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, fmt.Errorf("join container: %w", err)
	}
	defer d.Close()
	u, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: controlPath(d), Net: "unixpacket"})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return 0, errors.New("join container: it is not running")
	}
	if err != nil {
		return 0, fmt.Errorf("join container %s: %w", filepath.Base(dir), err)
	}
	f, err := u.File()
	if err = errors.Join(err, u.Close()); err != nil {
		return 0, fmt.Errorf("join container: %w", err)
	}
	conn, err := handoff.FromFile(f)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.Send(kindSpawn, nil, theirs); err != nil {
		return 0, err
	}
	m, err := conn.Expect(kindSpawned)
	if err != nil {
		return 0, fmt.Errorf("join container: %w", err)
	}
	var s spawned
	if err := m.Decode(&s); err != nil {
		return 0, err
	}
	if s.Error != "" {
		return 0, errors.New(s.Error)
	}
	return s.PID, nil
}
