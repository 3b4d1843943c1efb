package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urun-dev/urun/integration/benchkit"
)

// sample is one call: wall time, and CPU time of what the call waited for.
type sample struct{ Wall, User, Sys time.Duration }

// timed calls a program, which must succeed.
func timed(ctx context.Context, args ...string) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	// A file, not a pipe: what stays behind (podman's pause process) must not be waited for.
	log, err := os.CreateTemp("", "urun-bench-stderr-")
	if err != nil {
		return sample{}, err
	}
	defer log.Close()
	if err := os.Remove(log.Name()); err != nil {
		return sample{}, err
	}
	cmd.Stderr = log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	start := time.Now()
	err = cmd.Run()
	s := sample{Wall: time.Since(start)}
	if err != nil {
		if _, rerr := log.Seek(0, 0); rerr == nil {
			_, rerr = stderr.ReadFrom(log)
			if rerr != nil {
				stderr.WriteString(rerr.Error())
			}
		}
		return s, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	s.User, s.Sys = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime()
	return s, nil
}

// arm is one of the things compared.
type arm struct {
	name string
	run  func() (sample, error)
}

func call(ctx context.Context, name string, args ...string) arm {
	return arm{name, func() (sample, error) { return timed(ctx, args...) }}
}

// byTurns runs the arms one after the other, round by round, each second round in reverse, so that what changes on the
// machine meanwhile meets all of them alike. The first rounds warm up and are not kept.
func byTurns(warm, rounds int, arms ...arm) (map[string][]sample, error) {
	got := map[string][]sample{}
	for i := range warm + rounds {
		order := slices.Clone(arms)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, a := range order {
			s, err := a.run()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", a.name, err)
			}
			if i >= warm {
				got[a.name] = append(got[a.name], s)
			}
		}
	}
	return got, nil
}

func walls(s []sample) (d []time.Duration) {
	for _, s := range s {
		d = append(d, s.Wall)
	}
	return d
}

// comparison is a line of the report: the median of the ratios of each round, and how far they spread.
type comparison struct {
	What          string
	A, B          string        // names of what is compared
	TimeA, TimeB  time.Duration // medians
	Ratio, Q1, Q3 float64
	Rounds        int
	Target        float64 // at most; 0: for scale only
}

func compare(what, a, b string, target float64, sa, sb []sample) comparison {
	c := comparison{What: what, A: a, B: b, Target: target, Rounds: min(len(sa), len(sb)), TimeA: benchkit.Median(walls(sa)), TimeB: benchkit.Median(walls(sb))}
	var ratios []float64
	for i := range c.Rounds {
		ratios = append(ratios, float64(sa[i].Wall)/float64(sb[i].Wall))
	}
	slices.Sort(ratios)
	c.Ratio = benchkit.Median(ratios)
	if len(ratios) > 0 {
		c.Q1, c.Q3 = ratios[len(ratios)/4], ratios[len(ratios)*3/4]
	}
	return c
}
