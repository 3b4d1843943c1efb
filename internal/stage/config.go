package stage

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/seccomp"
	"github.com/urun-dev/urun/internal/unpacked"
	"github.com/urun-dev/urun/slirp"
)

// Config is all that init needs to know.
type Config struct {
	// Dir is the container's directory on the host. It has the directories
	// upper, work and etc.
	Dir string `json:"dir"`
	// LowerDir is a directory to use as the image; empty means that the image
	// is served over FUSE.
	LowerDir string `json:"lowerDir,omitempty"`
	// Storage is how the writable layer is merged with what is below.
	Storage Storage `json:"storage,omitempty"`
	// Memory means that the writable layer is in memory.
	Memory bool `json:"memory,omitempty"`
	// Plain means that nothing is served over FUSE: the image is had as plain files, as
	// Unpacked says (nil for a root directory).
	Plain    bool            `json:"plain,omitempty"`
	Unpacked *unpacked.Image `json:"unpacked,omitempty"`
	// Outer means that there is no user namespace: this process has no more capabilities than the job around it.
	Outer bool `json:"outer,omitempty"`
	// Chroot means that there are neither namespaces nor mounts.
	Chroot bool `json:"chroot,omitempty"`
	// NoPivot means that the container's root is moved over the outer one.
	NoPivot bool `json:"noPivot,omitempty"`
	// Volatile means that the writable layer need not outlive a loss of power:
	// it is removed when the container ends.
	Volatile bool `json:"volatile,omitempty"`

	// Spec describes the container; only what concerns its inside is used.
	Spec *specs.Spec `json:"spec"`
	// Seccomp is the compiled filter; empty means none.
	Seccomp      seccomp.Program `json:"seccomp,omitempty"`
	SeccompFlags uint            `json:"seccompFlags,omitempty"`

	// Emulation has the monitor answer the calls that take more ids than there are; see
	// package emulation. Empty means none.
	Emulation seccomp.Program `json:"emulation,omitempty"`
	// EmulationAsked says that without it the container is not to start.
	EmulationAsked bool `json:"emulationAsked,omitempty"`

	// Network says what to do in a network namespace of its own.
	Network Network      `json:"network"`
	Slirp   slirp.Config `json:"slirp"`

	// Join lists the namespaces, by their clone(2) flag, whose files come with
	// the configuration, in the same order.
	Join []int `json:"join,omitempty"`
	// CgroupNS tells that the container has a cgroup namespace of its own.
	CgroupNS bool `json:"cgroupNS,omitempty"`
	// SharedShm tells that a detached mount for /dev/shm follows those files.
	SharedShm bool `json:"sharedShm,omitempty"`
	// Preserve are the numbers of the files that the command keeps. They come last.
	Preserve []uint `json:"preserve,omitempty"`
	// Reap keeps init as pid 1, reaping orphans, with the command as its child.
	Reap bool `json:"reap,omitempty"`
	// Idle has init wait in place of a command: the container is one of ranks.
	Idle bool `json:"idle,omitempty"`
	// KeepGroups leaves the caller's supplementary groups to the command.
	KeepGroups bool `json:"keepGroups,omitempty"`
	// Root tells that uid and gid 0 exist inside.
	Root bool `json:"root"`
}

// Network is the kind of a container's network.
type Network string

const (
	// NetworkSlirp is a TUN device served by the user-mode stack.
	NetworkSlirp Network = "slirp"
	// NetworkNone has a loopback device only.
	NetworkNone Network = "none"
	// NetworkShared is the network namespace of somebody else: nothing to do.
	NetworkShared Network = "shared"
)

// Storage says who merges the writable layer with the image.
type Storage string

const (
	// StorageAuto is the kernel where it can, else the union.
	StorageAuto Storage = "auto"
	// StorageOverlay is the kernel's overlayfs.
	StorageOverlay Storage = "overlay"
	// StorageFuse is the read-write union of package fuseunion.
	StorageFuse Storage = "fuse"
	// StorageCopy is no merging: the container's files are a copy of the image's.
	StorageCopy Storage = "copy"
)

// Ready is what init says when only the execution of the command is left.
// The message's files are the TUN, if HasTUN, and the pty master, if HasTTY.
type Ready struct {
	HasTUN bool `json:"hasTUN"`
	HasTTY bool `json:"hasTTY"`
	// Storage is what it came to.
	Storage Storage `json:"storage"`
	// Emulated says that the monitor emulates root.
	Emulated bool `json:"emulated,omitempty"`
	// Notices are things that the user should know, a sentence each.
	Notices []string `json:"notices,omitempty"`
}

// Listener comes with the descriptor on which a supervisor is asked.
type Listener struct {
	// Union says that the root is a union that remembers owners.
	Union bool `json:"union"`
}

// Failed is what init says when it can not go on.
type Failed struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	// Code is the exit status that docker gives: 125 for the runtime's own
	// failures, 126 and 127 for commands that can not be executed or found.
	Code int `json:"code"`
	// Unserved says that a file system of the container has lost its server, which knows the reason.
	Unserved bool `json:"unserved,omitempty"`
}

// Kinds of messages between init and the monitor; see package handoff.
const (
	KindConfig = "config"
	KindImage  = "image" // file: a detached mount of the image
	KindFuse   = "fuse"  // file: the FUSE device, mounted as a union; none: the monitor is to mount one
	KindReady  = "ready"
	KindExec   = "exec"
	KindFailed = "failed"
	// File: the descriptor on which a supervisor is asked.
	KindListener = "listener"
)
