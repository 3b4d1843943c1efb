package main

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/signal"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/launch"
	"github.com/urun-dev/urun/internal/monitor"
	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/internal/volume"
)

// inspectedContainer is a container as docker inspect shows it, under docker's
// names. Behind these comes what urun knows beyond: the record and the OCI spec.
type inspectedContainer struct {
	ID              string `json:"Id"`
	Created         time.Time
	Path            string
	Args            []string
	State           inspectedState
	Image           string // the image's id
	ImageName       string
	ResolvConfPath  string
	HostnamePath    string
	HostsPath       string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	HostConfig      inspectedHostConfig
	GraphDriver     inspectedDriver
	SizeRw          *int64 `json:",omitempty"`
	SizeRootFs      *int64 `json:",omitempty"`
	Mounts          []mountPoint
	Config          inspectedConfig
	NetworkSettings inspectedNetwork

	record `json:"-"`
	Spec   *specs.Spec
}

// record gives templates the fields of the container's record by their own
// names: Status, ExitCode, Init.PID.
type record = state.Record

// Id is the id by docker's name in templates.
func (c *inspectedContainer) Id() string { return c.ID } //nolint:revive // docker's name

type inspectedState struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
	CgroupPath string        `json:",omitempty"`
	Health     *state.Health `json:",omitempty"`
}

type inspectedDriver struct {
	Name string
	Data map[string]string
}

// mountPoint is one of Mounts.
type mountPoint struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

type inspectedConfig struct {
	Hostname     string
	Domainname   string
	User         string
	Tty          bool
	OpenStdin    bool
	Env          []string
	Cmd          []string
	Image        string
	WorkingDir   string
	Entrypoint   []string
	Labels       map[string]string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	StopSignal   string
	StopTimeout  int // seconds

	Healthcheck   *inspectedCheck `json:",omitempty"`
	CreateCommand []string        `json:",omitempty"`
}

// inspectedCheck is a health check; times in nanoseconds, as docker has them.
type inspectedCheck struct {
	Test                                          []string
	Interval, Timeout, StartPeriod, StartInterval time.Duration
	Retries                                       int
}

type portBinding struct{ HostIp, HostPort string } //nolint:revive // docker's name

type inspectedNetwork struct {
	SandboxKey string
	// Driver is what carries TCP, with the reason where it is not the best; empty before the first packet.
	Driver     string
	Ports      map[string][]portBinding
	Networks   map[string]inspectedEndpoint
	IPAddress  string
	Gateway    string
	MacAddress string
}

type inspectedEndpoint struct {
	NetworkID   string
	IPAddress   string
	Gateway     string
	IPPrefixLen int
	Aliases     []string

	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
}

// inspectContainer gathers what is known of a container.
func inspectContainer(st *state.Store, rec *state.Record) (*inspectedContainer, error) {
	s, err := st.Spec(rec.ID)
	if err != nil {
		return nil, err
	}
	dir := st.Dir(rec.ID)
	c := &inspectedContainer{
		ID: rec.ID, Created: rec.Created, Name: rec.Name,
		Image: rec.ImageID, ImageName: rec.Image,
		Driver: "fuseunion", Platform: "linux",
		ResolvConfPath: filepath.Join(dir, "etc", "resolv.conf"),
		HostnamePath:   filepath.Join(dir, "etc", "hostname"),
		HostsPath:      filepath.Join(dir, "etc", "hosts"),
		LogPath:        existing(filepath.Join(dir, monitor.LogFile)),
		GraphDriver:    inspectedDriver{Name: "fuseunion", Data: map[string]string{"UpperDir": filepath.Join(dir, "upper"), "WorkDir": filepath.Join(dir, "work"), "Storage": rec.Storage}},
		State:          stateOf(rec),
		RestartCount:   rec.Restart.Count,
		Mounts:         userMounts(rec, s, st),
		record:         *rec, Spec: s,
	}
	if len(rec.Command) > 0 {
		c.Path, c.Args = rec.Command[0], rec.Command[1:]
	}
	c.Config = configOf(rec, s)
	c.HostConfig = hostConfigOf(rec, s)
	c.NetworkSettings = networkOf(rec, s)
	// One of an older version has no plan: it is shown without.
	if p, err := launch.Load(st, rec, "", "", false); err == nil {
		c.planned(p.Container)
	}
	return c, nil
}

// planned adds what only the plan tells.
func (c *inspectedContainer) planned(p *spec.Container) {
	c.Config.OpenStdin, c.Config.CreateCommand = p.Interactive, p.CreateCommand
	if h := p.Health; h != nil {
		c.Config.Healthcheck = &inspectedCheck{h.Test, h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, h.Retries}
	}
	h := &c.HostConfig
	h.Privileged, h.Init = p.Privileged, p.Init
	if len(p.CDIDevices) > 0 {
		h.DeviceRequests = []deviceRequest{{"cdi", p.CDIDevices}}
	}
	h.Writable = cmp.Or(p.Writable, "disk")
	h.LogConfig = logConfig{Type: p.Log.Driver, Config: map[string]string{}}
	if p.Log.MaxSize > 0 {
		h.LogConfig.Config["max-size"], h.LogConfig.Config["max-file"] = strconv.FormatInt(p.Log.MaxSize, 10), strconv.Itoa(p.Log.MaxFiles)
	}
	for key, names := range map[string][]string{"labels": p.Log.Labels, "env": p.Log.Env} {
		if len(names) > 0 {
			h.LogConfig.Config[key] = strings.Join(names, ",")
		}
	}
	h.UsernsMode = p.Namespaces.User.Mode
	h.NetworkMode = p.Network.Mode
	if p.Network.Container != "" {
		h.NetworkMode = "container:" + p.Network.Container
	}
	for _, d := range p.Network.DNS {
		h.Dns = append(h.Dns, d.String())
	}
}

// existing gives a path that is there, else "".
func existing(path string) string {
	if _, err := os.Lstat(path); err != nil {
		return ""
	}
	return path
}

func stateOf(rec *state.Record) inspectedState {
	status := shownStatus(rec)
	s := inspectedState{
		Status: string(status), Running: status == state.Running,
		Paused: status == state.Paused, Restarting: rec.Status == state.Restarting, Dead: rec.Status == state.Dead,
		OOMKilled: rec.OOMKilled, ExitCode: rec.ExitCode, Error: rec.Error,
		StartedAt: rec.Started, FinishedAt: rec.Finished, CgroupPath: rec.Cgroup,
		Health: rec.Health,
	}
	if s.Paused {
		s.Running = true // as docker says of them
	}
	if s.Running {
		s.Pid = rec.Init.PID
	}
	return s
}

func configOf(rec *state.Record, s *specs.Spec) inspectedConfig {
	c := inspectedConfig{
		Hostname: s.Hostname, Domainname: s.Domainname, Image: rec.Image, Labels: rec.Labels,
		Cmd: rec.Command, Entrypoint: []string{},
		StopSignal: signalName(rec.StopSignal), StopTimeout: int(rec.StopTimeout / time.Second),
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if p := s.Process; p != nil {
		c.Tty, c.Env, c.WorkingDir = p.Terminal, p.Env, p.Cwd
		if c.User = p.User.Username; c.User == "" && (p.User.UID != 0 || p.User.GID != 0) {
			c.User = fmt.Sprintf("%d:%d", p.User.UID, p.User.GID)
		}
	}
	for _, p := range rec.Ports {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		c.ExposedPorts[portName(p)] = struct{}{}
	}
	return c
}

func portName(p state.Port) string { return fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol) }

// signalName is a signal as docker writes it.
func signalName(n int) string {
	for name, sig := range signal.SignalMap {
		if int(sig) == n && !strings.HasPrefix(name, "RT") {
			return "SIG" + name
		}
	}
	return strconv.Itoa(n)
}

// userMounts are the mounts that the user asked for: volumes, directories of the
// host and those in memory, but not urun's own.
func userMounts(rec *state.Record, s *specs.Spec, st *state.Store) []mountPoint {
	root := filepath.Dir(filepath.Dir(st.Dir(rec.ID)))
	volumes, own := volume.Open(root), st.Dir(rec.ID)+"/"
	all := []mountPoint{}
	for _, m := range s.Mounts {
		p := mountPoint{Type: m.Type, Source: m.Source, Destination: m.Destination, RW: !slices.Contains(m.Options, "ro"), Mode: strings.Join(m.Options, ",")}
		switch {
		case m.Type == "bind" && !strings.HasPrefix(m.Source, own):
			if name := volumes.NameOf(m.Source); name != "" {
				p.Type, p.Name, p.Driver = "volume", name, "local"
			}
			p.Propagation = "rprivate"
			for _, o := range m.Options {
				if strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") || strings.HasSuffix(o, "private") {
					p.Propagation = o
				}
			}
		case m.Type == "tmpfs" && !strings.HasPrefix(m.Destination, "/dev") && m.Destination != "/sys/fs/cgroup":
			p.Source = ""
		default:
			continue
		}
		all = append(all, p)
	}
	return all
}

// networkMode is the kind of the container's network.
func networkMode(rec *state.Record, s *specs.Spec) string {
	if len(rec.Networks) > 0 {
		return rec.Networks[0].Network
	}
	if s.Linux != nil {
		for _, n := range s.Linux.Namespaces {
			if n.Type == specs.NetworkNamespace {
				return "slirp"
			}
		}
	}
	return "host"
}

func networkOf(rec *state.Record, s *specs.Spec) inspectedNetwork {
	n := inspectedNetwork{Driver: rec.NetworkDriver, Ports: map[string][]portBinding{}, Networks: map[string]inspectedEndpoint{}}
	if rec.Status == state.Running {
		n.SandboxKey = fmt.Sprintf("/proc/%d/ns/net", rec.Init.PID)
	}
	for _, p := range rec.Ports {
		n.Ports[portName(p)] = append(n.Ports[portName(p)], portBinding{p.HostIP, strconv.Itoa(int(p.HostPort))})
	}
	for _, name := range networksOf(rec, s) {
		n.Networks[name] = inspectedEndpoint{NetworkID: name}
	}
	for _, ep := range rec.Networks {
		n.Networks[ep.Network] = endpointOf(rec, ep, n.SandboxKey != "")
	}
	return n
}

func hostPort(p state.Port) string {
	return net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort)))
}

// endpointOf is a container's place in a network; it has addresses while it runs.
func endpointOf(rec *state.Record, ep state.Endpoint, running bool) inspectedEndpoint {
	e := inspectedEndpoint{NetworkID: ep.NetworkID, Aliases: append([]string{rec.ID[:12]}, ep.Aliases...)}
	if !running {
		return e
	}
	e.MacAddress = ep.MAC
	if ep.IPv4.IsValid() {
		e.IPAddress, e.IPPrefixLen = ep.IPv4.Addr().String(), ep.IPv4.Bits()
	}
	if ep.IPv6.IsValid() {
		e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = ep.IPv6.Addr().String(), ep.IPv6.Bits()
	}
	return e
}
