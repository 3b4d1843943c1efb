package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/urun-dev/urun/internal/image"
	"github.com/urun-dev/urun/internal/ladder"
	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

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
	outer, err := ladder.WithoutUserNS(flags.Without)
	if err != nil {
		return nil, err
	}
	m, begin, err := a.begin(opts, outer)
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
// it: in a new one, or that of the container whose namespaces are shared; with outer, in none.
func (a *App) begin(opts spec.Options, outer bool) (userns.Map, func() *launch.Pending, error) {
	user, err := spec.ParseUserNS(opts.UserNS)
	if err != nil {
		return userns.Map{}, nil, err
	}
	beside := sharedContainer(opts, user)
	if beside == "" {
		m, err := planUser(user, outer)
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

// planUser plans the id map for --userns; with outer, for no user namespace.
func planUser(u spec.UserNS, outer bool) (userns.Map, error) {
	if outer && u.Mode != "auto" && u.Mode != "host" {
		return userns.Map{}, cmp.Or(userns.Refused(), error(&hintError{
			fmt.Errorf("--userns %s: there is to be no user namespace", u.Mode), "leave out --without userns",
		}))
	}
	if outer {
		return userns.Outer()
	}
	req := userns.Request{Mode: u.Mode, UID: u.UID, GID: u.GID}
	for _, r := range u.UIDs {
		req.UIDs = append(req.UIDs, userns.Range{Container: r.ContainerID, Host: r.HostID, Size: r.Size})
	}
	for _, r := range u.GIDs {
		req.GIDs = append(req.GIDs, userns.Range{Container: r.ContainerID, Host: r.HostID, Size: r.Size})
	}
	return userns.Plan(req, userns.Current())
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
