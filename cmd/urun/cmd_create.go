package main

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// CreateCmd is urun create.
type CreateCmd struct {
	RunFlags
}

// Run makes a container and prints its id.
func (c *CreateCmd) Run(app *App) error { return runtimeFailure(c.run(app)) }

func (c *CreateCmd) run(app *App) error {
	opts, err := c.options()
	if err != nil {
		return err
	}
	p, err := app.prepare(&c.RunFlags, opts, false)
	if err != nil {
		return err
	}
	defer p.done()
	if err := writeCIDFile(p.plan.Container); err != nil {
		return err
	}
	h, err := launch.Create(&p.plan)
	if err != nil {
		return errors.Join(err, removeCIDFile(p.plan.Container))
	}
	h.Status = state.Created
	if err := h.Save(); err != nil {
		return errors.Join(err, monitor.Discard(h, executable()), removeCIDFile(p.plan.Container), h.Close())
	}
	if err := h.Settle(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(app.Stdout, h.ID)
	return err
}
