package cgdelegate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Options for Create.
type Options struct {
	// Name is the unit's name without suffix, such as "urun-1f2e3d": letters,
	// digits and ":-_.".
	Name string
	// Slice is the systemd slice to put the scope in, such as "batch.slice"; "" is
	// the manager's own choice.
	Slice       string
	Description string
	// Parent is the directory of a cgroup to make the scope's in, without asking
	// systemd: one that this process may write to, such as another scope's payload
	// leaf. "" asks systemd, else takes the cgroup that this process lives in.
	Parent string
	// SystemdOnly makes a machine without systemd one without a cgroup: the
	// cgroup that this process lives in is left as it is.
	SystemdOnly bool
	// PIDs are the processes for the supervisor leaf, as seen in this process's pid
	// namespace; alive until Create returns. There is at least one, except with a
	// Parent: then the supervisor may stay where it is, in the parent's own supervisor
	// leaf, say, which spares the move. A move waits for an RCU grace period
	// (cgroup_threadgroup_rwsem): milliseconds.
	PIDs []int
	// Limits for the payload leaf.
	Limits Limits
}

// Create makes a scope with a supervisor leaf that holds o.PIDs and a payload leaf
// with the limits. On an error the processes may be in another cgroup than before,
// which ends with them. An error that is ErrUnavailable means that
// this machine gives no cgroup, or lacks a controller that the limits need.
func Create(ctx context.Context, o Options) (*Scope, error) {
	ctx, cancel := limitTime(ctx)
	defer cancel()
	if err := o.validate(); err != nil {
		return nil, err
	}
	h := findHierarchy()
	if h.mount == "" {
		return nil, noCgroup2()
	}
	if o.Parent != "" {
		home, err := h.ownCgroup(o.Parent)
		if err != nil {
			return nil, err
		}
		return createInSubtree(h, home, o)
	}
	m, err := connectManager(ctx, addresses(os.Geteuid(), os.Getenv))
	if err == nil {
		s, err := createScope(ctx, h, m, o)
		return s, errors.Join(err, m.close())
	}
	// A bus that is there and does not answer is a fault to report, not a reason to
	// work behind systemd's back.
	if u := (*UnavailableError)(nil); errors.As(err, &u) && u.Cause == Timeout {
		return nil, err
	}
	if o.SystemdOnly {
		return nil, err
	}
	home, subErr := writableSubtree(h)
	if subErr != nil {
		return nil, err
	}
	return createInSubtree(h, home, o)
}

// ownCgroup checks that dir is a cgroup in which this process may make others.
func (h hierarchy) ownCgroup(dir string) (string, error) {
	dir = filepath.Clean(dir)
	if !strings.HasPrefix(dir, h.mount+"/") {
		return "", &UnavailableError{Cause: Refused, Err: fmt.Errorf("%s is not below %s", dir, h.mount)}
	}
	if err := writable(dir); err != nil {
		return "", &UnavailableError{Cause: Refused, Err: err, Cure: "name a cgroup that belongs to you, such as one that systemd delegated"}
	}
	return dir, nil
}

func (o Options) validate() error {
	if o.Name == "" || len(o.Name) > 200 || strings.ContainsFunc(o.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(":-_.", r)
	}) || o.Name[0] == '.' {
		return fmt.Errorf("create a cgroup: %q is not a unit name", o.Name)
	}
	if len(o.PIDs) == 0 && o.Parent == "" {
		return errors.New("create a cgroup: no process for it")
	}
	return o.Limits.Validate()
}

func createScope(ctx context.Context, h hierarchy, m *manager, o Options) (*Scope, error) {
	unit := o.Name + ".scope"
	if o.Description == "" {
		o.Description = o.Name
	}
	if err := m.startScope(ctx, unit, o); err != nil {
		return nil, err
	}
	// On errors from here on the scope stays as long as the caller's processes live in
	// it: to stop it would kill them, and that is the caller's decision.
	undo := func(err error) error { return fmt.Errorf("set up %s: %w", unit, err) }
	dir, err := h.dirOf(strconv.Itoa(o.PIDs[0]))
	if err != nil {
		return nil, undo(err)
	}
	if filepath.Base(dir) != unit {
		return nil, undo(&UnavailableError{
			Cause: ForeignBus, Err: fmt.Errorf("systemd made %s, but process %d is in %s", unit, o.PIDs[0], dir),
			Cure: "if this is a container, do not pass the bus into it",
		})
	}
	s := &Scope{dir: dir, h: h}
	if err := s.populate(o); err != nil {
		// If they have ended, systemd may have been removing the directory just when there was a leaf in it again, and has let go of it.
		return nil, undo(errors.Join(err, s.Remove()))
	}
	return s, nil
}

// createInSubtree makes the scope's directory in home.
func createInSubtree(h hierarchy, home string, o Options) (s *Scope, err error) {
	want := o.Limits.Controllers()
	if err := h.missingController(home, want); err != nil {
		return nil, err
	}
	// Whoever removes the last scope of home takes back what was shared out there (settle), perhaps
	// just before ours was made; once ours has controllers the kernel refuses that.
	for range 10 {
		if err := shareOut(home, want); err != nil {
			return nil, err
		}
		if s, err = makeInSubtree(h, home, o); err == nil || sharesOut(home, want) {
			break
		}
	}
	return s, err
}

func makeInSubtree(h hierarchy, home string, o Options) (*Scope, error) {
	s := &Scope{dir: filepath.Join(home, o.Name), h: h}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if err := s.populate(o); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// enable writes to cgroup.subtree_control what is not in it yet.
func enable(dir string, controllers []string) error {
	path := filepath.Join(dir, "cgroup.subtree_control")
	on, err := readWords(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	var more []string
	for _, c := range controllers {
		if !slices.Contains(on, c) {
			more = append(more, "+"+c)
		}
	}
	if len(more) == 0 {
		return nil
	}
	if err := writeFile(path, strings.Join(more, " ")); err != nil {
		return fmt.Errorf("enable controllers in %s: %w", dir, err)
	}
	return nil
}

// enableAll enables what the limits need and, for statistics and the container's
// own use, whatever else there is.
func enableAll(dir string, needed []string) error {
	if err := enable(dir, needed); err != nil {
		return err
	}
	have, err := readWords(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers of %s: %w", dir, err)
	}
	if enable(dir, have) == nil {
		return nil
	}
	// One that cannot be had (cpu beside realtime processes, say) shall not
	// cost the others; nobody asked for it.
	for _, c := range have {
		_ = enable(dir, []string{c})
	}
	return nil
}

// populate makes the leaves and moves o.PIDs to the supervisor's.
func (s *Scope) populate(o Options) error {
	if err := s.h.missingController(s.dir, o.Limits.Controllers()); err != nil {
		return err
	}
	leaves := []string{supervisorLeaf, payloadLeaf}
	if len(o.PIDs) == 0 {
		leaves = leaves[1:]
	}
	for _, leaf := range leaves {
		if err := os.Mkdir(filepath.Join(s.dir, leaf), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if err := s.noteOrigin(o.PIDs); err != nil {
		return err
	}
	for _, pid := range o.PIDs {
		procs := filepath.Join(s.dir, supervisorLeaf, "cgroup.procs")
		if err := writeFile(procs, strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d to the supervisor's cgroup: %w", pid, err)
		}
	}
	if err := enableAll(s.dir, o.Limits.Controllers()); err != nil {
		return err
	}
	return s.Apply(o.Limits)
}
