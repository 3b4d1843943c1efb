package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Error is a failure with a known cure.
type Error struct {
	Op   string // what was tried: "create a user namespace"
	Err  error  // why it did not work
	Cure string // what to do; "" if nobody knows. Where a command does it, a line for a shell, behind "as root: " if need be
}

func (e *Error) Error() string { return e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the cure for display.
func (e *Error) Hint() string { return e.Cure }

func cureOf(err error) string {
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// limits are the settings of a machine that forbid user namespaces.
type limits struct {
	kernelSupport    bool   // /proc/self/ns/user exists
	maxNamespaces    string // user.max_user_namespaces
	unprivClone      string // kernel.unprivileged_userns_clone (Debian)
	apparmorRestrict string // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
	seccomp          string // mode in /proc/self/status: "2" is a filter
	chrooted         bool
	none             string // a kind of namespaces of which there may be none, by the sysctl that limits them
}

func readLimits() limits {
	_, err := os.Stat("/proc/self/ns/user")
	return limits{
		kernelSupport:    !errors.Is(err, fs.ErrNotExist),
		maxNamespaces:    sysctl("user/max_user_namespaces"),
		unprivClone:      sysctl("kernel/unprivileged_userns_clone"),
		apparmorRestrict: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
		seccomp:          statusField("Seccomp"),
		chrooted:         chrooted(),
		none:             forbiddenKind(),
	}
}

// forbiddenKind is a kind of namespaces of which there may be none (user.max_*_namespaces), or "".
func forbiddenKind() string {
	for _, kind := range []string{"pid", "mnt", "uts", "ipc", "net", "cgroup"} {
		if sysctl("user/max_"+kind+"_namespaces") == "0" {
			return kind
		}
	}
	return ""
}

// keepSetting is behind a line for a shell, for which it is a comment.
const keepSetting = " # and a line in /etc/sysctl.d to keep it"

// raiseFrom gives twice as many user namespaces as there may be now.
func raiseFrom(now string) string {
	n, err := strconv.ParseUint(now, 10, 31)
	if err != nil || n < 15000/2 {
		return raise("user")
	}
	return "as root: sysctl -w user.max_user_namespaces=" + strconv.FormatUint(2*n, 10) + keepSetting
}

func raise(kind string) string {
	return "as root: sysctl -w user.max_" + kind + "_namespaces=15000" + keepSetting
}

// CureLimits is the hint where it cannot be seen from inside which limit was reached: that of a namespace further out.
const CureLimits = "as root: raise user.max_*_namespaces, here and around this container"

// LimitReached explains ENOSPC of a call that makes namespaces other than a user namespace.
// Other errors it gives back as they are.
func LimitReached(err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return &Error{Op: "too many namespaces are in use", Err: err, Cure: CureOfLimits()}
}

// CureOfLimits names the setting by which there may be none of a kind of namespaces, if this process sees it, which one
// in a user namespace further in does not.
func CureOfLimits() string {
	if kind := forbiddenKind(); kind != "" {
		return raise(kind)
	}
	return CureLimits
}

func sysctl(name string) string {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "" // the kernel has no such setting, or /proc is masked
	}
	return strings.TrimSpace(string(data))
}

// statusField returns a field of /proc/self/status, "" if it cannot be read.
func statusField(name string) string {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// capStatus says whether a set in /proc/self/status, such as CapEff, holds c.
func capStatus(set string, c uint) bool {
	v, err := strconv.ParseUint(statusField(set), 16, 64)
	return err == nil && v&(1<<c) != 0
}

// chrooted says whether the root directory is not the root of a mount. The kernel
// refuses user namespaces to a chrooted process (create_user_ns), since it could
// leave its root by means of its new capabilities.
func chrooted() bool {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_BASIC_STATS, &stx); err != nil {
		return false
	}
	return stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0
}

const opCreate = "create a user namespace"

// explainClone names the setting behind an errno of clone(CLONE_NEWUSER).
func explainClone(err error, l limits) error {
	wrap := func(cause, cure string) error {
		return &Error{Op: opCreate, Err: fmt.Errorf("%s: %w", cause, err), Cure: cure}
	}
	switch {
	case !l.kernelSupport:
		return wrap("this kernel has none", "use a kernel built with CONFIG_USER_NS")
	case errors.Is(err, unix.ENOSPC) && l.maxNamespaces == "0":
		return wrap("user.max_user_namespaces is 0", raise("user"))
	case errors.Is(err, unix.ENOSPC) && l.none != "":
		// The call makes others as well.
		return wrap("user.max_"+l.none+"_namespaces is 0", raise(l.none))
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return wrap("too many are in use, or more than 32 are nested", raiseFrom(l.maxNamespaces))
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSYS):
		return &Error{Op: "start a process in a new user namespace", Err: err}
	case l.unprivClone == "0":
		return wrap("kernel.unprivileged_userns_clone is 0", "as root: sysctl -w kernel.unprivileged_userns_clone=1"+keepSetting)
	case l.seccomp == "2":
		return wrap("the seccomp filter around this process forbids it", "start the outer container with --security-opt seccomp=unconfined (docker, podman) or seccompProfile: Unconfined (Kubernetes); or run urun as its root, which makes do without")
	case l.chrooted:
		return wrap("this process lives in a chroot", "run urun outside of it, or enter the directory with pivot_root (systemd-nspawn, unshare --root) instead")
	case l.apparmorRestrict == "1":
		return wrap("AppArmor restricts it (kernel.apparmor_restrict_unprivileged_userns is 1)", cureAppArmor)
	}
	return wrap("a security module or the kernel's settings forbid it", "")
}

const cureAppArmor = "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 # or an AppArmor profile for urun that contains: userns,"

// explainWrite names the setting behind an errno of a write to uid_map by our own
// hand.
func explainWrite(file string, err error, l limits) error {
	op := "write " + file
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		if l.apparmorRestrict == "1" {
			return &Error{Op: op, Err: fmt.Errorf("AppArmor restricts user namespaces: %w", err), Cure: cureAppArmor}
		}
	}
	return &Error{Op: op, Err: err}
}
