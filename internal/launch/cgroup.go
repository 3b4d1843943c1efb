package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// The cgroup of a container is made in one of three places:
//
//   - in the scope of the holder that started its monitor. systemd made that one when
//     the holder started; a cgroup in it takes no word with systemd, which
//     would add 5 to 250 ms to the start. The holder removes it if the monitor is killed.
//   - in a scope of its own, where the user does not linger, names a slice, or two
//     containers start a holder at once.
//   - where --cgroup-parent says or, without systemd, in the cgroup that this process
//     lives in.
//
// systemd ends all scopes of a user who does not linger with his manager, which ends some seconds
// after the last process of his last session. The holder is such a process, and stays as long as a container: so a
// logout by itself ends nothing, but logind.conf's KillUserProcesses=yes does, and so does killing the holder and the image's server. His
// containers without limits are in no scope of their own, but in the session's.

// scopeTime bounds the wait for systemd where nobody asked for a limit: a
// bus that never answers costs a start this much and no more.
const scopeTime = 5 * time.Second

// holderScope is how the name of a holder's scope begins.
const holderScope = "urun-holder-"

// PendingCgroup is a container's cgroup that is being asked for while the command finds
// the image and prepares the container.
type PendingCgroup struct {
	request  CgroupRequest
	limited  bool
	limits   cgdelegate.Limits
	done     chan struct{}
	pid      int    // of the monitor
	parent   string // of the cgroup that is made when the container is there
	scope    *cgdelegate.Scope
	times    CgroupTimes
	warnings []string
	err      error
}

// CgroupTimes say how long the container's cgroup took, and how much of that the
// start had to wait because it had nothing else to do.
type CgroupTimes struct{ Took, Waited time.Duration }

// CgroupRequest is what a container's cgroup depends on.
type CgroupRequest struct {
	ID, Name  string // of the container; it may have no name yet
	Mode      spec.CgroupMode
	Parent    string // a slice, a directory, or ""
	Detach    bool
	Resources *specs.LinuxResources
}

// BeginCgroup asks for the container's cgroup: a leaf for the monitor, which is moved
// there, and one with the limits for the container. A container that is to have none
// gets nil.
func BeginCgroup(r CgroupRequest, pending *Pending) *PendingCgroup {
	limited := spec.Limited(r.Resources)
	// A batch job stays in the cgroup that the batch system has put it in.
	stays := !cgdelegate.Lingers() || holder.Linger() == 0
	if r.Mode == spec.CgroupDisabled || !limited && r.Mode == spec.CgroupAuto && stays {
		return nil
	}
	c := &PendingCgroup{request: r, limited: limited, limits: Limits(r.Resources), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		start := time.Now()
		c.err = c.begin(pending)
		c.times.Took = time.Since(start)
	}()
	return c
}

func (c *PendingCgroup) begin(pending *Pending) (err error) {
	if c.pid, err = pending.PID(); err != nil {
		return nil // which is an error of its own
	}
	ctx, cancel := c.patience()
	defer cancel()
	if c.request.Mode == spec.CgroupTry && c.limited {
		var missing []string
		c.limits, missing = c.limits.Only(cgdelegate.Probe(ctx).Controllers)
		if len(missing) > 0 {
			c.warnings = append(c.warnings, "limits are left out: no controller "+strings.Join(missing, ", ")+" is delegated")
		}
	}
	if c.request.Parent == "" && cgdelegate.Lingers() {
		if c.parent, err = c.besideHolder(ctx); c.parent != "" || err != nil {
			return c.excuse(err)
		}
	}
	c.scope, err = cgdelegate.Create(ctx, c.options())
	if err == nil && c.request.Detach && !cgdelegate.Lingers() && strings.HasSuffix(c.scope.Path(), ".scope") {
		c.warnings = append(c.warnings, "systemd ends this container with the last process of your last session; to prevent that: loginctl enable-linger")
	}
	return c.excuse(err)
}

func (c *PendingCgroup) patience() (context.Context, context.CancelFunc) {
	if c.limited {
		return context.WithCancel(context.Background()) // the library's own time limit
	}
	return context.WithTimeout(context.Background(), scopeTime)
}

// excuse drops the error of a cgroup that cannot be had and need not be.
func (c *PendingCgroup) excuse(err error) error {
	var none *cgdelegate.UnavailableError
	mode := c.request.Mode
	if !errors.As(err, &none) || mode == spec.CgroupEnforce || mode == spec.CgroupAuto && c.limited {
		return err
	}
	if mode == spec.CgroupTry || none.Cause == cgdelegate.Timeout {
		c.warnings = append(c.warnings, "no cgroup: "+err.Error())
	}
	return nil
}

func (c *PendingCgroup) options() cgdelegate.Options {
	r := c.request
	o := cgdelegate.Options{
		Name:        "urun-" + r.ID,
		Description: "urun container " + cmp.Or(r.Name, r.ID[:min(12, len(r.ID))]),
		PIDs:        []int{c.pid},
		Limits:      c.limits,
		// A cgroup that happens to be writable is not rearranged for nothing.
		SystemdOnly: !c.limited && r.Mode != spec.CgroupEnforce,
	}
	if strings.HasSuffix(r.Parent, ".slice") {
		o.Slice = r.Parent
	} else {
		o.Parent = r.Parent
	}
	return o
}

// besideHolder finds the scope of the holder that started the monitor, or has it made;
// "" if there is no such holder.
func (c *PendingCgroup) besideHolder(ctx context.Context) (string, error) {
	dir, err := cgdelegate.Of(c.pid)
	if err != nil {
		return "", nil // without cgroup v2, as the next step says
	}
	// The monitor was born where its parent is: a holder, or a monitor in its scope.
	for d := dir; len(d) > 1; d = filepath.Dir(d) {
		if name := filepath.Base(d); strings.HasPrefix(name, holderScope) && strings.HasSuffix(name, ".scope") {
			return d, nil
		}
	}
	pid := holderOf(c.pid)
	if pid == 0 {
		return "", nil
	}
	scope, err := cgdelegate.Create(ctx, cgdelegate.Options{
		Name: holderScope + strconv.Itoa(pid), Description: "urun containers", PIDs: []int{pid, c.pid}, SystemdOnly: true,
	})
	var none *cgdelegate.UnavailableError
	if errors.As(err, &none) && none.Cause != cgdelegate.Timeout {
		// Another command is having it made, or systemd does not want to: ask for one of its own.
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return scope.Path(), nil
}

// holderOf returns the pid of a process's parent if that is a holder, else 0.
func holderOf(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		value, ok := strings.CutPrefix(line, "PPid:")
		if !ok {
			continue
		}
		parent, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil {
			return 0
		}
		words, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent))
		if err == nil && strings.HasPrefix(string(words), "urun\x00"+handoff.Holder+"\x00") {
			return parent
		}
		return 0
	}
	return 0
}

// await waits for the container's cgroup, or makes it, and notes it in the container's
// record, for whoever cleans up after us. It returns the leaf for init to be started
// in; nil where there is none.
func (c *PendingCgroup) await(handle *state.Handle, req *monitor.Request) (leaf *os.File, err error) {
	handle.Cgroup = ""
	if c == nil {
		return nil, nil
	}
	start := time.Now()
	<-c.done
	defer func() { c.times.Waited = time.Since(start) }()
	switch {
	case c.err != nil:
		return nil, c.err
	case c.parent != "":
		o := c.options()
		// The monitor stays in the leaf that it was born in, and names the cgroup
		// for its holder to know whose it was.
		o.Name, o.Parent, o.PIDs = holder.CgroupName(c.request.ID, c.pid), c.parent, nil
		// In the record before it is there: nobody else would remove it.
		handle.Cgroup = filepath.Join(c.parent, o.Name)
		if err := handle.Save(); err != nil {
			return nil, err
		}
		if c.scope, err = cgdelegate.Create(context.Background(), o); err != nil {
			handle.Cgroup = ""
			return nil, c.excuse(err)
		}
	case c.scope == nil:
		return nil, nil
	default:
		handle.Cgroup = c.scope.Path()
		if err := handle.Save(); err != nil {
			return nil, err
		}
	}
	req.HasCgroup, req.Record.Cgroup = true, handle.Cgroup
	return c.scope.PayloadFD()
}

// Abandon removes the cgroup of a container that does not start, after its monitor has
// ended or was told to.
func (c *PendingCgroup) Abandon() error {
	if c == nil {
		return nil
	}
	<-c.done
	if c.scope == nil {
		return nil
	}
	return c.scope.Remove()
}

// tell gives the session what the user may want to know.
func (c *PendingCgroup) tell(s *Session) {
	if c != nil {
		s.Warnings, s.Cgroup = c.warnings, c.times
	}
}
