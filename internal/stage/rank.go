package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/userns"
)

// RankRequest is what the stage gets to know that joins a container of ranks.
type RankRequest struct {
	Config     json.RawMessage `json:"config"`     // Config, of the container
	Namespaces int             `json:"namespaces"` // to join, by their CLONE_NEW* flags
	Process    *specs.Process  `json:"process"`    // the rank's command
	KeepGroups bool            `json:"keepGroups,omitempty"`
	Preserve   []uint          `json:"preserve,omitempty"` // files that are open under these numbers
}

// Rank is the main function of the stage that a command becomes whose own command is a rank in a container
// that is there. The process is the one that the launcher has started: so it keeps its pid, its cgroup,
// affinity, limits and files. It has no parent that it could tell why it fails.
func Rank() {
	runtime.LockOSThread()
	err := rank(os.Args)
	f := Failure(err)
	fmt.Fprintf(os.Stderr, "urun: %s\n", f.Error)
	if f.Hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", f.Hint)
	}
	os.Exit(f.Code)
}

// rank is executed with the numbers of the user namespace, of a file with a RankRequest, and of a pidfd of the
// container's init. It returns only on failure.
func rank(args []string) error {
	if len(args) != 5 {
		return errors.New("join: not started by urun")
	}
	if err := userns.Joined(args[2]); err != nil {
		if errors.Is(err, userns.ErrEntry) {
			return &hintError{errors.New("join: this binary was built without its entry point"), "build it with: make build"}
		}
		return err
	}
	var files [2]*os.File
	for i, arg := range args[3:] {
		fd, err := strconv.Atoi(arg)
		if err != nil {
			return fmt.Errorf("join: descriptor %q", arg)
		}
		files[i] = os.NewFile(uintptr(fd), "join")
	}
	var req RankRequest
	if err := json.NewDecoder(files[0]).Decode(&req); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	s := &setup{}
	if err := json.Unmarshal(req.Config, &s.Config); err != nil {
		return fmt.Errorf("join: decode the container's set-up: %w", err)
	}
	// A thread that shares these with others can not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("join: unshare: %w", err)
	}
	if err := join(files[1], req.Namespaces); err != nil {
		return err
	}
	if err := errors.Join(files[0].Close(), files[1].Close()); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := s.becomeRoot(); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	p := Process{
		Spec: req.Process, Seccomp: s.Seccomp, SeccompFlags: s.SeccompFlags,
		KeepGroups: req.KeepGroups, Preserve: req.Preserve, independent: true,
	}
	for _, fd := range req.Preserve {
		p.preserved = append(p.preserved, os.NewFile(uintptr(fd), "preserved"))
	}
	return p.Exec()
}

// idle is the end of the set-up of a container of ranks: nothing runs in it but who joins. It ends by a signal
// of the monitor, or with it.
func (s *setup) idle() error {
	if err := handoff.DropCapabilities(); err != nil {
		return err
	}
	// Its files are the host's.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	if err := watchParent(); err != nil { // changing capabilities may have cleared it
		return err
	}
	s.parent.Close() // as an execve would have: the monitor takes it that the container runs
	for {
		unix.Pause()
	}
}
