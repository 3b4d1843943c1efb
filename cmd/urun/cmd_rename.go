package main

import (
	"errors"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// RenameCmd is urun rename.
type RenameCmd struct {
	Container string `arg:""`
	Name      string `arg:"" help:"The new name."`
}

// Run renames a container. The record of one that has a monitor is the monitor's to write.
func (r *RenameCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(r.Container)
	if err != nil {
		return err
	}
	if err := state.CheckName(r.Name); err != nil {
		return err
	}
	h, err := lockStopped(st, rec)
	if err != nil {
		return err
	}
	if h == nil {
		err := monitor.Ask(st.Dir(rec.ID), monitor.KindRename, monitor.RenameRequest{Name: r.Name})
		if !errors.Is(err, handoff.ErrNobody) {
			return err
		}
		// It has ended meanwhile.
		if h, err = lockStopped(st, rec); err != nil || h == nil {
			return errors.Join(err, errNotRunning)
		}
	}
	old := h.Name
	if err := h.Rename(r.Name); err != nil {
		return errors.Join(err, h.Close())
	}
	app.tell(containerEvent("rename", &h.Record, "oldName", old))
	return h.Close()
}
