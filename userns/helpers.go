package userns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const cureInstall = "as root: apt-get install --yes uidmap # Debian, Ubuntu; Fedora: dnf install shadow-utils"

// helperPaths are the helpers that are found, or where they belong.
func helperPaths() (newuidmap, newgidmap string) {
	find := func(name string) string {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		return "/usr/bin/" + name
	}
	return find("newuidmap"), find("newgidmap")
}

// cureMode makes the helpers setuid root, as Debian has them.
func cureMode() string {
	u, g := helperPaths()
	return "as root: chmod u+s " + u + " " + g
}

// cureCapabilities makes them go without root: one that is setuid as well would be root, to whom the map does not belong.
func cureCapabilities() string {
	u, g := helperPaths()
	return "as root: chmod u-s " + u + " " + g + " && setcap cap_setuid+ep " + u + " && setcap cap_setgid+ep " + g
}

// HelpersUsable says why newuidmap and newgidmap cannot do their work here; nil if
// nothing speaks against them.
func HelpersUsable() error {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return &Error{Op: "find " + name, Err: exec.ErrNotFound, Cure: cureInstall}
		}
		if err := helperPower(path); err != nil {
			return err
		}
	}
	return nil
}

// helperPower says why executing path would not gain the capability to write a
// map; nil if nothing speaks against it.
func helperPower(path string) error {
	op := "use " + path
	if capStatus("CapEff", unix.CAP_SETUID) && capStatus("CapEff", unix.CAP_SETGID) {
		return nil // it needs to gain nothing
	}
	if statusField("NoNewPrivs") == "1" {
		return &Error{
			Op: op, Err: errors.New("no_new_privs is set, so setuid programs have no power"),
			Cure: "start the job without no_new_privs (allowPrivilegeEscalation: true in Kubernetes)",
		}
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(path, &sfs); err == nil && sfs.Flags&unix.ST_NOSUID != 0 {
		return &Error{
			Op: op, Err: errors.New("its filesystem is mounted nosuid"),
			Cure: "install it on a filesystem that is mounted without nosuid",
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		return &Error{Op: op, Err: err}
	}
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 {
		return nil
	}
	if fi.Mode()&os.ModeSetuid == 0 {
		return &Error{Op: op, Err: errors.New("it is neither setuid root nor has it capabilities"), Cure: cureMode()}
	}
	// A setuid helper is root, not the namespace's owner, and needs CAP_SYS_ADMIN
	// to write the map (map_write); with file capabilities it stays the owner.
	if !capStatus("CapBnd", unix.CAP_SYS_ADMIN) {
		return &Error{Op: op, Err: errors.New("it is setuid root, but this job's root lacks CAP_SYS_ADMIN"), Cure: cureCapabilities()}
	}
	return nil
}

// runHelper has newuidmap or newgidmap write a map of process pid.
func runHelper(name string, pid int, rs []Range) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return &Error{Op: "find " + name, Err: exec.ErrNotFound, Cure: cureInstall}
	}
	args := append([]string{strconv.Itoa(pid)}, strings.Split(join(rs, " ", " "), " ")...)
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if err := cmd.Run(); err != nil {
		return explainHelper(name, path, rs, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out.Bytes())))
	}
	return nil
}

func explainHelper(name, path string, rs []Range, err error) error {
	op := fmt.Sprintf("run %s for ids %s", name, join(rs, ":", ","))
	if power := helperPower(path); power != nil {
		return &Error{Op: op, Err: fmt.Errorf("%w (%w)", power, err), Cure: cureOf(power)}
	}
	id := Current()
	uids, gids, subErr := Subordinate(id)
	if subErr != nil {
		return &Error{Op: op, Err: errors.Join(err, subErr)}
	}
	kind, own, sub := "uid", uint32(id.UID), uids
	if name == "newgidmap" {
		kind, own, sub = "gid", uint32(id.GID), gids
	}
	for _, r := range rs {
		if e := granted(kind, []Range{r}, id.Name, own, sub, identity([]Range{{0, 0, 1<<32 - 1}}), host{}); e != nil {
			return &Error{Op: op, Err: fmt.Errorf("%w (%w)", e, err), Cure: cureOf(e)}
		}
	}
	if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" {
		return &Error{Op: op, Err: err, Cure: cureAppArmor}
	}
	return &Error{Op: op, Err: err}
}
