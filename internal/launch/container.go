package launch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/fuseunion"
	"github.com/urun-dev/urun/internal/events"
	"github.com/urun-dev/urun/internal/handoff"
	"github.com/urun-dev/urun/internal/jsonlog"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/seccomp"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/unpacked"
	"github.com/urun-dev/urun/slirp"
	"github.com/urun-dev/urun/userns"
)

// Plan is a container that is to be made and started. What of it outlives the
// command is kept on disk between the two (saved.go).
type Plan struct {
	Exe       string // this binary
	StateRoot string // where containers and volumes are kept
	Container *spec.Container
	ImageID   string         // empty for a root directory
	Image     *monitor.Image // nil for a root directory
	Map       userns.Map
	// Passwd and Group are the image's files, for when a line is to be added.
	Passwd, Group []byte
	// Cgroup is the container's, if it was asked for before.
	Cgroup *PendingCgroup
	Debug  bool
	// Ranks: the container is one of ranks; nil else.
	Ranks *monitor.Ranks

	filter filter
	// emulation is the filter of the calls that the monitor answers.
	emulation seccomp.Program
}

// Terms are how a container is started this time.
type Terms struct {
	// Stdio are the command's standard files, or what stands for them.
	Stdio [3]*os.File
	// Attached: Stdio is where the container's output goes, and input comes from.
	Attached bool
	// Detach: the container outlives the command.
	Detach bool
	// Size of the command's terminal; nil if it has none.
	Size *monitor.Size
	// Preserve are the files of Container.PreserveFDs.
	Preserve []*os.File
}

// Run makes a container and starts it by the pending monitor. On an error
// nothing of the container is left.
func Run(p Plan, t Terms, pending *Pending) (*Session, error) {
	handle, err := Create(&p)
	if err != nil {
		pending.Cancel()
		return nil, errors.Join(err, p.Cgroup.Abandon())
	}
	// The monitor has the lock too and keeps it.
	defer handle.Close()
	session, err := p.start(handle, t, pending, false)
	if err != nil {
		return nil, errors.Join(err, monitor.Discard(handle, p.Exe))
	}
	return session, nil
}

// Start starts a container that is there and does not run. On an error it is
// as it was, or its record says what went wrong.
func Start(p Plan, handle *state.Handle, t Terms, pending *Pending) (*Session, error) {
	before := handle.Record
	err := handle.Begin()
	if err != nil {
		pending.Cancel()
		return nil, err
	}
	handle.Record.Remove = p.Container.Remove
	session, err := p.start(handle, t, pending, true)
	if err != nil {
		handle.Record = before
		handle.Error = err.Error()
		return nil, errors.Join(err, handle.Save())
	}
	return session, nil
}

// start has the monitor start a container whose lock is held.
func (p *Plan) start(handle *state.Handle, t Terms, pending *Pending, again bool) (session *Session, err error) {
	asked := false
	cgroup := p.cgroup(t, pending)
	defer func() {
		if !asked {
			pending.Cancel()
			err = errors.Join(err, cgroup.Abandon())
		}
	}()
	joins, err := p.joins()
	if err != nil {
		return nil, err
	}
	defer joins.close()
	req, err := p.request(handle)
	if err != nil {
		return nil, err
	}
	req.Detach, req.Attached, req.Size, req.Again = t.Detach, t.Attached, t.Size, again
	if p.Container.RootEmulation != "" {
		if p.emulation, err = seccomp.Emulation(); err != nil {
			return nil, err
		}
		req.Emulates = true
		req.Storage = p.emulatedStorage(handle)
	}
	init := p.initConfig(handle, req)
	if init.Unpacked != nil {
		if err := init.Unpacked.Prepare(); err != nil {
			return nil, err
		}
	}
	init.Join, init.SharedShm = joins.kinds, joins.shm != nil
	if req.Preserved = len(t.Preserve); req.Preserved > 0 {
		init.Preserve = p.Container.PreserveFDs
	}
	init.CgroupNS = p.Container.Namespaces.Cgroup.Mode == spec.Private
	if req.Init, err = json.Marshal(init); err != nil {
		return nil, fmt.Errorf("encode set-up: %w", err)
	}
	req.Joins, req.JoinPID, req.SharedShm = len(joins.kinds), joins.pid != nil, joins.shm != nil
	req.Cloneflags = joins.cloneflags(p.Container)
	files := append(t.Stdio[:], handle.File())
	leaf, err := cgroup.await(handle, req)
	if err != nil {
		return nil, err
	}
	if leaf != nil {
		defer leaf.Close()
		files = append(files, leaf)
	}
	files = append(files, joins.files...)
	for _, f := range []*os.File{joins.pid, joins.shm} {
		if f != nil {
			files = append(files, f)
		}
	}
	files = append(files, t.Preserve...)
	asked = true
	if session, err = pending.Run(*req, files); err != nil {
		// The monitor was killed, and its holder may have looked for cgroups before this one was there.
		return nil, errors.Join(err, cgroup.Abandon())
	}
	cgroup.tell(session)
	return session, nil
}

// cgroup is the one that was asked for when the command began, or asks now.
func (p *Plan) cgroup(t Terms, pending *Pending) *PendingCgroup {
	if p.Cgroup != nil {
		return p.Cgroup
	}
	c := p.Container
	return BeginCgroup(CgroupRequest{
		ID: c.ID, Name: c.Name, Mode: c.Cgroups, Parent: c.Spec.Linux.CgroupsPath, Detach: t.Detach, Resources: c.Spec.Linux.Resources,
	}, pending)
}

// Create makes the container on disk. The handle that it returns has its lock,
// its record says "creating". On an error nothing is left.
func Create(p *Plan) (*state.Handle, error) {
	c := p.Container
	st, err := state.Open(p.StateRoot)
	if err != nil {
		return nil, err
	}
	if p.filter, err = compileSeccomp(c); err != nil {
		return nil, err
	}
	net, err := slirpConfig(c.Network)
	if err != nil {
		return nil, err
	}
	files, err := p.etcFiles(net)
	if err != nil {
		return nil, err
	}
	rec := p.record()
	if rec.Networks, err = endpoints(c.Network, p.StateRoot); err != nil {
		return nil, err
	}
	if err := nameVolumes(c, p.StateRoot, &rec); err != nil {
		return nil, err
	}
	release, err := holdVolumes(c, p.StateRoot)
	if err != nil {
		return nil, err
	}
	defer release()
	// The container appears when all of it is there: whoever sees it may read it.
	handle, err := st.Create(rec, func(dir string) error {
		for _, sub := range []string{"upper", "work", "etc"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
				return err
			}
		}
		if err := errors.Join(makeVolumes(c, p.StateRoot, &rec), bindEtc(c, filepath.Join(dir, "etc"), files)); err != nil {
			return err
		}
		placeEtc(c, filepath.Join(st.Dir(rec.ID), "etc"))
		if c.Chroot {
			c.Spec.Mounts = nil // init copies the files of etc/
		}
		return errors.Join(state.SaveSpec(dir, c.Spec), p.save(dir))
	})
	if err != nil {
		return nil, errors.Join(err, removeAll(rec.Volumes))
	}
	// The log of events is never a reason to fail.
	_ = events.Append(p.StateRoot, events.OfContainer("create", events.Container{ID: rec.ID, Name: rec.Name, Image: rec.Image, Labels: rec.Labels}))
	return handle, nil
}

// request is what the monitor is asked for, but for the files that go with it.
func (p *Plan) request(handle *state.Handle) (*monitor.Request, error) {
	c := p.Container
	net, err := slirpConfig(c.Network)
	if err != nil {
		return nil, err
	}
	_, net.KeepTimeWait = c.Spec.Linux.Sysctl["net.ipv4.tcp_max_tw_buckets"]
	outside, err := handoff.UserNamespace()
	if err != nil {
		return nil, err
	}
	var shell state.Process
	if p.Ranks == nil { // else it ends with the last of them
		shell = JobShell()
	}
	return &monitor.Request{
		StateRoot: p.StateRoot,
		Job:       shell,
		Record:    handle.Record,
		Outside:   outside,
		Image:     p.Image,
		RootDir:   &monitor.Image{Dir: c.Rootfs, Serve: ServeOptions(p.Map)},
		// What has been written decides how it is to be read.
		Storage:   stage.Storage(cmp.Or(handle.Storage, c.Storage)),
		Volatile:  c.Remove || c.Volatile,
		Memory:    c.InMemory(),
		Plain:     c.Plain,
		Chroot:    c.Chroot,
		Debug:     p.Debug,
		Network:   networkKind(c.Network),
		Slirp:     net,
		Ranks:     p.Ranks,
		Bridge:    c.Network.Mode == "bridge",
		Hostnames: hostnames(c),
		Terminal:  c.TTY,
		OpenStdin: c.Interactive,
		Log:       monitor.Log{None: c.Log.Driver == "none", Options: jsonlog.Options{MaxSize: c.Log.MaxSize, MaxFiles: c.Log.MaxFiles, Attrs: c.Log.Details}},
		Health:    healthCheck(c.Health),
	}, nil
}

func healthCheck(h *spec.Health) *monitor.HealthCheck {
	if h == nil {
		return nil
	}
	return &monitor.HealthCheck{
		Command: h.Command(), Interval: h.Interval, Timeout: h.Timeout,
		StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
	}
}

// initConfig is what the container's init gets to know.
func (p *Plan) initConfig(handle *state.Handle, req *monitor.Request) stage.Config {
	c := p.Container
	return stage.Config{
		Dir:          handle.Dir(),
		LowerDir:     c.Rootfs,
		Storage:      req.Storage,
		Volatile:     c.Remove || c.Volatile,
		Memory:       c.InMemory(),
		Plain:        c.Plain,
		Unpacked:     p.Unpacked(),
		Outer:        p.Map.Outer,
		Chroot:       c.Chroot,
		NoPivot:      c.NoPivot,
		Spec:         c.Spec,
		Network:      req.Network,
		Slirp:        req.Slirp,
		Reap:         c.Init,
		Idle:         p.Ranks != nil,
		Root:         p.Map.Contains(0) && p.Map.ContainsGID(0),
		KeepGroups:   c.KeepGroups,
		Seccomp:      p.filter.Program,
		SeccompFlags: p.filter.Flags,

		Emulation:      p.emulation,
		EmulationAsked: c.RootEmulation == "on",
	}
}

// emulatedStorage is the storage of a container whose ids are emulated: only our own
// union remembers owners that are not mapped, wherever it can be had.
func (p *Plan) emulatedStorage(handle *state.Handle) stage.Storage {
	asked := stage.Storage(cmp.Or(handle.Storage, p.Container.Storage))
	if asked == stage.StorageAuto && !p.Container.Plain && unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) == nil {
		return stage.StorageFuse
	}
	return asked
}

// Unpacked is the image as plain files; nil where it is served, or there is none.
func (p *Plan) Unpacked() *unpacked.Image {
	if !p.Container.Plain || p.Image == nil {
		return nil
	}
	return &unpacked.Image{
		Tree: p.Image.Tree, Data: p.Image.Data, Serve: p.Image.Serve, Dir: unpacked.Dir(p.StateRoot, p.Image.Tree, p.Map.Key()),
	}
}

func removeAll(dirs []string) error {
	var errs []error
	for _, d := range dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

func networkKind(n spec.Network) stage.Network {
	switch n.Mode {
	case "slirp":
		if slirp.External(n.Slirp.Driver) {
			return stage.NetworkNone // until the driver's program comes
		}
		return stage.NetworkSlirp
	case "none", "bridge":
		// The interfaces of a bridge come from outside.
		return stage.NetworkNone
	}
	return stage.NetworkShared
}

func (p Plan) record() state.Record {
	c := p.Container
	return state.Record{
		ID: c.ID, Name: c.Name, Image: c.Image, ImageID: p.ImageID,
		Created: time.Now(), Status: state.Creating,
		Remove: c.Remove, Labels: c.Labels, Command: c.Spec.Process.Args,
		Restart:    state.Restart{Policy: c.Restart.Policy, Retries: c.Restart.Retries},
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout,
		UIDs: Mappings(p.Map.UIDs), GIDs: Mappings(p.Map.GIDs), NoUserNS: p.Map.Outer, Chroot: c.Chroot,
	}
}

// mappings are the id map as an OCI spec has it.
func Mappings(ranges []userns.Range) []specs.LinuxIDMapping {
	all := make([]specs.LinuxIDMapping, len(ranges))
	for i, r := range ranges {
		all[i] = specs.LinuxIDMapping{ContainerID: r.Container, HostID: r.Host, Size: r.Size}
	}
	return all
}

// RecordMap is the id map of a container's user namespace.
func RecordMap(rec *state.Record) userns.Map { return monitor.IDMap(rec) }

// ServeOptions are how an image's ids show in a namespace with the map m: as
// they are where they exist, and as root's where they do not.
func ServeOptions(m userns.Map) fuseunion.ServeOptions {
	o := fuseunion.ServeOptions{UIDs: idRanges(m.UIDs), GIDs: idRanges(m.GIDs)}
	if !m.Contains(0) && len(m.UIDs) > 0 {
		o.SquashUID = m.UIDs[0].Container
	}
	if !m.ContainsGID(0) && len(m.GIDs) > 0 {
		o.SquashGID = m.GIDs[0].Container
	}
	return o
}

func idRanges(ranges []userns.Range) []fuseunion.IDRange {
	all := make([]fuseunion.IDRange, len(ranges))
	for i, r := range ranges {
		all[i] = fuseunion.IDRange{First: r.Container, Count: r.Size}
	}
	return all
}

// filter is a compiled seccomp filter.
type filter struct {
	Program seccomp.Program
	Flags   uint
}

// compileSeccomp makes the container's filter.
func compileSeccomp(c *spec.Container) (filter, error) {
	if c.SeccompUnconfined {
		return filter{}, nil
	}
	profile := seccomp.Default()
	if c.SeccompProfile != "" {
		f, err := os.Open(c.SeccompProfile)
		if err != nil {
			return filter{}, fmt.Errorf("seccomp profile: %w", err)
		}
		defer f.Close()
		if profile, err = seccomp.Load(f); err != nil {
			return filter{}, fmt.Errorf("seccomp profile %s: %w", c.SeccompProfile, err)
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return filter{}, fmt.Errorf("uname: %w", err)
	}
	host := seccomp.Host{Arch: runtime.GOARCH, Kernel: unix.ByteSliceToString(uts.Release[:])}
	var caps []string
	if c.Spec.Process.Capabilities != nil {
		caps = c.Spec.Process.Capabilities.Bounding
	}
	rules, err := seccomp.Resolve(profile, caps, host)
	if err != nil {
		return filter{}, fmt.Errorf("seccomp profile: %w", err)
	}
	prog, flags, err := seccomp.Compile(rules)
	if err != nil {
		return filter{}, fmt.Errorf("seccomp profile: %w", err)
	}
	return filter{prog, flags}, nil
}
