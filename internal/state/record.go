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

	// Remove is --rm: the container goes when it ends.
	Remove bool `json:"remove,omitempty"`
	// Volumes are the anonymous volumes that go with the container.
	Volumes []string `json:"volumes,omitempty"`

	StopSignal  int           `json:"stopSignal"`
	StopTimeout time.Duration `json:"stopTimeout"`

	Labels map[string]string `json:"labels,omitempty"`
	Ports  []Port            `json:"ports,omitempty"`
	// UIDs and GIDs are the id maps of the container's user namespace: who
	// removes its files must be root of such a one.
	UIDs []specs.LinuxIDMapping `json:"uidMappings"`
	GIDs []specs.LinuxIDMapping `json:"gidMappings"`

	// Command is what the container runs. The whole OCI runtime spec is in the
	// container's directory (SpecFile).
	Command []string `json:"command"`
}
