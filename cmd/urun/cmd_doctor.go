package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/urun-dev/urun/internal/doctor"
)

// DoctorCmd is urun doctor.
type DoctorCmd struct {
	JSON bool `name:"json" help:"Print the findings as JSON."`
}

// Help is the long help text.
func (DoctorCmd) Help() string {
	return "One line for each thing that containers need: ok, degraded (works, but not as elsewhere) or missing (a plain urun run fails). " +
		"Below it what you can do, and a line for your administrator. The exit status is 1 if anything is missing.\n\nExample: urun doctor"
}

// doctorTime bounds the whole examination: a bus that never answers must not hold it up.
const doctorTime = 30 * time.Second

// Run examines the machine.
func (c *DoctorCmd) Run(app *App) error {
	ctx, cancel := context.WithTimeout(context.Background(), doctorTime)
	defer cancel()
	o, err := doctor.Observe(ctx, executable(), app.stateRoot(), app.Root)
	if err != nil {
		return err
	}
	findings := doctor.Diagnose(o)
	if c.JSON {
		err = json.NewEncoder(app.Stdout).Encode(struct {
			Works    bool             `json:"works"`
			Findings []doctor.Finding `json:"findings"`
		}{doctor.Works(findings), findings})
	} else {
		err = printFindings(app, findings)
	}
	if err == nil && !doctor.Works(findings) {
		err = exitStatus(1)
	}
	return err
}

func printFindings(app *App, all []doctor.Finding) error {
	for _, f := range all {
		lines := []string{fmt.Sprintf("%-9s %-16s %s", f.Status, f.Check, f.Detail)}
		if f.Cure != "" {
			lines = append(lines, fmt.Sprintf("%26s you:   %s", "", f.Cure))
		}
		if f.Admin != "" {
			lines = append(lines, fmt.Sprintf("%26s admin: %s", "", f.Admin))
		}
		for _, line := range lines {
			if _, err := fmt.Fprintln(app.Stdout, line); err != nil {
				return err
			}
		}
	}
	return nil
}
