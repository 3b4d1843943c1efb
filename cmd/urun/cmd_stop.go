package main

import (
	"fmt"
	"time"

	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

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
		timeout := rec.StopTimeout
		if s.Time != nil {
			timeout = time.Duration(*s.Time) * time.Second
		}
		if err := stopContainer(st, rec, timeout); err != nil {
			return err
		}
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
		if err := signalContainer(rec, unix.Signal(sig)); err != nil {
			return err
		}
		if unix.Signal(sig) == unix.SIGKILL {
			if _, err := awaitExit(st, rec.ID, -1); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}
