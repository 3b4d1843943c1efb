package main

import (
	"github.com/urun-dev/urun/internal/events"
	"github.com/urun-dev/urun/internal/state"
)

// tell puts an event into the log. The log never is a reason to fail: what the
// event tells of is done.
func (a *App) tell(e events.Event) {
	if err := events.Append(a.stateRoot(), e); err != nil {
		a.Log.Debug("event", "error", err)
	}
}

// containerEvent is an event of a container, in docker's words. The pairs are
// further attributes.
func containerEvent(action string, rec *state.Record, pairs ...string) events.Event {
	return events.OfContainer(action, events.Container{ID: rec.ID, Name: rec.Name, Image: rec.Image, Labels: rec.Labels}, pairs...)
}

func volumeEvent(action, name string) events.Event {
	return events.Event{Type: "volume", Action: action, Actor: events.Actor{ID: name, Attributes: map[string]string{"driver": "local"}}}
}

// imageEvent is an event of an image, by its id and a name.
func imageEvent(action, id, name string) events.Event {
	attributes := map[string]string{}
	if name != "" {
		attributes["name"] = name
	}
	return events.Event{Status: action, ID: id, Type: "image", Action: action, Actor: events.Actor{ID: id, Attributes: attributes}}
}
