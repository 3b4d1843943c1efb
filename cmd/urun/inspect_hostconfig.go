package main

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
)

// inspectedHostConfig is what was asked of the host for a container.
type inspectedHostConfig struct {
	Binds          []string
	NetworkMode    string
	PortBindings   map[string][]portBinding
	RestartPolicy  restartPolicy
	AutoRemove     bool
	CapAdd         []string
	CapDrop        []string
	Privileged     bool
	ReadonlyRootfs bool
	DeviceRequests []deviceRequest `json:",omitempty"`
	Writable       string          // "disk", "tmpfs" or "none"
	RootEmulation  bool            // ids that are not mapped are emulated
	Init           bool
	LogConfig      logConfig
	Dns            []string `json:",omitempty"` //nolint:revive // docker's name
	ShmSize        int64    // bytes
	PidMode        string
	IpcMode        string
	UTSMode        string
	UsernsMode     string
	Tmpfs          map[string]string `json:",omitempty"`
	Sysctls        map[string]string `json:",omitempty"`
	Ulimits        []inspectedUlimit
	MaskedPaths    []string
	ReadonlyPaths  []string

	Memory            int64 // bytes; 0 is no limit, here and below
	MemorySwap        int64
	MemoryReservation int64
	NanoCpus          int64
	CpuShares         int64 //nolint:revive // docker's names
	CpuQuota          int64
	CpuPeriod         int64
	CpusetCpus        string
	PidsLimit         int64
	CgroupParent      string
}

// deviceRequest is docker's form of devices by name.
type deviceRequest struct {
	Driver    string
	DeviceIDs []string
}

type logConfig struct {
	Type   string
	Config map[string]string
}

type restartPolicy struct {
	Name              string
	MaximumRetryCount int
}

type inspectedUlimit struct {
	Name       string
	Soft, Hard int64
}

func hostConfigOf(rec *state.Record, s *specs.Spec) inspectedHostConfig {
	h := inspectedHostConfig{
		Binds: []string{}, NetworkMode: networkMode(rec, s), PortBindings: map[string][]portBinding{},
		RestartPolicy: restartPolicy{cmp.Or(rec.Restart.Policy, "no"), rec.Restart.Retries}, AutoRemove: rec.Remove,
		Ulimits: []inspectedUlimit{}, ReadonlyRootfs: s.Root != nil && s.Root.Readonly,
		RootEmulation: rec.RootEmulation,
	}
	for _, p := range rec.Ports {
		h.PortBindings[portName(p)] = append(h.PortBindings[portName(p)], portBinding{p.HostIP, strconv.Itoa(int(p.HostPort))})
	}
	h.mounts(rec, s)
	if s.Process != nil {
		h.capabilities(s.Process.Capabilities)
		for _, r := range s.Process.Rlimits {
			h.Ulimits = append(h.Ulimits, inspectedUlimit{Name: strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_")), Soft: int64(r.Soft), Hard: int64(r.Hard)})
		}
	}
	if s.Linux != nil {
		h.linux(s.Linux)
	}
	return h
}

// capabilities tells how the container's set differs from the default one.
func (h *inspectedHostConfig) capabilities(set *specs.LinuxCapabilities) {
	h.CapAdd, h.CapDrop = []string{}, []string{}
	if set == nil {
		return
	}
	usual := spec.DefaultCapabilities()
	for _, c := range set.Bounding {
		if !slices.Contains(usual, strings.TrimPrefix(c, "CAP_")) {
			h.CapAdd = append(h.CapAdd, c)
		}
	}
	for _, c := range usual {
		if !slices.Contains(set.Bounding, "CAP_"+c) {
			h.CapDrop = append(h.CapDrop, "CAP_"+c)
		}
	}
}

func (h *inspectedHostConfig) mounts(rec *state.Record, s *specs.Spec) {
	for _, m := range s.Mounts {
		switch {
		case m.Destination == "/dev/shm":
			for _, o := range m.Options {
				if size, ok := strings.CutPrefix(o, "size="); ok {
					h.ShmSize = sizeOf(size)
				}
			}
		case m.Type == "tmpfs" && !strings.HasPrefix(m.Destination, "/dev") && m.Destination != "/sys/fs/cgroup":
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[m.Destination] = strings.Join(m.Options, ",")
		case m.Type == "bind" && !strings.Contains(m.Source, "/containers/"+rec.ID+"/"):
			bind := m.Source + ":" + m.Destination
			if slices.Contains(m.Options, "ro") {
				bind += ":ro"
			}
			h.Binds = append(h.Binds, bind)
		}
	}
}

// sizeOf reads a size in bytes with the kernel's suffixes; what it cannot read
// is 0.
func sizeOf(s string) int64 {
	shift := 0
	switch {
	case strings.HasSuffix(s, "k"):
		shift = 10
	case strings.HasSuffix(s, "m"):
		shift = 20
	case strings.HasSuffix(s, "g"):
		shift = 30
	}
	n, err := strconv.ParseInt(strings.TrimRight(s, "kmg"), 10, 64)
	if err != nil {
		return 0
	}
	return n << shift
}

func (h *inspectedHostConfig) linux(l *specs.Linux) {
	h.Sysctls, h.MaskedPaths, h.ReadonlyPaths, h.CgroupParent = l.Sysctl, l.MaskedPaths, l.ReadonlyPaths, l.CgroupsPath
	private := map[specs.LinuxNamespaceType]string{}
	for _, n := range l.Namespaces {
		private[n.Type] = "private"
	}
	mode := func(t specs.LinuxNamespaceType) string {
		if private[t] == "" {
			return "host"
		}
		return private[t]
	}
	h.PidMode, h.IpcMode, h.UTSMode = mode(specs.PIDNamespace), mode(specs.IPCNamespace), mode(specs.UTSNamespace)
	r := l.Resources
	if r == nil {
		return
	}
	if m := r.Memory; m != nil {
		set(&h.Memory, m.Limit)
		set(&h.MemorySwap, m.Swap)
		set(&h.MemoryReservation, m.Reservation)
	}
	if c := r.CPU; c != nil {
		set(&h.CpuQuota, c.Quota)
		h.CpusetCpus = c.Cpus
		if c.Shares != nil {
			h.CpuShares = int64(*c.Shares)
		}
		if c.Period != nil {
			h.CpuPeriod = int64(*c.Period)
		}
		if h.CpuQuota > 0 && h.CpuPeriod > 0 {
			h.NanoCpus = h.CpuQuota * 1e9 / h.CpuPeriod
		}
	}
	if r.Pids != nil {
		set(&h.PidsLimit, r.Pids.Limit)
	}
}

func set(to, from *int64) {
	if from != nil {
		*to = *from
	}
}
