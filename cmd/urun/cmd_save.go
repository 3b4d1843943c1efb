package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/urun-dev/urun/internal/image"
)

// SaveCmd saves images to an archive or a directory.
type SaveCmd struct {
	Output string   `short:"o" placeholder:"PATH" help:"File to write, or directory for oci-dir, instead of standard output."`
	Format string   `enum:"docker-archive,oci-archive,oci-dir" default:"docker-archive" help:"docker-archive, oci-archive or oci-dir."`
	Images []string `arg:"" name:"image" help:"Names or ids."`
}

// Run writes the archive; one that is not whole is removed.
func (c *SaveCmd) Run(app *App) error {
	store, err := app.Store()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	switch {
	case c.Format == "oci-dir" && c.Output == "":
		return errors.New("save: --format oci-dir wants a directory: -o DIR")
	case c.Format == "oci-dir":
		return interrupted(ctx, store.SaveLayout(ctx, c.Output, c.Images...))
	case c.Output == "" || c.Output == "-":
		if f, ok := app.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("save: standard output is a terminal; name a file with -o or redirect it")
		}
		return interrupted(ctx, c.write(ctx, store, app.Stdout))
	}
	return interrupted(ctx, c.toFile(ctx, store))
}

func (c *SaveCmd) toFile(ctx context.Context, store *image.Store) error {
	f, err := os.Create(c.Output)
	if err != nil {
		return err
	}
	err = errors.Join(c.write(ctx, store, f), f.Close())
	if info, serr := os.Stat(c.Output); err != nil && serr == nil && info.Mode().IsRegular() {
		err = errors.Join(err, os.Remove(c.Output))
	}
	return err
}

func (c *SaveCmd) write(ctx context.Context, store *image.Store, w io.Writer) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	if err := store.Save(ctx, buffered, c.Format, c.Images...); err != nil {
		return err
	}
	return buffered.Flush()
}
