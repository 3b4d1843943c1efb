package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/capability"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// RunCmd is urun run.
type RunCmd struct {
	AttachFlags
	RunFlags
}

// AttachFlags say whether the command stays with what it starts.
type AttachFlags struct {
	Detach     bool   `short:"d" group:"Process" help:"Leave the container running and print its id."`
	SigProxy   bool   `name:"sig-proxy" default:"true" negatable:"" group:"Process" help:"Pass signals on to the command."`
	DetachKeys string `default:"ctrl-p,ctrl-q" placeholder:"KEYS" group:"Process" help:"Keys that leave a container with a terminal running."`
}

// options are the flags in package spec's form.
func (r *RunCmd) options() (spec.Options, error) {
	o, err := r.RunFlags.options()
	o.Detach, o.SigProxy = r.Detach, &r.SigProxy
	return o, err
}

// Run runs a container. Its failures have docker's exit statuses: 125 for
// urun's own, 126 and 127 for a command that can not be executed or found, and
// the command's own else.
func (r *RunCmd) Run(app *App) error {
	return runtimeFailure(r.run(app))
}

// runtimeFailure gives errors that call for no other status that of urun's own.
func runtimeFailure(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return err
	}
	return &runtimeError{err}
}

// runtimeError is a failure of urun itself.
type runtimeError struct{ err error }

func (e *runtimeError) Error() string { return e.err.Error() }
func (e *runtimeError) Unwrap() error { return e.err }
func (e *runtimeError) ExitCode() int { return exitRuntime }

func (r *RunCmd) run(app *App) error {
	keys, err := parseDetachKeys(r.DetachKeys)
	if err != nil {
		return err
	}
	opts, err := r.options()
	if err != nil {
		return err
	}
	p, err := app.prepare(&r.RunFlags, opts, true)
	if err != nil {
		return err
	}
	defer p.done()
	c := p.plan.Container
	io, err := newStreams(wanted{none: c.Detach, stdin: c.Interactive, tty: c.TTY, sigProxy: c.SigProxy, keys: keys})
	if err != nil {
		return err
	}
	defer io.close()
	if err := writeCIDFile(c); err != nil {
		return err
	}
	terms := launch.Terms{Stdio: io.files, Attached: !c.Detach, Detach: c.Detach, Size: io.size()}
	if terms.Preserve, err = preserved(c.PreserveFDs); err != nil {
		return err
	}
	defer closeAll(terms.Preserve)
	session, err := launch.Run(p.plan, terms, p.take())
	if err != nil {
		return errors.Join(err, removeCIDFile(c))
	}
	app.Log.Debug("cgroup", "took", session.Cgroup.Took, "waited", session.Cgroup.Waited)
	io.donated()
	if c.Detach {
		return detached(app, c, session)
	}
	err = io.attach(app, session, func() { app.notifyReady(); notices(app, c, session) })
	if p.image != nil {
		app.damageNotes(p.image) // why reading has failed in it
	}
	return err
}

// prepared is a container that can be made.
type prepared struct {
	plan    launch.Plan
	pending *launch.Pending       // its monitor, until somebody takes it
	cgroup  *launch.PendingCgroup // likewise
	image   *image.Image          // nil for a root directory
	release func()                // of the image
}

// take gives the monitor to who starts the container.
func (p *prepared) take() *launch.Pending {
	taken := p.pending
	p.pending = nil
	return taken
}

func (p *prepared) done() {
	if p.pending != nil {
		p.pending.Cancel()
		// systemd removes what the monitor was in, if this does not.
		_ = p.cgroup.Abandon()
	}
	p.release()
}

// prepare does what making a container takes: it checks the flags, gets the
// image, and makes sure of the name. If the container is to be started it has
// its monitor started meanwhile.
func (a *App) prepare(flags *RunFlags, opts spec.Options, start bool) (_ *prepared, err error) {
	if opts.LogLevel != "" {
		if err := a.logAt(opts.LogLevel); err != nil {
			return nil, err
		}
	}
	if err := a.manners(&flags.HPCFlags, &opts); err != nil {
		return nil, err
	}
	p := &prepared{release: func() {}}
	limits, err := spec.ParseResources(opts.Resources, runtime.NumCPU(), spec.System{})
	if err != nil {
		return nil, err
	}
	m, begin, err := a.begin(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.done()
		}
	}()
	id := state.NewID()
	if start {
		p.pending = begin()
		p.cgroup = launch.BeginCgroup(launch.CgroupRequest{
			ID: id, Name: opts.Name, Mode: spec.CgroupMode(opts.Cgroups), Parent: opts.Resources.CgroupParent, Detach: opts.Detach, Resources: limits,
		}, p.pending)
	}
	a.Log.Debug("user namespace", "map", m.String(), "note", m.Note)
	st, err := a.Containers()
	if err != nil {
		return nil, err
	}
	rungs, err := a.rungs(m, flags.Without)
	if err != nil {
		return nil, err
	}
	// Nobody should wait for a pull to be told of a mistyped flag. A file of
	// labels may be a pipe, which Build alone gets to read.
	if len(opts.LabelFiles) == 0 {
		if err := spec.Check(opts, (&rootSource{name: flags.image(), container: id, rungs: rungs}).facts(opts, m)); err != nil {
			return nil, err
		}
	}
	src, err := a.source(flags.image(), opts, m, !flags.TLSVerify)
	if err != nil {
		return nil, err
	}
	p.release, p.image, src.rungs, src.container = src.release, src.config, rungs, id
	c, err := spec.Build(opts, src.facts(opts, m))
	if err != nil {
		return nil, err
	}
	c.CreateCommand = append([]string{"urun"}, os.Args[1:]...)
	c.CreateDir = workingDirectory()
	p.plan = launch.Plan{
		Exe: executable(), StateRoot: a.stateRoot(), Container: c,
		ImageID: src.id, Image: src.image, Passwd: src.passwd, Group: src.group, Map: m, Debug: a.Debug, Cgroup: p.cgroup,
	}
	return p, prepareName(a, st, c)
}

// begin plans the container's user namespace, and how its monitor is started in
// it: in a new one, or that of the container whose namespaces are shared.
func (a *App) begin(opts spec.Options) (userns.Map, func() *launch.Pending, error) {
	user, err := spec.ParseUserNS(opts.UserNS)
	if err != nil {
		return userns.Map{}, nil, err
	}
	beside := sharedContainer(opts, user)
	if beside == "" {
		m, err := planUser(user)
		if err != nil {
			return userns.Map{}, nil, err
		}
		stderr := os.Stderr
		if opts.Detach {
			stderr = nil
		}
		if spec.OnNetworks(opts.Network) {
			return m, func() *launch.Pending { return launch.BeginOnNetworks(a.holder(m), stderr) }, nil
		}
		return m, func() *launch.Pending { return launch.Begin(a.holder(m), stderr) }, nil
	}
	if opts.UserNS != "" && user.Container == "" {
		return userns.Map{}, nil, errors.New("--userns: a container that shares namespaces with another shares its user namespace")
	}
	st, err := a.Containers()
	if err != nil {
		return userns.Map{}, nil, err
	}
	rec, err := st.Find(beside)
	if err != nil {
		return userns.Map{}, nil, err
	}
	if rec.Status != state.Running {
		return userns.Map{}, nil, fmt.Errorf("%w: %s", errNotRunning, rec.Name)
	}
	return launch.RecordMap(rec), func() *launch.Pending { return launch.BeginBeside(st.Dir(rec.ID)) }, nil
}

// sharedContainer is the first container that the flags name as the owner of
// a namespace.
func sharedContainer(opts spec.Options, user spec.UserNS) string {
	if user.Container != "" {
		return user.Container
	}
	for _, v := range []string{opts.Network, opts.PID, opts.IPC, opts.UTS} {
		if name, ok := strings.CutPrefix(v, "container:"); ok {
			return name
		}
	}
	return ""
}

// planUser plans the id map for --userns.
func planUser(u spec.UserNS) (userns.Map, error) {
	req := userns.Request{Mode: u.Mode, UID: u.UID, GID: u.GID}
	for _, r := range u.UIDs {
		req.UIDs = append(req.UIDs, userns.Range{Container: r.ContainerID, Host: r.HostID, Size: r.Size})
	}
	for _, r := range u.GIDs {
		req.GIDs = append(req.GIDs, userns.Range{Container: r.ContainerID, Host: r.HostID, Size: r.Size})
	}
	return userns.Plan(req, userns.Current())
}

// detached prints the container's id once its command runs.
func detached(app *App, c *spec.Container, session *launch.Session) error {
	exited, err := session.AwaitStart()
	if err != nil {
		return err
	}
	if exited == nil {
		notices(app, c, session)
	}
	fmt.Fprintln(app.Stdout, c.ID)
	return session.Leave()
}

func notices(app *App, c *spec.Container, session *launch.Session) {
	if c.Quiet {
		return
	}
	for _, n := range slices.Concat(session.Warnings, c.Notices, session.Started.Notices) {
		fmt.Fprintf(app.Stderr, "urun: %s\n", n)
	}
}

// rootSource is what a container's root is made of.
type rootSource struct {
	container     string // the container's id
	id            string
	image         *monitor.Image
	config        *image.Image
	health        *spec.Health
	passwd, group []byte
	name          string
	rungs         spec.Rungs
	release       func()
}

// source gets the image, or looks at the root directory.
func (a *App) source(name string, opts spec.Options, m userns.Map, insecure bool) (*rootSource, error) {
	s := &rootSource{release: func() {}, name: name}
	if opts.Rootfs != "" {
		return s, s.directory(opts.Rootfs, a.stateRoot())
	}
	store, err := a.Store()
	if err != nil {
		return nil, err
	}
	img, err := a.holdImage(store, name, opts, insecure, s)
	if err != nil {
		return nil, err
	}
	s.id, s.config = img.ID.String(), img
	if s.health, err = spec.ParseImageHealth(img.RawConfig); err != nil {
		return nil, err
	}
	s.image = &monitor.Image{ID: s.id, Tree: img.Tree, Serve: launch.ServeOptions(m)}
	for _, l := range img.Layers {
		s.image.Data = append(s.image.Data, l.Data)
	}
	return s, s.accounts(a, store, img)
}

// holdImage gets the image and keeps others from removing it. Between the two
// it may be gone: then it is gotten again.
func (a *App) holdImage(store *image.Store, name string, opts spec.Options, insecure bool, s *rootSource) (*image.Image, error) {
	for range 3 {
		img, err := a.getImage(store, name, opts, insecure)
		if err != nil {
			return nil, err
		}
		s.release, err = store.Hold(img)
		if err == nil {
			return img, nil
		}
		s.release = func() {}
		if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("image %s: removed by another process again and again", name)
}

// getImage finds the image, pulling it as --pull says.
func (a *App) getImage(store *image.Store, name string, opts spec.Options, insecure bool) (*image.Image, error) {
	ctx, stop := interruptible()
	defer stop()
	show := newProgress(a, opts.Quiet, false)
	opt := image.PullOptions{Platform: opts.Platform, Policy: image.PolicyMissing, Insecure: insecure, Progress: show.event}
	switch opts.Pull {
	case "", "missing":
	case "newer":
		// As always, but what is here will do where the source can not be asked.
		opt.Policy = image.PolicyAlways
	default:
		opt.Policy = image.Policy(opts.Pull)
	}
	img, err := store.Pull(ctx, name, opt)
	show.end()
	if err != nil && opts.Pull == "newer" && ctx.Err() == nil {
		if old, rerr := store.Resolve(name); rerr == nil {
			return old, nil
		}
	}
	return img, interrupted(ctx, err)
}

// accounts reads the image's users and groups. It is here that a damaged tree is
// found, and made again.
func (s *rootSource) accounts(a *App, store *image.Store, img *image.Image) error {
	ctx, stop := interruptible()
	defer stop()
	tree, mended, err := store.OpenTree(ctx, img)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer tree.Close()
	if mended != "" {
		fmt.Fprintf(a.Stderr, "urun: %s\n", mended)
	}
	for name, into := range map[string]*[]byte{"etc/passwd": &s.passwd, "etc/group": &s.group} {
		raw, err := tree.ReadFile(name, maxAccounts)
		if errors.Is(err, fuseunion.ErrDamaged) {
			return &hintError{fmt.Errorf("image: read /%s: %w", name, err), "urun image verify --repair " + img.ShortID() + ", and pull the image again"}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("image: read /%s: %w", name, err)
		}
		*into = raw
	}
	return nil
}

// maxAccounts bounds an image's passwd and group files, in bytes.
const maxAccounts = 16 << 20

// directory reads the users and groups of a root directory.
func (s *rootSource) directory(dir, stateRoot string) error {
	if within(stateRoot, dir) {
		return &hintError{
			fmt.Errorf("--rootfs %s: the store %s lies in it", dir, stateRoot),
			"overlayfs can not write below what it reads: choose another store with --root",
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("--rootfs: %w", err)
	}
	defer root.Close()
	s.name = dir
	for name, into := range map[string]*[]byte{"etc/passwd": &s.passwd, "etc/group": &s.group} {
		raw, err := root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--rootfs: %w", err)
		}
		*into = raw
	}
	return nil
}

// within tells whether path is dir or lies below it, symlinks resolved.
func within(path, dir string) bool {
	resolve := func(p string) string {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return real
		}
		return filepath.Clean(p)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(resolve(abs), resolve(path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (s *rootSource) facts(opts spec.Options, m userns.Map) spec.Facts {
	me := userns.Current()
	f := spec.Facts{
		ContainerID: s.container,
		ImageName:   s.name,
		Passwd:      s.passwd, Group: s.group,
		UID: me.UID, GID: me.GID, UserName: me.Name,
		HomeDir:    os.Getenv("HOME"),
		Cwd:        workingDirectory(),
		Files:      passed,
		HaveSubIDs: !m.Single(),
		StdinTTY:   isTerminal(os.Stdin),
		NumCPU:     runtime.NumCPU(),
		CgroupV2:   unifiedCgroups(),
		Rungs:      s.rungs,
		Host:       spec.System{},
	}
	if last, err := capability.LastCap(); err == nil {
		f.LastCap = int(last)
	}
	f.UIDMap, f.GIDMap = launch.Mappings(m.UIDs), launch.Mappings(m.GIDs)
	if s.config != nil {
		f.Image, f.ImageHealth = s.config.Config.Config, s.health
	}
	if name, err := os.Hostname(); err == nil {
		f.HostHostname = name
	}
	return f
}

// workingDirectory is "" where it has been removed, which matters to few.
func workingDirectory() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
}

// unifiedCgroups tells whether a cgroup namespace shows something: whether
// there is a cgroup v2 hierarchy (cgroups(7)).
func unifiedCgroups() bool {
	raw, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && strings.Contains("\n"+string(raw), "\n0::")
}

// prepareName gives the container a name, or makes room for the one it shall have.
func prepareName(app *App, st *state.Store, c *spec.Container) error {
	if c.Name == "" {
		c.Name = randomName(c.ID)
		return nil
	}
	if err := state.CheckName(c.Name); err != nil {
		return err
	}
	if !c.Replace {
		return nil
	}
	rec, err := st.Find(c.Name)
	if errors.Is(err, state.ErrNotFound) || err == nil && rec.Name != c.Name {
		return nil
	}
	if err != nil {
		return err
	}
	return app.removeContainer(st, rec.ID, true, true)
}

// removeCIDFile undoes writeCIDFile for a container that does not start.
func removeCIDFile(c *spec.Container) error {
	if c.CIDFile == "" {
		return nil
	}
	return os.Remove(c.CIDFile)
}

// writeCIDFile writes --cidfile; one that exists may be that of another container.
func writeCIDFile(c *spec.Container) error {
	if c.CIDFile == "" {
		return nil
	}
	f, err := os.OpenFile(c.CIDFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	_, err = f.WriteString(c.ID)
	return errors.Join(err, f.Close())
}

// randomName is an adjective and a tree, from the container's id.
func randomName(id string) string {
	adjectives := strings.Fields("able bold brave bright calm clear cool eager early fair fast fine firm free fresh glad good grand happy keen kind light lively lucky merry mild neat nice noble open patient plain proud quick quiet ready rich sharp silent smart soft solid steady sunny swift tidy true warm wise witty young")
	trees := strings.Fields("acacia alder almond apple ash aspen bamboo baobab beech birch box cacao cedar cherry chestnut cypress date ebony elder elm fig fir ginkgo hazel holly hornbeam juniper kapok larch laurel lemon lime linden mango maple mulberry myrtle oak olive osier palm peach pear pine plane plum poplar quince rowan spruce sumac tamarind teak walnut willow yew")
	var a, b int
	if len(id) >= 12 {
		fmt.Sscanf(id[:12], "%6x%6x", &a, &b)
	}
	return fmt.Sprintf("%s_%s_%s", adjectives[a%len(adjectives)], trees[b%len(trees)], id[12:16])
}

func writable(dir string) bool {
	for {
		err := accessWrite(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return err == nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}
