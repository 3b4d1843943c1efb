package cgdelegate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Way is how a delegated cgroup is got.
type Way string

// Ways.
const (
	None          Way = "none"
	UserManager   Way = "systemd user manager"
	SystemManager Way = "systemd"
	Subtree       Way = "writable subtree"
)

// Support is what this machine offers to this process.
type Support struct {
	Way Way
	// Controllers are those that limits can use.
	Controllers []string
	// Version is "v2", "hybrid" (v1 controllers, an empty v2 tree), "v1" or "none".
	Version string
	// Socket is the one on which systemd answered.
	Socket string
	// Reason says in words what the way is, or why there is none.
	Reason string
	// Err is the UnavailableError behind Way None; nil otherwise.
	Err error
}

// Probe finds the way that Create would go, without changing anything.
func Probe(ctx context.Context) Support {
	ctx, cancel := limitTime(ctx)
	defer cancel()
	h := findHierarchy()
	if h.mount == "" {
		err := noCgroup2()
		return Support{Way: None, Version: versionWithout2(), Reason: err.Error(), Err: err}
	}
	s := Support{Version: "v2"}
	if h.hybrid {
		s.Version = "hybrid"
	}
	m, err := connectManager(ctx, addresses(os.Geteuid(), os.Getenv))
	if err == nil {
		s.Way, s.Socket = m.addr.way, m.addr.path
		s.Controllers, s.Reason = managerControllers(h, m)
		if closeErr := m.close(); closeErr != nil {
			s.Reason += "; close the bus: " + closeErr.Error()
		}
		return s
	}
	dir, subErr := writableSubtree(h)
	if subErr == nil {
		s.Way, s.Reason = Subtree, "cgroup "+dir+" is writable ("+err.Error()+")"
		// An unreadable list is none.
		s.Controllers, _ = readWords(filepath.Join(dir, "cgroup.controllers"))
		return s
	}
	s.Way, s.Reason, s.Err = None, err.Error()+"; "+subErr.Error(), err
	return s
}

// managerControllers returns what the manager's own cgroup may share out: the
// subtree below user@UID.service, the whole tree for the system's manager.
func managerControllers(h hierarchy, m *manager) ([]string, string) {
	dir := h.mount
	if m.addr.way == UserManager {
		uid := strconv.Itoa(os.Geteuid())
		dir = filepath.Join(h.mount, "user.slice/user-"+uid+".slice/user@"+uid+".service")
	}
	cs, err := readWords(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Sprintf("systemd answers on %s, but its controllers cannot be read: %v", m.addr.path, err)
	}
	if len(cs) == 0 {
		return nil, fmt.Sprintf("systemd answers on %s and delegates no controller: %v", m.addr.path, h.whyMissing(dir, "memory"))
	}
	return cs, "systemd answers on " + m.addr.path
}

func limitTime(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

func versionWithout2() string {
	if entries, err := os.ReadDir(sysfsCgroup); err == nil && len(entries) > 0 {
		return "v1"
	}
	return "none"
}

func noCgroup2() error {
	return &UnavailableError{
		Cause: NoCgroup2, Err: errors.New("no cgroup v2 is mounted on " + sysfsCgroup),
		Cure: "boot with systemd.unified_cgroup_hierarchy=1 (kernel 5.2 or later), or in a container mount cgroup2 on " + sysfsCgroup,
	}
}

// writableSubtree returns this process's own cgroup if it may make cgroups in it.
func writableSubtree(h hierarchy) (string, error) {
	dir, err := h.dirOf("self")
	if err != nil {
		return "", err
	}
	if filepath.Base(dir) == leafOfOthers {
		// An earlier Create has moved this process, or the shell that it comes
		// from, out of the way: the subtree is the one above.
		dir = filepath.Dir(dir)
	}
	return dir, writable(dir)
}

// writable says why cgroups cannot be made in dir, and processes moved to them.
func writable(dir string) error {
	// Moving a process takes write access to cgroup.procs of the common ancestor,
	// which is this directory for all leaves in it.
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		path := filepath.Join(dir, f)
		// AT_EACCESS needs a recent kernel; euid and uid are the same in urun.
		if err := unix.Access(path, unix.W_OK); err != nil && !(f == "cgroup.subtree_control" && errors.Is(err, unix.ENOENT)) {
			return fmt.Errorf("cgroup %s is not writable: %w", path, err)
		}
	}
	return nil
}

// Lingers says whether the user's systemd manager, and with it all scopes that it
// made, outlives the user's last session (loginctl enable-linger). Root has the
// system's manager, which does.
func Lingers() bool {
	uid := os.Geteuid()
	if uid == 0 {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join("/var/lib/systemd/linger", u.Username))
	return err == nil
}

// missingController returns an error for the first of want that dir does not have.
func (h hierarchy) missingController(dir string, want []string) error {
	have, err := readWords(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers of %s: %w", dir, err)
	}
	for _, c := range want {
		if !slices.Contains(have, c) {
			return h.whyMissing(dir, c)
		}
	}
	return nil
}

// whyMissing finds the highest cgroup on the way to dir that lacks a controller:
// whoever manages its parent does not give it.
func (h hierarchy) whyMissing(dir, controller string) error {
	err := func(unit, cause, cure string) error {
		return &UnavailableError{
			Cause: NoController, Controller: controller, Unit: unit,
			Err: fmt.Errorf("controller %s is not delegated: %s", controller, cause), Cure: cure,
		}
	}
	rel, _ := filepath.Rel(h.mount, dir)
	at, parts := h.mount, strings.Split(rel, "/")
	for i := -1; i < len(parts); i++ {
		if i >= 0 {
			at = filepath.Join(at, parts[i])
		}
		have, readErr := readWords(filepath.Join(at, "cgroup.controllers"))
		if readErr != nil {
			return err("", readErr.Error(), "")
		}
		if slices.Contains(have, controller) {
			continue
		}
		if i < 0 {
			if h.hybrid {
				return err("", "cgroup v1 has it on this machine", "boot with systemd.unified_cgroup_hierarchy=1")
			}
			return err("", "the kernel has it not or keeps it off", "boot with cgroup_enable="+controller+", or use a kernel that has it; in a container the outer runtime has to give it")
		}
		return err(h.unitAbove(parts[:i+1]), "cgroup "+at+" does not have it", delegateCure(parts[:i+1], controller))
	}
	return err("", "cgroup "+dir+" does not have it", "")
}

// unitAbove returns the systemd unit whose Delegate= decides.
func (h hierarchy) unitAbove(parts []string) string {
	for _, p := range slices.Backward(parts) {
		if strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") {
			return p
		}
	}
	if uid := strconv.Itoa(os.Geteuid()); uid != "0" && slices.Contains(parts, "user-"+uid+".slice") {
		return "user@" + uid + ".service"
	}
	return ""
}

func delegateCure(parts []string, controller string) string {
	unit := hierarchy{}.unitAbove(parts)
	if !strings.HasPrefix(unit, "user@") {
		if unit == "" {
			return ""
		}
		return "have " + unit + " delegate it: [Service] Delegate=cpu cpuset io memory pids"
	}
	return "as root: mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' >/etc/systemd/system/user@.service.d/delegate.conf && " +
		"systemctl daemon-reload && systemctl restart " + unit + " # the last ends that user's services; without it, " + controller + " is there from the next boot on"
}
