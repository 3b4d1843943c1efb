package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/seccomp"
)

// Process is the user's command, to be executed in a finished container.
type Process struct {
	Spec         *specs.Process  `json:"spec"`
	Seccomp      seccomp.Program `json:"seccomp,omitempty"`
	SeccompFlags uint            `json:"seccompFlags,omitempty"`
	KeepGroups   bool            `json:"keepGroups,omitempty"`
	// Preserve are the numbers under which the command finds the files preserved.
	Preserve  []uint `json:"preserve,omitempty"`
	preserved []*os.File
	// independent: it is no child of urun's, and outlives its parent.
	independent bool
	// visits: it comes into a container that is there already, whose directories are not its to make.
	visits bool
}

// Exec gives up what the command may not have and executes it. It returns only
// on failure. The caller has locked the thread.
func (p Process) Exec() error {
	for _, st := range []struct {
		name string
		run  func() error
	}{
		{"reset signals", resetSignals},
		{"set resource limits", p.rlimits},
		{"set oom score", p.oomScore},
		{"enter working directory", p.chdir},
		{"drop bounding capabilities", p.dropBounding},
		// Without no_new_privs a filter needs CAP_SYS_ADMIN, which is gone after
		// the next steps; with it, the filter comes last so that it need not
		// allow them.
		{"install seccomp filter", func() error { return p.seccomp(false) }},
		{"set user", p.setUser},
		{"set capabilities", p.setCapabilities},
		// Changing ids clears the parent-death signal (prctl(2)).
		{"watch the monitor", p.watchMonitor},
		{"set no_new_privs", p.noNewPrivs},
		// CVE-2024-21626. The channel to the monitor closes with them: that tells the
		// monitor that the command was executed.
		{"close files", handoff.CloseOnExec},
	} {
		if err := st.run(); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	candidates, err := p.lookup()
	if err != nil {
		return err
	}
	if err := p.keepFiles(); err != nil {
		return err
	}
	if err := p.seccomp(true); err != nil {
		return fmt.Errorf("install seccomp filter: %w", err)
	}
	return p.execute(candidates)
}

func (p Process) rlimits() error {
	for _, l := range p.Spec.Rlimits {
		n, ok := rlimitNumber(l.Type)
		if !ok {
			return fmt.Errorf("unknown limit %s", l.Type)
		}
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if err := unix.Prlimit(0, n, &lim, nil); err != nil {
			err = fmt.Errorf("%s=%d:%d: %w", l.Type, l.Soft, l.Hard, err)
			if errors.Is(err, unix.EPERM) {
				return &hintError{err, "a limit can not be above your own hard limit; see: ulimit -H -a"}
			}
			return err
		}
	}
	return nil
}

// oomScore says how soon the kernel kills this process when the machine is out of memory.
func (p Process) oomScore() error {
	if p.Spec.OOMScoreAdj == nil {
		return nil
	}
	err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*p.Spec.OOMScoreAdj)), 0)
	if errors.Is(err, unix.EACCES) {
		return &hintError{
			fmt.Errorf("%d: %w", *p.Spec.OOMScoreAdj, err),
			"an ordinary user can not be spared more than he is already, which cat /proc/self/oom_score_adj tells: only less",
		}
	}
	return err
}

func rlimitNumber(name string) (int, bool) {
	for i, n := range []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"} {
		if name == "RLIMIT_"+n {
			return i, true
		}
	}
	return 0, false
}

// chdir enters the working directory. As with docker, that of a new container is made, that of exec is not.
func (p Process) chdir() error {
	cwd := p.Spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	err := unix.Chdir(cwd)
	if p.visits && errors.Is(err, unix.ENOENT) {
		return &codedError{127, &hintError{fmt.Errorf("%s: %w", cwd, err), "the directory has to be in the container, or choose another one with -w"}}
	}
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(cwd, 0o755); err != nil {
			return err
		}
		err = unix.Chdir(cwd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", cwd, err)
	}
	// A path through /proc/self/fd may lead to a directory of the host
	// (CVE-2024-21626); the kernel then says "(unreachable)".
	got, err := unix.Getwd()
	if err != nil {
		return fmt.Errorf("%s: %w", cwd, err)
	}
	if !strings.HasPrefix(got, "/") {
		return fmt.Errorf("%s is outside of the container", cwd)
	}
	return nil
}

func (p Process) dropBounding() error {
	caps, err := p.capabilities()
	if err != nil {
		return err
	}
	return caps.Apply(capability.BOUNDS)
}

func (p Process) setUser() error {
	u := p.Spec.User
	if u.Umask != nil {
		unix.Umask(int(*u.Umask))
	}
	if !p.KeepGroups {
		if err := setgroups(u.AdditionalGids); err != nil {
			return err
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); errno != 0 {
		return fmt.Errorf("setresgid %d: %w", u.GID, errno)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); errno != 0 {
		return fmt.Errorf("setresuid %d: %w", u.UID, errno)
	}
	return nil
}

// setgroups sets the supplementary groups of this thread. In a user namespace
// with a single gid setgroups(2) is forbidden (user_namespaces(7)): there the
// process keeps the caller's groups, which show as nobody's.
func setgroups(gids []uint32) error {
	var p *uint32
	if len(gids) > 0 {
		p = &gids[0]
	}
	err := rawSetgroups(len(gids), p)
	if errors.Is(err, unix.EPERM) && len(gids) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("setgroups %v: %w", gids, err)
	}
	return nil
}

func (p Process) setCapabilities() error {
	caps, err := p.capabilities()
	if err != nil {
		return err
	}
	// Ambient capabilities carried the set-up through execve; what is not asked
	// for must not reach the command.
	return caps.Apply(capability.CAPS | capability.AMBS)
}

func (p Process) capabilities() (capability.Capabilities, error) {
	caps, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	caps.Clear(capability.CAPS | capability.BOUNDS | capability.AMBS)
	if p.Spec.Capabilities == nil {
		return caps, nil
	}
	c := p.Spec.Capabilities
	for _, set := range []struct {
		which capability.CapType
		names []string
	}{
		{capability.BOUNDING, c.Bounding},
		{capability.EFFECTIVE, c.Effective},
		{capability.PERMITTED, c.Permitted},
		{capability.INHERITABLE, c.Inheritable},
		{capability.AMBIENT, c.Ambient},
	} {
		for _, name := range set.names {
			n, err := capabilityNumber(name)
			if err != nil {
				return nil, err
			}
			caps.Set(set.which, n)
		}
	}
	return caps, nil
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

func (p Process) watchMonitor() error {
	if p.independent {
		return nil
	}
	return watchParent()
}

func watchParent() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}

func (p Process) noNewPrivs() error {
	if !p.Spec.NoNewPrivileges {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return nil
}

func (p Process) seccomp(last bool) error {
	if len(p.Seccomp) == 0 || p.Spec.NoNewPrivileges != last {
		return nil
	}
	return p.Seccomp.Install(p.SeccompFlags)
}

// keepFiles gives the command the files that it is to keep, under their numbers. Something
// of this process may have such a number, and be closed: so nothing comes after it but the execve.
func (p Process) keepFiles() error {
	if len(p.Preserve) != len(p.preserved) {
		return fmt.Errorf("got %d files for the command, want %d", len(p.preserved), len(p.Preserve))
	}
	if len(p.Preserve) == 0 {
		return nil
	}
	// One of them may be where another is to be.
	beyond := int(slices.Max(p.Preserve)) + 1
	var high []int
	for _, f := range p.preserved {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, beyond)
		if err != nil {
			return fmt.Errorf("keep file: %w", err)
		}
		high = append(high, fd)
	}
	for i, fd := range high {
		if err := unix.Dup3(fd, int(p.Preserve[i]), 0); err != nil {
			return fmt.Errorf("keep file %d: %w", p.Preserve[i], err)
		}
	}
	return nil
}

// lookup finds what the command's name may mean, as execvp(3) would.
func (p Process) lookup() ([]string, error) {
	if len(p.Spec.Args) == 0 {
		return nil, &codedError{125, errors.New("no command: the image has neither entrypoint nor command")}
	}
	name := p.Spec.Args[0]
	if name == "" {
		return nil, &codedError{127, errors.New(`exec "": no such file or directory`)}
	}
	if strings.Contains(name, "/") {
		return []string{name}, nil
	}
	var found []string
	for _, dir := range strings.Split(p.path(), ":") {
		// A relative entry would mean the image's working directory: skip it,
		// as Go's exec.LookPath does.
		if !path.IsAbs(dir) {
			continue
		}
		file := path.Join(dir, name)
		var st unix.Stat_t
		if unix.Stat(file, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			found = append(found, file)
		}
	}
	if len(found) == 0 {
		return nil, &codedError{127, fmt.Errorf("exec %q: executable file not found in $PATH", name)}
	}
	return found, nil
}

func (p Process) path() string {
	for i := len(p.Spec.Env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(p.Spec.Env[i], "PATH="); ok {
			return v
		}
	}
	return ""
}

// execute tries the candidates. A file that may not be executed makes room for
// the next in $PATH, as in a shell.
func (p Process) execute(candidates []string) error {
	var err error
	for _, file := range candidates {
		err = syscall.Exec(file, p.Spec.Args, p.Spec.Env)
		if !errors.Is(err, unix.EACCES) {
			break
		}
	}
	code := 126
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = 127
	}
	return &codedError{code, fmt.Errorf("exec %q: %w", p.Spec.Args[0], err)}
}
