package monitor

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
)

// finish ends what is left of the container, and records how it ended; or, when
// its restart policy says so, starts it again and does not return.
func (c *container) finish(ws unix.WaitStatus) {
	exited := Exited{Code: stage.Status(ws), Error: c.cause}
	c.running.Store(nil)
	c.unlist()
	c.flushUnion()
	endChildren(c.union)
	var err error
	if c.sharesPID() {
		err = c.endOrphans()
	}
	if c.Ranks != nil {
		err = errors.Join(err, endRankOrphans(c.mounts))
	}
	c.drain(ws)
	c.stopping = true
	c.endHelpers()
	c.noteLog(c.out.close())
	c.restart(exited)
	c.end(exited, err)
}

// end is the end of a container that was running. What has gone wrong with that
// so far is told.
func (c *container) end(exited Exited, sofar error) {
	cgroupErr := c.leaveCgroup()
	c.noteEnd(state.Exited, exited)
	c.tellEnd(exited)
	var err error
	if c.handle.Record.Remove {
		err = discard(c.handle)
		c.tell("destroy")
	} else {
		err = errors.Join(parkStorage(c.handle.Dir(), c.handle.Storage), c.handle.Save())
	}
	if err = errors.Join(err, cgroupErr, sofar); err != nil {
		exited.Error = strings.TrimPrefix(exited.Error+"; "+err.Error(), "; ")
	}
	c.out.tell(KindExited, exited)
	_ = c.parent.Send(KindExited, exited)
	if c.Detach && !c.handle.Record.Remove && err == nil {
		// Nobody was there to be told: the record has to last. And nobody waits
		// for the disk.
		_ = c.handle.Settle()
	}
}

// tellEnd puts the end into the log of events.
func (c *container) tellEnd(exited Exited) {
	c.tell("die", "exitCode", strconv.Itoa(exited.Code))
}

// noteEnd puts the end into the record, which is not written yet.
func (c *container) noteEnd(status state.Status, exited Exited) {
	c.handle.Status, c.handle.Finished = status, time.Now()
	c.handle.ExitCode = exited.Code
	if exited.Error != "" {
		c.handle.Error = exited.Error
	}
}

// noteLog puts a failure of the log into the record: a full disk, for instance.
func (c *container) noteLog(err error) {
	if err != nil && c.handle.Error == "" {
		c.handle.Error = err.Error()
	}
}

// abort undoes a start that did not succeed.
func (c *container) abort(err error) {
	if c.init != nil {
		_ = c.init.cmd.Process.Kill()
		c.init.await()
	}
	c.stopping = true
	c.running.Store(nil)
	c.endHelpers()
	if c.handle != nil {
		c.noteLog(c.out.close())
		if c.Again {
			err = c.abortAgain(err)
		} else {
			err = errors.Join(err, c.leaveCgroup(), discard(c.handle))
			c.tell("destroy")
		}
	}
	var exit *exitError
	if errors.As(err, &exit) {
		_ = c.parent.Send(KindExited, Exited{Code: exit.code})
		return
	}
	_ = c.parent.Send(KindFailed, failed(err))
}

// abortAgain leaves a container that was there before as one that has ended.
func (c *container) abortAgain(err error) error {
	exited := Exited{Code: failed(err).Code, Error: failed(err).Error}
	var exit *exitError
	if errors.As(err, &exit) {
		exited = Exited{Code: exit.code}
	}
	if c.Backoff > 0 {
		c.restart(exited)
	}
	status := state.Exited
	c.handle.Started = c.Request.Record.Started
	if c.handle.Started.IsZero() {
		status = state.Created
	}
	c.noteEnd(status, exited)
	return errors.Join(err, c.leaveCgroup(), parkStorage(c.handle.Dir(), c.handle.Storage), c.handle.Save())
}

// failed is an error as it is told to others.
func failed(err error) stage.Failed {
	var said *saidError
	if errors.As(err, &said) {
		return said.Failed
	}
	return stage.Failure(err)
}

func failure(text string) stage.Failed { return stage.Failed{Error: text, Code: 125} }

// A restart policy waits before it starts the container again: as docker does,
// 100 ms, then twice as long each time up to a minute; and from the beginning
// when the container has run for ten seconds.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	goodRun      = 10 * time.Second
)

func (c *container) nextBackoff() time.Duration {
	if c.Backoff == 0 || time.Since(c.handle.Started) >= goodRun && c.started {
		return firstBackoff
	}
	return min(2*c.Backoff, lastBackoff)
}

// restart starts the container again, by executing the monitor anew: its pid,
// its lock and its namespaces stay. It returns when the policy does not want
// it, or somebody does not while it waits.
func (c *container) restart(exited Exited) {
	if !c.handle.Restart.Wanted(exited.Code) {
		return
	}
	c.lookForOOM()
	c.noteEnd(state.Restarting, exited)
	c.handle.Restart.Count++
	c.tellEnd(exited)
	// Who was attached sees the end that he waited for.
	exited.Restarts = true
	c.out.tell(KindExited, exited)
	_ = c.parent.Send(KindExited, exited)
	c.parent.Close()
	if err := c.handle.Save(); err != nil {
		c.handle.Error = err.Error() // without a record that can be written, it ends
		return
	}
	backoff := c.nextBackoff()
	if !c.pause(backoff) {
		return
	}
	if err := c.executeAgain(backoff); err != nil {
		c.handle.Error = err.Error()
	}
}

// pause waits before a restart. It tells whether that is still wanted.
func (c *container) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case e := <-c.events:
			if e.do == nil {
				continue // of processes that have ended
			}
			e.answer <- e.do()
			if c.handle.Restart.Stopped || c.handle.Restart.Policy == "no" {
				return false
			}
		}
	}
}
