package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultShmSize is docker's, in bytes.
const defaultShmSize = 64 << 20

// ttyGroup is the group of terminals in every Linux distribution.
const ttyGroup = 5

// defaultMounts are those of every container. What belongs to a namespace
// that the container does not own cannot be mounted anew (EPERM) and is bound
// from the host instead.
func (b *builder) defaultMounts() []specs.Mount {
	ns := b.c.Namespaces
	out := []specs.Mount{b.procMount()}
	out = append(out,
		specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: b.ptsOptions()},
		b.sysMount(),
	)
	if m, ok := b.cgroupMount(); ok {
		out = append(out, m)
	}
	if ns.IPC.Mode == Private {
		return append(out,
			specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{
				"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", b.shmSize),
			}},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		)
	}
	if ns.IPC.Mode == HostNS {
		for _, name := range []string{"/dev/shm", "/dev/mqueue"} {
			// A small machine may have neither; then there is nothing to share.
			if _, err := b.facts.Host.Stat(name); err == nil {
				out = append(out, bindHost(name))
			}
		}
		return out
	}
	// The namespace of another container: its queues can be mounted, its
	// /dev/shm is a mount that only the caller can reach.
	return append(out,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	)
}

func (b *builder) procMount() specs.Mount {
	if b.c.Namespaces.PID.Mode == HostNS {
		return bindHost("/proc")
	}
	return specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
}

// ptsOptions leave out the group where it is not mapped: devpts refuses it then.
func (b *builder) ptsOptions() []string {
	out := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if mapped(b.facts.GIDMap, ttyGroup) {
		out = append(out, fmt.Sprintf("gid=%d", ttyGroup))
	}
	return out
}

// sysMount: sysfs shows the network namespace and can be mounted only by its owner.
func (b *builder) sysMount() specs.Mount {
	access := "ro"
	if b.c.Privileged {
		access = "rw"
	}
	if b.c.Network.mode() == Private && !b.facts.Rungs.NoSys {
		return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	}
	m := bindHost("/sys")
	m.Options = append(m.Options, access)
	return m
}

// cgroupMount shows the container's own subtree. There is none on a machine
// with the hierarchies of version 1, of which nothing is delegated.
func (b *builder) cgroupMount() (specs.Mount, bool) {
	access := "ro"
	// Unmasked, as in podman, a container manages its own subtree; its limits it
	// cannot lift (nsdelegate in cgroup-v2.rst).
	if b.c.Privileged || len(b.remaining([]string{"/sys/fs/cgroup"})) == 0 {
		access = "rw"
	}
	if !b.facts.CgroupV2 {
		return specs.Mount{}, false
	}
	if b.c.Namespaces.Cgroup.Mode == HostNS {
		m := bindHost("/sys/fs/cgroup")
		m.Options = append(m.Options, access)
		return m, true
	}
	return specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Options: []string{
		"nosuid", "noexec", "nodev", "relatime", access,
	}}, true
}

func bindHost(name string) specs.Mount {
	return specs.Mount{Destination: name, Type: "bind", Source: name, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"}}
}
