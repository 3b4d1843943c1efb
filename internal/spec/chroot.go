package spec

import (
	"cmp"
	"slices"
	"strings"
)

// Where neither a user namespace nor a mount can be made, as root in a job of docker's with
// its default seccomp profile, a container is a copy of its image that its processes
// are chrooted into. They see the job's processes, network, host name and users, and have no /proc: so it
// is said, and what cannot be had is refused.

const (
	chrootNotice = "no namespaces can be made here: the container is a chroot as root of this job, which shares its processes, network, host name and seccomp filter, and has no /proc and /sys"
	chrootCure   = "give the job user namespaces: --security-opt seccomp=unconfined (docker, podman), seccompProfile: Unconfined (Kubernetes)"
)

// chroot takes the container down to a directory.
func (b *builder) chroot() error {
	o := &b.opt
	for _, f := range []struct {
		flag  string
		given bool
	}{
		{"--volume", len(o.Volumes) > 0},
		{"--mount", len(o.Mounts) > 0},
		{"--tmpfs", len(o.Tmpfs) > 0},
		{"--device", len(o.Devices) > 0},
		{"--read-only", o.ReadOnly},
		{"--writable " + o.Writable, cmp.Or(o.Writable, "disk") != "disk"},
		{"--shm-size", o.ShmSize != ""},
		{"--publish", len(o.Publish) > 0 || o.PublishAll},
		{"--network " + o.Network, o.Network != "" && o.Network != "host"},
		{"--pid " + o.PID, isolated(o.PID)},
		{"--ipc " + o.IPC, isolated(o.IPC)},
		{"--uts " + o.UTS, isolated(o.UTS)},
		{"--cgroupns " + o.CgroupNS, isolated(o.CgroupNS)},
		{"--hostname", o.Hostname != "" || o.Domainname != ""},
		{"--sysctl", len(o.Sysctls) > 0},
		{"--init", o.Init},
		{"--privileged", o.Privileged},
		{"--storage " + o.Storage, o.Storage == "overlay" || o.Storage == "fuse"},
	} {
		if f.given {
			return hint(chrootCure, "%s: no namespaces and no mounts can be made here", strings.TrimSpace(f.flag))
		}
	}
	for _, s := range o.SecurityOpts {
		if strings.HasPrefix(s, "seccomp=") && s != "seccomp=unconfined" && !slices.ContainsFunc(o.SecurityOpts, setsNoNewPrivs) {
			return hint("add --security-opt no-new-privileges", "--security-opt %s: without CAP_SYS_ADMIN a filter takes no_new_privs (seccomp(2))", s)
		}
	}
	ns := &b.c.Namespaces
	for _, n := range []*Namespace{&ns.PID, &ns.IPC, &ns.UTS, &ns.Cgroup} {
		*n = Namespace{Mode: HostNS}
	}
	b.c.Network.Mode = "host"
	b.c.Chroot, b.c.Plain, b.c.Storage = true, true, "copy"
	b.notice(chrootNotice)
	return nil
}

func isolated(mode string) bool { return cmp.Or(mode, "host") != "host" }

func setsNoNewPrivs(opt string) bool {
	return strings.HasPrefix(opt, "no-new-privileges") && !strings.HasSuffix(opt, "false")
}

// bare takes out of the finished spec what a chroot cannot have.
func (b *builder) bare() error {
	if !b.c.Chroot {
		return nil
	}
	b.c.Spec.Mounts, b.c.Volumes = nil, nil
	b.c.RootEmulation = "" // its filter cannot be installed either
	b.linux.MaskedPaths, b.linux.ReadonlyPaths = nil, nil
	if !b.proc.NoNewPrivileges {
		b.c.SeccompUnconfined, b.c.SeccompProfile = true, ""
	}
	// Whoever may call chroot(2) again is out (chroot(2)).
	c := b.proc.Capabilities
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
		*set = slices.DeleteFunc(*set, func(name string) bool { return name == "CAP_SYS_CHROOT" })
	}
	return nil
}
