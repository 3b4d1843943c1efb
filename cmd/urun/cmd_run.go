package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
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
	RunFlags
}

// Run runs a container. Its failures have docker's exit statuses: 125 for
// urun's own, 126 and 127 for a command that can not be executed or found, and
// the command's own else.
func (r *RunCmd) Run(app *App) error {
	err := r.run(app)
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

func (r *RunCmd) run(app *App) (err error) {
	opts, err := r.options()
	if err != nil {
		return err
	}
	if opts.LogLevel != "" {
		if err := app.logAt(opts.LogLevel); err != nil {
			return err
		}
	}
	if opts.Storage == "fuse" {
		return errors.New("--storage=fuse: this version has the overlay layer only")
	}
	m, pending, err := app.begin(opts)
	if err != nil {
		return err
	}
	app.Log.Debug("user namespace", "map", m.String(), "note", m.Note)
	started := false
	defer func() {
		if !started {
			pending.Cancel()
		}
	}()
	st, err := app.Containers()
	if err != nil {
		return err
	}
	// Nobody should wait for a pull to be told of a mistyped flag. A file of
	// labels may be a pipe, which Build alone gets to read.
	if len(opts.LabelFiles) == 0 {
		if err := spec.Check(opts, (&rootSource{name: r.image()}).facts(opts, m)); err != nil {
			return err
		}
	}
	src, err := app.source(r.image(), opts, m, !r.TLSVerify)
	if err != nil {
		return err
	}
	defer src.release()
	c, err := spec.Build(opts, src.facts(opts, m))
	if err != nil {
		return err
	}
	if err := prepareName(app, st, c); err != nil {
		return err
	}
	io, err := newStreams(c)
	if err != nil {
		return err
	}
	defer io.close()
	if err := writeCIDFile(c); err != nil {
		return err
	}
	started = true
	session, err := launch.Start(launch.Plan{
		Exe: executable(), StateRoot: app.stateRoot(), Container: c,
		ImageID: src.id, Image: src.image, Passwd: src.passwd, Group: src.group, Map: m, Stdio: io.files, Debug: app.Debug,
	}, pending)
	if err != nil {
		return errors.Join(err, removeCIDFile(c))
	}
	io.donated()
	if c.Detach {
		return detached(app, c, session)
	}
	return io.attach(app, c, session)
}

// begin starts the container's monitor in a user namespace: a new one, or that
// of the container whose namespaces are shared.
func (a *App) begin(opts spec.Options) (userns.Map, *launch.Pending, error) {
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
		return m, launch.Begin(executable(), m, stderr), nil
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
	return launch.RecordMap(rec), launch.BeginBeside(st.Dir(rec.ID)), nil
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
	for _, n := range session.Started.Notices {
		fmt.Fprintf(app.Stderr, "urun: %s\n", n)
	}
}

// rootSource is what a container's root is made of.
type rootSource struct {
	id            string
	image         *monitor.Image
	config        *image.Image
	passwd, group []byte
	name          string
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
	s.image = &monitor.Image{Tree: img.Tree, Serve: launch.ServeOptions(m)}
	for _, l := range img.Layers {
		s.image.Data = append(s.image.Data, l.Data)
	}
	return s, s.accounts()
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

// accounts reads the image's users and groups.
func (s *rootSource) accounts() error {
	tree, err := fuseunion.OpenTree(s.image.Tree, s.image.Data)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer tree.Close()
	for name, into := range map[string]*[]byte{"etc/passwd": &s.passwd, "etc/group": &s.group} {
		raw, err := tree.ReadFile(name, maxAccounts)
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
		ContainerID: state.NewID(),
		ImageName:   s.name,
		Passwd:      s.passwd, Group: s.group,
		UID: me.UID, GID: me.GID, UserName: me.Name,
		HomeDir:    os.Getenv("HOME"),
		HaveSubIDs: !m.Single(),
		StdinTTY:   isTerminal(os.Stdin),
		NumCPU:     runtime.NumCPU(),
		CgroupV2:   unifiedCgroups(),
		Host:       spec.System{},
	}
	if last, err := capability.LastCap(); err == nil {
		f.LastCap = int(last)
	}
	f.UIDMap, f.GIDMap = launch.Mappings(m.UIDs), launch.Mappings(m.GIDs)
	if s.config != nil {
		f.Image = s.config.Config.Config
	}
	if name, err := os.Hostname(); err == nil {
		f.HostHostname = name
	}
	return f
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
	return removeContainer(st, rec.ID, true)
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
