package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// fixture is a kind of job that urun may find itself in: the inside of a container as
// docker makes it, with some of its protections lifted.
type fixture struct {
	name, words string
	seccomp     bool // docker's default profile, else none
	masked      bool // docker's masked and read-only paths
	devices     bool // /dev/fuse and /dev/net/tun are passed in
	noNewPrivs  bool
	mayMount    bool // CAP_SYS_ADMIN, with which docker's profile lets namespaces and mounts be made
	allCaps     bool // all capabilities and all devices, as docker's --privileged
}

// fixtures go from the most closed to the most open.
func fixtures() []fixture {
	return []fixture{
		{name: "docker", words: "docker's defaults", seccomp: true, masked: true},
		{name: "docker-devices", words: "the same, with `--device /dev/fuse --device /dev/net/tun`", seccomp: true, masked: true, devices: true},
		{name: "sys-admin", words: "docker's defaults, with `--cap-add SYS_ADMIN` and both devices", seccomp: true, masked: true, devices: true, mayMount: true},
		{name: "unconfined", words: "`--security-opt seccomp=unconfined`", masked: true},
		{name: "unconfined-devices", words: "the same, with both devices", masked: true, devices: true},
		{name: "unmasked-devices", words: "the same, with `--security-opt systempaths=unconfined`", devices: true},
		{name: "no-new-privs", words: "the same, with `--security-opt no-new-privileges`", devices: true, noNewPrivs: true},
		{name: "privileged", words: "`--privileged`", devices: true, allCaps: true},
	}
}

// person is who runs urun in a fixture.
type person struct {
	words    string
	uid      int
	subIDs   bool
	userName string
}

func people() []person {
	return []person{
		{"uid 0", 0, false, "root"},
		{"uid 1000 with subordinate ids", 1000, true, "job"},
		{"uid 1001 without", 1001, false, "job1"},
	}
}

// dockerCaps are docker's default capabilities (moby, oci/caps/defaults.go).
func dockerCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
		"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// allCaps are those of them that matter to who makes containers, and that the root of any machine has.
func allCaps() []string {
	return append(dockerCaps(), "CAP_DAC_READ_SEARCH", "CAP_LINUX_IMMUTABLE", "CAP_NET_ADMIN", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
		"CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_LEASE", "CAP_AUDIT_CONTROL", "CAP_SYSLOG")
}

// bundle writes an OCI bundle's config.json for a command.
func (f fixture) bundle(dir, rootfs string, who person, binds map[string]string, args ...string) error {
	s := &specs.Spec{
		Version: "1.0.2", Hostname: "job",
		Root: &specs.Root{Path: rootfs},
		Process: &specs.Process{
			Args: args, Cwd: "/", NoNewPrivileges: f.noNewPrivs,
			User: specs.User{UID: uint32(who.uid), GID: uint32(who.uid)},
			Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/" + who.userName, "USER=" + who.userName},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.NetworkNamespace},
			{Type: specs.CgroupNamespace},
		}},
	}
	caps := dockerCaps()
	if f.allCaps {
		caps = allCaps()
	}
	if f.mayMount {
		caps = append(caps, "CAP_SYS_ADMIN")
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps}
	if who.uid == 0 {
		s.Process.Capabilities.Permitted, s.Process.Capabilities.Effective = caps, caps
	}
	s.Mounts = mounts(f, binds)
	if f.masked {
		s.Linux.MaskedPaths = []string{
			"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
			"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		}
		s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	if f.devices {
		mode, root := os.FileMode(0o666), uint32(0)
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &root, GID: &root},
			{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, FileMode: &mode, UID: &root, GID: &root},
		}
	}
	if f.seccomp {
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return fmt.Errorf("docker's seccomp profile: %w", err)
		}
		s.Linux.Seccomp = profile
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)
}

// mounts are docker's, and binds from a host path to one inside.
func mounts(f fixture, binds map[string]string) []specs.Mount {
	access := "ro"
	if f.allCaps {
		access = "rw"
	}
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"mode=1777"}},
		{Destination: "/home", Type: "tmpfs", Source: "home", Options: []string{"mode=1777"}},
	}
	var targets []string
	for to := range binds {
		targets = append(targets, to)
	}
	slices.Sort(targets)
	for _, to := range targets {
		out = append(out, specs.Mount{Destination: to, Type: "bind", Source: binds[to], Options: []string{"rbind", "ro"}})
	}
	return out
}
