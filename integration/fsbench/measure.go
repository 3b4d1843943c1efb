package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/integration/benchkit"
)

// results is what the measuring process says.
type results struct {
	Seconds map[string]map[string]*measured // what -> way
	Kernel  string
	CPUs    int
	Runs    []aRun
	Nodes   int
	Tools   []string
	Server  map[string]memory // after a walk over 100,000 nodes
}

// measured is the times of one thing in one way, in seconds, and of the kernel's way in the same run.
type measured struct {
	Times, Kernel []float64
	Urun          string // its version
}

// aRun is one run of the program.
type aRun struct {
	Load [2]string // average, before and after
	Took time.Duration
}

// memory is that of a process, in bytes.
type memory struct{ RSS, PSS, Anonymous int64 }

// A session is a new container that runs loads one after the other.
type session struct {
	name  string
	image string
	loads []string
	ways  []string
	// extra is how many times as many rounds more those of the kernel's overlayfs get, whose loads are over in some milliseconds.
	extra int
}

var ours = []string{overlay, union}

// sessions are all that is measured. A load with a prime finds warm what the one before it read; a number after a star
// repeats it.
func sessions() []session {
	return []session{
		{name: "find", image: "system", loads: []string{"find", "find'*5"}, ways: ways},
		{name: "stat", image: "system", loads: []string{"stat", "stat'*5"}, ways: ways},
		{name: "ls", image: "system", loads: []string{"ls", "ls'*2"}, ways: ways},
		{name: "xattr", image: "xattr", loads: []string{"find", "find'*5", "stat", "stat'*5", "ls", "ls'*2"}, ways: []string{kernel, overlay, union}},
		{name: "tar", image: "system", loads: []string{"tar", "tar'*2"}, ways: ways},
		{name: "python", image: "system", loads: []string{"python", "python'*20"}, ways: ways},
		{name: "read", image: "system", loads: []string{"read"}, ways: ways},
		{name: "random", image: "system", loads: []string{"random"}, ways: ways},
		{name: "clients", image: "system", loads: []string{"clients"}, ways: ways},
		{name: "write", image: "system", loads: []string{"create", "unlink", "untar", "rm", "rename", "clone", "status"}, ways: ways, extra: 2},
		{name: "copyup", image: "system", loads: []string{"copyup"}, ways: ways},
		{name: "mv", image: "system", loads: []string{"mv"}, ways: ways},
		{name: "rmlower", image: "system", loads: []string{"rmlower"}, ways: ways},
	}
}

func measureMain(args []string) error {
	b := &bench{images: map[string]pulled{}}
	if err := json.Unmarshal([]byte(args[0]), &b.options); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		return errors.New("measure: not as root")
	}
	start := time.Now()
	r := &results{Seconds: map[string]map[string]*measured{}, CPUs: runtime.NumCPU(), Server: map[string]memory{}}
	run := aRun{Load: [2]string{load()}}
	version, err := output(exec.Command(b.Urun, "version"))
	if err != nil {
		return err
	}
	r.Tools = []string{strings.TrimSpace(version)}
	if b.memory, err = os.MkdirTemp("/dev/shm", "urun-fsbench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.memory)
	if err := b.prepare(); err != nil {
		return err
	}
	r.Nodes = b.images["system"].Nodes
	if err := b.all(r); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	r.Kernel = unix.ByteSliceToString(u.Release[:])
	out, err := output(exec.Command(peer, "--version"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) { // it names its mount helper first
		if strings.HasPrefix(line, peer) {
			r.Tools = append(r.Tools, strings.TrimSpace(line))
		}
	}
	r.finish(r.Tools[0])
	run.Load[1], run.Took = load(), time.Since(start)
	r.Runs = []aRun{run}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(raw))[0]
}

// prepare makes the images, the store with its writable layers on a tmpfs, and the tools.
func (b *bench) prepare() error {
	store, uppers := filepath.Join(b.Dir, "store"), filepath.Join(b.memory, "containers")
	b.tools = filepath.Join(b.Dir, "tools")
	if err := errors.Join(os.MkdirAll(store, 0o755), os.MkdirAll(b.tools, 0o755), os.Mkdir(uppers, 0o755),
		os.RemoveAll(filepath.Join(store, "containers")), os.Symlink(uppers, filepath.Join(store, "containers")), os.RemoveAll(filepath.Join(b.tools, "fsbench")),
		os.Setenv("URUN_ROOT", store), os.Setenv("XDG_RUNTIME_DIR", b.memory)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := benchkit.CopyProgram(self, filepath.Join(b.tools, "fsbench")); err != nil {
		return err
	}
	list := filepath.Join(b.Dir, "images.json")
	if raw, err := os.ReadFile(list); err == nil { // kept from an earlier time
		return json.Unmarshal(raw, &b.images)
	}
	if err := b.sources(); err != nil {
		return err
	}
	system := systemLayers()
	for _, i := range []struct {
		name   string
		layers []layerFunc
		unpack bool
	}{
		{"system", system, true},
		{"xattr", append(slices.Clone(system[:3]), withXattr), true},
		{"one", plainLayers(10_000, 1), false},
		{"sixty", plainLayers(10_000, 60), false},
		{"large", plainLayers(99_000, 4), false},
	} {
		fmt.Fprintf(os.Stderr, "fsbench: image %s\n", i.name)
		if err := b.image(i.name, i.layers, i.unpack); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	raw, err := json.Marshal(b.images)
	if err != nil {
		return err
	}
	return os.WriteFile(list, raw, 0o644)
}

func (b *bench) image(name string, layers []layerFunc, unpack bool) error {
	dir := filepath.Join(b.Dir, "image-"+name)
	img, err := makeImage(dir, layers...)
	if err != nil {
		return err
	}
	if err := img.listPaths(filepath.Join(b.tools, "paths-"+name)); err != nil {
		return err
	}
	id, err := output(b.urun("pull", "--quiet", img.name))
	if err != nil {
		return err
	}
	p := pulled{ID: strings.TrimSpace(id), Nodes: img.nodes}
	for i, layer := range img.layers {
		if !unpack {
			break
		}
		tree := filepath.Join(b.Dir, fmt.Sprintf("tree-%s-%d", name, i))
		if err := os.Mkdir(tree, 0o755); err != nil {
			return err
		}
		args := append(inNamespace(), "tar", "--xattrs", "--xattrs-include=user.*", "-xpf", layer, "-C", tree)
		if err := benchkit.Command("unshare", args...); err != nil {
			return err
		}
		p.Trees = append(p.Trees, tree)
	}
	b.images[name] = p
	return os.RemoveAll(filepath.Join(dir, "layout"))
}

// sources makes the tar that is unpacked and the repository that is cloned.
func (b *bench) sources() error {
	const script = `set -e; cd "$1"; mkdir src; for d in $(seq 30); do mkdir src/$d; for f in $(seq 100); do echo "file $f of $d" >src/$d/$f; done; done
tar -cf src.tar src; git init -q src; git -C src add .; git -C src -c user.name=x -c user.email=x@example.com commit -q -m all; git clone -q --bare src repo.git; rm -rf src`
	return benchkit.Command("sh", "-c", script, "sh", b.tools)
}

// all runs the sessions by turns: each round has one of each way.
func (b *bench) all(r *results) error {
	only := regexp.MustCompile(b.Only)
	for _, s := range sessions() {
		if !only.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "fsbench: %s (load %s)\n", s.name, load())
		if err := b.withPaths(s.image, func() error { return b.rounds(r, s) }); err != nil {
			return err
		}
	}
	if only.MatchString("layers") {
		if err := b.layers(r); err != nil {
			return err
		}
	}
	if only.MatchString("second") {
		if err := b.second(r); err != nil {
			return err
		}
	}
	if only.MatchString("memory") {
		return b.serverMemory(r)
	}
	return nil
}

// rounds runs a session in all ways by turns.
func (b *bench) rounds(r *results, s session) error {
	for i := range b.Runs * (1 + s.extra) {
		for _, way := range s.ways {
			if !slices.Contains(b.Ways, way) || i >= b.Runs && way != kernel && way != overlay {
				continue
			}
			if err := b.session(r, s, way); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) session(r *results, s session, way string) error {
	times, err := b.run(way, s.image, s.loads...)
	if err != nil {
		return err
	}
	for _, t := range times {
		name, count := t.Name, 1.0
		if base, n, ok := strings.Cut(t.Name, "*"); ok {
			name = base
			if count, err = strconv.ParseFloat(n, 64); err != nil {
				return err
			}
		}
		r.add(s.name+" "+name, way, t.Seconds/count)
	}
	return nil
}

func (r *results) add(what, way string, seconds float64) {
	if r.Seconds[what] == nil {
		r.Seconds[what] = map[string]*measured{}
	}
	if r.Seconds[what][way] == nil {
		r.Seconds[what][way] = &measured{}
	}
	r.Seconds[what][way].Times = append(r.Seconds[what][way].Times, seconds)
}

// layerRounds is how many times as many rounds as others the comparison of layers gets: its loads take a tenth of a second, and what
// they are to tell is a twentieth of that.
const layerRounds = 3

// layers measures the same files in one layer and in 60, by turns.
func (b *bench) layers(r *results) error {
	fmt.Fprintf(os.Stderr, "fsbench: layers (load %s)\n", load())
	pair := []session{{name: "one layer", image: "one"}, {name: "60 layers", image: "sixty"}}
	for range layerRounds * b.Runs {
		for _, s := range pair {
			s.loads = []string{"stat", "stat'*5"}
			for _, way := range ours {
				if !slices.Contains(b.Ways, way) {
					continue
				}
				if err := b.withPaths(s.image, func() error { return b.session(r, s, way) }); err != nil {
					return err
				}
			}
		}
		slices.Reverse(pair)
	}
	return nil
}

// withPaths calls fn while the loads find the paths of an image.
func (b *bench) withPaths(img string, fn func() error) error {
	here, there := filepath.Join(b.tools, "paths"), filepath.Join(b.tools, "paths-"+img)
	if err := os.Rename(there, here); err != nil {
		return err
	}
	return errors.Join(fn(), os.Rename(here, there))
}

// second measures the first touch of a second container, and the same once more in it.
func (b *bench) second(r *results) error {
	fmt.Fprintf(os.Stderr, "fsbench: second container (load %s)\n", load())
	if err := os.Setenv("URUN_LINGER", "1m"); err != nil {
		return err
	}
	if _, err := b.run(overlay, "system", "tar"); err != nil {
		return err
	}
	for range b.Runs {
		if err := b.session(r, session{name: "second", image: "system", loads: []string{"tar", "tar'"}}, overlay); err != nil {
			return err
		}
	}
	return b.endHolder()
}

// endHolder ends what lingers: it ends with a container that says so.
func (b *bench) endHolder() error {
	if err := os.Setenv("URUN_LINGER", "0s"); err != nil {
		return err
	}
	_, err := b.run(overlay, "system", "python")
	return err
}

var servers = regexp.MustCompile(`(?m)^image server: +process (\d+)`)

// serverMemory looks at the image server when all of a large image has been walked over.
func (b *bench) serverMemory(r *results) error {
	fmt.Fprintf(os.Stderr, "fsbench: memory\n")
	if err := os.Setenv("URUN_LINGER", "1m"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(b.tools, "paths-large"), filepath.Join(b.tools, "paths")); err != nil {
		return err
	}
	cmd := b.urun("run", "--rm", "--pull", "never", "--network", "none", "-v", b.tools+":/tools:ro", b.images["large"].ID, "/tools/fsbench", "load", "walk")
	if _, err := output(cmd); err != nil {
		return err
	}
	out, err := output(b.urun("info"))
	if err != nil {
		return err
	}
	m := servers.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("no image server runs:\n%s", out)
	}
	if r.Server[overlay], err = memoryOf(m[1]); err != nil {
		return err
	}
	return b.endHolder()
}

func memoryOf(pid string) (m memory, err error) {
	raw, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(raw)) {
		for name, into := range map[string]*int64{"Rss:": &m.RSS, "Pss:": &m.PSS, "Anonymous:": &m.Anonymous} {
			if f := strings.Fields(line); len(f) == 3 && f[0] == name {
				kb, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return m, err
				}
				*into = kb << 10
			}
		}
	}
	return m, nil
}
