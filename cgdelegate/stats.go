package cgdelegate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Events counts what happened to the payload because of its memory limit.
type Events struct {
	Low, High, Max uint64 // times that memory was reclaimed below low, throttled above high, at max
	OOM, OOMKill   uint64 // times out of memory, processes killed for it
}

// Events reads memory.events. Without the memory controller all counts are 0.
func (s *Scope) Events() (Events, error) {
	m, err := readPairs(s.file("memory.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return Events{}, nil
	}
	if err != nil {
		return Events{}, fmt.Errorf("read memory events: %w", err)
	}
	return Events{Low: m["low"], High: m["high"], Max: m["max"], OOM: m["oom"], OOMKill: m["oom_kill"]}, nil
}

// OOMKilled says whether the kernel killed a process of the payload for want of
// memory. Ask before Remove.
func (s *Scope) OOMKilled() (bool, error) {
	e, err := s.Events()
	return e.OOMKill > 0, err
}

// WaitOOMKill waits until the kernel has killed more than seen processes of the
// payload, and returns how many; ctx alone limits the time. It returns when the
// payload's cgroup ends.
func (s *Scope) WaitOOMKill(ctx context.Context, seen uint64) (uint64, error) {
	var last Events
	err := watchFile(ctx, s.file("memory.events"), func(string) bool {
		e, err := s.Events()
		if err == nil {
			last = e
		}
		return err != nil || last.OOMKill > seen
	})
	return last.OOMKill, ignoreGone(err)
}

// Stats is a reading of the payload. Numbers whose controller is not enabled are 0;
// Controllers tells.
type Stats struct {
	Controllers []string
	Time        time.Time

	CPU struct {
		Usage, User, System time.Duration
		Periods, Throttled  uint64 // enforcement periods, those of them that hit the quota
		ThrottledTime       time.Duration
	}
	Memory struct {
		Usage, Peak, Swap uint64 // bytes
		Limit             int64  // bytes; -1 is none
		Cache             uint64 // bytes of Usage that are file pages
		InactiveFile      uint64 // bytes of Cache that the kernel would give up first
	}
	Pids struct {
		Current uint64
		Limit   int64 // -1 is none
	}
	IO struct {
		ReadBytes, WriteBytes, Reads, Writes uint64
	}
	// Pressure by resource: "cpu", "memory", "io".
	Pressure map[string]Pressure
}

// Pressure is the share of time, in percent, that at least one process (Some) or
// all (Full) waited for a resource, over 10, 60 and 300 seconds (PSI).
type Pressure struct{ Some, Full [3]float64 }

// Stats reads the payload's counters.
func (s *Scope) Stats() (Stats, error) {
	st := Stats{Time: time.Now(), Pressure: map[string]Pressure{}}
	st.Memory.Limit, st.Pids.Limit = -1, -1
	var err error
	if st.Controllers, err = readWords(s.file("cgroup.controllers")); err != nil {
		return st, fmt.Errorf("read statistics: %w", err)
	}
	for _, read := range []func(*Stats) error{s.readCPU, s.readMemory, s.readPids, s.readIO, s.readPressure} {
		// Absent files are of controllers that are off, or of newer kernels.
		if err := read(&st); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return st, fmt.Errorf("read statistics: %w", err)
		}
	}
	return st, nil
}

func (s *Scope) readCPU(st *Stats) error {
	m, err := readPairs(s.file("cpu.stat"))
	us := func(key string) time.Duration { return time.Duration(m[key]) * time.Microsecond }
	st.CPU.Usage, st.CPU.User, st.CPU.System = us("usage_usec"), us("user_usec"), us("system_usec")
	st.CPU.Periods, st.CPU.Throttled, st.CPU.ThrottledTime = m["nr_periods"], m["nr_throttled"], us("throttled_usec")
	return err
}

func (s *Scope) readMemory(st *Stats) error {
	var errs []error
	number := func(name string) int64 {
		n, err := readNumber(s.file(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return n
	}
	if _, err := os.Stat(s.file("memory.current")); err != nil {
		return err
	}
	st.Memory.Usage, st.Memory.Limit = uint64(number("memory.current")), number("memory.max")
	st.Memory.Peak, st.Memory.Swap = uint64(number("memory.peak")), uint64(number("memory.swap.current"))
	m, err := readPairs(s.file("memory.stat"))
	st.Memory.Cache, st.Memory.InactiveFile = m["file"], m["inactive_file"]
	return errors.Join(append(errs, err)...)
}

func (s *Scope) readPids(st *Stats) error {
	n, err := readNumber(s.file("pids.current"))
	if err != nil {
		return err
	}
	st.Pids.Current = uint64(n)
	st.Pids.Limit, err = readNumber(s.file("pids.max"))
	return err
}

func (s *Scope) readIO(st *Stats) error {
	data, err := os.ReadFile(s.file("io.stat"))
	if err != nil {
		return err
	}
	sums := parseIOStat(string(data))
	st.IO.ReadBytes, st.IO.WriteBytes, st.IO.Reads, st.IO.Writes = sums["rbytes"], sums["wbytes"], sums["rios"], sums["wios"]
	return nil
}

// parseIOStat adds up lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4".
func parseIOStat(text string) map[string]uint64 {
	sums := map[string]uint64{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for _, f := range fields[min(1, len(fields)):] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue // cost.* and latency fields are no counters
			}
			sums[key] += n
		}
	}
	return sums
}

func (s *Scope) readPressure(st *Stats) error {
	for _, what := range []string{"cpu", "memory", "io"} {
		f, err := os.Open(s.file(what + ".pressure"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		p, err := parsePressure(f)
		if err = errors.Join(err, f.Close()); errors.Is(err, unix.EOPNOTSUPP) {
			continue // booted with psi=0
		} else if err != nil {
			return err
		}
		st.Pressure[what] = p
	}
	return nil
}

// parsePressure reads lines "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
func parsePressure(r io.Reader) (Pressure, error) {
	var p Pressure
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 4 {
			return p, fmt.Errorf("parse pressure %q", sc.Text())
		}
		to := &p.Some
		if f[0] == "full" {
			to = &p.Full
		}
		for i, key := range []string{"avg10=", "avg60=", "avg300="} {
			v, ok := strings.CutPrefix(f[i+1], key)
			n, err := strconv.ParseFloat(v, 64)
			if !ok || err != nil {
				return p, fmt.Errorf("parse pressure %q", sc.Text())
			}
			to[i] = n
		}
	}
	return p, sc.Err()
}
