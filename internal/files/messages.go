package files

import (
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/archive"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/unpacked"
)

// Kinds of messages.
const (
	kindEnter   = "enter"
	kindMount   = "mount"
	kindReady   = "ready"
	kindStat    = "stat"
	kindMkdir   = "mkdir"
	kindWrite   = "write"
	kindExtract = "extract"
	kindChanges = "changes"
	kindLayer   = "layer"
	kindClose   = "close"
	kindDone    = "done"
	kindFailed  = stage.KindFailed
)

// Layers are what a container's file system is made of.
type Layers struct {
	// Dir is the container's directory.
	Dir string `json:"dir"`
	// Image is what is below; LowerDir is the same if it is a root directory.
	Image    *monitor.Image `json:"image"`
	LowerDir string         `json:"lowerDir,omitempty"`
	// Unpacked is the image as plain files, where it is not served over FUSE.
	Unpacked *unpacked.Image `json:"unpacked,omitempty"`
	// Storage is who merges the two; empty if it has not been decided yet.
	Storage stage.Storage `json:"storage,omitempty"`
	// Memory tells that the writable layer is in memory, and only while the container runs.
	Memory bool `json:"memory,omitempty"`
	// Plain tells that there is no FUSE.
	Plain bool `json:"plain,omitempty"`
	// Chroot tells that nothing can be mounted.
	Chroot bool `json:"chroot,omitempty"`
	// Root tells that uid and gid 0 exist inside.
	Root bool `json:"root"`
	// Mounts are the container's.
	Mounts []specs.Mount `json:"mounts,omitempty"`
}

// enterRequest comes with a pidfd. Root is as in Layers. Dir is the root of a container that is a chroot.
type enterRequest struct {
	Root bool   `json:"root"`
	Dir  string `json:"dir,omitempty"`
}

type statRequest struct {
	Path   string `json:"path"`
	Follow bool   `json:"follow"`
}

// writeRequest asks for a tar stream into the message's file.
type writeRequest struct {
	Path string `json:"path"`
	// Bare is the container's own file system without what is mounted in it.
	Bare    bool                 `json:"bare"`
	Options archive.WriteOptions `json:"options"`
}

// extractRequest asks to unpack the stream that is the message's file.
type extractRequest struct {
	Dir     string                 `json:"dir"`
	Options archive.ExtractOptions `json:"options"`
}

// Change is a difference between a container and its image.
type Change struct {
	Kind ChangeKind
	Path string // absolute
}

// ChangeKind is one of docker's, as its API has them.
type ChangeKind int

const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// String is docker's letter.
func (k ChangeKind) String() string { return [...]string{"C", "A", "D"}[k] }

// failedError is a failure that the stage reported.
type failedError struct{ stage.Failed }

func (e *failedError) Error() string { return e.Failed.Error }
func (e *failedError) Hint() string  { return e.Failed.Hint }

// answer receives the answer to a request.
func answer(conn *handoff.Conn, kind string, into any) error {
	m, err := conn.Recv()
	if err != nil {
		return errors.Join(errors.New("the process that reads the container's files is gone"), err)
	}
	defer m.Close()
	switch m.Kind {
	case kind:
		if into == nil {
			return nil
		}
		return m.Decode(into)
	case kindFailed:
		e := &failedError{}
		if err := m.Decode(&e.Failed); err != nil {
			return err
		}
		return e
	}
	return errors.New("container files: unknown answer " + m.Kind)
}
