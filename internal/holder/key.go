package holder

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/batch"
	"github.com/urun-dev/urun/internal/holder/origin"
	"github.com/urun-dev/urun/userns"
)

// Key digests what a container with the map m would inherit from a monitor that
// this process starts, and which binary it would be.
func Key(m userns.Map) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, m)
	for _, part := range []func(io.Writer) error{
		inheritedFiles, inheritedStatus, inheritedMounts, inheritedNamespaces, inheritedRest, build,
	} {
		if err := part(h); err != nil {
			return "", fmt.Errorf("name of the holder: %w", err)
		}
	}
	return digest(h), nil
}

func digest(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:8]) }

// inheritedFiles are those of /proc that count as a whole. A file that is not
// there, or may not be read in a masked /proc, is so for the others, too.
func inheritedFiles(w io.Writer) error {
	for _, name := range []string{
		"/proc/sys/kernel/random/boot_id", // a store on NFS is seen by several machines
		"/proc/self/cgroup", "/proc/self/oom_score_adj", "/proc/self/personality", "/proc/self/attr/current",
	} {
		raw, err := os.ReadFile(name)
		fmt.Fprintf(w, "%s %t %s\n", name, err == nil, raw)
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(limits)) {
		if !strings.HasPrefix(line, "Max open files") { // raised by package os
			io.WriteString(w, line)
		}
	}
	soft, hard := origin.Files()
	_, err = fmt.Fprintln(w, soft, hard)
	return err
}

// statusFields are those of /proc/self/status that are inherited.
var statusFields = []string{
	"Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
	"NoNewPrivs", "Seccomp", "Seccomp_filters", "Speculation_Store_Bypass", "Cpus_allowed", "Mems_allowed",
}

func inheritedStatus(w io.Writer) error {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(raw)) {
		if name, _, _ := strings.Cut(line, ":"); slices.Contains(statusFields, name) {
			io.WriteString(w, line)
		}
	}
	return nil
}

// inheritedMounts are the mounts that a holder has from its start or not at all.
// Its mount namespace is a copy. What is mounted later on a shared mount, as all
// are under systemd, comes into the copy as well (mount_namespaces(7)), what is
// mounted on a private one does not.
func inheritedMounts(w io.Writer) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	return foreignMounts(w, string(raw))
}

func foreignMounts(w io.Writer, mountinfo string) error {
	shared := map[string]bool{}
	type mount struct{ parent, line string }
	var all []mount
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 7 {
			return fmt.Errorf("parse mountinfo: %q", line)
		}
		for _, opt := range f[6:] {
			if opt == "-" {
				break
			}
			shared[f[0]] = shared[f[0]] || strings.HasPrefix(opt, "shared:")
		}
		// Mount id, device, root, mount point and flags; superblock options are
		// the same for all.
		all = append(all, mount{f[1], strings.Join(f[:6], " ")})
	}
	for _, m := range all {
		if !shared[m.parent] {
			fmt.Fprintln(w, m.line)
		}
	}
	return nil
}

func inheritedNamespaces(w io.Writer) error {
	const dir = "/proc/self/ns"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			return err
		}
		fmt.Fprintln(w, e.Name(), link)
	}
	return nil
}

// inheritedRest is what has no line in /proc of its own: the scheduling, and the
// batch job, whose end ends all of its processes also where it is no cgroup.
func inheritedRest(w io.Writer) error {
	raw, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	// Fields from the third on; the second, a name in parentheses, may hold
	// anything (proc_pid_stat(5)).
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(f) < 39 {
		return fmt.Errorf("parse stat: %q", raw)
	}
	nice, priority, policy := f[16], f[37], f[38]
	const self = 1                                                // IOPRIO_WHO_PROCESS
	ioprio, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, self, 0, 0) // an error is a value as well
	fmt.Fprintln(w, nice, priority, policy, ioprio)
	for _, name := range batch.Variables() {
		fmt.Fprintln(w, name, os.Getenv(name))
	}
	return nil
}

// build identifies the binary: another version speaks another language.
func build(w io.Writer) error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		return fmt.Errorf("stat /proc/self/exe: %w", err)
	}
	_, err := fmt.Fprintln(w, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	return err
}
