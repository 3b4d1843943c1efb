package monitor

import (
	"encoding/json"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// Request is what the command asks of a new monitor. The message's files are
// stdin, stdout, stderr, the lock, the cgroup if HasCgroup, the namespaces to
// join (as many as Joins, in the order of Init's Join), the pid namespace if JoinPID, and the mount
// namespace of the container whose /dev/shm is shared if SharedShm.
type Request struct {
	StateRoot string       `json:"stateRoot"`
	Record    state.Record `json:"record"`
	// Init is the stage.Config for init; the monitor passes it on as it is.
	Init json.RawMessage `json:"init"`
	// What of it concerns the monitor as well.
	Network   stage.Network `json:"network"`
	Slirp     slirp.Config  `json:"slirp"`
	Joins     int           `json:"joins,omitempty"`
	SharedShm bool          `json:"sharedShm,omitempty"`
	// Image is what the union stage serves; nil for a root directory.
	Image *Image `json:"image,omitempty"`
	// Cloneflags are the namespaces that init gets for itself.
	Cloneflags uintptr `json:"cloneflags"`
	JoinPID    bool    `json:"joinPID,omitempty"`
	HasCgroup  bool    `json:"hasCgroup,omitempty"`
	// Detach means that the container outlives the command that started it.
	Detach bool `json:"detach,omitempty"`
	Debug  bool `json:"debug,omitempty"`
}

// Image is a merged tree with the files of its layers.
type Image struct {
	Tree  string                 `json:"tree"`
	Data  []string               `json:"data"`
	Serve fuseunion.ServeOptions `json:"serve"`
}

// Started is the answer when the command runs. Its file is the pty master, if
// HasTTY.
type Started struct {
	HasTTY  bool         `json:"hasTTY,omitempty"`
	Notices []string     `json:"notices,omitempty"`
	Ports   []state.Port `json:"ports,omitempty"`
}

// Attach comes with the TUN's file. Frame is the packet that woke the network
// helper, if one did.
type Attach struct {
	Frame []byte `json:"frame,omitempty"`
}

// Exited is the last answer.
type Exited struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// Signal asks for a signal to the container's pid 1.
type Signal struct {
	Number int `json:"number"`
}

// Kinds of messages; those of init are in package stage.
const (
	KindRequest   = "request"
	KindTree      = "tree"
	KindServe     = "serve"
	KindPorts     = "ports"
	KindListening = "listening"
	KindAttach    = "attach"
	KindStarted   = "started"
	KindSignal    = "signal"
	KindExited    = "exited"
	KindFailed    = stage.KindFailed
)
