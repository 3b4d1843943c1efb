package monitor

import (
	"encoding/json"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/holder"
	"github.com/urun-dev/urun/internal/jsonlog"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

// Request is what the command asks of a new monitor. The message's files are
// stdin, stdout, stderr, the lock, the cgroup if HasCgroup, the namespaces to
// join (as many as Joins, in the order of Init's Join), the pid namespace if JoinPID, and the mount
// namespace of the container whose /dev/shm is shared if SharedShm, and as many files as Preserved for the command.
type Request struct {
	StateRoot string       `json:"stateRoot"`
	Record    state.Record `json:"record"`
	// Outside is the user namespace of the command, and of those that may use the
	// control socket.
	Outside handoff.Namespace `json:"outside"`
	// Init is the stage.Config for init; the monitor passes it on as it is.
	Init json.RawMessage `json:"init"`
	// What of it concerns the monitor as well.
	Network  stage.Network `json:"network"`
	Storage  stage.Storage `json:"storage,omitempty"`
	Volatile bool          `json:"volatile,omitempty"`
	Memory   bool          `json:"memory,omitempty"`
	Plain    bool          `json:"plain,omitempty"`
	Chroot   bool          `json:"chroot,omitempty"`
	// Emulates says that Init asks for the emulation of root.
	Emulates bool         `json:"emulates,omitempty"`
	Slirp    slirp.Config `json:"slirp"`
	// Bridge: the container is on the networks that its record names.
	Bridge bool `json:"bridge,omitempty"`
	// Hostnames are the container's names in its own /etc/hosts.
	Hostnames string `json:"hostnames,omitempty"`
	Joins     int    `json:"joins,omitempty"`
	SharedShm bool   `json:"sharedShm,omitempty"`
	// Image is what the union stage serves; nil for a root directory.
	Image *Image `json:"image,omitempty"`
	// RootDir is that directory, which the union stage serves only if the kernel's
	// overlayfs can not be put on it.
	RootDir *Image `json:"rootDir,omitempty"`
	// Cloneflags are the namespaces that init gets for itself.
	Cloneflags uintptr `json:"cloneflags"`
	JoinPID    bool    `json:"joinPID,omitempty"`
	HasCgroup  bool    `json:"hasCgroup,omitempty"`
	Preserved  int     `json:"preserved,omitempty"`
	// Detach means that the container outlives the command that started it.
	Detach bool `json:"detach,omitempty"`
	// Attached means that the standard files are those of a command that stays.
	Attached bool `json:"attached,omitempty"`
	// Terminal gives the container a terminal; Size is that of the command's own.
	Terminal bool  `json:"terminal,omitempty"`
	Size     *Size `json:"size,omitempty"`
	// OpenStdin keeps the input of a container open that nobody is attached to.
	OpenStdin bool         `json:"openStdin,omitempty"`
	Log       Log          `json:"log"`
	Health    *HealthCheck `json:"health,omitempty"`
	// Job is the shell of the batch job that the container belongs to, if it does: in the background, it ends with that.
	Job state.Process `json:"job,omitzero"`
	// Ranks: the container is one of ranks, which join it.
	Ranks *Ranks `json:"ranks,omitempty"`
	// Again says that the container has been there before this start: a start
	// that fails does not remove it.
	Again bool `json:"again,omitempty"`
	// Backoff is how long the restart policy has waited for this start; 0 when a
	// command asked for it.
	Backoff time.Duration `json:"backoff,omitempty"`
	Debug   bool          `json:"debug,omitempty"`
}

// Log says whether and how the output is kept.
type Log struct {
	None bool `json:"none,omitempty"`
	jsonlog.Options
}

// Size of a terminal, in characters.
type Size struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// HealthCheck is a command that is run inside every so often. Its exit status
// says whether the container is well.
type HealthCheck struct {
	Command                                       []string `json:"command"`
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int `json:"retries"`
}

// AttachRequest asks for a container's output. Its files are those that input
// comes from and output and errors go to.
type AttachRequest struct {
	Stdin bool  `json:"stdin,omitempty"`
	Size  *Size `json:"size,omitempty"`
}

// ExecRequest asks for a command to be run in the container. Its files are the
// command's standard files.
type ExecRequest struct {
	stage.Exec
	// Detach means that the command outlives the one that asked.
	Detach bool `json:"detach,omitempty"`
}

// RenameRequest asks for another name.
type RenameRequest struct {
	Name string `json:"name"`
}

// UpdateRequest asks for other limits, in the cgroup's terms and in those of the container's configuration.
type UpdateRequest struct {
	Limits    cgdelegate.Limits     `json:"limits"`
	Resources *specs.LinuxResources `json:"resources,omitempty"` // the same for the configuration; nil: none is to change
	Restart   *state.Restart        `json:"restart,omitempty"`   // another policy, or nil
}

// Image is a merged tree with the files of its layers.
type Image = holder.Image

// Serve tells the union stage of the writable layer whose mount it has got.
type Serve struct {
	Upper    string `json:"upper,omitempty"`
	Work     string `json:"work,omitempty"`
	Volatile bool   `json:"volatile,omitempty"`
	// Memory: the layer is in memory, in place of Upper and Work.
	Memory bool `json:"memory,omitempty"`
	// Emulate has it remember owners that are not mapped; see package emulation.
	Emulate bool `json:"emulate,omitempty"`
}

// Started is the answer when the command runs. Its file is the pty master, if
// HasTTY.
type Started struct {
	HasTTY  bool         `json:"hasTTY,omitempty"`
	Notices []string     `json:"notices,omitempty"`
	Ports   []state.Port `json:"ports,omitempty"`
}

// Attach comes with the TUN's file and, for the driver "kernel", those of slirp.Redirect. Frame is the packet that woke the network
// helper, if one did.
type Attach struct {
	Frame []byte `json:"frame,omitempty"`
}

// Driver tells of a change of the network's driver, and why.
type Driver struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Exited is the last answer.
type Exited struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
	// Restarts says that the container is going to run again: the monitor stays.
	Restarts bool `json:"restarts,omitempty"`
}

// Signal asks for a signal to the container's pid 1.
type Signal struct {
	Number int `json:"number"`
	// Stop says that the container is to end and not to be restarted.
	Stop bool `json:"stop,omitempty"`
	// Keep says that it is not to be removed when it ends, --rm or not.
	Keep bool `json:"keep,omitempty"`
}

// Kinds of messages; those of init are in package stage.
const (
	KindRequest   = "request"
	KindTree      = "tree"
	KindServe     = "serve"
	KindPorts     = "ports"
	KindListening = "listening"
	KindAttach    = "attach"
	KindDriver    = "driver"
	KindDrain     = "drain" // the container has ended: pass on what it has sent, then end
	KindStarted   = "started"
	KindSignal    = "signal"
	KindResize    = "resize" // Size
	KindDetach    = "detach" // the command leaves, the container stays
	KindExited    = "exited"
	KindTicket    = "ticket"
	KindDone      = "done" // the answer to what has no other
	KindFailed    = stage.KindFailed

	// First messages on a container's control socket, besides KindSignal.
	KindJoin   = "join" // the container's output
	KindExec   = "exec"
	KindRank   = "rank" // file: a pidfd of the process that is to be a rank
	KindRename = "rename"
	KindUpdate = "update"
	// state.Endpoint; the network's name.
	KindConnect    = "connect"
	KindDisconnect = "disconnect"
)
