package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/image"
)

// LoadCmd loads images from an archive.
type LoadCmd struct {
	Input    string `short:"i" placeholder:"FILE" help:"Archive to read, instead of standard input."`
	Quiet    bool   `short:"q" help:"No progress."`
	Platform string `placeholder:"OS/ARCH[/VARIANT]" help:"Platform of an image of several, if not this machine's."`
}

// Run prints what was loaded, with docker's words.
func (c *LoadCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	f, err := c.open(app)
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	show := newProgress(app, c.Quiet, false)
	images, err := store.Load(ctx, f, image.LoadOptions{Platform: c.Platform, Progress: show.event})
	show.end()
	for _, img := range images {
		app.tell(imageEvent("load", img.ID.String(), ""))
		if perr := printLoaded(app, img); perr != nil {
			return perr
		}
	}
	return interrupted(ctx, err)
}

func (c *LoadCmd) open(app *App) (*os.File, error) {
	if c.Input != "" && c.Input != "-" {
		return os.Open(c.Input)
	}
	f, ok := app.Stdin.(*os.File)
	if !ok {
		return nil, errors.New("load: standard input is not a file")
	}
	if term.IsTerminal(int(f.Fd())) {
		return nil, errors.New("load: standard input is a terminal; name an archive with -i or pipe one in")
	}
	return f, nil
}

func printLoaded(app *App, img *image.Image) error {
	if len(img.Names) == 0 {
		_, err := fmt.Fprintln(app.Stdout, "Loaded image ID:", img.ID)
		return err
	}
	for _, n := range img.Names {
		if r, err := image.ParseReference(n); err == nil {
			n = r.Familiar()
		}
		if _, err := fmt.Fprintln(app.Stdout, "Loaded image:", n); err != nil {
			return err
		}
	}
	return nil
}
