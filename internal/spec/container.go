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
	// CreateCommand is the command line that made it, and CreateDir where that was
	// given; the caller knows them.
	CreateCommand []string
	CreateDir     string

	TTY, Interactive, Detach bool
	Remove, Replace, Quiet   bool
	Init, SigProxy           bool
	// Attach are the streams, of "stdin", "stdout" and "stderr", that the command stays
	// with; nil for all.
	Attach []string `json:",omitempty"`

	Namespaces Namespaces
	Network    Network
	Volumes    []Volume

	// SeccompUnconfined: no filter. Otherwise SeccompProfile is the file of the
	// profile, empty for the default one.
	SeccompUnconfined bool
	SeccompProfile    string
	Privileged        bool

	// Notices are sentences about what is not as it would be on another machine.
	Notices []string

	// Cgroups is --cgroups. The limits are in Spec.Linux.Resources, the parent in
	// Spec.Linux.CgroupsPath.
	Cgroups CgroupMode

	StopSignal  int           // number
	StopTimeout time.Duration // negative: wait for ever
	Restart     Restart
	Log         Log
	Health      *Health // nil: none

	Pull     string // "missing", "always", "never" or "newer"
	Platform string // "os/arch[/variant]", empty for the machine's own
	Rootfs   string // --rootfs, absolute
	Storage  string // "auto", "overlay", "fuse" or "copy"
	// CDIDevices are the devices of vendors' specifications that it has.
	CDIDevices []string `json:",omitempty"`
	// Writable is where changes go: "disk", "tmpfs" (memory) or "none" (nothing can be changed).
	Writable string `json:",omitempty"`
	// Plain: nothing is served over FUSE, the image is had as plain files.
	Plain bool `json:",omitempty"`
	// Chroot: there are neither namespaces nor mounts, only a directory.
	Chroot bool `json:",omitempty"`
	// NoPivot: its root is moved over the outer one.
	NoPivot bool `json:",omitempty"`
	// RootEmulation has the ids that are not mapped emulated: "" (no), "auto" (as far as
	// it can be done) or "on".
	RootEmulation string
	Volatile      bool
	LogLevel      string // "", "debug", "info", "warn" or "error"

	// PreserveFDs are numbers of the caller's files that the command keeps.
	PreserveFDs []uint `json:",omitempty"`

	// KeepGroups is --group-add keep-groups: the caller's supplementary groups stay.
	KeepGroups bool
	// PasswdLine and GroupLine are to be appended to the image's /etc/passwd and
	// /etc/group: with keep-id the caller has a name inside. Empty if not needed.
	PasswdLine, GroupLine string
}

// InMemory tells that nothing of the container's files is on disk: what is written, or
// only the mount points that the image lacks, is in memory.
func (c *Container) InMemory() bool { return c.Writable == "tmpfs" || c.Writable == "none" }

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
	Mode      string // "slirp", "none", "host", "container" or "bridge"
	Container string
	// Attachments are the networks of Mode "bridge".
	Attachments []Attachment
	Slirp       Slirp
	// NoTUN has a veth pair and a packet socket in the place of a TUN.
	NoTUN bool

	Ports      []Port
	DNS        []netip.Addr
	DNSSearch  []string // "." alone: no search domains
	DNSOptions []string
	// KeepResolvConf is --dns none: the image's own file stays.
	KeepResolvConf bool
	Hosts          []HostEntry
}

// Attachment puts a container on a network. The zero addresses are to be chosen.
type Attachment struct {
	Network    string // name or id
	Aliases    []string
	IPv4, IPv6 netip.Addr
	MAC        string
}

// Port publishes one port. HostIP is the zero Addr for all addresses; HostPort
// is 0 for any free port. With HostPortEnd it is the first free one from HostPort
// to that.
type Port struct {
	HostIP        netip.Addr
	HostPort      uint16
	HostPortEnd   uint16
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
