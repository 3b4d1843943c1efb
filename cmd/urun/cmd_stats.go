package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/cgdelegate"
	"github.com/urun-dev/urun/internal/state"
)

// StatsCmd is urun stats.
type StatsCmd struct {
	All        bool          `short:"a" help:"Show containers that do not run, too."`
	NoStream   bool          `help:"Show one reading and end."`
	NoReset    bool          `help:"Print one table below the other instead of clearing the screen."`
	NoTrunc    bool          `help:"Do not shorten ids."`
	Interval   time.Duration `short:"i" default:"1s" placeholder:"TIME" help:"Time between two readings."`
	Format     string        `placeholder:"json|table TEMPLATE|TEMPLATE" help:"json, or a Go template over .ID .Name .CPUPerc .CPUTime .Throttled .MemUsage .MemPerc .MemPeak .Swap .NetIO .BlockIO .PIDs .PSICPU .PSIMem .PSIIO .OOMKills."`
	Containers []string      `arg:"" optional:"" name:"container"`
}

// Run shows readings until it is interrupted.
func (s *StatsCmd) Run(app *App) error {
	if s.Interval < 10*time.Millisecond {
		return fmt.Errorf("--interval %s: less than 10ms", s.Interval)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	st, err := app.Containers()
	if err != nil {
		return err
	}
	before := map[string]cgdelegate.Stats{}
	for first := true; ; first = false {
		recs, err := s.choose(st)
		if err != nil {
			return err
		}
		rows, now, err := s.rows(recs, before)
		if err != nil {
			return err
		}
		before = now
		// How much CPU is used takes two readings to tell.
		if !first {
			if err := s.show(app, rows); err != nil || s.NoStream {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.Interval):
		}
	}
}

// choose gives the containers to show. One that is named must have statistics at
// least when the command starts: afterwards it may end.
func (s *StatsCmd) choose(st *state.Store) ([]*state.Record, error) {
	if len(s.Containers) == 0 {
		all, err := st.List()
		return slices.DeleteFunc(all, func(r *state.Record) bool { return !s.All && r.Status != state.Running }), err
	}
	var recs []*state.Record
	for _, name := range s.Containers {
		rec, err := st.Find(name)
		if err != nil {
			return nil, err
		}
		if _, err := scopeOf(rec); err != nil && !errors.Is(err, errNotRunning) {
			return nil, err
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// rows reads the containers' counters and makes of them and of the readings
// before what is shown.
func (s *StatsCmd) rows(recs []*state.Record, before map[string]cgdelegate.Stats) ([]statsRow, map[string]cgdelegate.Stats, error) {
	now := map[string]cgdelegate.Stats{}
	total, err := memoryTotal()
	if err != nil {
		return nil, nil, err
	}
	rows := make([]statsRow, len(recs))
	for i, rec := range recs {
		id := rec.ID
		if !s.NoTrunc {
			id = id[:min(12, len(id))]
		}
		scope, err := scopeOf(rec)
		var st cgdelegate.Stats
		if err == nil {
			st, err = scope.Stats()
		}
		if err != nil {
			// It has none, or has ended this moment.
			rows[i] = noStats(id, rec.Name)
			continue
		}
		now[rec.ID] = st
		rows[i] = newStatsRow(id, rec, st, before[rec.ID], total)
		if e, err := scope.Events(); err == nil {
			rows[i].OOMKills = fmt.Sprint(e.OOMKill)
		}
	}
	return rows, now, nil
}

func (s *StatsCmd) show(app *App, rows []statsRow) error {
	format := s.Format
	if format == "" || format == "table" {
		format = "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.Throttled}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}\t{{.PSICPU}}\t{{.PSIMem}}\t{{.PSIIO}}"
		if !s.NoStream && !s.NoReset && app.Stdout == os.Stdout && drawable(os.Stdout) {
			if _, err := fmt.Fprint(app.Stdout, "\x1b[H\x1b[2J"); err != nil {
				return err
			}
		}
	}
	return printFormat(app.Stdout, format, statsHeadings, rows)
}

// memoryTotal is the machine's memory in bytes, the limit of who has none.
func memoryTotal() (uint64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return si.Totalram * uint64(si.Unit), nil
}
