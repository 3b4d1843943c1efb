package image

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// EventKind says what an Event reports.
type EventKind string

// Kinds of events, in the order in which an image meets them.
const (
	EventResolve EventKind = "resolve" // a reference is being looked up at its source
	EventFound   EventKind = "found"   // the image has Count layers with Total bytes, as far as is known
	EventExists  EventKind = "exists"  // a layer is in the store already
	EventWait    EventKind = "wait"    // another process is fetching the layer
	EventFetch   EventKind = "fetch"   // Current of Total bytes of a layer have arrived
	EventRetry   EventKind = "retry"   // a request failed and is tried again; Message says why
	EventDone    EventKind = "done"    // a layer is in the store, verified
	EventWarning EventKind = "warning"
	EventImage   EventKind = "image" // the image is in the store; ID is set
)

// Event is a step of a pull or load.
type Event struct {
	Kind    EventKind     `json:"event"`
	Ref     string        `json:"ref,omitempty"`
	Layer   digest.Digest `json:"layer,omitempty"` // diffID
	Blob    digest.Digest `json:"blob,omitempty"`
	Current int64         `json:"current,omitempty"` // compressed bytes
	Total   int64         `json:"total,omitempty"`   // 0 if not known
	Count   int           `json:"count,omitempty"`
	ID      digest.Digest `json:"id,omitempty"`
	Message string        `json:"message,omitempty"`
}

// reporter hands events to one function, one at a time.
type reporter struct {
	mu sync.Mutex
	fn func(Event)
}

func (r *reporter) report(e Event) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn(e)
}

// meter counts a layer's bytes and reports them not too often.
type meter struct {
	rep   *reporter
	event Event
	last  time.Time
}

func (m *meter) Write(p []byte) (int, error) {
	m.event.Current += int64(len(p))
	if now := time.Now(); now.Sub(m.last) > 100*time.Millisecond {
		m.last = now
		m.rep.report(m.event)
	}
	return len(p), nil
}
