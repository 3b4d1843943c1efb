package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// writable are the directories of a container that hold files of any id of its
// user namespace.
func writable(dir string) []string {
	return []string{filepath.Join(dir, "upper"), filepath.Join(dir, "work")}
}

// ownersFile is the journal of a parked writable layer.
const ownersFile = "owners"

// park gives the writable layer of a container that has ended to the user, from
// within its user namespace.
func park(dir string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	// The work directory is overlayfs's own and is made anew at a start.
	if err := removeTrees([]string{work}); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	return rootfs.Park(upper, filepath.Join(dir, ownersFile), os.Getuid(), os.Getgid())
}

// unpark undoes park before a container starts again, and what a start that was
// broken off has left.
func unpark(dir string) error {
	work := filepath.Join(dir, "work")
	// Overlayfs refuses a work directory that a volatile mount has used.
	if err := removeTrees([]string{work}); err != nil {
		return err
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return fmt.Errorf("unpark: %w", err)
	}
	return rootfs.Unpark(filepath.Join(dir, "upper"), filepath.Join(dir, ownersFile))
}

// discard removes a container from within its user namespace.
func discard(h *state.Handle) error {
	dirs := append(writable(h.Dir()), h.Volumes...)
	if err := removeTrees(dirs); err != nil {
		return err
	}
	return h.Remove()
}

// Discard removes a container that is not running, from outside of its user
// namespace. Exe is this binary.
func Discard(h *state.Handle, exe string) error {
	dirs := append(writable(h.Dir()), h.Volumes...)
	err := removeTrees(dirs)
	if errors.Is(err, fs.ErrPermission) {
		// Files of subordinate ids: only root of such a namespace may.
		err = inside(exe, h, kindRemove, dirs)
	}
	if err != nil {
		return err
	}
	return h.Remove()
}

// Sweep cleans up after containers whose monitor was killed: their processes
// and, with --rm, their files; the others are recorded as exited.
func Sweep(st *state.Store, exe string) error {
	handles, err := st.Abandoned()
	errs := []error{err}
	for _, h := range handles {
		if err := sweep(h, exe); err != nil {
			errs = append(errs, fmt.Errorf("clean up container %.12s: %w", h.ID, err))
		}
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

func sweep(h *state.Handle, exe string) error {
	if h.Unparked && h.Status.Ended() {
		return repark(h, exe)
	}
	for _, p := range []state.Process{h.Init, h.Monitor} {
		if err := end(p); err != nil {
			return err
		}
	}
	if h.Cgroup != "" {
		if err := removeCgroup(h.Cgroup); err != nil {
			return err
		}
	}
	if h.Record.Remove || h.Status == state.Creating {
		return Discard(h, exe)
	}
	h.Status, h.Finished, h.ExitCode = state.Exited, time.Now(), 128+int(unix.SIGKILL)
	h.Error = "the container's monitor was killed"
	if _, err := os.Lstat(writable(h.Dir())[0]); err == nil && parks(h.Storage) {
		if err := inside(exe, h, kindPark, []string{h.Dir()}); err != nil {
			return err // the next command tries again
		}
	}
	return h.Save()
}

// endTime bounds the wait for a killed process.
const endTime = 5 * time.Second

// end kills a process and waits until it is gone.
func end(p state.Process) error {
	f, err := p.Open()
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(endTime); ; {
		n, err := unix.Poll(poll, int(endTime.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", p.PID)
		}
	}
}

// Clean is the main function of the stage that removes, parks or measures what a
// container left, as root of a user namespace with its ids.
func Clean() {
	helper(func(parent *handoff.Conn) error {
		m, err := parent.Recv()
		if err != nil {
			return err
		}
		var dirs []string
		if err := m.Decode(&dirs); err != nil {
			return err
		}
		switch m.Kind {
		case kindRemove:
			return removeTrees(dirs)
		case kindUsage:
			sizes, err := usage(dirs)
			if err != nil {
				return err
			}
			return parent.Send(kindUsage, sizes)
		}
		for _, dir := range dirs {
			if err := park(dir); err != nil {
				return err
			}
		}
		return nil
	})
}

// What the clean stage is asked for.
const (
	kindRemove = "remove"
	kindPark   = "park"
	kindUsage  = "usage"
)

// inside has the clean stage do something in a user namespace with the
// container's ids.
func inside(exe string, h *state.Handle, kind string, dirs []string) error {
	_, err := askInside(exe, IDMap(&h.Record), kind, dirs)
	return err
}

// removeTrees removes directories, also ones that their owner may not write.
func removeTrees(dirs []string) error {
	for _, dir := range dirs {
		err := os.RemoveAll(dir)
		if errors.Is(err, fs.ErrPermission) {
			if werr := makeWritable(dir); werr != nil {
				return errors.Join(err, werr)
			}
			err = os.RemoveAll(dir)
		}
		if err != nil {
			return fmt.Errorf("remove container files: %w", err)
		}
	}
	return nil
}

// makeWritable gives the owner access to all directories of a tree.
func makeWritable(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil && d == nil {
			return err
		}
		if d.IsDir() {
			// WalkDir reads the directory after this; a directory that can not
			// be changed shows as the error of RemoveAll.
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
}

// IDMap is the id map of a container.
func IDMap(r *state.Record) userns.Map {
	return userns.Map{UIDs: ranges(r.UIDs), GIDs: ranges(r.GIDs), Outer: r.NoUserNS}
}

func ranges(maps []specs.LinuxIDMapping) []userns.Range {
	all := make([]userns.Range, len(maps))
	for i, m := range maps {
		all[i] = userns.Range{Container: m.ContainerID, Host: m.HostID, Size: m.Size}
	}
	return all
}
