package stage

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/holder/origin"
	"github.com/urun-dev/urun/internal/program"
)

// giveUp adds to a program what the command may not have, and the command. Preserved are the numbers of the files that
// it keeps, as preserve has them. Directories are looked at as this thread sees them, by its rights.
func (p Process) giveUp(to *program.Program, preserved []int) error {
	candidates, err := p.lookup()
	if err != nil {
		return err
	}
	if err := p.limit(to); err != nil {
		return err
	}
	caps, err := p.capabilities()
	if err != nil {
		return err
	}
	if err := caps.bound(to); err != nil {
		return err
	}
	// Without no_new_privs a filter needs CAP_SYS_ADMIN, which is gone after
	// the next steps; with it, the filter comes last so that it need not
	// allow them.
	if err := p.filter(to, false); err != nil {
		return err
	}
	p.setUser(to)
	// Ambient capabilities carried the set-up through execve; what is not asked
	// for must not reach the command.
	caps.set(to)
	if !p.independent {
		// Changing ids has cleared it (prctl(2)).
		to.Do("watch the monitor", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	}
	if p.Spec.NoNewPrivileges {
		to.Do("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	// Something of this process may have such a number, and be closed: so nothing comes after it but the execve.
	for i, fd := range preserved {
		to.Do(fmt.Sprintf("keep file %d", p.Preserve[i]), unix.SYS_DUP3, uintptr(fd), uintptr(p.Preserve[i]), 0)
	}
	if err := p.filter(to, true); err != nil {
		return err
	}
	return p.execute(to, candidates)
}

// limit adds resource limits, and how soon the kernel kills the process when the machine is out of memory.
func (p Process) limit(to *program.Program) error {
	// Package syscall has raised it, and takes that back only where it executes something itself.
	if soft, hard := origin.Files(); hard != 0 {
		limit := unix.Rlimit{Cur: soft, Max: hard}
		to.Do("set resource limits", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, program.Point(to, &limit))
	}
	for _, l := range p.Spec.Rlimits {
		n, ok := rlimitNumber(l.Type)
		if !ok {
			return fmt.Errorf("set resource limits: unknown limit %s", l.Type)
		}
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		to.Do("set resource limits", unix.SYS_PRLIMIT64, 0, uintptr(n), program.Point(to, &lim)).Explain(func(errno unix.Errno) error {
			err := fmt.Errorf("%s=%d:%d: %w", l.Type, l.Soft, l.Hard, errno)
			if errno == unix.EPERM {
				return &hintError{err, "a limit can not be above your own hard limit; see: ulimit -H -a"}
			}
			return err
		})
	}
	if p.Spec.OOMScoreAdj == nil {
		return nil
	}
	score := *p.Spec.OOMScoreAdj
	text := []byte(strconv.Itoa(score))
	name, err := to.String("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	refused := func(errno unix.Errno) error {
		err := fmt.Errorf("%d: %w", score, errno)
		if errno == unix.EACCES {
			return &hintError{err, "an ordinary user can not be spared more than he is already, which cat /proc/self/oom_score_adj tells: only less"}
		}
		return err
	}
	const cwd = ^uintptr(99) // AT_FDCWD
	to.Do("set oom score", unix.SYS_OPENAT, cwd, name, unix.O_WRONLY|unix.O_CLOEXEC).Explain(refused)
	to.Do("set oom score", unix.SYS_WRITE, 0, to.Bytes(text), uintptr(len(text))).OnLast().Explain(refused)
	return nil
}

func rlimitNumber(name string) (int, bool) {
	for i, n := range []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"} {
		if name == "RLIMIT_"+n {
			return i, true
		}
	}
	return 0, false
}

func (p Process) setUser(to *program.Program) {
	u := p.Spec.User
	if u.Umask != nil {
		to.Do("set umask", unix.SYS_UMASK, uintptr(*u.Umask))
	}
	if !p.KeepGroups {
		to.Do("set user", unix.SYS_SETGROUPS, uintptr(len(u.AdditionalGids)), groups(to, u.AdditionalGids)).Explain(func(errno unix.Errno) error {
			return fmt.Errorf("setgroups %v: %w", u.AdditionalGids, errno)
		})
		if len(u.AdditionalGids) == 0 {
			// In a user namespace with a single gid setgroups(2) is forbidden (user_namespaces(7)): there the
			// process keeps the caller's groups, which show as nobody's.
			to.Tolerate(unix.EPERM)
		}
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	to.Do("set user", unix.SYS_SETRESGID, gid, gid, gid).Explain(func(errno unix.Errno) error {
		return fmt.Errorf("setresgid %d: %w", u.GID, errno)
	})
	to.Do("set user", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	to.Do("set user", unix.SYS_SETRESUID, uid, uid, uid).Explain(func(errno unix.Errno) error {
		return fmt.Errorf("setresuid %d: %w", u.UID, errno)
	})
}

func groups(to *program.Program, gids []uint32) uintptr {
	if len(gids) == 0 {
		return 0
	}
	return program.Point(to, &gids[0])
}

// capabilitySets are the sets of a process, a bit a capability.
type capabilitySets struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

func (p Process) capabilities() (capabilitySets, error) {
	var sets capabilitySets
	if p.Spec.Capabilities == nil {
		return sets, nil
	}
	c := p.Spec.Capabilities
	for _, set := range []struct {
		to    *uint64
		names []string
	}{
		{&sets.bounding, c.Bounding},
		{&sets.effective, c.Effective},
		{&sets.permitted, c.Permitted},
		{&sets.inheritable, c.Inheritable},
		{&sets.ambient, c.Ambient},
	} {
		for _, name := range set.names {
			n, err := capabilityNumber(name)
			if err != nil {
				return sets, err
			}
			*set.to |= 1 << n
		}
	}
	return sets, nil
}

// capabilityVersion is _LINUX_CAPABILITY_VERSION_3: 64 bits a set.
const capabilityVersion = unix.LINUX_CAPABILITY_VERSION_3

// bound takes what is not in the bounding set out of this process's, for good. It takes CAP_SETPCAP, without which
// (a container that is the job around us and no more) it stays as it is.
func (c capabilitySets) bound(to *program.Program) error {
	header := unix.CapUserHeader{Version: capabilityVersion}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("drop bounding capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) == 0 {
		return nil
	}
	last, err := capability.LastCap()
	if err != nil {
		return fmt.Errorf("drop bounding capabilities: %w", err)
	}
	for n := capability.Cap(0); n <= last; n++ {
		if c.bounding&(1<<n) == 0 {
			to.Do("drop bounding capabilities", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n)).Tolerate(unix.EINVAL)
		}
	}
	return nil
}

func (c capabilitySets) set(to *program.Program) {
	header := unix.CapUserHeader{Version: capabilityVersion}
	data := [2]unix.CapUserData{
		{Effective: uint32(c.effective), Permitted: uint32(c.permitted), Inheritable: uint32(c.inheritable)},
		{Effective: uint32(c.effective >> 32), Permitted: uint32(c.permitted >> 32), Inheritable: uint32(c.inheritable >> 32)},
	}
	to.Do("set capabilities", unix.SYS_CAPSET, program.Point(to, &header), program.Point(to, &data))
	to.Do("set capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	for n := range uintptr(64) {
		if c.ambient&(1<<n) != 0 {
			to.Do("set capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n)
		}
	}
}

func capabilityNumber(name string) (capability.Cap, error) {
	short := strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	for _, c := range capability.ListKnown() {
		if c.String() == short {
			return c, nil
		}
	}
	return 0, fmt.Errorf("unknown capability %s", name)
}

// filter adds the seccomp filter where its place is.
func (p Process) filter(to *program.Program, last bool) error {
	if len(p.Seccomp) == 0 || p.Spec.NoNewPrivileges != last {
		return nil
	}
	return p.Seccomp.AddTo(to, p.SeccompFlags)
}

// execute adds the command. A file that may not be executed makes room for
// the next in $PATH, as in a shell.
func (p Process) execute(to *program.Program, candidates []string) error {
	err := to.Execute(candidates, p.Spec.Args, p.Spec.Env, func(errno unix.Errno) error {
		code := 126
		if errno == unix.ENOENT || errno == unix.ENOTDIR {
			code = 127
		}
		return &codedError{code, fmt.Errorf("exec %q: %w", p.Spec.Args[0], errno)}
	})
	if errors.Is(err, unix.EINVAL) {
		return &codedError{126, fmt.Errorf("exec: %w", err)}
	}
	return err
}

func watchParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}
