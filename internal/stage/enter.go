package stage

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	mobyuser "github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/program"
	"github.com/urun-dev/urun/internal/rootfs"
)

// Exec is a command that is to be run in a container beside its own. What it
// leaves open is as the container's own command has it.
type Exec struct {
	Args []string `json:"args"`
	// Env replaces and adds variables; one without a value is taken away.
	Env  []string `json:"env,omitempty"`
	Cwd  string   `json:"cwd,omitempty"`
	User string   `json:"user,omitempty"` // NAME or ID, [:GROUP]; looked up inside
	TTY  bool     `json:"tty,omitempty"`
	// Rows and Columns are the size of the terminal; 0: not known.
	Rows       uint16 `json:"rows,omitempty"`
	Columns    uint16 `json:"columns,omitempty"`
	Privileged bool   `json:"privileged,omitempty"` // all capabilities of the user namespace
}

// Visit is what brings a command into a container that runs.
type Visit struct {
	Config     json.RawMessage // Config, of the container
	Target     *os.File        // a pidfd of the container's init or, for a chroot, its root directory
	Namespaces int             // to join, by their CLONE_NEW* flags
	Exec       Exec
	Files      program.Files // standard files, where there is no terminal
	Cgroup     *os.File      // the container's, or nil
	// Supervise has the emulation of root answer on a listener, which it takes.
	Supervise func(listener *os.File) error
}

// Visitor is a process that a Visit has started.
type Visitor struct {
	*program.Child
	Master *os.File // of its terminal, nil without one
}

// Start joins the container with this thread, looks up there what the command needs, and starts it. The caller has locked
// the thread, which belongs to the container from here on, is of no other use, and must not end before the
// command does: that would be the parent's death for it.
func (v *Visit) Start() (*Visitor, error) {
	s := &setup{}
	if err := json.Unmarshal(v.Config, &s.Config); err != nil {
		return nil, fmt.Errorf("exec: decode the container's set-up: %w", err)
	}
	if s.Outer {
		if err := onlyPermitted(s.Spec.Process); err != nil {
			return nil, fmt.Errorf("exec: %w", err)
		}
	}
	if !s.Chroot {
		if err := join(v.Target, v.Namespaces&^unix.CLONE_NEWCGROUP); err != nil {
			return nil, err
		}
	}
	// Where the container's init went without, the monitor has taken it from here.
	listener, err := s.listen()
	if err == nil && listener != nil {
		s.emulated = true
		err = v.Supervise(listener)
	}
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	child, err := s.startVisitor(v)
	if s.slave != nil {
		err = errors.Join(err, s.slave.Close())
	}
	if err != nil {
		if s.master != nil {
			s.master.Close()
		}
		return nil, err
	}
	return &Visitor{Child: child, Master: s.master}, nil
}

// startVisitor is what is done inside.
func (s *setup) startVisitor(v *Visit) (*program.Child, error) {
	p := Process{Spec: s.Spec.Process, Seccomp: s.Seccomp, SeccompFlags: s.SeccompFlags, KeepGroups: s.KeepGroups, visits: true}
	if s.Chroot {
		p.inside = rootfs.At(v.Target)
	}
	if err := s.visit(&p, v.Exec); err != nil {
		return nil, err
	}
	var todo program.Program
	if v.Namespaces&unix.CLONE_NEWCGROUP != 0 {
		// Not before it is born: in that namespace the cgroup that this thread is in does not exist, and from there no
		// process comes into another one (ENOENT, cgroup_namespaces(7)).
		todo.Do("join the container's cgroup namespace", unix.SYS_SETNS, program.KeptFD, unix.CLONE_NEWCGROUP)
	}
	if s.Chroot {
		if err := p.enterRoot(&todo, v.Target); err != nil {
			return nil, fmt.Errorf("exec: %w", err)
		}
	}
	files := v.Files
	if v.Exec.TTY {
		if err := s.visitorTerminal(v.Exec, p.Spec.User.UID); err != nil {
			return nil, fmt.Errorf("exec: terminal: %w", err)
		}
		files = program.Files{s.slave, s.slave, s.slave}
		todo.Do("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if err := p.visitDir(&todo); err != nil {
		return nil, fmt.Errorf("enter working directory: %w", err)
	}
	if s.Root {
		becomeRoot(&todo)
	}
	if err := p.giveUp(&todo, nil); err != nil {
		return nil, err
	}
	return todo.Start(files, v.Target, v.Cgroup)
}

// enterRoot has the visitor enter a container that is no more than a directory. Its terminal is one of the devpts around it.
//
// The child does so, and this thread only looks in (inside): it shares its root directory with the other threads, and unshare(2) is
// what the filters of the jobs forbid in which containers are no more than that.
func (p *Process) enterRoot(to *program.Program, dir *os.File) error {
	name, err := to.String(dir.Name())
	if err != nil {
		return err
	}
	to.Do("enter the container's root", unix.SYS_CHROOT, name)
	return nil
}

// visitDir has the visitor enter its working directory.
func (p *Process) visitDir(to *program.Program) error {
	if p.inside == nil {
		return p.chdir()
	}
	cwd := cmp.Or(p.Spec.Cwd, "/")
	var st unix.Stat_t
	err := p.stat(cwd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return p.noDir(cwd, err)
	}
	name, err := to.String(cwd)
	if err != nil {
		return err
	}
	to.Do("enter working directory", unix.SYS_CHDIR, name)
	return nil
}

// open opens a file of the container, and waits for nobody.
func (p *Process) open(name string) (fd int, err error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	if p.inside == nil {
		return unix.Open(name, flags, 0)
	}
	f, err := p.inside.Lookup(name)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
}

// join enters the namespaces of the process of a pidfd. With a mount namespace
// come its root and its working directory.
func join(pidfd *os.File, flags int) error {
	// A thread that shares these with others can change neither its root nor its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("exec: unshare: %w", err)
	}
	err := unix.Setns(int(pidfd.Fd()), flags)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("container is not running: %w", err) // it is just ending
	}
	if err != nil {
		return fmt.Errorf("exec: join the container: %w", err)
	}
	return nil
}

// visit makes the process of the container's own command that of a visitor.
func (s *setup) visit(p *Process, e Exec) error {
	proc := *p.Spec
	p.Spec = &proc
	proc.Args, proc.Terminal = e.Args, e.TTY
	if e.Cwd != "" {
		proc.Cwd = e.Cwd
	}
	if e.TTY && !slices.ContainsFunc(proc.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		proc.Env = setEnv(proc.Env, "TERM=xterm")
	}
	if e.User != "" {
		if err := s.visitorUser(p, e.User); err != nil {
			return err
		}
	}
	for _, kv := range e.Env {
		proc.Env = setEnv(proc.Env, kv)
	}
	if e.Privileged {
		all, err := allCapabilityNames()
		if err != nil {
			return err
		}
		proc.Capabilities = &specs.LinuxCapabilities{Bounding: all}
		proc.NoNewPrivileges = false
	}
	if caps := proc.Capabilities; caps != nil && (e.User != "" || e.Privileged) {
		granted := *caps
		granted.Effective, granted.Permitted, granted.Inheritable, granted.Ambient = nil, nil, nil, nil
		if proc.User.UID == 0 {
			// As at the start: others get what files' capabilities give them.
			granted.Effective, granted.Permitted = granted.Bounding, granted.Bounding
		}
		proc.Capabilities = &granted
	}
	return nil
}

// setEnv sets a variable; one without = is taken away.
func setEnv(env []string, kv string) []string {
	key, _, valued := strings.Cut(kv, "=")
	out := slices.DeleteFunc(slices.Clone(env), func(old string) bool { return strings.HasPrefix(old, key+"=") })
	if valued {
		out = append(out, kv)
	}
	return out
}

func allCapabilityNames() ([]string, error) {
	last, err := capability.LastCap()
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	var all []string
	for c := capability.Cap(0); c <= last; c++ {
		all = append(all, "CAP_"+strings.ToUpper(c.String()))
	}
	return all, nil
}

// visitorUser looks the user up in the container's files as they are now.
func (s *setup) visitorUser(p *Process, name string) error {
	passwd, err := p.accountFile("/etc/passwd")
	if err != nil {
		return err
	}
	group, err := p.accountFile("/etc/group")
	if err != nil {
		return err
	}
	u, err := mobyuser.GetExecUser(name, &mobyuser.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return &codedError{126, fmt.Errorf("exec: user %q: %w", name, err)}
	}
	proc := p.Spec
	proc.User.UID, proc.User.GID, proc.User.AdditionalGids = uint32(u.Uid), uint32(u.Gid), nil
	linux := s.Spec.Linux
	if !s.emulated && (!mapped(linux.UIDMappings, proc.User.UID) || !mapped(linux.GIDMappings, proc.User.GID)) {
		return &codedError{126, fmt.Errorf("exec: user %q: its ids are not mapped into the container", name)}
	}
	if s.emulated {
		for _, g := range u.Sgids {
			proc.User.AdditionalGids = append(proc.User.AdditionalGids, uint32(g))
		}
	} else if single := len(linux.GIDMappings) == 1 && linux.GIDMappings[0].Size == 1; !single {
		for _, g := range u.Sgids {
			if mapped(linux.GIDMappings, uint32(g)) {
				proc.User.AdditionalGids = append(proc.User.AdditionalGids, uint32(g))
			}
		}
	}
	p.KeepGroups = false
	proc.Env = setEnv(proc.Env, "HOME="+u.Home)
	return nil
}

func mapped(maps []specs.LinuxIDMapping, id uint32) bool {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return true
		}
	}
	return false
}

// maxAccounts bounds the passwd and group files, in bytes.
const maxAccounts = 16 << 20

// accountFile opens a file that the container can have replaced by anything: a
// pipe, for instance, at which this process would wait for ever.
func (p *Process) accountFile(name string) (io.Reader, error) {
	fd, err := p.open(name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("exec: open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("exec: %s is not a regular file", name)
	}
	var b strings.Builder
	if _, err := io.Copy(&b, io.LimitReader(f, maxAccounts)); err != nil {
		return nil, fmt.Errorf("exec: read %s: %w", name, err)
	}
	return strings.NewReader(b.String()), nil
}

// visitorTerminal makes the visitor's terminal, in the container's devpts where it has one, and gives it to the user.
func (s *setup) visitorTerminal(e Exec, uid uint32) error {
	if s.slave == nil {
		terminal := rootfs.Terminal
		if s.Chroot {
			terminal = rootfs.OuterTerminal
		}
		var err error
		if s.master, s.slave, err = terminal(); err != nil {
			return err
		}
	}
	if err := s.slave.Chown(int(uid), -1); err != nil {
		return err
	}
	if e.Rows == 0 {
		return nil
	}
	ws := unix.Winsize{Row: e.Rows, Col: e.Columns}
	return unix.IoctlSetWinsize(int(s.master.Fd()), unix.TIOCSWINSZ, &ws)
}
