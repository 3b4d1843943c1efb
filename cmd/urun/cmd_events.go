package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/events"
)

// EventsCmd shows what happens.
type EventsCmd struct {
	Since  string   `placeholder:"TIME" help:"Begin with what happened then: a time, or how long ago, such as 10m."`
	Until  string   `placeholder:"TIME" help:"End there instead of waiting for more."`
	Stream bool     `default:"true" negatable:"" help:"Wait for more; on by default, unless there is --until."`
	Format string   `placeholder:"json|TEMPLATE" help:"json, or a Go template over .Type .Action .Actor.ID .Actor.Attributes .Time .TimeNano."`
	Filter []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"Only events with this type, event, container, image, volume, network, label or scope."`
}

// Run prints events until it is interrupted, or until the time of --until.
func (c *EventsCmd) Run(app *App) error {
	now := time.Now()
	since, until := now, time.Time{}
	var err error
	if c.Since != "" {
		if since, err = parseMoment(c.Since, now); err != nil {
			return fmt.Errorf("--since: %w", err)
		}
	}
	if c.Until != "" {
		if until, err = parseMoment(c.Until, now); err != nil {
			return fmt.Errorf("--until: %w", err)
		}
		if c.Since == "" {
			since = time.Time{}
		}
	} else if !c.Stream && c.Since == "" {
		since = time.Time{}
	}
	keep, err := parseFilters(c.Filter, eventFilters)
	if err != nil {
		return err
	}
	show, err := c.printer(app.Stdout)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if !until.IsZero() {
		ctx, stop = context.WithDeadline(ctx, until)
		defer stop()
	}
	each := func(e events.Event) error {
		if e.When().Before(since) || !until.IsZero() && e.When().After(until) || !keep.match(e) {
			return nil
		}
		return show(e)
	}
	if !c.Stream || !until.IsZero() && !until.After(now) {
		return events.Read(app.stateRoot(), each)
	}
	return events.Follow(ctx, app.stateRoot(), each)
}

// eventFilters are the keys for events.
var eventFilters = filterKeys[events.Event]{
	"type":      wordFilter([]string{"container", "image", "volume", "network"}, func(e events.Event) string { return e.Type }),
	"event":     func(v string) (func(events.Event) bool, error) { return eventIs(v), nil },
	"action":    func(v string) (func(events.Event) bool, error) { return eventIs(v), nil },
	"container": actorFilter("container"),
	"volume":    actorFilter("volume"),
	"network":   actorFilter("network"),
	"scope":     wordFilter([]string{"local"}, func(e events.Event) string { return e.Scope }),
	"label":     labelFilter(func(e events.Event) map[string]string { return e.Actor.Attributes }),
	"image": func(v string) (func(events.Event) bool, error) {
		actor, err := actorFilter("image")(v)
		return func(e events.Event) bool {
			return actor(e) || e.Type == "container" && e.Actor.Attributes["image"] == v
		}, err
	},
}

// eventIs matches the action; "exec_start" matches "exec_start: ls" as well.
func eventIs(action string) func(events.Event) bool {
	return func(e events.Event) bool { return e.Action == action || strings.HasPrefix(e.Action, action+":") }
}

// actorFilter matches events of one thing, by its name or the beginning of its id.
func actorFilter(kind string) func(string) (func(events.Event) bool, error) {
	return func(value string) (func(events.Event) bool, error) {
		if value == "" {
			return nil, errors.New("want a name or an id")
		}
		return func(e events.Event) bool {
			id := strings.TrimPrefix(e.Actor.ID, "sha256:")
			return e.Type == kind && (e.Actor.Attributes["name"] == value || strings.HasPrefix(id, strings.TrimPrefix(value, "sha256:")))
		}, nil
	}
}

func (c *EventsCmd) printer(w io.Writer) (func(events.Event) error, error) {
	switch c.Format {
	case "":
		return func(e events.Event) error {
			_, err := fmt.Fprintln(w, eventLine(e))
			return err
		}, nil
	case "json":
		return func(e events.Event) error { return printFormat(w, "json", e, []events.Event{e}) }, nil
	}
	t, err := parseTemplate(c.Format)
	if err != nil {
		return nil, err
	}
	return func(e events.Event) error { return executeRows(w, t, []events.Event{e}) }, nil
}

// eventLine is docker's line for an event.
func eventLine(e events.Event) string {
	var attributes []string
	for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
		attributes = append(attributes, k+"="+e.Actor.Attributes[k])
	}
	line := fmt.Sprintf("%s %s %s %s", e.When().Local().Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	if len(attributes) > 0 {
		line += " (" + strings.Join(attributes, ", ") + ")"
	}
	return line
}
