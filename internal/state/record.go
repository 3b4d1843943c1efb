package state

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Status is where in its life a container is, in docker's words.
type Status string

const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Exited   Status = "exited"
	// Paused is never in a record: a running container whose cgroup is frozen is
	// shown so.
	Paused Status = "paused"
)

// Process names a process for good: a pid together with its start time, so
// that a reused pid is not mistaken for it.
type Process struct {
	PID int `json:"pid"`
	// Start is the start time in clock ticks since boot: field 22 of
	// /proc/PID/stat.
	Start uint64 `json:"start"`
}

// Port is one published port.
type Port struct {
	HostIP        string `json:"hostIP"`
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// Record is what is known of a container.
type Record struct {
	// Version is that of the record's format; see recordVersion.
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Image   string    `json:"image"`   // as the user wrote it
	ImageID string    `json:"imageID"` // digest of the image's configuration
	Created time.Time `json:"created"`

	Status   Status    `json:"status"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// ExitCode is as the shell has it: 128+n for death by signal n.
	ExitCode int    `json:"exitCode"`
	Error    string `json:"error,omitempty"`
	// OOMKilled tells that the kernel killed for the memory limit.
	OOMKilled bool `json:"oomKilled"`

	Creator Process `json:"creator"` // the command that made it
	Monitor Process `json:"monitor"`
	Init    Process `json:"init"`
	Cgroup  string  `json:"cgroup,omitempty"`
	// Storage is who merges the writable layer with what is below: "overlay", the
	// kernel, or "fuse", urun's own server; or "copy" where it is the whole image. Its layout depends on it.
	Storage string `json:"storage,omitempty"`
	// RootEmulation says that the monitor emulates the ids that are not there.
	RootEmulation bool `json:"rootEmulation,omitempty"`

	Restart Restart `json:"restart,omitzero"`
	Health  *Health `json:"health,omitempty"` // nil: it is not checked

	// Remove is --rm: the container goes when it ends.
	Remove bool `json:"remove,omitempty"`
	// Volumes are the directories of the anonymous volumes that go with the container.
	Volumes []string `json:"volumes,omitempty"`
	// NamedVolumes are the names of the others.
	NamedVolumes []string `json:"namedVolumes,omitempty"`

	// Unparked tells that the writable layer of a container that does not run is
	// put back for a moment, for a command to look at or to change.
	Unparked bool `json:"unparked,omitempty"`

	StopSignal  int           `json:"stopSignal"`
	StopTimeout time.Duration `json:"stopTimeout"`

	Labels map[string]string `json:"labels,omitempty"`
	Ports  []Port            `json:"ports,omitempty"`
	// NetworkDriver is what carries the container's TCP, and why where it is not the
	// best; empty before the first packet.
	NetworkDriver string `json:"networkDriver,omitempty"`
	// Networks are the networks that the container is on, in the order of its interfaces.
	Networks []Endpoint `json:"networks,omitempty"`
	// UIDs and GIDs are the id maps of the container's user namespace: who
	// removes its files must be root of such a one.
	UIDs []specs.LinuxIDMapping `json:"uidMappings"`
	GIDs []specs.LinuxIDMapping `json:"gidMappings"`
	// NoUserNS tells that it has no user namespace: its root is that of the job around it.
	NoUserNS bool `json:"noUserNS,omitempty"`
	// Chroot tells that it has no namespaces and no mounts at all.
	Chroot bool `json:"chroot,omitempty"`

	// Command is what the container runs. The whole OCI runtime spec is in the
	// container's directory (SpecFile).
	Command []string `json:"command"`
}
