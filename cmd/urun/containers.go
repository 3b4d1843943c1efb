package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/handoff"
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
			printError(app.Stderr, err)
		}
	}
	if failed {
		return exitStatus(1)
	}
	return nil
}

var errNotRunning = errors.New("container is not running")

// signalContainer sends a signal to a container's pid 1. Its monitor does it
// where it has to know: that the user wants the container to end, for instance.
//
// A container that is being made or started has nobody yet who could pass the
// signal on, nor has one whose monitor is just executing itself anew. Then it waits:
// a signal given up here would be lost, and who waits for the end that it was to
// bring would wait for as long as the container lives.
func signalContainer(st *state.Store, rec *state.Record, sig monitor.Signal) error {
	for deadline := time.Now().Add(hearTime); ; time.Sleep(10 * time.Millisecond) {
		err := signalOnce(st, rec, sig)
		if !errors.Is(err, handoff.ErrNobody) {
			return err
		}
		if ownerGone(rec) {
			// Nobody else writes how the container ended.
			if err := monitor.Sweep(st, executable()); err != nil {
				return err
			}
		}
		now, err := st.Find(rec.ID)
		if errors.Is(err, state.ErrNotFound) {
			return fmt.Errorf("%w: %s", errNotRunning, rec.Name)
		}
		if err != nil {
			return err
		}
		rec = now
		if time.Now().After(deadline) {
			owner := ownerOf(rec)
			return &hintError{
				fmt.Errorf("container %s is %s, and process %d, which does that, does not answer", rec.Name, rec.Status, owner.PID),
				fmt.Sprintf("if that process hangs, end it and try again: kill -KILL %d", owner.PID),
			}
		}
	}
}

// hearTime bounds the wait for a monitor that can be told something.
const hearTime = time.Minute

// signalOnce sends a signal, if there is somebody who can pass it on: else it returns handoff.ErrNobody.
func signalOnce(st *state.Store, rec *state.Record, sig monitor.Signal) error {
	notRunning := fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	if rec.Status.Ended() {
		return notRunning
	}
	if policy := rec.Restart.Policy; rec.Status == state.Running && !sig.Keep && (policy == "" || policy == "no") {
		// One that has ended may wait for what it has sent; the monitor is told that somebody does not want to.
		if err := rec.Init.Signal(unix.Signal(sig.Number)); !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	err := monitor.Ask(st.Dir(rec.ID), monitor.KindSignal, sig)
	if errors.Is(err, state.ErrNotFound) {
		return notRunning
	}
	return err
}

// ownerOf is the process that a container which has not ended depends on: its
// monitor or, before it has one, the command that makes or starts it.
func ownerOf(rec *state.Record) state.Process {
	if rec.Monitor.PID == 0 {
		return rec.Creator
	}
	return rec.Monitor
}

func ownerGone(rec *state.Record) bool {
	return errors.Is(ownerOf(rec).Signal(0), os.ErrProcessDone)
}

// awaitExit waits until a container has ended and its monitor has finished
// with it. A container that is gone has ended, and so has the run that the caller
// knows of when somebody else has started another. A negative limit is none.
func awaitExit(st *state.Store, known *state.Record, limit time.Duration) (*state.Record, error) {
	deadline := time.Now().Add(limit)
	run := known.Monitor
	for {
		rec, err := st.Find(known.ID)
		if err != nil {
			if errors.Is(err, state.ErrNotFound) {
				return nil, nil
			}
			return nil, err
		}
		if rec.Status.Ended() {
			return rec, nil
		}
		if run.PID == 0 {
			run = rec.Monitor // it was just being started
		}
		if rec.Monitor != run {
			ended := *rec
			ended.Status = state.Exited
			return &ended, nil
		}
		wait := time.Second
		if limit >= 0 {
			if wait = time.Until(deadline); wait <= 0 {
				return rec, nil
			}
		}
		gone, err := awaitMonitor(rec, min(wait, time.Second))
		if err == nil && gone {
			// Nobody else writes how the container ended, if the monitor was killed.
			err = monitor.Sweep(st, executable())
		}
		if err != nil {
			return nil, err
		}
	}
}

// awaitMonitor waits for the end of a container's monitor and tells whether it
// has ended.
func awaitMonitor(rec *state.Record, limit time.Duration) (gone bool, err error) {
	pidfd, err := rec.Monitor.Open()
	if err != nil {
		return false, err
	}
	if pidfd == nil {
		// It has ended without an exit record or is just being started.
		time.Sleep(min(limit, 10*time.Millisecond))
		return true, nil
	}
	defer pidfd.Close()
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(limit.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for container: %w", err)
	}
	return n > 0, nil
}

// stopContainer asks a container to end and kills it when it has not after
// timeout; a negative timeout never kills. Keep says that it is to be there after,
// --rm or not.
func stopContainer(st *state.Store, rec *state.Record, timeout time.Duration, keep bool) error {
	if rec.Status.Ended() {
		return nil
	}
	sig := monitor.Signal{Number: rec.StopSignal, Stop: true, Keep: keep && rec.Remove}
	if sig.Number == 0 {
		sig.Number = int(unix.SIGTERM)
	}
	if err := signalContainer(st, rec, sig); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	now, err := awaitExit(st, rec, timeout)
	if err != nil || now == nil || now.Status.Ended() {
		return err
	}
	return killContainer(st, now)
}

// killContainer kills a container and waits for its end.
func killContainer(st *state.Store, rec *state.Record) error {
	sig := monitor.Signal{Number: int(unix.SIGKILL), Stop: true}
	if err := signalContainer(st, rec, sig); err != nil && !errors.Is(err, errNotRunning) {
		return err
	}
	_, err := awaitExit(st, rec, -1)
	return err
}

// removeContainer removes a container; a running one only by force. Its anonymous
// volumes go with it if volumes is set.
func (a *App) removeContainer(st *state.Store, id string, force, volumes bool) error {
	rec, err := st.Find(id)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(lockTime); ; time.Sleep(2 * time.Millisecond) {
		if !rec.Status.Ended() {
			if !force {
				return &hintError{
					fmt.Errorf("container %s is running", rec.Name),
					"stop it first, or remove it with --force",
				}
			}
			if err := killContainer(st, rec); err != nil {
				return err
			}
		}
		// The lock is held for a moment longer than the record says "exited", or by
		// who starts the container again just now.
		err := a.discardContainer(st, rec, volumes)
		if !errors.Is(err, state.ErrBusy) || time.Now().After(deadline) {
			return err
		}
		if rec, err = st.Find(id); errors.Is(err, state.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// discardContainer removes a container that has ended. It returns state.ErrBusy
// when somebody holds the lock.
func (a *App) discardContainer(st *state.Store, rec *state.Record, volumes bool) error {
	h, err := st.Lock(rec.ID)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !volumes && len(h.Volumes) > 0 {
		// Saved first: whoever finishes a removal that breaks off has to leave
		// them, too.
		h.Volumes = nil
		err = h.Save()
	}
	if err == nil {
		err = monitor.Discard(h, executable())
	}
	if err == nil {
		a.tell(containerEvent("destroy", rec))
	}
	return errors.Join(err, h.Close())
}
