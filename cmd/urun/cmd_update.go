package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// UpdateCmd is urun update.
type UpdateCmd struct {
	LimitFlags `embed:""`
	Containers []string `arg:"" name:"container"`
}

// Run changes limits of containers: at once of those that run, at the next start of
// others.
func (u *UpdateCmd) Run(app *App) error {
	r, err := spec.ParseResources(u.options(), runtime.NumCPU(), spec.System{})
	if err != nil {
		return err
	}
	if launch.Limits(r).Empty() {
		return &hintError{errors.New("update: no limit to change"), "say which, such as --memory 512m; see urun update --help"}
	}
	return each(app, u.Containers, func(st *state.Store, rec *state.Record) error {
		if err := updateContainer(st, rec, r); err != nil {
			return err
		}
		app.tell(containerEvent("update", rec))
		_, err = fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// updateContainer changes limits of a container. Its configuration is written by whom its lock belongs to: its monitor, if it has
// one, which changes the limits in force as well. A monitor that is ending does not answer.
func updateContainer(st *state.Store, rec *state.Record, r *specs.LinuxResources) error {
	for deadline := time.Now().Add(hearTime); ; time.Sleep(10 * time.Millisecond) {
		h, err := lockStopped(st, rec)
		if err != nil {
			return err
		}
		if h != nil {
			return errors.Join(h.ChangeResources(r), h.Close())
		}
		// As it is now: it may have been started since it was found.
		now, err := st.Find(rec.ID)
		if err != nil {
			return err
		}
		if now.Status == state.Running {
			if _, err := scopeOf(now); err != nil {
				return err
			}
		}
		err = monitor.Ask(st.Dir(rec.ID), monitor.KindUpdate, monitor.UpdateRequest{Limits: launch.Limits(r), Resources: r})
		if errors.Is(err, handoff.ErrNobody) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return fmt.Errorf("update container %s: %w", rec.Name, err)
		}
		return nil
	}
}
