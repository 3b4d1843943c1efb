package main

import (
	"errors"
	"fmt"
)

// DiffCmd is urun diff.
type DiffCmd struct {
	Format    string `placeholder:"json|TEMPLATE" help:"json, or a Go template over .Kind and .Path."`
	Container string `arg:""`
}

// diffRow is a change as templates and JSON have it.
type diffRow struct {
	Kind int
	Path string
}

// Run lists what a container changed of its image: A is added, C changed, D deleted.
func (c *DiffCmd) Run(app *App) (err error) {
	f, err := app.openFiles(c.Container)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	layers, err := app.layers(f.st, f.rec)
	if err != nil {
		return err
	}
	all, err := f.Changes(layers)
	if err != nil {
		return err
	}
	if c.Format != "" {
		rows := make([]diffRow, len(all))
		for i, change := range all {
			rows[i] = diffRow{int(change.Kind), change.Path}
		}
		return printFormat(app.Stdout, c.Format, diffRow{}, rows)
	}
	for _, change := range all {
		if _, err := fmt.Fprintln(app.Stdout, change.Kind, change.Path); err != nil {
			return err
		}
	}
	return nil
}
