package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

// results is what the measuring process hands back.
type results struct {
	Lines       []comparison
	Version     sample // urun version, medians
	BinaryBytes int64
	Kernel      string
	CPUs        int
	Versions    []string
	Podman      string // what it ran on
	Cgroup      string
	Load        [2]string // before and after
	Took        time.Duration
	ImageBytes  int64 // compressed
	ImageLayers int
	Memory      []memoryLine
}

type measurer struct {
	setup
	pod    *podman
	stores int
	res    results
	counts counts
}

type counts struct{ starts, pulls, parallels, version, calls int }

func measureMain(ctx context.Context) error {
	out := os.NewFile(3, "results")
	m := measurer{counts: counts{starts: 25, pulls: 5, parallels: 3, version: 40, calls: 25}}
	if err := json.NewDecoder(os.Stdin).Decode(&m.setup); err != nil {
		return err
	}
	if m.Quick {
		m.counts = counts{starts: 3, pulls: 1, parallels: 1, version: 3, calls: 3}
	}
	unix.CloseOnExec(3)
	if os.Getuid() != m.UID {
		return fmt.Errorf("measure: uid is %d, want %d", os.Getuid(), m.UID)
	}
	if err := m.all(ctx); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(m.res)
}

func (m *measurer) all(ctx context.Context) (err error) {
	start := time.Now()
	if m.pod, err = newPodman(m.Dir); err != nil {
		return err
	}
	if err := m.pod.fresh(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.pod.stop()) }()
	if err := m.machine(ctx); err != nil {
		return err
	}
	if m.Life {
		err = m.life(ctx)
	} else {
		err = m.short(ctx)
	}
	m.res.Load[1], m.res.Took = load(), time.Since(start)
	return err
}

// short measures pulls and containers that end at once.
func (m *measurer) short(ctx context.Context) error {
	for _, step := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"urun version", m.version},
		{"pulls and first runs", m.pulls},
		{"starts", m.starts},
		{"50 runs", m.parallel},
	} {
		fmt.Fprintf(os.Stderr, "bench: %s (load %s)\n", step.name, load())
		if err := step.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

func load() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Fields(string(data))[0]
}

func (m *measurer) machine(ctx context.Context) error {
	var u unix.Utsname
	var fs unix.Statfs_t
	fi, err := os.Stat(m.Urun)
	if err := errors.Join(err, unix.Uname(&u), unix.Statfs("/sys/fs/cgroup", &fs)); err != nil {
		return err
	}
	m.res.Kernel, m.res.CPUs, m.res.BinaryBytes, m.res.Load[0] = unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), fi.Size(), load()
	m.res.Cgroup = "the machine's own cgroup mount"
	if os.Getenv("URUN_BENCH_IDS") != "" {
		m.res.Cgroup = "a private mount namespace in which /sys/fs/cgroup is a pure cgroup2"
	} else if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return errors.New("crun refuses this machine's hybrid cgroups: run as root, which gives the measuring user a private mount namespace with cgroup2 only")
	}
	for _, args := range [][]string{{m.Urun, "version"}, {"podman", "--version"}, {"crun", "--version"}, {"bwrap", "--version"}, {"slirp4netns", "--version"}, {"docker-registry", "--version"}} {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		m.res.Versions = append(m.res.Versions, line)
	}
	m.res.Podman, err = m.pod.info(ctx)
	return err
}

// urun gives a call of urun with the present store.
func (m *measurer) urun(args ...string) []string {
	return append([]string{m.Urun, "--root", m.store()}, args...)
}

func (m *measurer) store() string { return filepath.Join(m.Dir, fmt.Sprintf("urun-%d", m.stores)) }

func (m *measurer) freshUrun() error {
	err := os.RemoveAll(m.store())
	m.stores++
	return err
}

func (m *measurer) version(ctx context.Context) error {
	got, err := byTurns(3, m.counts.version, call(ctx, "version", m.Urun, "version"), call(ctx, "true", "/bin/true"))
	if err != nil {
		return err
	}
	var user, sys []time.Duration
	for _, s := range got["version"] {
		user, sys = append(user, s.User), append(sys, s.Sys)
	}
	m.res.Version = sample{benchkit.Median(walls(got["version"])), benchkit.Median(user), benchkit.Median(sys)}
	m.add("`urun version`", "urun", "/bin/true", 0, got["version"], got["true"])
	return nil
}

func (m *measurer) add(what, a, b string, target float64, sa, sb []sample) {
	c := compare(what, a, b, target, sa, sb)
	fmt.Fprintf(os.Stderr, "bench:   %-50s %7.3f  (%v / %v)\n", what, c.Ratio, c.TimeA.Round(100*time.Microsecond), c.TimeB.Round(100*time.Microsecond))
	m.res.Lines = append(m.res.Lines, c)
}

// pulls measures pulls into fresh stores, and the first runs of what they brought. Dirty pages are written before each
// call, so that nobody pays for another's. The stores of the last round stay.
func (m *measurer) pulls(ctx context.Context) error {
	var first, keep []sample
	var podFirst, podKeep []sample
	settled := func(into *[]sample, args ...string) error {
		unix.Sync()
		s, err := timed(ctx, args...)
		*into = append(*into, s)
		return err
	}
	ours := func() (sample, error) {
		var pulled []sample
		// Twice, since a second run of one pull is no first run any more.
		for _, run := range []struct {
			into *[]sample
			args []string
		}{{&keep, []string{"run", "--rm", "--userns=keep-id", m.Image, "true"}}, {&first, []string{"run", "--rm", m.Image, "true"}}} {
			if err := m.freshUrun(); err != nil {
				return sample{}, err
			}
			if err := settled(&pulled, m.urun("pull", "--quiet", m.Image)...); err != nil {
				return sample{}, err
			}
			if err := settled(run.into, m.urun(run.args...)...); err != nil {
				return sample{}, err
			}
		}
		return pulled[0], nil
	}
	theirs := func() (sample, error) {
		var pulled []sample
		err := m.pod.fresh(ctx)
		for _, step := range []struct {
			into *[]sample
			args []string
		}{
			{&pulled, []string{"pull", "--quiet", "--tls-verify=false", m.Image}},
			{&podFirst, []string{"run", "--rm", m.Image, "true"}},
			{&podKeep, []string{"run", "--rm", "--userns=keep-id", m.Image, "true"}},
		} {
			if err == nil {
				err = settled(step.into, m.pod.args(step.args...)...)
			}
		}
		if err != nil {
			return sample{}, err
		}
		return pulled[0], nil
	}
	got, err := byTurns(0, m.counts.pulls, arm{"urun", ours}, arm{"podman", theirs})
	if err != nil {
		return err
	}
	m.add("pull into a fresh store", "urun", "podman", 1.0/3, got["urun"], got["podman"])
	m.add("first `run --userns=keep-id`", "urun", "urun, first plain run", 1.1, keep, first)
	m.add("first `run --userns=keep-id`", "urun", "podman", 0, keep, podKeep)
	m.add("first plain run", "urun", "podman", 0, first, podFirst)
	return nil
}

func (m *measurer) starts(ctx context.Context) error {
	bundle, err := m.bundle(ctx)
	if err != nil {
		return fmt.Errorf("make a bundle for crun: %w", err)
	}
	var n int
	crun := arm{"crun", func() (sample, error) {
		n++
		return timed(ctx, "crun", "run", "--bundle", bundle, fmt.Sprintf("bench-%d", n))
	}}
	root := filepath.Join(bundle, "rootfs")
	got, err := byTurns(
		3, m.counts.starts,
		call(ctx, "urun", m.urun("run", "--rm", m.Image, "true")...),
		call(ctx, "podman", m.pod.args("run", "--rm", m.Image, "true")...),
		call(ctx, "urun none", m.urun("run", "--rm", "--network", "none", m.Image, "true")...),
		call(ctx, "podman none", m.pod.args("run", "--rm", "--network", "none", m.Image, "true")...),
		crun,
		call(ctx, "bwrap", "bwrap", "--unshare-all", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev", "true"),
	)
	if err != nil {
		return err
	}
	m.add("`run --rm IMAGE true`, warm", "urun", "podman", 1.0/3, got["urun"], got["podman"])
	m.add("the same, `--network none`", "urun", "podman", 1.0/3, got["urun none"], got["podman none"])
	m.add("the same", "urun, no network", "crun alone, unpacked bundle", 0, got["urun none"], got["crun"])
	m.add("the same", "urun, no network", "bubblewrap, unpacked tree", 0, got["urun none"], got["bwrap"])
	return nil
}

// bundle unpacks the image for crun and bubblewrap, without what `true` does not need, below a configuration of crun's own.
func (m *measurer) bundle(ctx context.Context) (string, error) {
	dir := filepath.Join(m.Dir, "bundle")
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return "", err
	}
	script := `set -e; cd "$1"; shift; id=$("$@" create "$IMAGE"); "$@" export "$id" | tar -x -C rootfs --exclude='dev/*' --exclude=usr/share --exclude='usr/lib/go*'; "$@" rm "$id"; crun spec --rootless`
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", script, "sh", dir}, m.pod.args()...)...)
	cmd.Env = append(os.Environ(), "IMAGE="+m.Image)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	name := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return "", err
	}
	process, ok := config["process"].(map[string]any)
	if !ok {
		return "", fmt.Errorf("%s: no process", name)
	}
	process["terminal"], process["args"] = false, []string{"true"}
	if data, err = json.Marshal(config); err != nil {
		return "", err
	}
	return dir, os.WriteFile(name, data, 0o644)
}

const (
	parallelRuns = 50
	parallelAt   = 8
)

func (m *measurer) parallel(ctx context.Context) error {
	got, err := byTurns(
		0, m.counts.parallels,
		arm{"urun", func() (sample, error) { return many(ctx, m.urun("run", "--rm", m.Image, "true")) }},
		arm{"podman", func() (sample, error) { return many(ctx, m.pod.args("run", "--rm", m.Image, "true")) }},
	)
	if err != nil {
		return err
	}
	m.add(fmt.Sprintf("%d runs, %d at a time", parallelRuns, parallelAt), "urun", "podman", 0.5, got["urun"], got["podman"])
	return nil
}

// many makes all of the calls, some at a time, and gives the time of the whole.
func many(ctx context.Context, args []string) (sample, error) {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, parallelAt)
	start := time.Now()
	for i := range errs {
		wg.Go(func() {
			for errs[i] == nil && next.Add(1) <= parallelRuns {
				_, errs[i] = timed(ctx, args...)
			}
		})
	}
	wg.Wait()
	return sample{Wall: time.Since(start)}, errors.Join(errs...)
}
