package monitor

import "github.com/urun-dev/urun/internal/events"

// tell puts an event of the container into the user's log, which is never a
// reason to fail.
func (c *container) tell(action string, pairs ...string) {
	rec := &c.handle.Record
	_ = events.Append(c.StateRoot, events.OfContainer(action, events.Container{
		ID: rec.ID, Name: rec.Name, Image: rec.Image, Labels: rec.Labels,
	}, pairs...))
}
