package ladder

import (
	"os"
	"slices"
	"strings"
)

// mounts are what /proc/self/mountinfo tells of /proc, /sys and what is below.
type mounts struct {
	lines []string
	all   []mountLine
}

type mountLine struct{ root, point, fstype string }

// readMounts reads the mounts of this process; none where /proc cannot be read,
// which then is not plain either.
func readMounts() mounts {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mounts{}
	}
	return parseMounts(string(data))
}

// parseMounts reads the format of proc_pid_mountinfo(5).
func parseMounts(text string) mounts {
	var m mounts
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		sep := slices.Index(f, "-")
		if sep < 6 || sep+1 >= len(f) {
			continue
		}
		l := mountLine{root: f[3], point: f[4], fstype: f[sep+1]}
		if within(l.point, "/proc") || within(l.point, "/sys") {
			m.all, m.lines = append(m.all, l), append(m.lines, strings.TrimSpace(line))
		}
	}
	return m
}

func within(point, dir string) bool { return point == dir || strings.HasPrefix(point, dir+"/") }

// Directories that are empty for ever, on which a mount hides nothing
// (mount_too_revealing, fs/namespace.c; sysfs_create_mount_point and proc_create_mount_point).
var (
	emptyBelowProc = []string{"/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/xen", "/proc/openprom"}
	emptyBelowSys  = []string{
		"/sys/fs/cgroup", "/sys/fs/bpf", "/sys/fs/pstore", "/sys/fs/fuse/connections", "/sys/fs/selinux", "/sys/fs/smackfs", "/sys/fs/resctrl",
		"/sys/kernel/security", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/config", "/sys/firmware/efi/efivars", "/sys/hypervisor/s390",
	}
)

// plain says that one whole file system of the type is mounted at the point and nothing
// of it is hidden: then the kernel allows a new one.
func (m mounts) plain(point, fstype string, empty []string) bool {
	found := false
	for _, l := range m.all {
		switch {
		case l.point == point && l.fstype == fstype && l.root == "/" && !found:
			found = true
		case l.point == point:
			return false
		case within(l.point, point) && !slices.ContainsFunc(empty, func(e string) bool { return within(l.point, e) }):
			return false
		}
	}
	return found
}
