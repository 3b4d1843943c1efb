package spec

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilityNames in the order of their numbers, linux/capability.h.
func capabilityNames() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
		"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
		"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
		"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
		"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
		"CHECKPOINT_RESTORE",
	}
}

// DefaultCapabilities are docker's, without CAP_.
func DefaultCapabilities() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
		"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
	}
}

// capabilities computes the bounding set: docker's default, or all with
// --privileged or ALL, with what is added and dropped. ALL in --cap-drop
// leaves only what is added.
func (b *builder) capabilities() error {
	known := capabilityNames()
	if n := b.facts.LastCap; n > 0 && n+1 < len(known) {
		known = known[:n+1]
	}
	add, err := parseCapabilities("--cap-add", b.opt.CapAdd, known)
	if err != nil {
		return err
	}
	drop, err := parseCapabilities("--cap-drop", b.opt.CapDrop, known)
	if err != nil {
		return err
	}
	base := DefaultCapabilities()
	addAll := b.opt.Privileged || slices.Contains(add, "ALL")
	switch {
	case addAll && slices.Contains(drop, "ALL"):
		return conflict("all capabilities are added and dropped")
	case addAll:
		base = known
	case slices.Contains(drop, "ALL"):
		base, drop = nil, nil
	}
	var set []string
	for _, c := range known {
		if (slices.Contains(base, c) || slices.Contains(add, c)) && !slices.Contains(drop, c) {
			set = append(set, "CAP_"+c)
		}
	}
	b.proc.Capabilities = &specs.LinuxCapabilities{Bounding: set}
	return nil
}

func parseCapabilities(flag string, list, known []string) ([]string, error) {
	var out []string
	for _, s := range list {
		c := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
		if c != "ALL" && !slices.Contains(known, c) {
			return nil, fmt.Errorf("%s: unknown capability %q", flag, s)
		}
		out = append(out, c)
	}
	return out, nil
}

// grant gives the capabilities to a process that starts as root. For others
// they only bound what a file's capabilities can give, as in docker.
func (b *builder) grant() error {
	c := b.proc.Capabilities
	if b.proc.User.UID == 0 {
		c.Effective, c.Permitted = slices.Clone(c.Bounding), slices.Clone(c.Bounding)
	}
	return nil
}

// security parses --security-opt.
func (b *builder) security() error {
	seccomp := ""
	for _, s := range b.opt.SecurityOpts {
		k, v, has := strings.Cut(s, "=")
		if !has {
			// docker's older form.
			k, v, has = strings.Cut(s, ":")
		}
		var err error
		switch {
		case k == "no-new-privileges":
			err = b.noNewPrivileges(v, has)
		case k == "seccomp" && v != "":
			seccomp = v
		case k == "mask" && v != "":
			err = absolute(strings.Split(v, ":"))
			b.masks = append(b.masks, strings.Split(v, ":")...)
		case k == "unmask" && v != "":
			if !strings.EqualFold(v, "all") {
				err = absolute(strings.Split(v, ":"))
			}
			b.unmask = append(b.unmask, strings.Split(v, ":")...)
		case k == "systempaths" && v == "unconfined":
			b.unmask = append(b.unmask, "ALL")
		case k == "label" && (v == "disable" || v == "disabled"), k == "apparmor" && v == "unconfined":
			// There is no label and no AppArmor profile to begin with.
		case k == "label", k == "apparmor":
			err = fmt.Errorf("a %s profile cannot be set without privilege", k)
		default:
			err = fmt.Errorf("unknown option")
		}
		if err != nil {
			return fmt.Errorf("--security-opt %s: %w", s, err)
		}
	}
	b.c.SeccompUnconfined = seccomp == "unconfined" || seccomp == "" && b.opt.Privileged
	if seccomp != "unconfined" && seccomp != "builtin" {
		b.c.SeccompProfile = seccomp
	}
	return nil
}

func (b *builder) noNewPrivileges(v string, has bool) error {
	on := true
	if has {
		var err error
		if on, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
	}
	b.proc.NoNewPrivileges = on
	return nil
}

func absolute(list []string) error {
	for _, p := range list {
		if !path.IsAbs(p) {
			return fmt.Errorf("%q is not an absolute path", p)
		}
	}
	return nil
}

// maskedPaths and readonlyPaths are docker's.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// thermalPaths are masked by docker as well, one a CPU, where the machine has them.
func (b *builder) thermalPaths() []string {
	var out []string
	for i := range b.facts.NumCPU {
		p := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/thermal_throttle", i)
		if _, err := b.facts.Host.Stat(p); err != nil {
			break
		}
		out = append(out, p)
	}
	return out
}

// remaining leaves out the paths that unmask names, by podman's patterns.
func (b *builder) remaining(list []string) []string {
	return slices.DeleteFunc(list, func(p string) bool {
		return slices.ContainsFunc(b.unmask, func(pattern string) bool {
			ok, err := path.Match(pattern, p)
			return strings.EqualFold(pattern, "all") || err == nil && ok
		})
	})
}

// sysctls admits only parameters that belong to a namespace of the container.
func (b *builder) sysctls() error {
	b.linux.Sysctl = map[string]string{}
	for _, s := range b.opt.Sysctls {
		k, v, ok := strings.Cut(s, "=")
		// Both net/ipv4/x and net.ipv4.x are sysctl(8)'s.
		dotted := strings.ReplaceAll(k, "/", ".")
		switch {
		case !ok || k == "" || strings.Contains(dotted, ".."):
			return fmt.Errorf("--sysctl %s: must be name=value", s)
		case strings.Contains(k, "/") && strings.Contains(k, "."):
			return fmt.Errorf("--sysctl %s: a name with both dots and slashes is ambiguous", s)
		case strings.HasPrefix(dotted, "net."):
			if b.c.Network.mode() != Private {
				return fmt.Errorf("--sysctl %s: not allowed with --network=%s", k, b.c.Network.Mode)
			}
		case ipcSysctl(dotted):
			if b.c.Namespaces.IPC.Mode != Private {
				return fmt.Errorf("--sysctl %s: not allowed with --ipc=%s", k, b.c.Namespaces.IPC.Mode)
			}
		default:
			return fmt.Errorf("--sysctl %s: not in a namespace of the container", k)
		}
		b.linux.Sysctl[dotted] = v
	}
	return nil
}

func ipcSysctl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced",
	}, name)
}
