package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urun-dev/urun/internal/jsonlog"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// LogsCmd is urun logs.
type LogsCmd struct {
	Follow     bool   `short:"f" help:"Go on until the container ends."`
	Timestamps bool   `short:"t" help:"Begin each line with its time."`
	Details    bool   `help:"Show beside each line the labels and variables that --log-opt labels=,env= asked for."`
	Since      string `placeholder:"TIME" help:"Only what is younger: 2026-01-31T12:00:00Z, a date, seconds since 1970, or 10m ago."`
	Until      string `placeholder:"TIME" help:"Only what is older."`
	Tail       string `short:"n" default:"all" placeholder:"N" help:"Only the last lines."`
	Container  string `arg:""`
}

// Run prints a container's log.
func (l *LogsCmd) Run(app *App) error {
	q := jsonlog.Query{Tail: -1, Follow: l.Follow}
	var err error
	now := time.Now()
	for _, bound := range []struct {
		flag, value string
		into        *time.Time
	}{{"--since", l.Since, &q.Since}, {"--until", l.Until, &q.Until}} {
		if bound.value == "" {
			continue
		}
		if *bound.into, err = parseMoment(bound.value, now); err != nil {
			return fmt.Errorf("%s: %w", bound.flag, err)
		}
	}
	if l.Tail != "all" {
		if q.Tail, err = strconv.Atoi(l.Tail); err != nil {
			return &hintError{fmt.Errorf("--tail %s: not a number", l.Tail), "a number of lines, or all"}
		}
	}
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(l.Container)
	if err != nil {
		return err
	}
	q.Ended = func() (bool, error) { return logEnded(st, rec.ID) }
	err = jsonlog.Read(filepath.Join(st.Dir(rec.ID), monitor.LogFile), q, func(line jsonlog.Line) error { return l.print(app, line) })
	if err != nil {
		err = state.Vanished(st.Dir(rec.ID), err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if rec.Status == state.Created {
			return nil // it has said nothing yet
		}
		return fmt.Errorf("container %s has no log: it runs in the foreground with --rm, or with --log-driver=none", rec.Name)
	}
	return err
}

// logEnded tells whether nothing will be added to a container's log. One that
// waits for its restart, or was made and not started, may go on.
func logEnded(st *state.Store, id string) (bool, error) {
	rec, err := st.Find(id)
	if errors.Is(err, state.ErrNotFound) {
		return true, nil
	}
	return err == nil && rec.Status.Ended(), err
}

func (l *LogsCmd) print(app *App, line jsonlog.Line) error {
	w := app.Stdout
	if line.Stream == "stderr" {
		w = app.Stderr
	}
	if l.Timestamps {
		if _, err := fmt.Fprint(w, line.Time.Format(time.RFC3339Nano), " "); err != nil {
			return err
		}
	}
	if l.Details {
		if _, err := io.WriteString(w, details(line.Attrs)+" "); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, line.Log)
	return err
}

// details are a line's attributes in docker's form: sorted, escaped as in a URL.
func details(attrs map[string]string) string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		pairs = append(pairs, url.QueryEscape(name)+"="+url.QueryEscape(attrs[name]))
	}
	return strings.Join(pairs, ",")
}
