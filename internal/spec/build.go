package spec

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// builder carries a container through the steps.
type builder struct {
	opt   Options
	facts Facts
	c     *Container
	linux *specs.Linux
	proc  *specs.Process

	shmSize int64             // bytes
	mounts  []userMount       // of -v, --mount, --tmpfs, --device, ...
	masks   []string          // --security-opt mask
	unmask  []string          // patterns of --security-opt unmask
	labels  map[string]string // of flags
	cdiEnv  []string          // of devices
}

type step func(*builder) error

// flagSteps look at the flags alone, so that Check can run before an image is pulled.
func flagSteps() []step {
	return []step{
		(*builder).identity,
		// Before what it is a default for.
		(*builder).hpc,
		(*builder).terminal,
		(*builder).choices,
		(*builder).namespaces,
		(*builder).network,
		// Before everything that depends on which namespaces the container has.
		(*builder).rungs,
		(*builder).ports,
		(*builder).metadata,
		(*builder).limits,
		(*builder).life,
		(*builder).process,
		(*builder).capabilities,
		(*builder).security,
		(*builder).sysctls,
		(*builder).userMounts,
		(*builder).devices,
		(*builder).timezone,
		// After the mounts that go before those of the configuration.
		(*builder).binds,
		(*builder).checkTargets,
	}
}

// imageSteps need the image and the id maps. They come after flagSteps: user
// needs the mounts, env needs the user, assemble needs all.
func imageSteps() []step {
	return []step{
		(*builder).imageMetadata,
		(*builder).imageVolumes,
		(*builder).health,
		(*builder).user,
		(*builder).grant,
		(*builder).args,
		(*builder).workdir,
		(*builder).env,
		(*builder).hostname,
		(*builder).logDetails,
		(*builder).assemble,
		(*builder).bare,
	}
}

// Check finds every error that the flags have by themselves. Of facts it needs
// what is known without an image and without id maps.
func Check(opt Options, facts Facts) error {
	return newBuilder(opt, facts).run(flagSteps())
}

// Build makes the container that opt asks for.
func Build(opt Options, facts Facts) (*Container, error) {
	b := newBuilder(opt, facts)
	if err := b.run(flagSteps()); err != nil {
		return nil, err
	}
	if err := b.run(imageSteps()); err != nil {
		return nil, err
	}
	return b.c, nil
}

func newBuilder(opt Options, facts Facts) *builder {
	if facts.Host == nil {
		facts.Host = System{}
	}
	b := &builder{opt: opt, facts: facts, linux: &specs.Linux{}, proc: &specs.Process{}}
	b.c = &Container{
		Spec:  &specs.Spec{Version: specs.Version, Process: b.proc, Linux: b.linux},
		ID:    facts.ContainerID,
		Image: facts.ImageName,
	}
	return b
}

func (b *builder) run(steps []step) error {
	for _, s := range steps {
		if err := s(b); err != nil {
			return err
		}
	}
	return nil
}

// assemble puts the parts of the spec in order.
func (b *builder) assemble() error {
	s := b.c.Spec
	s.Root = &specs.Root{Path: b.facts.RootfsPath, Readonly: b.opt.ReadOnly || b.c.Writable == "none"}
	b.linux.UIDMappings = slices.Clone(b.facts.UIDMap)
	b.linux.GIDMappings = slices.Clone(b.facts.GIDMap)
	b.linux.Namespaces = b.namespaceList()
	if len(b.linux.Sysctl) == 0 {
		b.linux.Sysctl = nil
	}
	if !b.c.Privileged {
		b.linux.MaskedPaths = b.remaining(append(maskedPaths(), b.thermalPaths()...))
		b.linux.ReadonlyPaths = b.remaining(readonlyPaths())
	}
	b.linux.MaskedPaths = append(b.linux.MaskedPaths, b.masks...)
	b.placeMounts()
	return nil
}

// placeMounts orders the mounts: the default ones, but for those that the user
// replaces, then the user's by depth, so that none hides another.
func (b *builder) placeMounts() {
	taken := map[string]bool{}
	for _, m := range b.mounts {
		taken[m.mount.Destination] = true
	}
	var out []specs.Mount
	for _, m := range b.defaultMounts() {
		if !taken[m.Destination] {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(b.mounts, func(x, y userMount) int {
		return cmp.Or(
			cmp.Compare(depth(x.mount.Destination), depth(y.mount.Destination)),
			cmp.Compare(x.mount.Destination, y.mount.Destination),
		)
	})
	for _, m := range b.mounts {
		if m.volume {
			b.c.Volumes = append(b.c.Volumes, Volume{Name: m.name, Target: m.mount.Destination, Mount: len(out)})
		}
		out = append(out, m.mount)
	}
	b.c.Spec.Mounts = out
}

func depth(target string) int { return strings.Count(strings.TrimSuffix(target, "/"), "/") }

// identity checks names and what the container is made of.
func (b *builder) identity() error {
	o := &b.opt
	if o.Name != "" && (!nameLike(o.Name) || len(o.Name) < 2) {
		return fmt.Errorf("invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", o.Name)
	}
	if o.Replace && o.Name == "" {
		return fmt.Errorf("--replace needs --name")
	}
	b.c.Name, b.c.CIDFile = o.Name, o.CIDFile
	b.c.Detach, b.c.Remove, b.c.Replace, b.c.Quiet = o.Detach, o.Remove, o.Replace, o.Quiet
	b.c.Interactive, b.c.TTY, b.c.Init = o.Interactive, o.TTY, o.Init
	b.c.SigProxy = o.SigProxy == nil || *o.SigProxy
	b.c.Privileged, b.c.Volatile = o.Privileged, o.Volatile
	b.proc.Terminal = o.TTY
	if err := b.attach(); err != nil {
		return err
	}
	if o.Rootfs == "" {
		return nil
	}
	if o.Pull != "" || o.Platform != "" {
		return conflict("--rootfs and --pull or --platform: a directory is not pulled")
	}
	abs, err := b.facts.Host.Abs(o.Rootfs)
	if err != nil {
		return fmt.Errorf("--rootfs %s: %w", o.Rootfs, err)
	}
	fi, err := b.facts.Host.Stat(abs)
	if err != nil {
		return fmt.Errorf("--rootfs: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("--rootfs %s: not a directory", o.Rootfs)
	}
	b.c.Rootfs = abs
	return nil
}

// attach reads --attach; docker takes the streams' names in any case.
func (b *builder) attach() error {
	for _, a := range b.opt.Attach {
		stream := strings.ToLower(a)
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, stream) {
			return hint("use stdin, stdout or stderr", "--attach %s: no such stream", a)
		}
		if b.opt.Detach {
			return conflict("-a and -d")
		}
		b.c.Attach = append(b.c.Attach, stream)
	}
	return nil
}

// terminal is docker's check that an interactive session has a terminal.
func (b *builder) terminal() error {
	if b.opt.TTY && b.opt.Interactive && !b.opt.Detach && !b.facts.StdinTTY {
		return hint("leave out -t, or run from a terminal", "the input device is not a TTY")
	}
	return nil
}

// choices checks the flags that take one word of a list.
func (b *builder) choices() error {
	list := []struct {
		flag, value string
		into        *string
		words       []string // the first is the default
	}{
		{"--pull", b.opt.Pull, &b.c.Pull, []string{"missing", "always", "never", "newer"}},
		{"--storage", b.opt.Storage, &b.c.Storage, []string{"auto", "overlay", "fuse", "copy"}},
		{"--writable", b.opt.Writable, &b.c.Writable, []string{"disk", "tmpfs", "none"}},
		{"--root-emulation", b.opt.RootEmulation, &b.c.RootEmulation, []string{"auto", "on", "off"}},
		{"--cgroups", b.opt.Cgroups, (*string)(&b.c.Cgroups), []string{"", "try", "enforce", "disabled"}},
		{"--log-level", b.opt.LogLevel, &b.c.LogLevel, []string{"", "debug", "info", "warn", "error"}},
	}
	for _, c := range list {
		*c.into = cmp.Or(c.value, c.words[0])
		if !slices.Contains(c.words, *c.into) {
			return fmt.Errorf("%s %s: must be one of %s", c.flag, c.value, strings.TrimPrefix(strings.Join(c.words, ", "), ", "))
		}
	}
	if err := b.writable(); err != nil {
		return err
	}
	if err := b.rootEmulation(); err != nil {
		return err
	}
	return b.platform()
}

// writable says what becomes of changes that are nowhere on disk.
func (b *builder) writable() error {
	if b.c.InMemory() && b.c.Storage == "copy" {
		return conflict("--writable=" + b.c.Writable + " and --storage=copy: a copy is on disk")
	}
	if b.c.Writable == "tmpfs" && !b.opt.Remove {
		b.notice("what the container changes is kept in memory and is gone when it stops")
	}
	return nil
}

// rootEmulation makes sense where root is the one id that there is.
func (b *builder) rootEmulation() error {
	one := func(m []specs.LinuxIDMapping) bool { return len(m) == 1 && m[0].Size == 1 && m[0].ContainerID == 0 }
	if b.c.RootEmulation == "off" {
		b.c.RootEmulation = ""
	}
	if one(b.facts.UIDMap) && one(b.facts.GIDMap) {
		return nil
	}
	if b.c.RootEmulation == "on" {
		return hint("leave out --root-emulation=on, or add --userns=single", "--root-emulation=on: root is not the only id of this container")
	}
	b.c.RootEmulation = ""
	return nil
}

func (b *builder) platform() error {
	p := b.opt.Platform
	if p == "" {
		return nil
	}
	parts := strings.Split(p, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.ContainsFunc(parts, func(s string) bool { return !nameLike(s) }) {
		return fmt.Errorf("--platform %s: must be os/arch or os/arch/variant", p)
	}
	if parts[0] != "linux" {
		return fmt.Errorf("--platform %s: only linux containers can run", p)
	}
	b.c.Platform = p
	return nil
}

// metadata collects labels and annotations.
func (b *builder) metadata() error {
	b.labels = map[string]string{}
	for _, name := range b.opt.LabelFiles {
		data, err := b.facts.Host.ReadFile(name)
		if err != nil {
			return fmt.Errorf("--label-file: %w", err)
		}
		lines, err := parseEnvFile(data)
		if err != nil {
			return fmt.Errorf("--label-file %s: %w", name, err)
		}
		for _, l := range lines {
			b.labels[l.key] = l.value
		}
	}
	for _, l := range b.opt.Labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return fmt.Errorf("--label %q: no name", l)
		}
		b.labels[k] = v
	}
	for _, a := range b.opt.Annotations {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return fmt.Errorf("--annotation %q: must be key=value", a)
		}
		if b.c.Spec.Annotations == nil {
			b.c.Spec.Annotations = map[string]string{}
		}
		b.c.Spec.Annotations[k] = v
	}
	return nil
}

// imageMetadata takes over what the image says where no flag did.
func (b *builder) imageMetadata() error {
	b.c.Labels = maps.Clone(b.facts.Image.Labels)
	if b.c.Labels == nil {
		b.c.Labels = map[string]string{}
	}
	maps.Copy(b.c.Labels, b.labels)
	if b.opt.StopSignal == "" && b.facts.Image.StopSignal != "" {
		sig, err := stopSignal(b.facts.Image.StopSignal)
		if err != nil {
			return fmt.Errorf("stop signal of the image: %w", err)
		}
		b.c.StopSignal = sig
	}
	return b.exposedPorts()
}

// imageVolumes makes an anonymous volume of each of the image's, unless
// something else is mounted there.
func (b *builder) imageVolumes() error {
	for _, target := range slices.Sorted(maps.Keys(b.facts.Image.Volumes)) {
		clean := path.Clean("/" + target)
		if clean == "/" {
			return fmt.Errorf("image volume %q: the root directory cannot be a volume", target)
		}
		if !slices.ContainsFunc(b.mounts, func(m userMount) bool { return m.mount.Destination == clean }) {
			b.mounts = append(b.mounts, volumeMount("", clean, nil, true))
		}
	}
	return nil
}

// nameLike is docker's rule for names: [a-zA-Z0-9][a-zA-Z0-9_.-]*.
func nameLike(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return s != ""
}
