package events

import (
	"maps"
	"strings"
)

// Container is what events of containers tell of theirs.
type Container struct {
	ID, Name, Image string
	Labels          map[string]string
}

// OfContainer is an event of a container, with docker's attributes. The pairs,
// name and value in turn, are further ones.
func OfContainer(action string, c Container, pairs ...string) Event {
	attributes := map[string]string{"image": c.Image, "name": c.Name}
	maps.Copy(attributes, c.Labels)
	for i := 0; i+1 < len(pairs); i += 2 {
		attributes[pairs[i]] = pairs[i+1]
	}
	return Event{
		// "exec_start: ls -l" and the like: the old field has all of it, too.
		Status: strings.TrimSpace(action), ID: c.ID, From: c.Image,
		Type: "container", Action: action, Actor: Actor{ID: c.ID, Attributes: attributes},
	}
}
