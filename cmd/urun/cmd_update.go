package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// UpdateCmd is urun update.
type UpdateCmd struct {
	LimitFlags `embed:""`
	Restart    string   `placeholder:"POLICY" help:"Another restart policy: no, on-failure[:N], always or unless-stopped."`
	Containers []string `arg:"" name:"container"`
}

// Run changes limits of containers: at once of those that run, at the next start of
// others; and their restart policy.
func (u *UpdateCmd) Run(app *App) error {
	req, err := u.request()
	if err != nil {
		return err
	}
	return each(app, u.Containers, func(st *state.Store, rec *state.Record) error {
		if err := updateContainer(st, rec, req); err != nil {
			return err
		}
		app.tell(containerEvent("update", rec))
		_, err = fmt.Fprintln(app.Stdout, rec.Name)
		return err
	})
}

func (u *UpdateCmd) request() (monitor.UpdateRequest, error) {
	var req monitor.UpdateRequest
	r, err := spec.ParseResources(u.options(), runtime.NumCPU(), spec.System{})
	if err != nil {
		return req, err
	}
	if req.Limits = launch.Limits(r); !req.Limits.Empty() {
		req.Resources = r
	}
	if u.Restart != "" {
		policy, err := spec.ParseRestart(u.Restart)
		if err != nil {
			return req, err
		}
		req.Restart = &state.Restart{Policy: policy.Policy, Retries: policy.Retries}
	}
	if req.Resources == nil && req.Restart == nil {
		return req, &hintError{errors.New("update: no limit to change"), "say which, such as --memory 512m; see urun update --help"}
	}
	return req, nil
}

// updateStopped changes a container that does not run.
func updateStopped(h *state.Handle, req monitor.UpdateRequest) error {
	if req.Resources != nil {
		if err := h.ChangeResources(req.Resources); err != nil {
			return err
		}
	}
	if req.Restart != nil {
		return h.ChangeRestart(*req.Restart)
	}
	return nil
}

// updateContainer changes limits of a container. Its configuration is written by whom its lock belongs to: its monitor, if it has
// one, which changes the limits in force as well. A monitor that is ending does not answer.
func updateContainer(st *state.Store, rec *state.Record, req monitor.UpdateRequest) error {
	for deadline := time.Now().Add(hearTime); ; time.Sleep(10 * time.Millisecond) {
		h, err := lockStopped(st, rec)
		if err != nil {
			return err
		}
		if h != nil {
			if err := errors.Join(updateStopped(h, req), h.Close()); err != nil {
				return fmt.Errorf("update container %s: %w", rec.Name, err)
			}
			return nil
		}
		// As it is now: it may have been started since it was found.
		now, err := st.Find(rec.ID)
		if err != nil {
			return err
		}
		if now.Status == state.Running && req.Resources != nil {
			if _, err := scopeOf(now); err != nil {
				return err
			}
		}
		err = monitor.Ask(st.Dir(rec.ID), monitor.KindUpdate, req)
		if errors.Is(err, handoff.ErrNobody) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return fmt.Errorf("update container %s: %w", rec.Name, err)
		}
		return nil
	}
}
