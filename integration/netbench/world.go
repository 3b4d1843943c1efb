package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostIP is the address by which containers reach the world's servers; documentation's own (RFC 5737).
const hostIP = "198.51.100.1"

// env is what measurements know of the world.
type env struct {
	options
	dir      string // private to the run
	uid, gid uint32
	home     string // the measuring user's own directory
	self     string // copies of the programs that the user can execute
}

// world runs as root in the new namespaces.
func world(ctx context.Context, args []string) error {
	o, err := parseOptions(args[1:])
	if err != nil {
		return err
	}
	e := &env{options: o, dir: args[0]}
	if err := e.prepare(); err != nil {
		return err
	}
	servers, err := e.startServers(ctx)
	if err != nil {
		return err
	}
	defer servers.stop()
	m := &measurer{env: e, servers: servers}
	if err := m.all(ctx); err != nil {
		return err
	}
	whole, err := readPieces(e.pieces)
	if err != nil {
		return err
	}
	if err := errors.Join(whole.add(m.results), whole.write(e.pieces)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.dir, "report"), []byte(whole.render()), 0o600)
}

// prepare makes the user, programs that he can execute, and the network of the world.
func (e *env) prepare() error {
	u, err := user.Lookup(e.user)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		if err := run("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", e.user); err != nil {
			return err
		}
		u, err = user.Lookup(e.user)
	}
	if err != nil {
		return err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	e.uid, e.gid, e.home = uint32(uid), uint32(gid), filepath.Join(e.dir, "home")
	if err := errors.Join(os.Chmod(e.dir, 0o755), os.Mkdir(e.home, 0o700), os.Chown(e.home, uid, gid)); err != nil {
		return err
	}
	for _, p := range []struct {
		from string
		to   *string
		name string
	}{{"/proc/self/exe", &e.self, "netbench"}, {e.urun, &e.urun, "urun"}, {e.against, &e.against, "urun-before"}, {e.rootlesskit, &e.rootlesskit, "rootlesskit"}} {
		if p.from == "" {
			continue
		}
		to := filepath.Join(e.dir, p.name)
		data, err := os.ReadFile(p.from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			return err
		}
		*p.to = to
	}
	resolv := filepath.Join(e.dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount a private resolv.conf: %w", err)
	}
	// The measuring stage is process 1 of its pid namespace.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	for _, c := range []string{
		"ip link set lo up",
		"ip link add outside type veth peer name beyond",
		"ip link set beyond up",
		"ip addr add " + hostIP + "/24 dev outside",
		"ip link set outside up",
		"ip route add default via 198.51.100.2",
		"sysctl -qw net.ipv4.ip_unprivileged_port_start=53 net.ipv4.ping_group_range=0\t2147483647",
	} {
		if err := run(strings.Fields(strings.ReplaceAll(c, "\t", "\x00"))...); err != nil {
			return err
		}
	}
	return nil
}

func run(args ...string) error {
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "\x00", "\t")
	}
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// asUser makes a command that runs as the measuring user, and dies with this process. It has a session of its own, as a container, what serves its
// network and the servers that it talks to have in use: the kernel shares the CPUs out by session (sched_autogroup_enabled), and what shares one wakes
// each other faster.
func (e *env) asUser(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"HOME=" + e.home, "USER=" + e.user, "LOGNAME=" + e.user, "LANG=C.UTF-8", "XDG_RUNTIME_DIR=" + e.home, "TMPDIR=" + e.home,
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: e.uid, Gid: e.gid}, Setsid: true}
	return cmd
}
