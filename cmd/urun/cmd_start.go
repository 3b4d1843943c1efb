package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/state"
)

// StartCmd is urun start.
type StartCmd struct {
	Attach      bool     `short:"a" help:"Stay with the container: its output, and its exit status."`
	Interactive bool     `short:"i" help:"Stay with it and pass on standard input."`
	SigProxy    bool     `name:"sig-proxy" default:"true" negatable:"" help:"With --attach, pass signals on to the command."`
	DetachKeys  string   `default:"ctrl-p,ctrl-q" placeholder:"KEYS" help:"Keys that leave a container with a terminal running."`
	All         bool     `help:"All containers that do not run."`
	Filter      []string `short:"f" sep:"none" placeholder:"KEY=VALUE" help:"With --all, only these, as in ps; should-start-on-boot=true are those that their restart policy wants after a reboot."`
	Containers  []string `arg:"" name:"container" optional:""`
}

// Run starts containers.
func (s *StartCmd) Run(app *App) error {
	if s.All == (len(s.Containers) > 0) {
		return errors.New("start: name containers, or say --all")
	}
	if len(s.Filter) > 0 && !s.All {
		return errors.New("start: --filter goes with --all")
	}
	if s.All {
		if err := s.choose(app); err != nil {
			return err
		}
	}
	if s.Attach || s.Interactive {
		if len(s.Containers) != 1 {
			return errors.New("start: only one container can be attached to")
		}
		return runtimeFailure(s.attach(app))
	}
	return each(app, s.Containers, func(st *state.Store, rec *state.Record) error {
		if err := app.start(st, rec); err != nil {
			return err
		}
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// choose names all containers that do not run and match the filters.
func (s *StartCmd) choose(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	keep, err := parseFilters(s.Filter, app.containerFilters(st))
	if err != nil {
		return err
	}
	all, err := st.List()
	if err != nil {
		return err
	}
	for _, rec := range all {
		if rec.Status.Ended() && rec.Status != state.Dead && keep.match(rec) {
			s.Containers = append(s.Containers, rec.ID)
		}
	}
	return nil
}

// start starts a container in the background. One that runs already is left alone.
func (a *App) start(st *state.Store, rec *state.Record) error {
	h, err := lockStopped(st, rec)
	if err != nil || h == nil {
		return err
	}
	defer h.Close()
	p, err := launch.Load(st, &h.Record, executable(), a.stateRoot(), a.Debug)
	if err != nil {
		return err
	}
	io, err := newStreams(wanted{none: true})
	if err != nil {
		return err
	}
	defer io.close()
	pending, err := a.monitorFor(&p)
	if err != nil {
		return err
	}
	session, err := launch.Start(p, h, launch.Terms{Stdio: io.files, Detach: true}, pending)
	if err != nil {
		return err
	}
	if exited, err := session.AwaitStart(); err != nil || exited != nil {
		return err
	}
	return session.Leave()
}

// lockStopped takes the lock of a container that does not run; nil if it does.
func lockStopped(st *state.Store, rec *state.Record) (*state.Handle, error) {
	// A monitor holds the lock for a moment longer than its record says "running".
	for deadline := time.Now().Add(lockTime); ; time.Sleep(2 * time.Millisecond) {
		h, err := st.Lock(rec.ID)
		if errors.Is(err, state.ErrBusy) {
			now, ferr := st.Find(rec.ID)
			if ferr != nil {
				return nil, ferr
			}
			if now.Status == state.Running || now.Status == state.Restarting {
				return nil, nil
			}
			if time.Now().Before(deadline) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if h.Status == state.Dead {
			return nil, errors.Join(&hintError{fmt.Errorf("container %s can not be started: %s", rec.Name, h.Error), "it can only be removed: urun rm " + rec.Name}, h.Close())
		}
		return h, nil
	}
}

// lockTime bounds the wait for the lock of a container that is ending or being started.
const lockTime = 5 * time.Second

// attach starts the container and stays with it.
func (s *StartCmd) attach(app *App) error {
	keys, err := parseDetachKeys(s.DetachKeys)
	if err != nil {
		return err
	}
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(s.Containers[0])
	if err != nil {
		return err
	}
	h, err := lockStopped(st, rec)
	if err != nil {
		return err
	}
	if h == nil {
		return &hintError{fmt.Errorf("container %s runs already", rec.Name), "attach to it: urun attach " + rec.Name}
	}
	defer h.Close()
	p, err := launch.Load(st, &h.Record, executable(), app.stateRoot(), app.Debug)
	if err != nil {
		return err
	}
	c := p.Container
	io, err := newStreams(wanted{stdin: s.Interactive && c.Interactive, tty: c.TTY, sigProxy: s.SigProxy, keys: keys})
	if err != nil {
		return err
	}
	defer io.close()
	pending, err := app.monitorFor(&p)
	if err != nil {
		return err
	}
	session, err := launch.Start(p, h, launch.Terms{Stdio: io.files, Attached: true, Detach: true, Size: io.size()}, pending)
	if err != nil {
		return err
	}
	io.donated()
	return io.attach(app, session, func() { app.notifyReady(); notices(app, c, session) })
}

// monitorFor starts a monitor for a container that has been there before.
func (a *App) monitorFor(p *launch.Plan) (*launch.Pending, error) {
	ns := p.Container.Namespaces
	beside := ns.User.Container
	for _, name := range []string{p.Container.Network.Container, ns.PID.Container, ns.IPC.Container, ns.UTS.Container} {
		if beside == "" {
			beside = name
		}
	}
	if beside == "" {
		if p.Container.Network.Mode == "bridge" {
			return launch.BeginOnNetworks(a.holder(p.Map), nil), nil
		}
		return launch.Begin(a.holder(p.Map), nil), nil
	}
	st, err := state.Open(p.StateRoot)
	if err != nil {
		return nil, err
	}
	rec, err := st.Find(beside)
	if err != nil {
		return nil, err
	}
	if rec.Status != state.Running {
		return nil, &hintError{fmt.Errorf("%w: %s, whose namespaces are shared", errNotRunning, rec.Name), "start it first: urun start " + rec.Name}
	}
	return launch.BeginBeside(st.Dir(rec.ID)), nil
}

// restartContainer stops a container, if it runs, and starts it again.
func (a *App) restartContainer(st *state.Store, rec *state.Record, timeout time.Duration) error {
	if err := stopContainer(st, rec, timeout, true); err != nil {
		return err
	}
	now, err := st.Find(rec.ID)
	if err != nil {
		return err
	}
	return a.start(st, now)
}
