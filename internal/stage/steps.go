package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/program"
	"github.com/urun-dev/urun/internal/rootfs"
	"github.com/urun-dev/urun/slirp"
	"github.com/urun-dev/urun/userns"
)

type step struct {
	name string
	run  func(*setup) error
}

// steps are the set-up in its order. What must come before what is said at the
// later one.
func steps() []step {
	return []step{
		{"watch the monitor", func(*setup) error { return watchParent() }},
		{"join namespaces", (*setup).join},
		// Before any mount of the cgroup file system: it shows what is below the
		// namespace's root.
		{"make cgroup namespace", (*setup).cgroupNamespace},
		{"make mounts private", func(*setup) error { return rootfs.Private() }},
		// Host files are opened before becoming root, which with keep-id is
		// another user for the host, and before any content of the image or of
		// other containers can have a say in how a path is resolved.
		{"open host files", (*setup).openHost},
		{"become root", (*setup).becomeRoot},
		{"make mount points", func(*setup) error { return rootfs.MountPoints() }},
		{"choose storage", (*setup).chooseStorage},
		// The first container of an image waits for its server to come up: so
		// the network, which takes its time meanwhile, comes before the image.
		{"set up network", (*setup).network},
		{"mount image", (*setup).lower},
		{"mount root", (*setup).merged},
		{"set host name", (*setup).hostname},
		{"mount", (*setup).mounts},
		{"make devices", (*setup).devices},
		{"make terminal", (*setup).terminal},
		// Before /proc/sys becomes read-only.
		{"set kernel parameters", func(s *setup) error { return s.root.Sysctl(s.Spec.Linux.Sysctl) }},
		{"hide paths", (*setup).protect},
		// They may write to the root, and see it where it is now.
		{"run hooks", (*setup).createContainerHooks},
		// After all mount points have been made.
		{"make root read-only", (*setup).readOnly},
		{"change root", (*setup).changeRoot},
		{"leave host files", (*setup).closeHost},
		{"run hooks", (*setup).startContainerHooks},
	}
}

// changeRoot makes the container's root that of its mount namespace. A filter around the job may forbid it (docker's default
// profile does, also where it lets mounts be made): then it is moved over the outer root, which stays below it.
func (s *setup) changeRoot() error {
	if !s.NoPivot {
		if err := s.root.Pivot(); !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	s.notices = append(s.notices, "the container's root is changed without pivot_root, which is not to be had here: the outer one is below it")
	return s.root.Move()
}

func (s *setup) join() error {
	if len(s.joins) != len(s.Join) {
		return fmt.Errorf("got %d namespaces, want %d", len(s.joins), len(s.Join))
	}
	for i, f := range s.joins {
		if err := unix.Setns(int(f.Fd()), s.Join[i]); err != nil {
			return fmt.Errorf("setns %#x: %w", s.Join[i], err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// cgroupNamespace makes this process's cgroup the root of what the container sees. The
// thread that does so becomes the command.
func (s *setup) cgroupNamespace() error {
	if !s.CgroupNS {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare: %w", userns.LimitReached(err))
	}
	return nil
}

func (s *setup) openHost() error {
	if err := unix.Chdir(s.Dir); err != nil {
		return fmt.Errorf("enter %s: %w", s.Dir, err)
	}
	for i, m := range s.Spec.Mounts {
		p, err := rootfs.Parse(m)
		if err != nil {
			return err
		}
		if !p.Bind {
			continue
		}
		if s.binds[i], err = rootfs.Source(p); err != nil {
			return fmt.Errorf("bind %s: %w", p.Target, err)
		}
	}
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	s.null = os.NewFile(uintptr(fd), "/dev/null")
	if s.Network == NetworkSlirp && !s.Slirp.NoTUN {
		s.tunDev, err = openTUN()
	}
	return err
}

func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &hintError{
			fmt.Errorf("open /dev/net/tun: %w", err),
			"without a TUN device there is no such network: try --network=host or --network=none, or have the administrator run: modprobe tun; chmod 666 /dev/net/tun",
		}
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// becomeRoot switches this thread to root of the user namespace. With keep-id the process
// started as the caller; the files made from here on belong to root.
func (s *setup) becomeRoot() error {
	if !s.Root {
		return nil
	}
	// All threads: the runtime may run finalizers and the like on others, but
	// file access of this code is on the locked one only, so this one will do.
	var todo program.Program
	becomeRoot(&todo)
	return todo.Run()
}

func becomeRoot(to *program.Program) {
	to.Do("setresgid", unix.SYS_SETRESGID, 0, 0, 0)
	to.Do("setresuid", unix.SYS_SETRESUID, 0, 0, 0)
	to.Do("set umask", unix.SYS_UMASK, 0o022)
}

func (s *setup) network() error {
	switch s.Network {
	case NetworkNone:
		return slirp.ConfigureLoopback()
	case NetworkSlirp:
		var err error
		s.tun, err = slirp.ConfigureDevice(s.Slirp, s.tunDev)
		return err
	}
	return nil
}

func (s *setup) hostname() error {
	if s.Spec.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Spec.Hostname)); err != nil {
			return fmt.Errorf("sethostname %s: %w", s.Spec.Hostname, err)
		}
	}
	if s.Spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(s.Spec.Domainname)); err != nil {
			return fmt.Errorf("setdomainname %s: %w", s.Spec.Domainname, err)
		}
	}
	return nil
}

func (s *setup) mounts() error {
	for i, m := range s.Spec.Mounts {
		p, err := rootfs.Parse(m)
		if err != nil {
			return err
		}
		if err := s.root.Mount(p, s.binds[i]); err != nil {
			return mountHint(p, err)
		}
	}
	if s.shm != nil {
		return s.root.Mount(rootfs.Plan{Source: "/dev/shm", Target: "/dev/shm", Bind: true, Create: true}, s.shm)
	}
	return nil
}

func mountHint(p rootfs.Plan, err error) error {
	if errors.Is(err, unix.EPERM) && (p.Type == "proc" || p.Type == "sysfs") {
		return &hintError{err, "parts of this machine's /proc or /sys are masked, as inside another container; run that one with unmasked paths, or use --pid=host"}
	}
	if errors.Is(err, unix.EOVERFLOW) { // nothing can be made where the owner or group is not mapped
		return &hintError{err, "a directory on the way to " + p.Target + " belongs to a user or group that the container does not have (ls -ln shows it): chown it to yours"}
	}
	return err
}

func (s *setup) devices() error {
	for _, name := range rootfs.DefaultDevices() {
		if s.hasMount(name) {
			continue
		}
		p := rootfs.Plan{Source: name, Target: name, Bind: true, Create: true}
		src, err := rootfs.Source(p)
		if errors.Is(err, unix.ENOENT) {
			continue // a host without it can not give it
		}
		if err != nil {
			return err
		}
		if err := errors.Join(s.root.Mount(p, src), src.Close()); err != nil {
			return err
		}
	}
	return s.root.Links()
}

func (s *setup) hasMount(target string) bool {
	for _, m := range s.Spec.Mounts {
		if filepath.Clean(m.Destination) == target {
			return true
		}
	}
	return false
}

func (s *setup) terminal() error {
	if !s.Spec.Process.Terminal {
		return nil
	}
	var err error
	if s.master, s.slave, err = s.root.Console(); err != nil {
		return err
	}
	return s.terminalFor()
}

// terminalFor gives the new terminal to the container's user, with the size of the caller's.
func (s *setup) terminalFor() error {
	user := s.Spec.Process.User
	if len(s.Emulation) > 0 {
		user.UID = 0 // whoever the command shows itself as
	}
	if err := s.slave.Chown(int(user.UID), -1); err != nil {
		return fmt.Errorf("chown terminal: %w", err)
	}
	if box := s.Spec.Process.ConsoleSize; box != nil {
		ws := unix.Winsize{Row: uint16(box.Height), Col: uint16(box.Width)}
		if err := unix.IoctlSetWinsize(int(s.master.Fd()), unix.TIOCSWINSZ, &ws); err != nil {
			return fmt.Errorf("set terminal size: %w", err)
		}
	}
	return nil
}

func (s *setup) protect() error {
	var linux specs.Linux
	if s.Spec.Linux != nil {
		linux = *s.Spec.Linux
	}
	if err := s.root.Protect(linux.ReadonlyPaths); err != nil {
		return err
	}
	return s.root.Mask(linux.MaskedPaths, s.null)
}

func (s *setup) readOnly() error {
	if s.Spec.Root == nil || !s.Spec.Root.Readonly {
		return nil
	}
	return s.root.ReadOnly()
}

func (s *setup) closeHost() error {
	errs := []error{s.null.Close(), s.root.Close()}
	for _, f := range s.binds {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
