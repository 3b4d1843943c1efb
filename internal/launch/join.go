package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// namespaces are those of other containers that a container joins.
type namespaces struct {
	kinds []int // CLONE_NEW* of files
	files []*os.File
	pid   *os.File
	shm   *os.File // mount namespace with the /dev/shm to share
}

func (n *namespaces) close() {
	for _, f := range append(n.files, n.pid, n.shm) {
		if f != nil {
			f.Close()
		}
	}
}

// joins opens the namespaces of the containers that this one shares.
func (p *Plan) joins() (*namespaces, error) {
	c := p.Container
	n := &namespaces{}
	for _, want := range []struct {
		container string
		kind      int
		name      string
	}{
		{sharedWith(c.Namespaces.IPC), unix.CLONE_NEWIPC, "ipc"},
		{sharedWith(c.Namespaces.UTS), unix.CLONE_NEWUTS, "uts"},
		{c.Network.Container, unix.CLONE_NEWNET, "net"},
		{sharedWith(c.Namespaces.PID), unix.CLONE_NEWPID, "pid"},
	} {
		if want.container == "" {
			continue
		}
		f, err := p.namespaceOf(want.container, want.name)
		if err != nil {
			n.close()
			return nil, err
		}
		if want.kind == unix.CLONE_NEWPID {
			n.pid = f
			continue
		}
		n.kinds, n.files = append(n.kinds, want.kind), append(n.files, f)
	}
	return n, p.joinShm(n)
}

// joinShm opens the mount namespace of the container whose IPC is shared: POSIX
// shared memory is files in its /dev/shm.
func (p *Plan) joinShm(n *namespaces) error {
	ref := sharedWith(p.Container.Namespaces.IPC)
	if ref == "" {
		return nil
	}
	for _, m := range p.Container.Spec.Mounts {
		if m.Destination == "/dev/shm" {
			return nil // the user has something else there
		}
	}
	var err error
	if n.shm, err = p.namespaceOf(ref, "mnt"); err != nil {
		n.close()
	}
	return err
}

func sharedWith(ns spec.Namespace) string {
	if ns.Mode == spec.Shared {
		return ns.Container
	}
	return ""
}

func (p *Plan) namespaceOf(ref, name string) (*os.File, error) {
	st, err := state.Open(p.StateRoot)
	if err != nil {
		return nil, err
	}
	rec, err := st.Find(ref)
	if err != nil {
		return nil, err
	}
	if rec.Status != state.Running {
		return nil, fmt.Errorf("share %s namespace: container %s is not running", name, ref)
	}
	pidfd, err := rec.Init.Open()
	if err != nil {
		return nil, err
	}
	if pidfd == nil {
		return nil, fmt.Errorf("share %s namespace: container %s is not running", name, ref)
	}
	defer pidfd.Close()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", rec.Init.PID, name))
	if err != nil {
		return nil, fmt.Errorf("share %s namespace: %w", name, err)
	}
	// Still the same process: the file is of its namespace.
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("share %s namespace: container %s has ended", name, ref), f.Close())
	}
	return f, nil
}

// cloneflags are the namespaces that init is born with. It makes that of the cgroup by
// itself, when it is where it stays: the root of one that clone3(2) makes is the
// parent's cgroup.
func (n *namespaces) cloneflags(c *spec.Container) uintptr {
	if c.Chroot {
		return 0
	}
	flags := uintptr(unix.CLONE_NEWNS)
	for _, ns := range []struct {
		mode spec.Mode
		flag uintptr
	}{
		{c.Namespaces.PID.Mode, unix.CLONE_NEWPID},
		{c.Namespaces.IPC.Mode, unix.CLONE_NEWIPC},
		{c.Namespaces.UTS.Mode, unix.CLONE_NEWUTS},
	} {
		if ns.mode == spec.Private {
			flags |= ns.flag
		}
	}
	if c.Network.Mode == "slirp" || c.Network.Mode == "none" || c.Network.Mode == "bridge" {
		flags |= unix.CLONE_NEWNET
	}
	return flags
}
