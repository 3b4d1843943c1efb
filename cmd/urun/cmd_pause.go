package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/state"
)

// PauseCmd is urun pause.
type PauseCmd struct {
	All        bool     `short:"a" help:"All containers that run."`
	Containers []string `arg:"" optional:"" name:"container"`
}

// Run freezes containers.
func (p *PauseCmd) Run(app *App) error {
	return onRunning(app, p.All, p.Containers, func(rec *state.Record, scope *cgdelegate.Scope) error {
		if scope.Frozen() {
			return fmt.Errorf("container %s is already paused", rec.Name)
		}
		if err := scope.Freeze(context.Background()); err != nil {
			// Half of it must not stand.
			return errors.Join(fmt.Errorf("pause container %s: %w", rec.Name, err), scope.Thaw(context.Background()))
		}
		app.tell(containerEvent("pause", rec))
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// UnpauseCmd is urun unpause.
type UnpauseCmd struct {
	All        bool     `short:"a" help:"All containers that are paused."`
	Containers []string `arg:"" optional:"" name:"container"`
}

// Run lets frozen containers run on.
func (u *UnpauseCmd) Run(app *App) error {
	return onRunning(app, u.All, u.Containers, func(rec *state.Record, scope *cgdelegate.Scope) error {
		if !scope.Frozen() {
			if u.All {
				return nil
			}
			return fmt.Errorf("container %s is not paused", rec.Name)
		}
		if err := scope.Thaw(context.Background()); err != nil {
			return fmt.Errorf("unpause container %s: %w", rec.Name, err)
		}
		app.tell(containerEvent("unpause", rec))
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// onRunning calls f for the containers that are named, or for all that run and
// have a cgroup.
func onRunning(app *App, all bool, names []string, f func(*state.Record, *cgdelegate.Scope) error) error {
	if all == (len(names) > 0) {
		return errors.New("name containers, or all of them with --all")
	}
	if all {
		st, err := app.Containers()
		if err != nil {
			return err
		}
		recs, err := st.List()
		if err != nil {
			return err
		}
		for _, rec := range recs {
			if rec.Status == state.Running && rec.Cgroup != "" {
				names = append(names, rec.ID)
			}
		}
	}
	return each(app, names, func(_ *state.Store, rec *state.Record) error {
		scope, err := scopeOf(rec)
		if err != nil {
			return err
		}
		return f(rec, scope)
	})
}

// scopeOf is the cgroup of a container that runs.
func scopeOf(rec *state.Record) (*cgdelegate.Scope, error) {
	if rec.Status != state.Running {
		return nil, fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	if rec.Cgroup == "" {
		return nil, &hintError{
			fmt.Errorf("container %s has no cgroup of its own", rec.Name),
			"start it with --cgroups=enforce, which says what is missing for one; a detached container without limits has one if you linger: loginctl enable-linger",
		}
	}
	return cgdelegate.Open(rec.Cgroup), nil
}

// shownStatus is a container's status for the user. That it is paused only the
// kernel knows.
func shownStatus(rec *state.Record) state.Status {
	if rec.Status == state.Running && rec.Cgroup != "" && cgdelegate.Open(rec.Cgroup).Frozen() {
		return state.Paused
	}
	return rec.Status
}
