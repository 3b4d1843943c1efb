package main

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/image"
)

// RmiCmd removes images.
type RmiCmd struct {
	Force  bool     `short:"f" help:"Remove an image with all its names, and do not mind one that is not there."`
	Images []string `arg:"" name:"image" help:"Names or ids."`
}

// Run goes on after an image that cannot be removed, and fails in the end.
func (c *RmiCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	var errs []error
	for _, ref := range c.Images {
		r, err := store.Remove(ctx, ref, c.Force)
		if perr := printRemoved(app, r); perr != nil {
			return perr
		}
		if c.Force && errors.Is(err, image.ErrNotFound) {
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func printRemoved(app *App, r image.Removed) error {
	for _, name := range r.Untagged {
		app.tell(imageEvent("untag", name, name))
		if _, err := fmt.Fprintln(app.Stdout, "Untagged:", name); err != nil {
			return err
		}
	}
	for _, id := range r.Deleted {
		app.tell(imageEvent("delete", id.String(), ""))
		if _, err := fmt.Fprintln(app.Stdout, "Deleted:", id); err != nil {
			return err
		}
	}
	return nil
}
