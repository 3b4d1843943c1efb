package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urun-dev/urun/internal/image"
)

// ImportCmd makes an image of a root filesystem.
type ImportCmd struct {
	Change   []string `short:"c" sep:"none" placeholder:"INSTRUCTION" help:"Dockerfile instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR."`
	Message  string   `short:"m" help:"Comment for the image's history."`
	Platform string   `placeholder:"OS/ARCH[/VARIANT]" help:"Platform of the root filesystem, if not this machine's."`
	File     string   `arg:"" help:"Tar of a root filesystem, plain or compressed; - is standard input."`
	Name     string   `arg:"" optional:"" help:"Name of the image."`
}

// Run prints the image's id.
func (c *ImportCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	if c.File == "-" {
		return c.importFrom(app, store, app.Stdin)
	}
	f, err := os.Open(c.File)
	if err != nil {
		return err
	}
	return errors.Join(c.importFrom(app, store, f), f.Close())
}

func (c *ImportCmd) importFrom(app *App, store *image.Store, in io.Reader) error {
	ctx, stop := interruptible()
	defer stop()
	img, err := store.Import(ctx, in, image.ImportOptions{
		Name: c.Name, Changes: c.Change, Message: c.Message, Platform: c.Platform,
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	app.tell(imageEvent("import", img.ID.String(), c.Name))
	_, err = fmt.Fprintln(app.Stdout, img.ID)
	return err
}
