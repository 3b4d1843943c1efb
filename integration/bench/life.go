package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// engine is urun or podman with a store that has the image.
type engine struct {
	name string
	args func(...string) []string
}

func (m *measurer) engines() []engine {
	return []engine{{"urun", m.urun}, {"podman", m.pod.args}}
}

// remove removes by force, at once: podman else asks first, and waits for ten seconds for a pid 1 that does not listen.
func (m *measurer) remove(e engine) []string {
	if e.name == "podman" {
		return []string{"rm", "-f", "-t", "0"}
	}
	return []string{"rm", "-f"}
}

// life measures what is done with containers that run.
func (m *measurer) life(ctx context.Context) (err error) {
	if err := m.freshUrun(); err != nil {
		return err
	}
	defer func() {
		// Also when something went wrong half way, or was broken off.
		for _, e := range m.engines() {
			_, rerr := timed(context.WithoutCancel(ctx), e.args(append(m.remove(e), "--all")...)...)
			err = errors.Join(err, rerr)
		}
	}()
	for _, args := range [][]string{m.urun("pull", "--quiet", m.Image), m.pod.args("pull", "--quiet", "--tls-verify=false", m.Image)} {
		if _, err := timed(ctx, args...); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"memory", m.memory},
		{"calls", m.calls},
		{"50 detached containers", m.detached},
	} {
		fmt.Fprintf(os.Stderr, "bench: %s (load %s)\n", step.name, load())
		if err := step.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// calls measures short commands beside one container that runs.
func (m *measurer) calls(ctx context.Context) error {
	for _, e := range m.engines() {
		if _, err := timed(ctx, e.args("run", "-d", "--name", "bench", m.Image, "sleep", "infinity")...); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		what string
		args []string
	}{
		{"`exec NAME true`", []string{"exec", "bench", "true"}},
		{"`ps`", []string{"ps"}},
		{"`inspect NAME`", []string{"inspect", "bench"}},
		{"`images`", []string{"images"}},
	} {
		got, err := byTurns(2, m.counts.calls, call(ctx, "urun", m.urun(c.args...)...), call(ctx, "podman", m.pod.args(c.args...)...))
		if err != nil {
			return err
		}
		m.add(c.what, "urun", "podman", 1.0/5, got["urun"], got["podman"])
	}
	for _, e := range m.engines() {
		if _, err := timed(ctx, e.args(append(m.remove(e), "bench")...)...); err != nil {
			return err
		}
	}
	return nil
}

// detached measures 50 containers that are started, eight at a time, and removed by one command.
func (m *measurer) detached(ctx context.Context) error {
	up, down := map[string][]sample{}, map[string][]sample{}
	for range m.counts.parallels {
		for _, e := range m.engines() {
			s, err := startMany(ctx, e, m.Image)
			if err != nil {
				return err
			}
			up[e.name] = append(up[e.name], s)
			names := m.remove(e)
			for i := range parallelRuns {
				names = append(names, fmt.Sprintf("bench-%d", i))
			}
			if s, err = timed(ctx, e.args(names...)...); err != nil {
				return err
			}
			down[e.name] = append(down[e.name], s)
		}
	}
	m.add("50 times `run -d`, 8 at a time", "urun", "podman", 1.0/2, up["urun"], up["podman"])
	m.add("`rm -f` of 50 that run", "urun", "podman", 1.0/2, down["urun"], down["podman"])
	return nil
}

func startMany(ctx context.Context, e engine, image string) (sample, error) {
	work := make(chan int)
	errs := make(chan error, parallelAt)
	start := time.Now()
	var wg sync.WaitGroup
	for range parallelAt {
		wg.Go(func() {
			for i := range work {
				if _, err := timed(ctx, e.args("run", "-d", "--name", fmt.Sprintf("bench-%d", i), image, "sleep", "infinity")...); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	go func() {
		defer close(work)
		for i := range parallelRuns {
			select {
			case work <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	wg.Wait()
	select {
	case err := <-errs:
		return sample{}, err
	default:
		return sample{Wall: time.Since(start)}, nil
	}
}

// memoryLine is what an idle container takes, in bytes, with all that there is because of it.
type memoryLine struct {
	What         string
	One, Ten     int64 // of one alone; of each of ten
	Podman       [2]int64
	Target       int64
	ProcessesTen string // of urun, by name and PSS in MB
}

const idle = 10

// idleTime is how long the containers run before they are looked at, by when they have come to rest.
const idleTime = 6 * time.Second

// memory measures what idle containers take: the proportional set size (smaps_rollup) of all processes that there are
// because of them.
func (m *measurer) memory(ctx context.Context) error {
	for _, c := range []struct {
		what   string
		flags  []string
		target int64
	}{
		{"without network", []string{"--network", "none"}, 15 << 20},
		{"with network and a published port", []string{"-p", "127.0.0.1::80"}, 25 << 20},
	} {
		line := memoryLine{What: c.what, Target: c.target}
		for _, e := range m.engines() {
			one, ten, list, err := m.idle(ctx, e, c.flags)
			if err != nil {
				return err
			}
			if e.name == "urun" {
				line.One, line.Ten, line.ProcessesTen = one, ten, list
			} else {
				line.Podman = [2]int64{one, ten}
			}
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: one %.1f MB, of ten %.1f MB (podman %.1f, %.1f)\n", c.what, mb(line.One), mb(line.Ten), mb(line.Podman[0]), mb(line.Podman[1]))
		m.res.Memory = append(m.res.Memory, line)
	}
	return nil
}

func (m *measurer) idle(ctx context.Context, e engine, flags []string) (one, ten int64, list string, err error) {
	time.Sleep(idleTime) // what was before has gone by then
	names := m.remove(e)
	for i := range idle {
		name := fmt.Sprintf("idle-%d", i)
		names = append(names, name)
		args := append([]string{"run", "-d", "--name", name}, flags...)
		if _, err := timed(ctx, e.args(append(args, m.Image, "sleep", "infinity")...)...); err != nil {
			return 0, 0, "", err
		}
		if i == 0 || i == idle-1 {
			time.Sleep(idleTime)
			byName := map[string]int64{}
			if err := pss(byName); err != nil {
				return 0, 0, "", err
			}
			now := int64(0)
			for name, bytes := range byName {
				// The stages are urun's, all else is podman's; the containers are of who is measured.
				if ours := strings.HasPrefix(name, "__"); name == "sleep" || ours == (e.name == "urun") {
					now += bytes
				}
			}
			if i == 0 {
				one = now
			} else {
				ten = now / idle
				for _, name := range []string{"__holder", "__union", "__monitor", "__network", "sleep"} {
					list += fmt.Sprintf(" %s %.1f", name, mb(byName[name]))
				}
			}
		}
	}
	_, err = timed(ctx, e.args(names...)...)
	return one, ten, strings.TrimSpace(list), err
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// pss adds up the proportional set sizes of the user's processes by their names, this one and those above it excepted.
func pss(byName map[string]int64) error {
	own := map[int]bool{}
	for pid := os.Getpid(); pid > 1; {
		own[pid] = true
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if pid, err = strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1]); err != nil {
			return err
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || own[pid] {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue // somebody else's, or gone
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "Pss:" {
				continue
			}
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return err
			}
			cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
			if err != nil {
				continue
			}
			words := strings.Split(string(cmdline), "\x00")
			name := filepath.Base(words[0])
			if name == "urun" && len(words) > 1 {
				name = words[1]
			}
			byName[name] += kb << 10
		}
	}
	return nil
}

func renderLife(r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make bench-life` in one run of %s. Kernel %s, %d CPUs; load average %s before, %s after.\n", r.Took.Round(time.Second), r.Kernel, r.CPUs, r.Load[0], r.Load[1])
	if busy(r) {
		b.WriteString("**The machine was busy with other work**: the ratios hold (all were measured by turns), the times are high.\n")
	}
	fmt.Fprintf(&b, "%s.\nPodman: %s; %s.\n\n", strings.Join(r.Versions, "; "), r.Podman, r.Cgroup)
	table(&b, r.Lines)
	b.WriteString("\n| an idle container (`sleep`), MB | alone | each of ten | target | podman: alone | each of ten |\n|---|---|---|---|---|---|\n")
	for _, l := range r.Memory {
		met := "met"
		if l.Ten > l.Target {
			met = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %.1f | **%.1f** | ≤ %.0f: %s | %.1f | %.1f |\n", l.What, mb(l.One), mb(l.Ten), mb(l.Target), met, mb(l.Podman[0]), mb(l.Podman[1]))
	}
	b.WriteString("\nProportional set size of all processes that there are because of the containers, what they share included")
	for _, l := range r.Memory {
		fmt.Fprintf(&b, "; of ten %s, in MB: %s", l.What, l.ProcessesTen)
	}
	b.WriteString(".\n")
	return b.String()
}
