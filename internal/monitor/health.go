package monitor

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/urun-dev/urun/internal/program"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
)

// What a record keeps of health checks: docker's numbers.
const (
	healthProbes = 5
	healthOutput = 4096 // bytes a probe
)

// watchHealth starts the checks of a container that has just come up.
func (c *container) watchHealth() {
	if c.Health == nil {
		return
	}
	c.handle.Health = &state.Health{Status: "starting", Log: []state.Probe{}}
	_ = c.handle.Save() // the container does not depend on the record
	go c.checkHealth(*c.running.Load())
}

// checkHealth checks until the container ends.
func (c *container) checkHealth(init state.Process) {
	h := c.Health
	started := time.Now()
	coming := h.StartPeriod > 0 // until it has been well once, or the time is over
	for {
		interval := h.Interval
		if coming && time.Since(started) < h.StartPeriod {
			interval = h.StartInterval
		}
		time.Sleep(interval)
		if now := c.running.Load(); now == nil || *now != init {
			return
		}
		probe := c.probe(h)
		starting := coming && time.Since(started) < h.StartPeriod
		if probe.ExitCode == 0 {
			coming = false
		}
		// When the container ends meanwhile this waits for the end of the process.
		_ = c.ask(func() error {
			if c.running.Load() == nil {
				return nil
			}
			before := c.handle.Health.Status
			note(c.handle.Health, probe, h.Retries, starting)
			if now := c.handle.Health.Status; now != before {
				c.tell("health_status: " + now)
			}
			return c.handle.Save()
		})
	}
}

// note adds a probe to what is known. While the container comes up a failure
// does not count.
func note(h *state.Health, p state.Probe, retries int, starting bool) {
	h.Log = append(h.Log, p)
	h.Log = h.Log[max(0, len(h.Log)-healthProbes):]
	switch {
	case p.ExitCode == 0:
		h.Status, h.FailingStreak = "healthy", 0
	case starting:
	default:
		if h.FailingStreak++; h.FailingStreak >= retries {
			h.Status = "unhealthy"
		}
	}
}

// probe runs the check once.
func (c *container) probe(h *HealthCheck) state.Probe {
	p := state.Probe{Start: time.Now(), ExitCode: -1}
	out := &bounded{limit: healthOutput}
	err := c.runProbe(h, out, &p)
	p.End, p.Output = time.Now(), out.String()
	if err != nil {
		p.Output = strings.TrimPrefix(p.Output+"\n"+err.Error(), "\n")
	}
	return p
}

func (c *container) runProbe(h *HealthCheck, out *bounded, p *state.Probe) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	v, err := c.enter(stage.Exec{Args: h.Command}, program.Files{nil, w, w})
	if err != nil {
		return err
	}
	// Ends when the last of the check's processes does, or with r.
	copied := make(chan struct{})
	go func() { _, _ = io.Copy(out, r); close(copied) }()
	became := make(chan error, 1)
	go func() { became <- v.become() }()
	timeout := time.NewTimer(h.Timeout)
	defer timeout.Stop()
	select {
	case err := <-became:
		if err != nil {
			p.ExitCode = failed(err).Code
			return err
		}
	case <-timeout.C:
		v.kill()
		return fmt.Errorf("health check exceeded timeout (%v)", h.Timeout)
	}
	select {
	case <-v.ended:
		p.ExitCode = v.code
		within(drainTime, func() { <-copied })
		return nil
	case <-timeout.C:
		v.kill()
		return fmt.Errorf("health check exceeded timeout (%v)", h.Timeout)
	}
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	mu    sync.Mutex
	b     strings.Builder
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Write(p[:min(len(p), b.limit-b.b.Len())])
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
