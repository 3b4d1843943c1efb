package main

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/state"
)

// RmCmd is urun rm.
type RmCmd struct {
	Force      bool     `short:"f" help:"Kill running containers; do not mind ones that do not exist."`
	All        bool     `short:"a" help:"All containers."`
	Volumes    bool     `short:"v" help:"Remove their anonymous volumes as well."`
	Containers []string `arg:"" name:"container" optional:""`
}

// Run removes containers.
func (r *RmCmd) Run(app *App) error {
	if r.All == (len(r.Containers) > 0) {
		return &hintError{errors.New("rm: name containers, or say --all"), "urun ps -a lists containers"}
	}
	if r.All {
		st, err := app.Containers()
		if err != nil {
			return err
		}
		all, err := st.List()
		if err != nil {
			return err
		}
		for _, rec := range all {
			r.Containers = append(r.Containers, rec.ID)
		}
	}
	if r.Force {
		if err := r.dropMissing(app); err != nil {
			return err
		}
	}
	return each(app, r.Containers, func(st *state.Store, rec *state.Record) error {
		if err := app.removeContainer(st, rec.ID, r.Force, r.Volumes); err != nil {
			return err
		}
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// dropMissing takes containers that do not exist off the list.
func (r *RmCmd) dropMissing(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	var there []string
	for _, ref := range r.Containers {
		if _, err := st.Find(ref); !errors.Is(err, state.ErrNotFound) {
			there = append(there, ref)
		}
	}
	r.Containers = there
	return nil
}
