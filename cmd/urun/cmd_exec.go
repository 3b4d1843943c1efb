package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/stage"
)

// ExecCmd is urun exec.
type ExecCmd struct {
	Interactive bool     `short:"i" help:"Keep standard input open."`
	TTY         bool     `name:"tty" short:"t" help:"Give the command a terminal."`
	Detach      bool     `short:"d" help:"Leave the command running, its output unseen."`
	User        string   `short:"u" placeholder:"USER[:GROUP]" help:"Name or id inside."`
	Workdir     string   `short:"w" placeholder:"DIR" help:"Working directory inside."`
	Env         []string `short:"e" sep:"none" placeholder:"NAME[=VALUE]" help:"Set a variable; without a value, take it from here."`
	EnvFile     []string `sep:"none" placeholder:"FILE" help:"Read variables from a file, one a line."`
	Privileged  bool     `help:"All capabilities of the container's user namespace."`
	SigProxy    bool     `name:"sig-proxy" default:"true" negatable:"" help:"Pass signals on to the command."`
	DetachKeys  string   `default:"ctrl-p,ctrl-q" placeholder:"KEYS" help:"Keys that leave a command with a terminal running."`

	Command []string `arg:"" passthrough:"partial" name:"container" help:"Container, and the command to run in it."`
}

// Run runs a command in a container. The exit statuses are those of run.
func (e *ExecCmd) Run(app *App) error { return runtimeFailure(e.run(app)) }

func (e *ExecCmd) run(app *App) error {
	args := e.Command
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) < 2 {
		return &hintError{errors.New("exec: name a container and a command"), "for a shell: urun exec -it CONTAINER sh"}
	}
	if e.TTY && e.Interactive && !e.Detach && !isTerminal(os.Stdin) {
		return &hintError{errors.New("the input device is not a TTY"), "leave out -t, or run from a terminal"}
	}
	keys, err := parseDetachKeys(e.DetachKeys)
	if err != nil {
		return err
	}
	env, err := spec.ExecEnv(e.EnvFile, e.Env, spec.System{})
	if err != nil {
		return err
	}
	st, rec, err := app.running(args[0])
	if err != nil {
		return err
	}
	io, err := newStreams(wanted{none: e.Detach, stdin: e.Interactive, tty: e.TTY, sigProxy: e.SigProxy, keys: keys})
	if err != nil {
		return err
	}
	defer io.close()
	req := monitor.ExecRequest{Detach: e.Detach, Exec: stage.Exec{
		Args: args[1:], Env: env, Cwd: e.Workdir, User: e.User, TTY: e.TTY, Privileged: e.Privileged,
	}}
	if size := io.size(); size != nil {
		req.Rows, req.Columns = size.Rows, size.Columns
	}
	session, err := launch.Exec(st.Dir(rec.ID), req, io.files)
	if err != nil {
		return notRunning(err, rec)
	}
	io.donated()
	app.tell(containerEvent("exec_start: "+strings.Join(args[1:], " "), rec))
	if e.Detach {
		if _, err := session.AwaitStart(); err != nil {
			return err
		}
		return session.Detach()
	}
	err = io.attach(app, session, func() {})
	var status exitStatus
	if err == nil || errors.As(err, &status) {
		app.tell(containerEvent("exec_die", rec, "exitCode", strconv.Itoa(int(status))))
	}
	if errors.Is(err, launch.ErrMonitorGone) {
		return fmt.Errorf("exec: container %s has ended", rec.Name)
	}
	return err
}
