package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/state"
)

// PsCmd is urun ps.
type PsCmd struct {
	All     bool   `short:"a" help:"Show containers that have ended, too."`
	Quiet   bool   `short:"q" help:"Print ids only."`
	NoTrunc bool   `help:"Do not shorten."`
	Format  string `help:"A Go template, or json." placeholder:"FORMAT"`

	Filter []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"Only containers with this id, name, label[=value], status, ancestor or exited=code; of several values of one key, any will do."`
}

// psRow is a container as docker ps shows it.
type psRow struct {
	ID, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Names string
}

// Run lists the containers.
func (p *PsCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	all, err := st.List()
	if err != nil {
		return err
	}
	keep, err := parseFilters(p.Filter)
	if err != nil {
		return err
	}
	var rows []psRow
	for _, rec := range all {
		if (p.All || keep.has("status") || keep.has("exited") || rec.Status == state.Running) && keep.match(rec) {
			rows = append(rows, p.row(rec))
		}
	}
	return p.print(app, rows)
}

func (p *PsCmd) row(rec *state.Record) psRow {
	row := psRow{
		ID: rec.ID, Image: rec.Image, Names: rec.Name,
		CreatedAt:  rec.Created.Format(time.RFC3339),
		RunningFor: ago(rec.Created),
		State:      string(rec.Status),
		Status:     statusText(rec),
		Ports:      portsText(rec.Ports),
	}
	row.Command = strings.Join(rec.Command, " ")
	if !p.NoTrunc {
		row.ID = row.ID[:min(12, len(row.ID))]
		if len(row.Command) > 20 {
			row.Command = row.Command[:19] + "…"
		}
	}
	row.Command = fmt.Sprintf("%q", row.Command)
	return row
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func statusText(rec *state.Record) string {
	switch rec.Status {
	case state.Running:
		return "Up " + units.HumanDuration(time.Since(rec.Started))
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

func (p *PsCmd) print(app *App, rows []psRow) error {
	switch {
	case p.Quiet:
		for _, r := range rows {
			fmt.Fprintln(app.Stdout, r.ID)
		}
		return nil
	case p.Format == "json":
		for _, r := range rows {
			if err := json.NewEncoder(app.Stdout).Encode(r); err != nil {
				return err
			}
		}
		return nil
	case p.Format != "":
		tmpl, err := template.New("format").Parse(strings.ReplaceAll(p.Format, `\t`, "\t") + "\n")
		if err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		for _, r := range rows {
			if err := tmpl.Execute(app.Stdout, r); err != nil {
				return fmt.Errorf("--format: %w", err)
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(app.Stdout, 10, 1, 3, ' ', 0)
	fmt.Fprintln(w, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Image, r.Command, r.RunningFor, r.Status, r.Ports, r.Names)
	}
	return w.Flush()
}
