package main

import (
	"errors"
	"fmt"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// AttachCmd is urun attach.
type AttachCmd struct {
	NoStdin    bool   `help:"Do not pass on standard input."`
	SigProxy   bool   `name:"sig-proxy" default:"true" negatable:"" help:"Pass signals on to the command."`
	DetachKeys string `default:"ctrl-p,ctrl-q" placeholder:"KEYS" help:"Keys that leave a container with a terminal running."`
	Container  string `arg:""`
}

// Run attaches to a container.
func (a *AttachCmd) Run(app *App) error {
	keys, err := parseDetachKeys(a.DetachKeys)
	if err != nil {
		return err
	}
	st, rec, err := app.running(a.Container)
	if err != nil {
		return err
	}
	p, err := launch.Load(st, rec, executable(), app.stateRoot(), app.Debug)
	if err != nil {
		return err
	}
	c := p.Container
	io, err := newStreams(wanted{stdin: !a.NoStdin && c.Interactive, tty: c.TTY, sigProxy: a.SigProxy, keys: keys})
	if err != nil {
		return err
	}
	defer io.close()
	session, err := launch.Attach(st.Dir(rec.ID), monitor.AttachRequest{Stdin: io.want.stdin, Size: io.size()}, io.files)
	if err != nil {
		return notRunning(err, rec)
	}
	io.donated()
	app.tell(containerEvent("attach", rec))
	return io.attach(app, session, func() {})
}

// running finds a container that runs.
func (a *App) running(ref string) (*state.Store, *state.Record, error) {
	st, err := a.Containers()
	if err != nil {
		return nil, nil, err
	}
	rec, err := st.Find(ref)
	if err != nil {
		return nil, nil, err
	}
	if rec.Status != state.Running {
		return nil, nil, &hintError{fmt.Errorf("%w: %s", errNotRunning, rec.Name), "start it: urun start " + rec.Name}
	}
	return st, rec, nil
}

// notRunning is the error of a container that has ended just now.
func notRunning(err error, rec *state.Record) error {
	if errors.Is(err, handoff.ErrNobody) {
		return fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	return err
}
