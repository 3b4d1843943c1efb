package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// LogsCmd is urun logs.
type LogsCmd struct {
	Follow     bool   `short:"f" help:"Go on until the container ends."`
	Timestamps bool   `short:"t" help:"Begin each line with its time."`
	Container  string `arg:""`
}

// Run prints a container's log.
func (l *LogsCmd) Run(app *App) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	rec, err := st.Find(l.Container)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(st.Dir(rec.ID), monitor.LogFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %s has no log: it was not detached", rec.Name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return l.copy(app, st, rec.ID, bufio.NewReader(f))
}

// followPoll is how often a log is looked at for more.
const followPoll = 100 * time.Millisecond

func (l *LogsCmd) copy(app *App, st *state.Store, id string, r *bufio.Reader) error {
	var partial []byte
	for {
		raw, err := r.ReadBytes('\n')
		partial = append(partial, raw...)
		if err == nil {
			if err := l.print(app, partial); err != nil {
				return err
			}
			partial = nil
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !l.Follow {
			return nil
		}
		rec, err := st.Find(id)
		if errors.Is(err, state.ErrNotFound) || err == nil && rec.Status == state.Exited {
			// What was written between the last read and the end.
			l.Follow = false
			continue
		}
		if err != nil {
			return err
		}
		time.Sleep(followPoll)
	}
}

func (l *LogsCmd) print(app *App, raw []byte) error {
	var line monitor.LogLine
	if err := json.Unmarshal(raw, &line); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	w := app.Stdout
	if line.Stream == "stderr" {
		w = app.Stderr
	}
	if l.Timestamps {
		fmt.Fprint(w, line.Time.Format(time.RFC3339Nano), " ")
	}
	_, err := io.WriteString(w, line.Log)
	return err
}
