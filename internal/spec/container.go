package spec

import (
	"net/netip"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is everything that the flags and the image say about a container:
// the OCI spec and what has no place there.
type Container struct {
	// Spec is complete but for Linux.Seccomp and the sources of Volumes.
	Spec *specs.Spec

	ID, Name, Image string
	CIDFile         string
	Labels          map[string]string

	TTY, Interactive, Detach bool
	Remove, Replace, Quiet   bool
	Init, SigProxy           bool

	Namespaces Namespaces
	Network    Network
	Volumes    []Volume

	// SeccompUnconfined: no filter. Otherwise SeccompProfile is the file of the
	// profile, empty for the default one.
	SeccompUnconfined bool
	SeccompProfile    string
	Privileged        bool

	Limits  Limits
	Cgroups string // "try" (default), "enforce" or "disabled"

	StopSignal  int           // number
	StopTimeout time.Duration // negative: wait for ever

	Pull     string // "missing", "always", "never" or "newer"
	Platform string // "os/arch[/variant]", empty for the machine's own
	Rootfs   string // --rootfs, absolute
	Storage  string // "auto", "overlay" or "fuse"
	Volatile bool
	LogLevel string // "", "debug", "info", "warn" or "error"

	// KeepGroups is --group-add keep-groups: the caller's supplementary groups stay.
	KeepGroups bool
	// PasswdLine and GroupLine are to be appended to the image's /etc/passwd and
	// /etc/group: with keep-id the caller has a name inside. Empty if not needed.
	PasswdLine, GroupLine string
}

// Mode says where a namespace comes from.
type Mode string

const (
	// Private is a new namespace.
	Private Mode = "private"
	// HostNS is the namespace of the calling process.
	HostNS Mode = "host"
	// Shared is the namespace of the container that Namespace.Container names.
	Shared Mode = "container"
)

// Namespace is one of the container's namespaces.
type Namespace struct {
	Mode      Mode
	Container string // name or id, for Shared
}

// Namespaces of a container. That of the network is in Network.
type Namespaces struct {
	PID, IPC, UTS, Cgroup Namespace
	User                  UserNS
}

// UserNS is --userns. Mode is one of package userns' modes (auto, host,
// keep-id, single, map) or "container".
type UserNS struct {
	Mode       string
	UID, GID   *uint32 // keep-id: the caller's ids inside; nil: his own
	UIDs, GIDs []specs.LinuxIDMapping
	Container  string
}

// Network is how the container reaches the world.
type Network struct {
	Mode      string // "slirp", "none", "host" or "container"
	Container string
	Options   map[string]string // of slirp, such as allow_host_loopback=true

	Ports      []Port
	DNS        []netip.Addr
	DNSSearch  []string // "." alone: no search domains
	DNSOptions []string
	Hosts      []HostEntry
}

// Port publishes one port. HostIP is the zero Addr for all addresses; HostPort
// is 0 for any free port.
type Port struct {
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
	Proto         string // "tcp" or "udp"
}

// HostEntry is a line of /etc/hosts. IP may be "host-gateway".
type HostEntry struct{ Name, IP string }

// Volume is a volume that the caller makes and mounts: it sets the source of
// Spec.Mounts[Mount]. That mount has the option copyup unless the user said nocopy.
type Volume struct {
	Name   string // empty: anonymous
	Target string
	Mount  int
}

// Limits are what a cgroup has to enforce. Zero is no limit everywhere.
type Limits struct {
	Memory     int64 // bytes
	MemorySwap int64 // bytes of memory and swap together; -1: unlimited swap
	// SwapDefault: MemorySwap is docker's default of twice the memory, which
	// nobody asked for: it may be left out where the kernel does not count swap.
	SwapDefault       bool
	MemoryReservation int64  // bytes
	CPUQuota          int64  // µs of CPU time a period
	CPUPeriod         uint64 // µs
	CPUShares         uint64 // 2..262144, relative to 1024
	CPUSet            string // such as 0-2,4
	PIDs              int64  // -1: unlimited
}

// Any reports whether there is something to enforce.
func (l Limits) Any() bool {
	l.PIDs = max(l.PIDs, 0)
	return l != Limits{}
}
