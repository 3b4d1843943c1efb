package cgdelegate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	supervisorLeaf = "supervisor"
	payloadLeaf    = "payload"
)

// Scope is a delegated cgroup with its two leaves. It holds no descriptors and
// no connection: its state is in the kernel, and any number of processes may hold a
// Scope of the same path.
type Scope struct {
	dir string
	h   hierarchy
}

// Open returns the scope whose path Create's Scope.Path gave. It does not look
// whether it exists still.
func Open(path string) *Scope { return &Scope{dir: path, h: findHierarchy()} }

// Of returns the directory of the cgroup that a process is in, one that has ended and was
// not yet waited for included.
func Of(pid int) (string, error) {
	h := findHierarchy()
	if h.mount == "" {
		return "", noCgroup2()
	}
	return h.dirOf(strconv.Itoa(pid))
}

// Path returns the scope's directory.
func (s *Scope) Path() string { return s.dir }

// PayloadPath returns the directory of the payload leaf.
func (s *Scope) PayloadPath() string { return filepath.Join(s.dir, payloadLeaf) }

// PayloadFD opens the payload leaf's directory for SysProcAttr.CgroupFD. Only a
// process within the scope, or in another one of the same manager, can clone into it:
// the kernel wants write access to cgroup.procs of the common ancestor (EACCES from
// a login session's scope, which is root's).
func (s *Scope) PayloadFD() (*os.File, error) {
	fd, err := unix.Open(s.PayloadPath(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", s.PayloadPath(), err)
	}
	return os.NewFile(uintptr(fd), s.PayloadPath()), nil
}

// AddPayload moves a running process of the scope to the payload leaf, for kernels or
// seccomp filters without clone3.
func (s *Scope) AddPayload(pid int) error {
	if err := writeFile(s.file("cgroup.procs"), strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move process %d to the payload's cgroup: %w", pid, err)
	}
	return nil
}

func (s *Scope) file(name string) string { return filepath.Join(s.dir, payloadLeaf, name) }

// Apply sets those limits of the payload that are not zero in l. It refuses a
// memory limit below the current use, which the kernel would answer by killing.
func (s *Scope) Apply(l Limits) error {
	settings, err := l.settings()
	if err != nil {
		return err
	}
	if len(settings) == 0 {
		return nil
	}
	if err := s.h.missingController(s.dir, l.Controllers()); err != nil {
		return err
	}
	if l.Memory > 0 {
		use, err := readNumber(s.file("memory.current"))
		if err == nil && use > l.Memory {
			return fmt.Errorf("limit memory to %d bytes: %d are in use", l.Memory, use)
		}
	}
	for _, w := range settings {
		if err := s.set(w); err != nil {
			return err
		}
	}
	return nil
}

func (s *Scope) set(w setting) error {
	path := s.file(w.file)
	if w.file == "io.weight" {
		// With the BFQ scheduler the weight has a file of its own (1 to 1000).
		if _, err := os.Stat(s.file("io.bfq.weight")); err == nil {
			n, err := strconv.ParseUint(strings.TrimPrefix(w.value, "default "), 10, 64)
			if err != nil {
				return fmt.Errorf("set io.weight: %w", err)
			}
			path, w.value = s.file("io.bfq.weight"), strconv.FormatUint(min(n, 1000), 10)
		}
	}
	err := writeFile(path, w.value)
	if err == nil || (w.optional && errors.Is(err, fs.ErrNotExist)) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set %s: this kernel has no such limit: %w", w.file, err)
	}
	return fmt.Errorf("set %s to %s: %w", w.file, w.value, err)
}

// Freeze stops the payload's processes and waits until all of them stand.
func (s *Scope) Freeze(ctx context.Context) error { return s.freeze(ctx, "1") }

// Thaw lets them run on.
func (s *Scope) Thaw(ctx context.Context) error { return s.freeze(ctx, "0") }

// Frozen says whether the payload stands, or is about to. What is gone does not.
func (s *Scope) Frozen() bool {
	n, err := readNumber(s.file("cgroup.freeze"))
	return err == nil && n == 1
}

func (s *Scope) freeze(ctx context.Context, state string) error {
	if err := writeFile(s.file("cgroup.freeze"), state); err != nil {
		return fmt.Errorf("freeze or thaw the payload: %w", err)
	}
	return s.awaitEvent(ctx, "frozen "+state)
}

// Kill sends SIGKILL to every process of the payload, however fast it forks.
// WaitEmpty tells when they are gone. What shall run in the payload leaf
// after that needs [Scope.Renew] before: the fix for forks that escaped cgroup.kill
// (kill_seq, in Linux 6.14 and the stable kernels of 2025) compares the count of kills of the
// parent's cgroup with that of the new one, so a process that clone3 puts
// into a cgroup that was killed before dies at once.
func (s *Scope) Kill() error { return killCgroup(s.PayloadPath()) }

// KillAll does so for the whole scope, the supervisor included.
func (s *Scope) KillAll() error { return killCgroup(s.dir) }

// Renew makes an empty payload leaf anew, with these limits.
func (s *Scope) Renew(l Limits) error {
	if err := removeTree(s.PayloadPath()); err != nil {
		return err
	}
	if err := os.Mkdir(s.PayloadPath(), 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return s.Apply(l)
}

func killCgroup(dir string) error {
	err := writeFile(filepath.Join(dir, "cgroup.kill"), "1") // Linux 5.14
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kill cgroup %s: %w", dir, err)
	}
	if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
		return nil
	}
	return killFrozen(dir)
}

// killFrozen does without cgroup.kill: what is frozen cannot fork, and SIGKILL
// reaches it all the same. The freezing takes a moment, so the list is read
// until it holds.
func killFrozen(dir string) error {
	freezeErr := writeFile(filepath.Join(dir, "cgroup.freeze"), "1")
	defer func() {
		// Nothing is left to thaw if all went well.
		_ = writeFile(filepath.Join(dir, "cgroup.freeze"), "0")
	}()
	for range 100 {
		pids, err := processes(dir)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", dir, err)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			// 0 stands for a process of another pid namespace.
			if pid == 0 {
				return fmt.Errorf("kill cgroup %s: it holds processes outside of this pid namespace", dir)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("kill cgroup %s: its processes do not end", dir), freezeErr)
}

// WaitEmpty waits until no process is left in the payload.
func (s *Scope) WaitEmpty(ctx context.Context) error { return s.awaitEvent(ctx, "populated 0") }

// awaitEvent waits for a line of the payload's cgroup.events.
func (s *Scope) awaitEvent(ctx context.Context, line string) error {
	ctx, cancel := limitTime(ctx)
	defer cancel()
	return awaitLine(ctx, s.file("cgroup.events"), line)
}

// awaitLine waits for a line of a cgroup's file of events.
func awaitLine(ctx context.Context, path, line string) error {
	err := watchFile(ctx, path, func(text string) bool {
		for l := range strings.Lines(text) {
			if strings.TrimSpace(l) == line {
				return true
			}
		}
		return false
	})
	if ignoreGone(err) == nil {
		return nil // a cgroup that is gone is empty
	}
	return fmt.Errorf("wait for %q in %s: %w", line, path, err)
}

// Remove removes the leaves and, if it can, the scope. The payload must be empty
// (EBUSY otherwise). A systemd scope with a living supervisor stays and ends with
// it. Without systemd the processes of the supervisor leaf, such as the
// caller, are moved back to where they came from; with the last scope of a subtree so are those
// that Create moved out of the way. What is gone is no error.
func (s *Scope) Remove() error {
	if err := removeTree(s.PayloadPath()); err != nil {
		return err
	}
	if strings.HasSuffix(s.dir, ".scope") {
		if pids, err := processes(s.dir); err != nil || len(pids) > 0 {
			return err
		}
		// systemd does the same at this moment.
		return removeTree(s.dir)
	}
	if err := s.sendHome(); err != nil {
		return err
	}
	if err := removeTree(s.dir); err != nil {
		return err
	}
	return settle(filepath.Dir(s.dir))
}
