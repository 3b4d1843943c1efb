package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

// caller is the user whom the measuring process runs as.
type caller struct {
	name     string
	uid, gid int
	byRoot   bool
}

// measuringUser is the caller or, for root, the named user, who must have subordinate ids: podman needs them.
func measuringUser(name string) (*caller, error) {
	root := os.Getuid() == 0
	u, err := user.Current()
	if root {
		if u, err = user.Lookup(name); err != nil {
			var unknown user.UnknownUserError
			if !errors.As(err, &unknown) {
				return nil, err
			}
			// Debian's useradd gives subordinate ids by itself.
			if err := benchkit.Command("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh", name); err != nil {
				return nil, err
			}
			u, err = user.Lookup(name)
		}
	}
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	data, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if owner, _, _ := strings.Cut(line, ":"); owner == u.Username || owner == u.Uid {
			return &caller{name: u.Username, uid: uid, gid: gid, byRoot: root}, nil
		}
	}
	return nil, fmt.Errorf("user %s has no range in /etc/subuid: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", u.Username, u.Username)
}

// env is all of the environment of what is measured.
func (c *caller) env(su setup) []string {
	return []string{
		"HOME=" + su.Dir, "USER=" + c.name, "LOGNAME=" + c.name, "SHELL=/bin/sh", "LANG=C.UTF-8",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"XDG_RUNTIME_DIR=" + su.RuntimeDir,
	}
}

// runtimeDir makes a runtime directory of our own: podman's pause process and locks of other work stay out of it. Root
// only makes a mount point, of which enter makes a tmpfs.
func runtimeDir(c *caller, stage string) (string, error) {
	if c.byRoot {
		dir := filepath.Join(stage, "run")
		return dir, os.Mkdir(dir, 0o755)
	}
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		var fs unix.Statfs_t
		if parent != "" && unix.Statfs(parent, &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
			return os.MkdirTemp(parent, "urun-bench-")
		}
	}
	return "", errors.New("neither XDG_RUNTIME_DIR nor /dev/shm is a tmpfs: podman would be slower than it is")
}

// enter runs as root in a private mount namespace (Go makes all mounts private when it unshares), makes the mounts that
// podman and crun of an ordinary user work best with, and becomes that user. crun refuses a hybrid cgroup hierarchy.
func enter(runtimeDir string) error {
	uid, gid, ok := strings.Cut(os.Getenv("URUN_BENCH_IDS"), ":")
	u, err1 := strconv.Atoi(uid)
	g, err2 := strconv.Atoi(gid)
	if err := errors.Join(err1, err2); err != nil || !ok || u == 0 {
		return fmt.Errorf("URUN_BENCH_IDS: want UID:GID: %w", err)
	}
	if err := unix.Mount("tmpfs", runtimeDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=700,uid=%d,gid=%d", u, g)); err != nil {
		return fmt.Errorf("mount tmpfs on the runtime directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return fmt.Errorf("statfs /sys/fs/cgroup: %w", err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount cgroup2 on /sys/fs/cgroup, privately: %w", err)
		}
	}
	if err := errors.Join(syscall.Setgroups([]int{g}), syscall.Setgid(g), syscall.Setuid(u)); err != nil {
		return fmt.Errorf("become uid %d: %w", u, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", self, syscall.Exec(self, []string{self, measureStage}, os.Environ()))
}
