package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/docker/go-units"

	"github.com/urun-dev/urun/internal/image"
)

// ImageCmd groups the image commands under docker's second names, and those that have no first one.
type ImageCmd struct {
	Inspect ImageInspectCmd `cmd:"" help:"Show all that is known of images, as JSON."`
	Prune   ImagePruneCmd   `cmd:"" help:"Remove images that nothing needs."`
	Ls      ImagesCmd       `cmd:"" aliases:"list" help:"List images."`
	Pull    PullCmd         `cmd:"" help:"Bring an image into the store."`
	Rm      RmiCmd          `cmd:"" aliases:"remove" help:"Remove images."`
	Tag     TagCmd          `cmd:"" help:"Give an image another name."`
	Load    LoadCmd         `cmd:"" help:"Load images from an archive."`
	Save    SaveCmd         `cmd:"" help:"Save images to an archive."`
	Import  ImportCmd       `cmd:"" help:"Make an image of a root filesystem's tar."`
}

// ImageInspectCmd shows images.
type ImageInspectCmd struct {
	Format string   `short:"f" placeholder:"TEMPLATE" help:"Go template for each image, instead of JSON."`
	Images []string `arg:"" name:"image" help:"Names or ids."`
}

// Run prints the images that there are, then the first error.
func (c *ImageInspectCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	details := []*image.Details{}
	var errs []error
	for _, ref := range c.Images {
		img, err := store.Inspect(ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d, err := img.Details()
		if err != nil {
			return err
		}
		details = append(details, d)
	}
	if err := c.print(app, details); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func (c *ImageInspectCmd) print(app *App, details []*image.Details) error {
	if c.Format == "" || c.Format == "json" {
		enc := json.NewEncoder(app.Stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		return enc.Encode(details)
	}
	t, err := parseTemplate(c.Format)
	if err != nil {
		return err
	}
	// A template reaches into the published config by its own names, so it gets what the JSON says, not the Go struct.
	var rows []map[string]any
	raw, err := json.Marshal(details)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &rows); err != nil {
		return err
	}
	return executeRows(app.Stdout, t, rows)
}

// ImagePruneCmd removes what nothing needs.
type ImagePruneCmd struct {
	All   bool `short:"a" help:"Remove every image that no container uses, not only those without a name."`
	Force bool `short:"f" help:"Accepted for scripts written for docker: urun does not ask."`
}

// Run says what went and how much room it gave.
func (c *ImagePruneCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	r, err := store.Prune(ctx, c.All)
	if perr := printRemoved(app, r); perr != nil {
		return perr
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(app.Stdout, "Total reclaimed space: %s\n", units.HumanSize(float64(r.Freed)))
	return err
}
