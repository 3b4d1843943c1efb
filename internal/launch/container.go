package launch

import (
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
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/seccomp"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/stage"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/userns"
)

// Plan is a container that is to be started.
type Plan struct {
	Exe       string // this binary
	StateRoot string // where containers and volumes are kept
	Container *spec.Container
	ImageID   string         // empty for a root directory
	Image     *monitor.Image // nil for a root directory
	Map       userns.Map
	// Passwd and Group are the image's files, for when a line is to be added.
	Passwd, Group []byte
	// Stdio are the container's standard files; a detached container or one
	// with a terminal has none of the command's.
	Stdio [3]*os.File
	Debug bool
}

// Start makes the container and starts it by the pending monitor. On an error
// nothing of the container is left.
func Start(p Plan, pending *Pending) (*Session, error) {
	asked := false
	defer func() {
		if !asked {
			pending.Cancel()
		}
	}()
	filter, err := compileSeccomp(p.Container)
	if err != nil {
		return nil, err
	}
	joins, err := p.joins()
	if err != nil {
		return nil, err
	}
	defer joins.close()
	handle, req, err := p.create()
	if err != nil {
		return nil, err
	}
	// The monitor has the lock too and keeps it.
	defer handle.Close()
	init := p.initConfig(handle, req)
	init.Seccomp, init.SeccompFlags = filter.program, filter.flags
	init.Join, init.SharedShm = joins.kinds, joins.shm != nil
	if req.Init, err = json.Marshal(init); err != nil {
		return nil, errors.Join(fmt.Errorf("encode set-up: %w", err), monitor.Discard(handle, p.Exe))
	}
	req.Joins, req.JoinPID, req.SharedShm = len(joins.kinds), joins.pid != nil, joins.shm != nil
	req.Cloneflags = joins.cloneflags(p.Container)
	files := append(p.Stdio[:], handle.File())
	scope, err := p.limit(pending, handle)
	if err != nil {
		return nil, errors.Join(err, monitor.Discard(handle, p.Exe))
	}
	if scope != nil {
		defer scope.Close()
		req.HasCgroup = true
		req.Record.Cgroup = handle.Cgroup
		files = append(files, scope)
	}
	files = append(files, joins.files...)
	for _, f := range []*os.File{joins.pid, joins.shm} {
		if f != nil {
			files = append(files, f)
		}
	}
	asked = true
	session, err := pending.Run(*req, files)
	if err != nil {
		return nil, errors.Join(err, monitor.Discard(handle, p.Exe))
	}
	return session, nil
}

// create makes the container on disk and the request to its monitor.
func (p Plan) create() (*state.Handle, *monitor.Request, error) {
	c := p.Container
	st, err := state.Open(p.StateRoot)
	if err != nil {
		return nil, nil, err
	}
	net, err := slirpConfig(c.Network)
	if err != nil {
		return nil, nil, err
	}
	files, err := p.etcFiles(net)
	if err != nil {
		return nil, nil, err
	}
	rec := p.record()
	if rec.Volumes, err = nameVolumes(c, p.StateRoot); err != nil {
		return nil, nil, err
	}
	handle, err := st.Create(rec, func(dir string) error {
		for _, sub := range []string{"upper", "work", "etc"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
				return err
			}
		}
		return errors.Join(makeVolumes(c), bindEtc(c, filepath.Join(dir, "etc"), files))
	})
	if err != nil {
		return nil, nil, errors.Join(err, removeAll(rec.Volumes))
	}
	placeEtc(c, filepath.Join(handle.Dir(), "etc"))
	if err := state.SaveSpec(handle.Dir(), c.Spec); err != nil {
		return nil, nil, errors.Join(err, monitor.Discard(handle, p.Exe))
	}
	req := &monitor.Request{
		StateRoot: p.StateRoot,
		Record:    handle.Record,
		Image:     p.Image,
		Detach:    c.Detach,
		Debug:     p.Debug,
		Network:   networkKind(c.Network),
		Slirp:     net,
	}
	return handle, req, nil
}

// initConfig is what the container's init gets to know.
func (p Plan) initConfig(handle *state.Handle, req *monitor.Request) stage.Config {
	c := p.Container
	return stage.Config{
		Dir:        handle.Dir(),
		LowerDir:   c.Rootfs,
		Volatile:   c.Remove || c.Volatile,
		Spec:       c.Spec,
		Network:    req.Network,
		Slirp:      req.Slirp,
		Reap:       c.Init,
		Root:       p.Map.Contains(0) && p.Map.ContainsGID(0),
		KeepGroups: c.KeepGroups,
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
		return stage.NetworkSlirp
	case "none":
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
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout,
		UIDs: Mappings(p.Map.UIDs), GIDs: Mappings(p.Map.GIDs),
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
func RecordMap(rec *state.Record) userns.Map { return monitor.IDMap(rec.UIDs, rec.GIDs) }

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

type filter struct {
	program seccomp.Program
	flags   uint
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
