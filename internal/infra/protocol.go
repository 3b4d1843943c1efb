package infra

import (
	"net/netip"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/network"
	"github.com/urun-dev/urun/internal/state"
)

// Kinds of messages.
const (
	KindStart     = "start" // to a new process: Start; files: the lock, the namespace if there is one already
	KindListening = "listening"

	KindAdmit = "admit" // first of a command, on the door: Admit; then it may ask for a monitor (handoff.KindSpawn)

	KindHello   = "hello" // first of a monitor: Hello; answered by KindWelcome, whose file is the namespace
	KindWelcome = "welcome"
	KindJoin    = "join"    // Join; file: the container's network namespace
	KindLeave   = "leave"   // Leave
	KindPublish = "publish" // []slirp.PortMapping; answered by KindPublished
	KindRename  = "rename"  // Rename

	KindPublished = "published" // []slirp.PortMapping
	KindDone      = "done"
	KindFailed    = "failed" // Failure
)

// Start says what the process serves.
type Start struct {
	// Root is the store of containers and networks.
	Root string `json:"root"`
	// Outside is the user namespace of commands, which may use the door.
	Outside handoff.Namespace `json:"outside"`
	// Map is the key of the id map of the process's user namespace.
	Map string `json:"map"`
	// HasNetNS says that a namespace comes along, left by a process that was killed.
	HasNetNS bool `json:"hasNetNS,omitempty"`
}

// Admit says which id map the monitor is to have.
type Admit struct {
	Map string `json:"map"`
}

// Hello says for which container a monitor speaks.
type Hello struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// UserNS is the user namespace that the container's network namespace belongs to.
	UserNS handoff.Namespace `json:"userNS"`
	// DNS are the resolvers of --dns.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// Join puts the container on a network.
type Join struct {
	Network  network.Network `json:"network"`
	Endpoint state.Endpoint  `json:"endpoint"`
	// Index is the number of the interface: eth0 is 0. A lower one is preferred as the way out.
	Index int `json:"index"`
}

// Leave takes it off.
type Leave struct {
	NetworkID string `json:"networkID"`
}

// Rename gives the container another name.
type Rename struct {
	Name string `json:"name"`
}

// Failure is an error with its cure.
type Failure struct {
	Message string `json:"error"`
	Cure    string `json:"hint,omitempty"`
}

func (f *Failure) Error() string { return f.Message }

// Hint is the cure.
func (f *Failure) Hint() string { return f.Cure }
