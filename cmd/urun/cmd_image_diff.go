package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urun-dev/urun/internal/image"
)

// ImageDiffCmd compares the files of two images.
type ImageDiffCmd struct {
	IgnoreTimes bool   `help:"Do not mind times of modification."`
	Format      string `enum:"text,json" default:"text" help:"text, or json: an object a line."`
	A           string `arg:"" help:"Name or id."`
	B           string `arg:"" help:"Name or id."`
}

// Run prints what has to be added, changed and deleted to come from the first image to the second.
func (c *ImageDiffCmd) Run(app *App) (err error) {
	a, err := app.openImage(c.A)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	b, err := app.openImage(c.B)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	out := newOutput(app.Stdout)
	err = image.Diff(a.img, b.img, a.tree, b.tree, image.DiffOptions{IgnoreTimes: c.IgnoreTimes}, func(change image.Change) error {
		if c.Format == "json" {
			return jsonLine(out, change)
		}
		line := change.Kind + " " + printable(change.Path)
		if len(change.What) > 0 {
			line += "  " + printable(strings.Join(change.What, ", "))
		}
		_, err := fmt.Fprintln(out, line)
		return err
	})
	return errors.Join(err, out.Flush())
}
