package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// namespaces parses the flags that choose namespaces, but for the network.
func (b *builder) namespaces() error {
	ns := &b.c.Namespaces
	list := []struct {
		flag, value string
		into        *Namespace
		shared      bool // container:NAME is possible
	}{
		{"--pid", b.opt.PID, &ns.PID, true},
		{"--ipc", b.opt.IPC, &ns.IPC, true},
		{"--uts", b.opt.UTS, &ns.UTS, true},
		{"--cgroupns", b.opt.CgroupNS, &ns.Cgroup, true},
	}
	for _, n := range list {
		parsed, err := parseNamespace(n.flag, n.value)
		if err != nil {
			return err
		}
		*n.into = parsed
	}
	user, err := ParseUserNS(b.opt.UserNS)
	if err != nil {
		return err
	}
	ns.User = user
	if ns.UTS.Mode != Private {
		if b.opt.Hostname != "" {
			return conflict("hostname and the UTS mode")
		}
		if b.opt.Domainname != "" {
			return conflict("domainname and the UTS mode")
		}
	}
	if ns.IPC.Mode != Private && b.opt.ShmSize != "" {
		return conflict("--shm-size and the IPC mode")
	}
	return b.checkHostname()
}

func (b *builder) checkHostname() error {
	for _, n := range []struct{ flag, value string }{{"--hostname", b.opt.Hostname}, {"--domainname", b.opt.Domainname}} {
		// __NEW_UTS_LEN, linux/utsname.h.
		if len(n.value) > 64 {
			return fmt.Errorf("%s %s: longer than 64 bytes", n.flag, n.value)
		}
		if strings.ContainsAny(n.value, " \t\n\x00/#") {
			return fmt.Errorf("%s %q: invalid name", n.flag, n.value)
		}
	}
	return nil
}

func parseNamespace(flag, value string) (Namespace, error) {
	switch value {
	case "", "private":
		return Namespace{Mode: Private}, nil
	case "host":
		return Namespace{Mode: HostNS}, nil
	}
	if name, ok := strings.CutPrefix(value, "container:"); ok && name != "" {
		return Namespace{Mode: Shared, Container: name}, nil
	}
	// docker's word for an IPC namespace that others may join: every one of urun's is such.
	if flag == "--ipc" && value == "shareable" {
		return Namespace{Mode: Private}, nil
	}
	return Namespace{}, fmt.Errorf("%s %s: must be private, host or container:NAME", flag, value)
}

// ParseUserNS parses --userns: auto, host, keep-id[:uid=N,gid=N], single,
// map:CONTAINER:HOST:SIZE[,...][,gid=CONTAINER:HOST:SIZE...] or container:NAME.
// The id maps have to be known before Build, hence exported.
func ParseUserNS(s string) (UserNS, error) {
	mode, rest, has := strings.Cut(s, ":")
	switch {
	case s == "":
		return UserNS{Mode: "auto"}, nil
	case !has && (mode == "auto" || mode == "host" || mode == "single" || mode == "keep-id"):
		return UserNS{Mode: mode}, nil
	case has && mode == "keep-id":
		return parseKeepID(s, rest)
	case has && mode == "map":
		return parseIDMap(s, rest)
	case has && mode == "container" && rest != "":
		return UserNS{Mode: mode, Container: rest}, nil
	}
	return UserNS{}, fmt.Errorf("--userns %s: must be auto, host, keep-id[:uid=N,gid=N], single, map:CONTAINER:HOST:SIZE[,...] or container:NAME", s)
}

func parseKeepID(s, rest string) (UserNS, error) {
	u := UserNS{Mode: "keep-id"}
	for _, opt := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(opt, "=")
		id, err := parseID(v)
		if err != nil {
			return UserNS{}, fmt.Errorf("--userns %s: %q is not an id", s, v)
		}
		switch k {
		case "uid":
			u.UID = &id
		case "gid":
			u.GID = &id
		default:
			return UserNS{}, fmt.Errorf("--userns %s: unknown option %q", s, k)
		}
	}
	return u, nil
}

func parseIDMap(s, rest string) (UserNS, error) {
	u := UserNS{Mode: "map"}
	for _, entry := range strings.Split(rest, ",") {
		list := &u.UIDs
		if e, ok := strings.CutPrefix(entry, "gid="); ok {
			entry, list = e, &u.GIDs
		} else if e, ok := strings.CutPrefix(entry, "uid="); ok {
			entry = e
		}
		m, err := parseMapping(entry)
		if err != nil {
			return UserNS{}, fmt.Errorf("--userns %s: %w", s, err)
		}
		*list = append(*list, m)
	}
	if len(u.UIDs) == 0 {
		return UserNS{}, fmt.Errorf("--userns %s: no range of user ids", s)
	}
	return u, nil
}

func parseMapping(entry string) (specs.LinuxIDMapping, error) {
	parts := strings.Split(entry, ":")
	if len(parts) != 3 {
		return specs.LinuxIDMapping{}, fmt.Errorf("range %q must be CONTAINER:HOST:SIZE", entry)
	}
	var n [3]uint32
	for i, p := range parts {
		id, err := parseID(p)
		if err != nil {
			return specs.LinuxIDMapping{}, fmt.Errorf("range %q: %q is not an id", entry, p)
		}
		n[i] = id
	}
	m := specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]}
	// (uid_t)-1 is no id, user_namespaces(7).
	if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) > 1<<32-1 || uint64(m.HostID)+uint64(m.Size) > 1<<32-1 {
		return specs.LinuxIDMapping{}, fmt.Errorf("range %q is empty or goes beyond the last id", entry)
	}
	return m, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		return 0, strconv.ErrRange
	}
	return uint32(n), err
}

// namespaceList is Linux.Namespaces. A namespace of another container is in
// it too: its path is not known here and is left empty for the caller.
func (b *builder) namespaceList() []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.UserNamespace}, {Type: specs.MountNamespace}}
	ns := b.c.Namespaces
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		mode Mode
	}{
		{specs.PIDNamespace, ns.PID.Mode},
		{specs.IPCNamespace, ns.IPC.Mode},
		{specs.UTSNamespace, ns.UTS.Mode},
		{specs.CgroupNamespace, ns.Cgroup.Mode},
		{specs.NetworkNamespace, b.c.Network.mode()},
	} {
		if n.mode != HostNS {
			out = append(out, specs.LinuxNamespace{Type: n.kind})
		}
	}
	return out
}

// mode maps the kind of network to that of its namespace.
func (n Network) mode() Mode {
	switch n.Mode {
	case "host":
		return HostNS
	case "container":
		return Shared
	}
	return Private
}

// mapped reports whether an id of the container exists in its user namespace.
func mapped(m []specs.LinuxIDMapping, id uint32) bool {
	return slices.ContainsFunc(m, func(r specs.LinuxIDMapping) bool {
		return id >= r.ContainerID && uint64(id) < uint64(r.ContainerID)+uint64(r.Size)
	})
}
