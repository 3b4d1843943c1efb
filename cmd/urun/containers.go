package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/state"
)

// imagesInUse are the images that containers are made of.
func (a *App) imagesInUse() (map[digest.Digest]bool, error) {
	st, err := state.Open(a.stateRoot())
	if err != nil {
		return nil, err
	}
	all, err := st.List()
	if err != nil {
		return nil, err
	}
	used := map[digest.Digest]bool{}
	for _, rec := range all {
		used[digest.Digest(rec.ImageID)] = true
	}
	return used, nil
}

// each runs f for every container that is named and goes on after errors, as
// docker does: each is reported, and the exit status is 1.
func each(app *App, refs []string, f func(st *state.Store, rec *state.Record) error) error {
	st, err := app.Containers()
	if err != nil {
		return err
	}
	failed := false
	for _, ref := range refs {
		rec, err := st.Find(ref)
		if err == nil {
			err = f(st, rec)
		}
		if err != nil {
			failed = true
			fmt.Fprintf(app.Stderr, "urun: %v\n", err)
			continue
		}
	}
	if failed {
		return exitStatus(1)
	}
	return nil
}

var errNotRunning = errors.New("container is not running")

// signalContainer sends a signal to a container's pid 1.
func signalContainer(rec *state.Record, sig unix.Signal) error {
	if rec.Status != state.Running {
		return fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	err := rec.Init.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	return err
}

// awaitExit waits until a container has ended and its monitor has finished
// with it. A container that is gone has ended. A negative limit is none.
func awaitExit(st *state.Store, id string, limit time.Duration) (*state.Record, error) {
	deadline := time.Now().Add(limit)
	for {
		rec, err := st.Find(id)
		if err != nil {
			if errors.Is(err, state.ErrNotFound) {
				return nil, nil
			}
			return nil, err
		}
		if rec.Status != state.Running && rec.Status != state.Creating {
			return rec, nil
		}
		wait := time.Second
		if limit >= 0 {
			if wait = time.Until(deadline); wait <= 0 {
				return rec, nil
			}
		}
		if err := awaitMonitor(rec, min(wait, time.Second)); err != nil {
			return nil, err
		}
	}
}

// awaitMonitor waits for the end of a container's monitor.
func awaitMonitor(rec *state.Record, limit time.Duration) error {
	pidfd, err := rec.Monitor.Open()
	if err != nil {
		return err
	}
	if pidfd == nil {
		// It has ended without an exit record or is just being started.
		time.Sleep(min(limit, 10*time.Millisecond))
		return nil
	}
	defer pidfd.Close()
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, int(limit.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for container: %w", err)
	}
	return nil
}

// stopContainer asks a container to end and kills it when it has not after
// timeout; a negative timeout never kills.
func stopContainer(st *state.Store, rec *state.Record, timeout time.Duration) error {
	if rec.Status != state.Running {
		return nil
	}
	sig := unix.Signal(rec.StopSignal)
	if sig == 0 {
		sig = unix.SIGTERM
	}
	if err := signalContainer(rec, sig); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	now, err := awaitExit(st, rec.ID, timeout)
	if err != nil || now == nil || now.Status != state.Running {
		return err
	}
	if err := signalContainer(rec, unix.SIGKILL); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	_, err = awaitExit(st, rec.ID, -1)
	return err
}

// removeContainer removes a container; a running one only by force.
func removeContainer(st *state.Store, id string, force bool) error {
	rec, err := st.Find(id)
	if err != nil {
		return err
	}
	if rec.Status == state.Running || rec.Status == state.Creating {
		if !force {
			return &hintError{
				fmt.Errorf("container %s is running", rec.Name),
				"stop it first, or remove it with --force",
			}
		}
		if err := signalContainer(rec, unix.SIGKILL); err != nil && !errors.Is(err, errNotRunning) {
			return err
		}
		if rec, err = awaitExit(st, rec.ID, -1); err != nil || rec == nil {
			return err
		}
	}
	return discardContainer(st, rec.ID)
}

// discardContainer removes a container that has ended. Its monitor holds the
// lock for a moment longer than the record says "exited".
func discardContainer(st *state.Store, id string) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		h, err := st.Lock(id)
		if errors.Is(err, state.ErrBusy) && time.Now().Before(deadline) {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if errors.Is(err, state.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		err = monitor.Discard(h, executable())
		return errors.Join(err, h.Close())
	}
}

// hintError is an error with a known cure.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }
