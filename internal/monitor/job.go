package monitor

import (
	"time"

	"golang.org/x/sys/unix"
)

// watchJob has the container told when the batch job's shell ends. Batch systems end what they know of as the job's; a monitor is in a session of
// its own, where not all of them look.
func (c *container) watchJob() {
	if c.Job.PID == 0 {
		return
	}
	go func() {
		if c.Job.Await() == nil {
			c.events <- event{from: fromJob}
		}
	}()
}

// endWithJob stops a container that is in the background, as urun stop does. One with a command in the foreground ends with that.
func (c *container) endWithJob() {
	if !c.Detach {
		return
	}
	c.cause = "the batch job has ended"
	c.signal(Signal{Number: c.handle.StopSignal, Stop: true})
	time.AfterFunc(c.handle.StopTimeout, func() {
		c.events <- event{answer: make(chan error, 1), do: func() error {
			c.signal(Signal{Number: int(unix.SIGKILL), Stop: true})
			return nil
		}}
	})
}
