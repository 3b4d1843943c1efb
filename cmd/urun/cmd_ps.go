package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/state"
)

// PsCmd is urun ps.
type PsCmd struct {
	All     bool   `short:"a" help:"Show containers that do not run, too."`
	Quiet   bool   `short:"q" help:"Print ids only."`
	Latest  bool   `short:"l" help:"Show the one made last, whatever its state."`
	Last    int    `short:"n" default:"-1" placeholder:"N" help:"Show the N made last, whatever their state."`
	Size    bool   `short:"s" help:"Show how much each has written."`
	NoTrunc bool   `help:"Do not shorten."`
	Format  string `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .ID .Names .Image .ImageID .Command .CreatedAt .RunningFor .Status .State .Ports .Labels .Label .Mounts .Networks .Size .Pid."`

	Filter []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"Only containers with this id, name, status, label[=value], ancestor, exited, health, volume, network, publish, before, since or until; of several values of one key any will do, but all of the labels must be there."`
}

// psRow is a container as docker ps shows it.
type psRow struct {
	ID, Image, ImageID, Command, CreatedAt, RunningFor, Status, State, Ports, Names string
	Labels, Mounts, LocalVolumes, Networks, Size                                    string

	Pid int

	labels map[string]string
}

// Label is the value of one label, for templates.
func (r psRow) Label(key string) string {
	if r.labels == nil { // the headings
		return strings.ToUpper(key)
	}
	return r.labels[key]
}

var psHeadings = psRow{
	ID: "CONTAINER ID", Image: "IMAGE", ImageID: "IMAGE ID", Command: "COMMAND", CreatedAt: "CREATED AT", RunningFor: "CREATED",
	Status: "STATUS", State: "STATE", Ports: "PORTS", Names: "NAMES", Labels: "LABELS", Mounts: "MOUNTS",
	LocalVolumes: "LOCAL VOLUMES", Networks: "NETWORKS", Size: "SIZE",
}

// Run lists the containers.
func (p *PsCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	recs, err := p.choose(app, st)
	if err != nil {
		return err
	}
	if p.Quiet && p.Format == "" {
		for _, rec := range recs {
			if _, err := fmt.Fprintln(app.Stdout, p.id(rec)); err != nil {
				return err
			}
		}
		return nil
	}
	sizes := map[string]containerSize{}
	if p.Size || strings.Contains(p.Format, ".Size") {
		if sizes, err = app.containerSizes(st, recs); err != nil {
			return err
		}
	}
	rows := make([]psRow, len(recs))
	for i, rec := range recs {
		rows[i] = p.row(st, rec)
		if size, ok := sizes[rec.ID]; ok {
			rows[i].Size = size.String()
		}
	}
	return printFormat(app.Stdout, p.format(), psHeadings, rows)
}

// choose gives the containers that are to be shown, newest first.
func (p *PsCmd) choose(app *App, st *state.Store) ([]*state.Record, error) {
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	keep, err := parseFilters(p.Filter, app.containerFilters(st))
	if err != nil {
		return nil, err
	}
	last := p.Last
	if p.Latest {
		last = 1
	}
	any := p.All || last >= 0 || keep.has("status", "exited")
	var recs []*state.Record
	for _, rec := range all {
		if (any || isUp(rec)) && keep.match(rec) {
			recs = append(recs, rec)
		}
	}
	if last >= 0 {
		recs = recs[:min(last, len(recs))]
	}
	return recs, nil
}

// isUp tells whether a container has processes.
func isUp(rec *state.Record) bool {
	return rec.Status != state.Creating && rec.Status != state.Starting && !rec.Status.Ended()
}

func (p *PsCmd) format() string {
	if p.Format != "" && p.Format != "table" {
		return p.Format
	}
	format := "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
	if p.Size {
		format += "\t{{.Size}}"
	}
	return format
}

func (p *PsCmd) id(rec *state.Record) string {
	if p.NoTrunc {
		return rec.ID
	}
	return rec.ID[:min(12, len(rec.ID))]
}

func (p *PsCmd) row(st *state.Store, rec *state.Record) psRow {
	row := psRow{
		ID: p.id(rec), Image: rec.Image, ImageID: strings.TrimPrefix(rec.ImageID, "sha256:"), Names: rec.Name,
		CreatedAt:  rec.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		RunningFor: ago(rec.Created),
		State:      string(shownStatus(rec)),
		Status:     statusText(rec),
		Ports:      portsText(rec.Ports),
		labels:     rec.Labels,
	}
	if row.labels == nil {
		row.labels = map[string]string{}
	}
	if isUp(rec) {
		row.Pid = rec.Init.PID
	}
	row.Command = strings.Join(rec.Command, " ")
	if !p.NoTrunc {
		row.ImageID = row.ImageID[:min(12, len(row.ImageID))]
		row.Command = shorten(row.Command, 20)
	}
	row.Command = fmt.Sprintf("%q", row.Command)
	row.Labels = labelText(rec.Labels)
	row.LocalVolumes = fmt.Sprint(len(rec.Volumes) + len(rec.NamedVolumes))
	if strings.Contains(p.Format, "Mounts") || strings.Contains(p.Format, "Networks") || p.Format == "json" {
		p.describe(&row, st, rec)
	}
	return row
}

// describe adds what only the container's spec tells, another file to read.
func (p *PsCmd) describe(row *psRow, st *state.Store, rec *state.Record) {
	s, err := st.Spec(rec.ID)
	if err != nil {
		return // it has just been removed, or is just being made
	}
	row.Networks = strings.Join(networksOf(rec, s), ",")
	var mounts []string
	for _, m := range userMounts(rec, s, st) {
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if !p.NoTrunc {
			name = shorten(filepath.Base(name), 15)
		}
		mounts = append(mounts, name)
	}
	row.Mounts = strings.Join(mounts, ",")
}

// shorten cuts a text for a column, at most n characters with the mark of it.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func statusText(rec *state.Record) string {
	switch rec.Status {
	case state.Running:
		up := "Up " + units.HumanDuration(time.Since(rec.Started))
		switch {
		case shownStatus(rec) == state.Paused:
			return up + " (Paused)"
		case rec.Health == nil:
			return up
		case rec.Health.Status == "starting":
			return up + " (health: starting)"
		}
		return up + " (" + rec.Health.Status + ")"
	case state.Restarting:
		return fmt.Sprintf("Restarting (%d) %s", rec.ExitCode, ago(rec.Finished))
	case state.Dead:
		return "Dead"
	case state.Exited:
		return fmt.Sprintf("Exited (%d) %s", rec.ExitCode, ago(rec.Finished))
	case state.Created:
		return "Created"
	}
	return string(rec.Status)
}

func portsText(ports []state.Port) string {
	var all []string
	for _, p := range ports {
		all = append(all, fmt.Sprintf("%s->%d/%s", hostPort(p), p.ContainerPort, p.Protocol))
	}
	return strings.Join(all, ", ")
}

// labelText is how lists show labels, in the order of their keys.
func labelText(labels map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, k+"="+labels[k])
	}
	return strings.Join(all, ",")
}
