package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/spec"
)

// RunCmd is urun run.
type RunCmd struct {
	AttachFlags
	RunFlags
	JoinFlags
}

// AttachFlags say whether the command stays with what it starts.
type AttachFlags struct {
	Detach     bool     `short:"d" group:"Process" help:"Leave the container running and print its id."`
	Attach     []string `short:"a" sep:"none" placeholder:"STREAM" group:"Process" help:"Stay with these streams alone, of stdin, stdout and stderr; may be repeated."`
	SigProxy   bool     `name:"sig-proxy" default:"true" negatable:"" group:"Process" help:"Pass signals on to the command."`
	DetachKeys string   `default:"ctrl-p,ctrl-q" placeholder:"KEYS" group:"Process" help:"Keys that leave a container with a terminal running."`
}

// options are the flags in package spec's form.
func (r *RunCmd) options() (spec.Options, error) {
	o, err := r.RunFlags.options()
	o.Detach, o.SigProxy, o.Attach = r.Detach, &r.SigProxy, r.Attach
	return o, err
}

// Run runs a container. Its failures have docker's exit statuses: 125 for
// urun's own, 126 and 127 for a command that can not be executed or found, and
// the command's own else.
func (r *RunCmd) Run(app *App) error {
	return runtimeFailure(r.run(app))
}

// runtimeFailure gives errors that call for no other status that of urun's own.
func runtimeFailure(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return err
	}
	return &runtimeError{err}
}

// runtimeError is a failure of urun itself.
type runtimeError struct{ err error }

func (e *runtimeError) Error() string { return e.err.Error() }
func (e *runtimeError) Unwrap() error { return e.err }
func (e *runtimeError) ExitCode() int { return exitRuntime }

func (r *RunCmd) run(app *App) error {
	keys, err := parseDetachKeys(r.DetachKeys)
	if err != nil {
		return err
	}
	opts, err := r.options()
	if err != nil {
		return err
	}
	if r.wanted() {
		return r.join(app, opts)
	}
	p, err := app.prepare(&r.RunFlags, opts, true)
	if err != nil {
		return err
	}
	defer p.done()
	c := p.plan.Container
	io, err := newStreams(wanted{none: c.Detach, stdin: c.Interactive, tty: c.TTY, sigProxy: c.SigProxy, keys: keys, only: c.Attach})
	if err != nil {
		return err
	}
	defer io.close()
	if err := writeCIDFile(c); err != nil {
		return err
	}
	terms := launch.Terms{Stdio: io.files, Attached: !c.Detach, Detach: c.Detach, Size: io.size()}
	if terms.Preserve, err = preserved(c.PreserveFDs); err != nil {
		return err
	}
	defer closeAll(terms.Preserve)
	session, err := launch.Run(p.plan, terms, p.take())
	if err != nil {
		return errors.Join(err, removeCIDFile(c))
	}
	app.Log.Debug("cgroup", "took", session.Cgroup.Took, "waited", session.Cgroup.Waited)
	io.donated()
	if c.Detach {
		return detached(app, c, session)
	}
	err = io.attach(app, session, func() { app.notifyReady(); notices(app, c, session) })
	if p.image != nil {
		app.damageNotes(p.image) // why reading has failed in it
	}
	return err
}

// detached prints the container's id once its command runs.
func detached(app *App, c *spec.Container, session *launch.Session) error {
	exited, err := session.AwaitStart()
	if err != nil {
		return err
	}
	if exited == nil {
		notices(app, c, session)
	}
	fmt.Fprintln(app.Stdout, c.ID)
	return session.Leave()
}

func notices(app *App, c *spec.Container, session *launch.Session) {
	if c.Quiet {
		return
	}
	for _, n := range slices.Concat(session.Warnings, c.Notices, session.Started.Notices) {
		fmt.Fprintf(app.Stderr, "urun: %s\n", n)
	}
}
