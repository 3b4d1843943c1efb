package spec

import (
	"path"
	"slices"
	"strings"
	"testing"
)

func TestVolumes(t *testing.T) {
	for _, c := range []struct {
		name, flag, source, target string
		options                    []string
		volume                     string
	}{
		{"a directory", "/srv:/x", "/srv", "/x", []string{"rbind", "rprivate"}, ""},
		{"read-only", "/srv:/x:ro", "/srv", "/x", []string{"rbind", "rprivate", "ro"}, ""},
		{"SELinux labels change nothing", "/srv:/x:ro,Z", "/srv", "/x", []string{"rbind", "rprivate", "ro"}, ""},
		{"relative", "./src:/x", "/home/alice/src", "/x", []string{"rbind", "rprivate"}, ""},
		{"the current directory", ".:/x", "/home/alice", "/x", []string{"rbind", "rprivate"}, ""},
		{"propagation and flags", "/srv:/x/:bind,rshared,nosuid,nodev,noexec", "/srv", "/x", []string{"bind", "rshared", "nosuid", "nodev", "noexec"}, ""},
		{"a named volume is filled", "data:/x", "", "/x", []string{"rbind", "rprivate", "copyup"}, "data"},
		{"unless told not to", "data:/x:nocopy,ro", "", "/x", []string{"rbind", "rprivate", "ro"}, "data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := build(t, Options{Volumes: []string{c.flag}})
			m := got.Spec.Mounts[len(got.Spec.Mounts)-1]
			if m.Source != c.source || m.Destination != c.target || !slices.Equal(m.Options, c.options) {
				t.Errorf("%+v", m)
			}
			if c.volume != "" && (len(got.Volumes) != 1 || got.Volumes[0].Name != c.volume || got.Spec.Mounts[got.Volumes[0].Mount].Destination != c.target) {
				t.Errorf("%+v", got.Volumes)
			}
		})
	}
}

func TestMountFlags(t *testing.T) {
	for flag, want := range map[string][]string{
		"type=bind,src=/srv,dst=/x":                            {"rbind", "rprivate"},
		"type=bind,source=/srv,target=/x,readonly":             {"rbind", "rprivate", "rro"},
		"type=bind,source=/srv,destination=/x,readonly=false":  {"rbind", "rprivate"},
		"type=bind,src=/srv,dst=/x,bind-nonrecursive,ro":       {"bind", "rprivate", "ro"},
		"type=bind,src=/srv,dst=/x,ro,bind-recursive=writable": {"rbind", "private", "ro"},
		"type=bind,src=/srv,dst=/x,bind-propagation=slave":     {"rbind", "slave"},
		"type=volume,src=data,dst=/x,volume-nocopy=true":       {"rbind", "rprivate"},
		"dst=/x": {"rbind", "rprivate", "copyup"},
		"type=tmpfs,dst=/x,tmpfs-size=1m,tmpfs-mode=700,ro":                {"nosuid", "nodev", "noexec", "ro", "size=1048576", "mode=700"},
		`type=bind,"src=/srv","dst=/x"`:                                    {"rbind", "rprivate"},
		"type=tmpfs,dst=/x,exec":                                           {"nosuid", "nodev", "exec"},
		"type=bind,src=/srv,dst=/x,ro,bind-recursive=readonly":             {"rbind", "rprivate", "rro"},
		"type=bind,src=/srv,dst=/x,bind-recursive=disabled,readonly=true":  {"bind", "rprivate", "ro"},
		"type=bind,src=/srv,dst=/x,nosuid,bind-propagation=rshared,ro=0":   {"rbind", "rshared", "nosuid"},
		"type=volume,source=data,target=/x,readonly=true,volume-nocopy=no": nil,
	} {
		t.Run(flag, func(t *testing.T) {
			got, err := Build(Options{Mounts: []string{flag}}, testFacts())
			if want == nil {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if m := got.Spec.Mounts[len(got.Spec.Mounts)-1]; m.Destination != "/x" || !slices.Equal(m.Options, want) {
				t.Errorf("%+v, want %q", m, want)
			}
		})
	}
}

func TestAMountReplacesTheDefaultOne(t *testing.T) {
	got := build(t, Options{Tmpfs: []string{"/dev/shm:size=1g"}})
	n := 0
	for _, m := range got.Spec.Mounts {
		if m.Destination == "/dev/shm" {
			n++
			if !slices.Contains(m.Options, "size=1g") {
				t.Errorf("%+v", m)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d mounts on /dev/shm", n)
	}
}

func TestCapabilities(t *testing.T) {
	all := len(capabilityNames())
	for _, c := range []struct {
		name string
		opt  Options
		n    int
		has  string
	}{
		{"docker's by default", Options{}, 14, "CAP_CHOWN"},
		{"one more, any spelling", Options{CapAdd: []string{"cap_sys_ptrace"}}, 15, "CAP_SYS_PTRACE"},
		{"one less", Options{CapDrop: []string{"MKNOD"}}, 13, "CAP_KILL"},
		{"all", Options{CapAdd: []string{"ALL"}}, all, "CAP_SYS_ADMIN"},
		{"all but one", Options{CapAdd: []string{"all"}, CapDrop: []string{"SYS_ADMIN"}}, all - 1, "CAP_BPF"},
		{"none but one", Options{CapDrop: []string{"ALL"}, CapAdd: []string{"KILL"}}, 1, "CAP_KILL"},
		{"privileged", Options{Privileged: true}, all, "CAP_SYS_ADMIN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := build(t, c.opt).Spec.Process.Capabilities
			if len(got.Bounding) != c.n || !slices.Contains(got.Bounding, c.has) || !slices.Equal(got.Bounding, got.Effective) || got.Inheritable != nil || got.Ambient != nil {
				t.Errorf("%+v", got)
			}
		})
	}
	if got := build(t, Options{User: "www"}).Spec.Process.Capabilities; got.Effective != nil || got.Permitted != nil || len(got.Bounding) != 14 {
		t.Errorf("an ordinary user: %+v", got)
	}
}

func TestUserNamespaces(t *testing.T) {
	u, err := ParseUserNS("map:0:1000:1,1:100000:65536,gid=0:1000:1")
	if err != nil || len(u.UIDs) != 2 || len(u.GIDs) != 1 || u.UIDs[1].HostID != 100000 {
		t.Errorf("%+v %v", u, err)
	}
	u, err = ParseUserNS("keep-id:uid=33,gid=34")
	if err != nil || *u.UID != 33 || *u.GID != 34 {
		t.Errorf("%+v %v", u, err)
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a:/b", "a1:/b:ro,z", "/b", "./x:/y:rw", ":::", "/a:/b:ro,rw"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseVolume(s)
		if err != nil {
			return
		}
		if !path.IsAbs(v.target) || path.Clean(v.target) != v.target || v.target == "/" {
			t.Errorf("%q: target %q", s, v.target)
		}
		if v.source != "" && !v.isPath() && strings.ContainsAny(v.source, "/\x00") {
			t.Errorf("%q: volume named %q", s, v.source)
		}
		if _, _, err := volumeOptions(v.options, v.isPath()); err == nil && slices.Contains(v.options, "O") {
			t.Errorf("%q: an option that is not supported is accepted", s)
		}
	})
}

func FuzzParseMount(f *testing.F) {
	for _, s := range []string{"type=bind,src=/a,dst=/b,ro", "type=tmpfs,dst=/x,tmpfs-size=1m", `"dst=/a,b"`, "dst=/x,volume-nocopy"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMount(s)
		if err != nil {
			return
		}
		if !path.IsAbs(m.target) || path.Clean(m.target) != m.target || m.target == "/" {
			t.Errorf("%q: target %q", s, m.target)
		}
		if m.kind == "bind" && m.source == "" {
			t.Errorf("%q: bind without source", s)
		}
	})
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "1-3:4-6/udp", "[::1]:1:1", "127.0.0.1::1", "0:1", "1:1/sctp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := parsePublish(s)
		if err != nil {
			return
		}
		if len(ports) == 0 {
			t.Errorf("%q: no port", s)
		}
		for i, p := range ports {
			if p.ContainerPort == 0 || p.Proto != "tcp" && p.Proto != "udp" || i > 0 && p.ContainerPort != ports[i-1].ContainerPort+1 {
				t.Errorf("%q: %+v", s, p)
			}
		}
	})
}

func FuzzParseEnvFile(f *testing.F) {
	for _, s := range []string{"A=1\n#x\nB\n", "\xef\xbb\xbfA=1", "=x", "a b=1", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := parseEnvFile(data)
		if err != nil {
			return
		}
		for _, l := range lines {
			if l.key == "" || strings.ContainsAny(l.key, "= \t\n\x00") || strings.ContainsAny(l.value, "\n\x00") {
				t.Errorf("%+v", l)
			}
		}
	})
}

func FuzzUser(f *testing.F) {
	for _, s := range []string{"root", "0", "postgres:ssl", "1:2", ":", "-1", "99999999999", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		facts := testFacts()
		c, err := Build(Options{User: s}, facts)
		if err != nil {
			return
		}
		u := c.Spec.Process.User
		if !mapped(facts.UIDMap, u.UID) || !mapped(facts.GIDMap, u.GID) {
			t.Errorf("%q: %+v is not mapped", s, u)
		}
	})
}

func FuzzParseUserNS(f *testing.F) {
	for _, s := range []string{"auto", "keep-id:uid=1", "map:0:1:2,gid=0:1:2", "container:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUserNS(s)
		if err == nil && u.Mode == "" {
			t.Errorf("%q: no mode", s)
		}
		for _, m := range append(u.UIDs, u.GIDs...) {
			if m.Size == 0 || m.ContainerID+m.Size < m.ContainerID || m.HostID+m.Size < m.HostID {
				t.Errorf("%q: %+v", s, m)
			}
		}
	})
}

func FuzzParseDevice(f *testing.F) {
	for _, s := range []string{"/dev/fuse", "/dev/a:/dev/b:rwm", "/dev/a:rw", "/dev/a:r"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		source, target, err := parseDevice(s)
		if err == nil && (!path.IsAbs(source) || !path.IsAbs(target)) {
			t.Errorf("%q: %q %q", s, source, target)
		}
	})
}
