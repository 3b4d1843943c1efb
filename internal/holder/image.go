package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/handoff"
)

// Image is a merged tree with the files of its layers, as an image server shows it.
type Image struct {
	Tree  string                 `json:"tree,omitempty"`
	Data  []string               `json:"data,omitempty"`
	Dir   string                 `json:"dir,omitempty"` // a root directory, instead of a tree
	Serve fuseunion.ServeOptions `json:"serve"`
	// ID is the image's, for people. Images of equal layers share a server.
	ID string `json:"id,omitempty"`
}

// Messages about images. To the holder go kindImage, by a monitor on its own
// channel, and kindRelease; to an image server (the stage __union) KindServe, to
// which it answers with KindMounted, whose file is the detached mount, or KindFailed.
const (
	kindImage   = "image"
	kindRelease = "release"
	kindChannel = "channel"
	KindServe   = "serve"
	KindMounted = "mounted"
	KindFailed  = "failed"
)

// Failed is a failure with, where there is one, its cure.
type Failed struct {
	Message string `json:"error"`
	Cure    string `json:"hint,omitempty"`
}

func (f *Failed) Error() string { return f.Message }

// Hint is the cure.
func (f *Failed) Hint() string { return f.Cure }

// Link is a monitor's channel to the holder that started it.
type Link struct {
	mu   sync.Mutex // one question at a time
	conn *handoff.Conn
}

// answerTime bounds the wait for the holder's answer, which takes as long as an
// image server takes to start: seconds on a machine that is busy with many starts, and more in emulation.
const answerTime = 2 * time.Minute

// NewLink returns the channel that came with this process.
func NewLink() (*Link, error) {
	conn, err := handoff.Keeper()
	if err != nil {
		return nil, err
	}
	return &Link{conn: conn}, nil
}

func (l *Link) ask(kind string, body any, want int) ([]*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conn.Send(kind, body); err != nil {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	if err := l.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	m, err := l.conn.Recv()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", handoff.ErrNobody, err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("the holder does not answer within %v", answerTime)
	}
	if err != nil {
		return nil, err
	}
	if m.Kind == KindFailed {
		f := &Failed{}
		if err := m.Decode(f); err != nil {
			return nil, err
		}
		return nil, f
	}
	if len(m.Files) != want {
		m.Close()
		return nil, fmt.Errorf("holder: %s: got %d files, want %d", kind, len(m.Files), want)
	}
	return m.Files, nil
}

// Mount returns a detached mount of the image and a pidfd of the process that
// serves it. The image is in use until this process ends. The error wraps
// handoff.ErrNobody if the holder is gone.
func (l *Link) Mount(img Image) (mount, server *os.File, err error) {
	files, err := l.ask(kindImage, img, 2)
	if err != nil {
		return nil, nil, err
	}
	return files[0], files[1], nil
}

// Another returns the end of a further channel to the holder, for another
// monitor; nil if the holder is gone.
func (l *Link) Another() *os.File {
	files, err := l.ask(kindChannel, nil, 1)
	if err != nil {
		return nil
	}
	return files[0]
}

// Release ends, in all holders of the user, the image servers that no container
// uses, so that no file of theirs stays open.
func Release(store string) error {
	return each(store, func(_, dir *os.File, _ string) error {
		conn, err := handoff.Dial(dir, doorName)
		if errors.Is(err, handoff.ErrNobody) {
			return nil
		}
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Send(kindRelease, nil); err != nil {
			return nil // it has ended meanwhile
		}
		if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
			return err
		}
		if _, err := conn.Recv(); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("release image servers: %w", err)
		}
		return nil
	})
}
