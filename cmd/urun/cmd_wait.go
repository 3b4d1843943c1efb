package main

import (
	"fmt"

	"github.com/urun-dev/urun/internal/state"
)

// WaitCmd is urun wait.
type WaitCmd struct {
	Containers []string `arg:"" name:"container"`
}

// Run waits and prints exit statuses.
func (w *WaitCmd) Run(app *App) error {
	return each(app, w.Containers, func(st *state.Store, rec *state.Record) error {
		ended, err := awaitExit(st, rec, -1)
		if err != nil {
			return err
		}
		if ended == nil {
			return fmt.Errorf("container %s was removed before its exit status was read", rec.Name)
		}
		_, err = fmt.Fprintln(app.Stdout, ended.ExitCode)
		return err
	})
}
