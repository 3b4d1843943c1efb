package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// StopCmd is urun stop.
type StopCmd struct {
	Time       *int     `short:"t" aliases:"timeout" help:"Seconds to wait before SIGKILL; -1 waits for ever."`
	Containers []string `arg:"" name:"container"`
}

// Run stops containers.
func (s *StopCmd) Run(app *App) error {
	return each(app, s.Containers, func(st *state.Store, rec *state.Record) error {
		timeout := stopTimeout(rec, s.Time)
		if err := stopContainer(st, rec, timeout, false); err != nil {
			return err
		}
		if isUp(rec) {
			app.tell(containerEvent("stop", rec))
		}
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// stopTimeout is how long a container may take to end.
func stopTimeout(rec *state.Record, seconds *int) time.Duration {
	if seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return rec.StopTimeout
}

// RestartCmd is urun restart.
type RestartCmd struct {
	Time       *int     `short:"t" aliases:"timeout" help:"Seconds to wait before SIGKILL; -1 waits for ever."`
	Containers []string `arg:"" name:"container"`
}

// Run restarts containers.
func (r *RestartCmd) Run(app *App) error {
	return each(app, r.Containers, func(st *state.Store, rec *state.Record) error {
		if err := app.restartContainer(st, rec, stopTimeout(rec, r.Time)); err != nil {
			return err
		}
		app.tell(containerEvent("restart", rec))
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

// KillCmd is urun kill.
type KillCmd struct {
	Signal     string   `short:"s" default:"KILL" help:"Signal, by name or number."`
	Containers []string `arg:"" name:"container"`
}

// Run sends a signal.
func (k *KillCmd) Run(app *App) error {
	sig, err := signal.ParseSignal(k.Signal)
	if err != nil {
		return fmt.Errorf("--signal: %w", err)
	}
	return each(app, k.Containers, func(st *state.Store, rec *state.Record) error {
		if err := signalContainer(st, rec, monitor.Signal{Number: int(sig)}); err != nil {
			return err
		}
		app.tell(containerEvent("kill", rec, "signal", strconv.Itoa(int(sig))))
		if unix.Signal(sig) == unix.SIGKILL {
			if _, err := awaitExit(st, rec, -1); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}
