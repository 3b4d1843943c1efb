package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd in a new user namespace with the maps m, and in further new
// namespaces by the CLONE_NEW* flags in extra. It adds to cmd.SysProcAttr and
// leaves what the caller set there, except Cloneflags' user namespace, the
// ambient capabilities and the mappings, which are its own business.
//
// When it returns nil the maps are in place and the child has all capabilities in
// its namespace. The child must wait for a message of its parent before it does
// anything. On an error the child is dead and reaped.
//
// If Pdeathsig matters, remember that it fires when the thread that called Start
// ends, not the process.
func Start(cmd *exec.Cmd, m Map, extra uintptr) error {
	if m.Outer {
		return startOuter(cmd, extra)
	}
	if err := errors.Join(validate("uid", m.UIDs), validate("gid", m.GIDs)); err != nil {
		return fmt.Errorf("start in a user namespace: %w", err)
	}
	attr := &syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		*attr = *cmd.SysProcAttr
	}
	if attr.UidMappings != nil || attr.GidMappings != nil {
		return errors.New("start in a user namespace: SysProcAttr has mappings of its own")
	}
	attr.Cloneflags |= syscall.CLONE_NEWUSER | extra
	attr.AmbientCaps = allCapabilities()
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		if execFailed(cmd, err) {
			return err
		}
		return explainClone(err, readLimits())
	}
	err := writeMaps(cmd.Process.Pid, m)
	if err == nil {
		return nil
	}
	killErr := cmd.Process.Kill()
	if waitErr := cmd.Wait(); killErr != nil {
		// It was dead already: that is the cause and the failed write its effect.
		return fmt.Errorf("%s ended before its id maps were written (%w): %w", cmd.Path, waitErr, err)
	}
	return err
}

// execFailed tells an execve that fails from a clone that fails; os/exec
// reports both as fork/exec.
func execFailed(cmd *exec.Cmd, err error) bool {
	if cmd.Err != nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOEXEC) {
		return true
	}
	return unix.Access(cmd.Path, unix.X_OK) != nil
}

// writeMaps writes both maps of process pid. The two helpers run side by side:
// each is about 2 ms of dynamic linking and reading of /etc.
func writeMaps(pid int, m Map) error {
	direct := mayWriteDirectly()
	gidDone := make(chan error, 1)
	go func() {
		if direct || ownSingle(m.GIDs, os.Getegid()) {
			gidDone <- writeGIDs(pid, m.GIDs, direct)
			return
		}
		gidDone <- runHelper("newgidmap", pid, m.GIDs)
	}()
	var uidErr error
	if direct || ownSingle(m.UIDs, os.Geteuid()) {
		uidErr = writeProc(pid, "uid_map", join(m.UIDs, " ", "\n"))
	} else {
		uidErr = runHelper("newuidmap", pid, m.UIDs)
	}
	return errors.Join(uidErr, <-gidDone)
}

// ownSingle says whether rs is the one map that the kernel lets anybody write.
func ownSingle(rs []Range, own int) bool { return isSingle(rs) && int(rs[0].Host) == own }

func writeGIDs(pid int, rs []Range, privileged bool) error {
	if !privileged {
		if err := writeProc(pid, "setgroups", "deny"); err != nil {
			return err
		}
	}
	return writeProc(pid, "gid_map", join(rs, " ", "\n"))
}

func writeProc(pid int, name, text string) error {
	path := "/proc/" + strconv.Itoa(pid) + "/" + name
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return explainWrite(path, err, readLimits())
	}
	// A map is taken by a single write or not at all.
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return explainWrite(path, err, readLimits())
	}
	return nil
}

// mayWriteDirectly says whether this process may write any map: it has the two
// capabilities that the helpers would lend, in its own user namespace.
func mayWriteDirectly() bool {
	return capStatus("CapEff", unix.CAP_SETUID) && capStatus("CapEff", unix.CAP_SETGID)
}
