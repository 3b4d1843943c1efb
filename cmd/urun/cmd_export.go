package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ExportCmd is urun export.
type ExportCmd struct {
	Output    string `short:"o" placeholder:"FILE" help:"Write to a file instead of standard output."`
	Container string `arg:""`
}

// Run writes a container's file system as a tar, without what is mounted in it.
func (c *ExportCmd) Run(app *App) (err error) {
	if f, ok := app.Stdout.(*os.File); ok && c.Output == "" && isTerminal(f) {
		return &hintError{errors.New("export: a tar stream is not for a terminal"), "name a file with -o, or send it somewhere"}
	}
	files, err := app.openFiles(c.Container)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	if c.Output == "" {
		err = files.Export(app.Stdout)
	} else {
		err = writeWhole(c.Output, files)
	}
	if err == nil {
		app.tell(containerEvent("export", files.rec))
	}
	return err
}

// writeWhole makes a file of the export, or none: it gets its name when it is complete.
func writeWhole(name string, files *containerFiles) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".urun-export-")
	if err != nil {
		var why *fs.PathError // of a name that nobody gave
		if errors.As(err, &why) {
			err = why.Err
		}
		return &hintError{fmt.Errorf("export: create %s: %w", name, err), "-o names a file in a directory that is there and that you may write to"}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(files.Export(f), f.Chmod(0o600), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}
