package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// machine is a Host of which the test says everything.
type machine struct {
	files fstest.MapFS
	env   map[string]string
}

func (m machine) LookupEnv(name string) (string, bool) { v, ok := m.env[name]; return v, ok }
func (m machine) Environ() []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m.env)) {
		all = append(all, k+"="+m.env[k])
	}
	return all
}
func (m machine) ReadFile(name string) ([]byte, error) { return m.files.ReadFile(name[1:]) }
func (m machine) Stat(name string) (fs.FileInfo, error) {
	return m.files.Stat(strings.TrimPrefix(name, "/"))
}

func (m machine) Abs(name string) (string, error) {
	if path.IsAbs(name) {
		return path.Clean(name), nil
	}
	return path.Join("/home/alice", name), nil
}
func (m machine) Devices() ([]string, error) { return []string{"/dev/fuse", "/dev/kvm"}, nil }

func testFacts() Facts {
	dir, dev := fs.ModeDir|0o755, fs.ModeDevice|fs.ModeCharDevice|0o666
	return Facts{
		ContainerID: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		RootfsPath:  "/run/merged", ImageName: "debian:12",
		Image: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}, Cmd: []string{"bash"},
			Labels: map[string]string{"org.opencontainers.image.version": "12"},
		},
		Passwd: []byte("root:x:0:0:root:/root:/bin/bash\nwww:x:33:33:www:/var/www:/bin/sh\npostgres:x:999:998::/var/lib/postgresql:/bin/sh\n"),
		Group:  []byte("root:x:0:\ntty:x:5:\nwww:x:33:\nssl:x:104:postgres\nfar:x:70000:postgres\npg:x:998:\n"),
		UID:    1000, GID: 1000, UserName: "alice", HomeDir: "/home/alice",
		UIDMap:     []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}},
		GIDMap:     []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65536}},
		HaveSubIDs: true, HostHostname: "node1", NumCPU: 4, CgroupV2: true, LastCap: 40,
		Host: machine{
			env: map[string]string{"TERM": "vt100", "TOKEN": "secret", "EMPTY": ""},
			files: fstest.MapFS{
				"srv":                               {Mode: dir},
				"srv/data/file":                     {Data: []byte("x")},
				"home/alice/src":                    {Mode: dir},
				"dev/fuse":                          {Mode: dev},
				"dev/shm":                           {Mode: dir},
				"dev/mqueue":                        {Mode: dir},
				"dev/snd":                           {Mode: dir},
				"usr/share/zoneinfo/Europe/Berlin":  {},
				"etc/localtime":                     {},
				"etc/env":                           {Data: []byte("\ufeff# comment\n  A=1 \nTOKEN\nABSENT\n\nB=x=y\r\n")},
				"etc/bad":                           {Data: []byte("a b=1\n")},
				"etc/labels":                        {Data: []byte("tier=db\n")},
				"sys/devices/system/cpu/cpu0/topo":  {},
				"dev/notadevice":                    {},
				"usr/share/zoneinfo/Europe":         {Mode: dir},
				"run/user/1000/bus":                 {},
				"home/alice":                        {Mode: dir},
				"rootfs":                            {Mode: dir},
				"sys/devices/system/cpu/cpu1/other": {},
			},
		},
	}
}

func ptr[T any](v T) *T { return &v }

// noSubIDs is a user without subordinate ids.
func noSubIDs(f *Facts) {
	one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}}
	f.UIDMap, f.GIDMap, f.HaveSubIDs = one, one, false
}

func keepIDMap(f *Facts) {
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1000, HostID: 1000, Size: 1}, {ContainerID: 1001, HostID: 101000, Size: 64536}}
	f.UIDMap, f.GIDMap = m, m
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name  string
		opt   Options
		facts func(*Facts)
	}{
		{name: "plain"},
		{name: "no-subids", opt: Options{Args: []string{"true"}}, facts: noSubIDs},
		{name: "interactive", opt: Options{Interactive: true, TTY: true, Remove: true, Name: "box", Hostname: "box", Args: []string{"bash", "-l"}}, facts: func(f *Facts) { f.StdinTTY = true }},
		{name: "server", opt: Options{
			Detach: true, Publish: []string{"8080:80", "127.0.0.1:5000-5002:6000-6002/udp", "[::1]:443:443"}, PublishAll: true,
			Volumes: []string{"data:/var/lib/postgresql/data", "/srv:/srv:ro", "./src:/usr/src", "/scratch"},
			Tmpfs:   []string{"/run:size=64m,mode=755", "/tmp:exec"},
			Mounts:  []string{"type=bind,src=/srv/data,dst=/srv/data,ro,bind-propagation=rslave", "type=tmpfs,dst=/cache,tmpfs-size=1g,tmpfs-mode=1777"},
			Env:     []string{"TOKEN", "ABSENT", "LANG=de"}, EnvFiles: []string{"/etc/env"}, Workdir: "/var",
			Resources: ResourceOptions{Memory: "512m", CPUs: "1.5", PidsLimit: ptr(int64(100))}, Ulimits: []string{"nofile=1024:2048", "core=-1"},
			Labels: []string{"a=b"}, LabelFiles: []string{"/etc/labels"}, Annotations: []string{"k=v"}, StopSignal: "SIGINT", StopTimeout: ptr(3),
			DNS: []string{"1.1.1.1"}, DNSSearch: []string{"example.org"}, AddHosts: []string{"db:10.0.0.1", "gw:host-gateway"},
			Timezone: "Europe/Berlin", Sysctls: []string{"net.ipv4.ip_unprivileged_port_start=0", "kernel.shm_rmid_forced=1"},
		}, facts: func(f *Facts) {
			f.Image.User = "postgres"
			f.Image.Entrypoint = []string{"entry.sh"}
			f.Image.Volumes = map[string]struct{}{"/var/lib/postgresql/data": {}, "/var/log/": {}}
			f.Image.ExposedPorts = map[string]struct{}{"5432/tcp": {}, "80": {}}
			f.Image.StopSignal = "SIGQUIT"
			f.Image.WorkingDir = "/"
		}},
		{name: "privileged", opt: Options{Privileged: true, ReadOnly: true, Devices: []string{"/dev/snd"}, CapDrop: []string{"SYS_ADMIN"}}},
		{name: "host-namespaces", opt: Options{Network: "host", PID: "host", IPC: "host", UTS: "host", CgroupNS: "host"}},
		{name: "shared-namespaces", opt: Options{Network: "container:a", PID: "container:a", IPC: "container:a"}},
		{name: "keep-id", opt: Options{UserNS: "keep-id", Volumes: []string{"/home/alice:/home/alice"}, Workdir: "/home/alice"}, facts: keepIDMap},
		{name: "hardened", opt: Options{
			CapDrop: []string{"ALL"}, CapAdd: []string{"cap_net_bind_service"}, ReadOnly: true, User: "www",
			SecurityOpts: []string{"no-new-privileges", "seccomp=/etc/profile.json", "mask=/proc/version:/proc/cpuinfo", "unmask=/proc/acpi"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			facts := testFacts()
			if c.facts != nil {
				c.facts(&facts)
			}
			got, err := Build(c.opt, facts)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := json.MarshalIndent(got, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, append(raw, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(want) != string(raw)+"\n" {
				t.Errorf("differs from %s (run with -update and look at the difference)", file)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		opt   Options
		want  string
		facts func(*Facts)
	}{
		{name: "-it needs a terminal", opt: Options{Interactive: true, TTY: true}, want: "the input device is not a TTY"},
		{name: "a name of one letter", opt: Options{Name: "a"}, want: "invalid container name"},
		{name: "a name with a slash", opt: Options{Name: "a/b"}, want: "invalid container name"},
		{name: "replace what?", opt: Options{Replace: true}, want: "--replace needs --name"},
		{name: "unknown pull policy", opt: Options{Pull: "often"}, want: "--pull often: must be one of missing, always, never, newer"},
		{name: "unknown log level", opt: Options{LogLevel: "loud"}, want: "must be one of debug, info, warn, error"},
		{name: "foreign system", opt: Options{Platform: "windows/amd64"}, want: "only linux"},
		{name: "bad platform", opt: Options{Platform: "linux"}, want: "os/arch"},
		{name: "rootfs is not pulled", opt: Options{Rootfs: "/rootfs", Pull: "always"}, want: "--rootfs and --pull"},
		{name: "rootfs is not there", opt: Options{Rootfs: "/nowhere"}, want: "not exist"},
		{name: "rootfs is a file", opt: Options{Rootfs: "/etc/env"}, want: "not a directory"},
		{name: "hostname with the host's UTS", opt: Options{Hostname: "x", UTS: "host"}, want: "conflicting options: hostname and the UTS mode"},
		{name: "domainname with the host's UTS", opt: Options{Domainname: "x", UTS: "host"}, want: "conflicting options: domainname and the UTS mode"},
		{name: "hostname with a container's network", opt: Options{Hostname: "x", Network: "container:a"}, want: "conflicting options: hostname and the network mode"},
		{name: "dns with a container's network", opt: Options{DNSSearch: []string{"x"}, Network: "container:a"}, want: "conflicting options: dns and the network mode"},
		{name: "hosts with a container's network", opt: Options{AddHosts: []string{"a:1.2.3.4"}, Network: "container:a"}, want: "conflicting options: custom host-to-IP mapping and the network mode"},
		{name: "ports with a container's network", opt: Options{Publish: []string{"80"}, Network: "container:a"}, want: "conflicting options: port publishing and the container type network mode"},
		{name: "ports with the host's network", opt: Options{PublishAll: true, Network: "host"}, want: "conflicting options: port publishing and the host network mode"},
		{name: "ports without network", opt: Options{Publish: []string{"80"}, Network: "none"}, want: "conflicting options: port publishing"},
		{name: "bridge", opt: Options{Network: "bridge"}, want: "no default bridge"},
		{name: "unknown network", opt: Options{Network: "foo bar"}, want: "--network foo bar"},
		{name: "host and a network", opt: Options{Network: "host", MoreNetworks: []string{"a"}}, want: "--network host: cannot be combined"},
		{name: "a network twice", opt: Options{Network: "a,b", MoreNetworks: []string{"b"}}, want: "named twice"},
		{name: "an address without a network", opt: Options{IP: "10.1.1.1"}, want: "--ip: needs a network of its own"},
		{name: "an alias without a network", opt: Options{Network: "none", NetworkAliases: []string{"x"}}, want: "--network-alias: needs a network"},
		{name: "one address for two networks", opt: Options{Network: "a,b", IP: "10.1.1.1"}, want: "several networks"},
		{name: "a group's MAC address", opt: Options{Network: "a", MACAddress: "01:00:00:00:00:01"}, want: "invalid MAC address"},
		{name: "unknown option of a network", opt: Options{Network: "a:colour=red"}, want: "unknown option \"colour\""},
		{name: "an address that is none", opt: Options{Network: "a:ip=1.2.3"}, want: "invalid address"},
		{name: "an alias that is none", opt: Options{Network: "a", NetworkAliases: []string{"x y"}}, want: "not a valid name"},
		{name: "slirp option without value", opt: Options{Network: "slirp:mtu"}, want: "key=value"},
		{name: "unknown slirp option", opt: Options{Network: "slirp:speed=1"}, want: "unknown option \"speed\""},
		{name: "slirp option without meaning", opt: Options{Network: "slirp4netns:allow_host_loopback=yes"}, want: "allow_host_loopback: invalid value"},
		{name: "slirp network too small", opt: Options{Network: "slirp:cidr=10.1.0.0/30"}, want: "option cidr"},
		{name: "exposed port without meaning", opt: Options{Expose: []string{"x"}}, want: "--expose x: invalid port"},
		{name: "one host port twice", opt: Options{Publish: []string{"80:80", "127.0.0.1:80:81"}}, want: "published twice"},
		{name: "sctp", opt: Options{Publish: []string{"80:80/sctp"}}, want: "no sctp"},
		{name: "ranges that differ", opt: Options{Publish: []string{"80-82:80-81"}}, want: "differ in length"},
		{name: "range backwards", opt: Options{Publish: []string{"82-80"}}, want: "invalid range"},
		{name: "port too large", opt: Options{Publish: []string{"70000"}}, want: "invalid port"},
		{name: "IPv6 without brackets", opt: Options{Publish: []string{"::1:80:80"}}, want: "invalid IP address"},
		{name: "shm size with the host's IPC", opt: Options{ShmSize: "1g", IPC: "host"}, want: "conflicting options: --shm-size"},
		{name: "bad shm size", opt: Options{ShmSize: "-1"}, want: "--shm-size"},
		{name: "unknown pid mode", opt: Options{PID: "mine"}, want: "--pid mine"},
		{name: "unknown user namespace", opt: Options{UserNS: "nomap"}, want: "--userns nomap"},
		{name: "keep-id with a word", opt: Options{UserNS: "keep-id:uid=x"}, want: `"x" is not an id`},
		{name: "keep-id with an unknown option", opt: Options{UserNS: "keep-id:size=1"}, want: `unknown option "size"`},
		{name: "map of two numbers", opt: Options{UserNS: "map:0:1000"}, want: "CONTAINER:HOST:SIZE"},
		{name: "map beyond the last id", opt: Options{UserNS: "map:0:4294967295:1"}, want: "not an id"},
		{name: "bad dns", opt: Options{DNS: []string{"one"}}, want: "IP address is not correctly formatted: one"},
		{name: "bad host entry", opt: Options{AddHosts: []string{"a"}}, want: "must be NAME:IP"},
		{name: "bad host address", opt: Options{AddHosts: []string{"a:b"}}, want: "invalid IP address"},
		{name: "label without name", opt: Options{Labels: []string{"=x"}}, want: "--label"},
		{name: "annotation without value", opt: Options{Annotations: []string{"x"}}, want: "key=value"},
		{name: "label file is not there", opt: Options{LabelFiles: []string{"/nowhere"}}, want: "--label-file"},
		{name: "limits without cgroups", opt: Options{Cgroups: "disabled", Resources: ResourceOptions{Memory: "1g"}}, want: "conflicting options: --cgroups=disabled"},
		{name: "limits of nonsense", opt: Options{Resources: ResourceOptions{Memory: "much"}}, want: "--memory much"},
		{name: "cgroup parent of nowhere", opt: Options{Resources: ResourceOptions{CgroupParent: "/lxc"}}, want: "--cgroup-parent /lxc"},
		{name: "oom score out of range", opt: Options{Resources: ResourceOptions{OOMScoreAdj: ptr(1001)}}, want: "--oom-score-adj 1001"},
		{name: "unknown cgroup mode", opt: Options{Cgroups: "split"}, want: "--cgroups split"},
		{name: "unknown ulimit", opt: Options{Ulimits: []string{"foo=1"}}, want: "--ulimit foo=1"},
		{name: "ulimit twice", opt: Options{Ulimits: []string{"nofile=1", "nofile=2"}}, want: "given twice"},
		{name: "unknown signal", opt: Options{StopSignal: "SIGFOO"}, want: "--stop-signal"},
		{name: "image with an unknown signal", want: "stop signal of the image", facts: func(f *Facts) { f.Image.StopSignal = "x" }},
		{name: "negative timeout", opt: Options{StopTimeout: ptr(-2)}, want: "--stop-timeout"},
		{name: "relative directory", opt: Options{Workdir: "x"}, want: "the working directory \"x\" is invalid, it needs to be an absolute path"},
		{name: "unknown capability", opt: Options{CapAdd: []string{"FLY"}}, want: `unknown capability "FLY"`},
		{name: "capability that this kernel lacks", opt: Options{CapAdd: []string{"BPF"}}, want: "unknown capability", facts: func(f *Facts) { f.LastCap = 37 }},
		{name: "all added and dropped", opt: Options{CapAdd: []string{"ALL"}, CapDrop: []string{"ALL"}}, want: "conflicting options"},
		{name: "unknown security option", opt: Options{SecurityOpts: []string{"foo=bar"}}, want: "--security-opt foo=bar: unknown option"},
		{name: "label type", opt: Options{SecurityOpts: []string{"label=type:x"}}, want: "without privilege"},
		{name: "apparmor profile", opt: Options{SecurityOpts: []string{"apparmor=x"}}, want: "without privilege"},
		{name: "no-new-privileges maybe", opt: Options{SecurityOpts: []string{"no-new-privileges=maybe"}}, want: "neither true nor false"},
		{name: "relative mask", opt: Options{SecurityOpts: []string{"mask=proc"}}, want: "absolute"},
		{name: "sysctl of the machine", opt: Options{Sysctls: []string{"kernel.panic=1"}}, want: "not in a namespace"},
		{name: "net sysctl with the host's network", opt: Options{Network: "host", Sysctls: []string{"net.core.somaxconn=1"}}, want: "not allowed with --network=host"},
		{name: "ipc sysctl with the host's ipc", opt: Options{IPC: "host", Sysctls: []string{"kernel.sem=1"}}, want: "not allowed with --ipc=host"},
		{name: "sysctl that climbs", opt: Options{Sysctls: []string{"net/../kernel/panic=1"}}, want: "--sysctl"},
		{name: "bind source that is not there", opt: Options{Volumes: []string{"/nowhere:/x"}}, want: "bind source path does not exist: /nowhere"},
		{name: "relative target", opt: Options{Volumes: []string{"/srv:x"}}, want: "must be an absolute path"},
		{name: "root as target", opt: Options{Volumes: []string{"/srv:/.."}}, want: "cannot be the root directory"},
		{name: "four parts", opt: Options{Volumes: []string{"/a:/b:ro:x"}}, want: "must be [SOURCE:]TARGET"},
		{name: "empty source", opt: Options{Volumes: []string{":/b"}}, want: "must be [SOURCE:]TARGET"},
		{name: "path without ./", opt: Options{Volumes: []string{"src/x:/b"}}, want: "invalid characters for a volume name"},
		{name: "unknown volume option", opt: Options{Volumes: []string{"/srv:/b:fast"}}, want: `invalid option "fast"`},
		{name: "ro and rw", opt: Options{Volumes: []string{"/srv:/b:ro,rw"}}, want: "exclude each other"},
		{name: "overlay volume", opt: Options{Volumes: []string{"/srv:/b:O"}}, want: "not supported"},
		{name: "chowned volume", opt: Options{Volumes: []string{"/srv:/b:U"}}, want: "not supported"},
		{name: "nocopy of a bind", opt: Options{Volumes: []string{"/srv:/b:nocopy"}}, want: "for volumes"},
		{name: "propagation of a volume", opt: Options{Volumes: []string{"data:/b:rshared"}}, want: "for directories of the host"},
		{name: "one target twice", opt: Options{Volumes: []string{"/srv:/b"}, Tmpfs: []string{"/b/"}}, want: "duplicate mount point: /b"},
		{name: "unknown mount type", opt: Options{Mounts: []string{"type=image,src=x,dst=/x"}}, want: `type "image" is not supported`},
		{name: "unknown mount key", opt: Options{Mounts: []string{"type=bind,src=/srv,dst=/x,foo=bar"}}, want: `unknown key "foo"`},
		{name: "mount without target", opt: Options{Mounts: []string{"type=bind,src=/srv"}}, want: "target is required"},
		{name: "bind without source", opt: Options{Mounts: []string{"type=bind,dst=/x"}}, want: "source is required"},
		{name: "tmpfs with source", opt: Options{Mounts: []string{"type=tmpfs,src=x1,dst=/x"}}, want: "a tmpfs has no source"},
		{name: "key of another type", opt: Options{Mounts: []string{"type=bind,src=/srv,dst=/x,tmpfs-size=1m"}}, want: "does not belong to a mount of type bind"},
		{name: "volume mount of a path", opt: Options{Mounts: []string{"src=/srv,dst=/x"}}, want: "invalid volume name"},
		{name: "mount key twice", opt: Options{Mounts: []string{"type=bind,src=/srv,source=/srv,dst=/x"}}, want: "given twice"},
		{name: "mount key without value", opt: Options{Mounts: []string{"type=bind,src,dst=/x"}}, want: "must be key=value"},
		{name: "unknown tmpfs option", opt: Options{Tmpfs: []string{"/x:foo"}}, want: `invalid option "foo"`},
		{name: "tmpfs mode", opt: Options{Tmpfs: []string{"/x:mode=999"}}, want: `invalid option "mode=999"`},
		{name: "file as device", opt: Options{Devices: []string{"/dev/notadevice"}}, want: "is not a device"},
		{name: "device that is not there", opt: Options{Devices: []string{"/dev/nowhere"}}, want: "--device"},
		{name: "read-only device", opt: Options{Devices: []string{"/dev/fuse:r"}}, want: "device cgroup"},
		{name: "device by class", opt: Options{Devices: []string{"vendor.com/gpu=0"}}, want: "no such device"},
		{name: "unknown zone", opt: Options{Timezone: "Mars/Base"}, want: "no zone of this name"},
		{name: "zone that climbs", opt: Options{Timezone: "../../etc/passwd"}, want: "--timezone"},
		{name: "zone that is a directory", opt: Options{Timezone: "Europe"}, want: "no zone of this name"},
		{name: "user that the image lacks", opt: Options{User: "nobody"}, want: "unable to find user nobody"},
		{name: "group that the image lacks", opt: Options{User: "0:nogroup"}, want: "unable to find group nogroup"},
		{name: "user that is not mapped", opt: Options{User: "70000"}, want: "user id 70000 is not mapped"},
		{name: "user without subordinate ids", opt: Options{User: "www", RootEmulation: "off"}, want: "user id 33 is not mapped", facts: noSubIDs},
		{name: "group without subordinate ids", opt: Options{GroupAdd: []string{"www"}, RootEmulation: "off"}, want: "without subordinate ids", facts: noSubIDs},
		{name: "emulation with many ids", opt: Options{RootEmulation: "on"}, want: "--root-emulation=on"},
		{name: "emulation sometimes", opt: Options{RootEmulation: "maybe"}, want: "auto, on, off"},
		{name: "group that is not mapped", opt: Options{GroupAdd: []string{"far"}}, want: "group id 70000 is not mapped"},
		{name: "unknown group to add", opt: Options{GroupAdd: []string{"nogroup"}}, want: "--group-add"},
		{name: "keep-groups and others", opt: Options{GroupAdd: []string{"keep-groups", "www"}}, want: "conflicting options"},
		{name: "variable without name", opt: Options{Env: []string{"=x"}}, want: "invalid environment variable"},
		{name: "variable file with blanks in names", opt: Options{EnvFiles: []string{"/etc/bad"}}, want: "line 1: variable 'a b' contains whitespaces"},
		{name: "variable file that is not there", opt: Options{EnvFiles: []string{"/nowhere"}}, want: "--env-file"},
		{name: "nothing to run", want: "no command specified", facts: func(f *Facts) { f.Image.Cmd = nil }},
		{name: "entrypoint taken away", opt: Options{Entrypoint: ptr("")}, want: "no command specified"},
		{name: "entrypoint that is half an array", opt: Options{Entrypoint: ptr(`["a"`)}, want: "--entrypoint"},
		{name: "hostname with a slash", opt: Options{Hostname: "a/b"}, want: "invalid name"},
		{name: "long hostname", opt: Options{Hostname: strings.Repeat("a", 65)}, want: "longer than 64 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			facts := testFacts()
			if c.facts != nil {
				c.facts(&facts)
			}
			_, err := Build(c.opt, facts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestHintsAreReached(t *testing.T) {
	facts := testFacts()
	noSubIDs(&facts)
	for _, o := range []Options{{User: "www", RootEmulation: "off"}, {Volumes: []string{"/nowhere:/x"}}, {Network: "bridge"}} {
		_, err := Build(o, facts)
		var h interface{ Hint() string }
		if !errors.As(err, &h) || h.Hint() == "" {
			t.Errorf("%v: no hint", err)
		}
	}
}

func build(t *testing.T, opt Options, change ...func(*Facts)) *Container {
	t.Helper()
	facts := testFacts()
	for _, f := range change {
		f(&facts)
	}
	c, err := Build(opt, facts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCommandLine(t *testing.T) {
	image := func(f *Facts) { f.Image.Entrypoint = []string{"/entry"}; f.Image.Cmd = []string{"serve"} }
	for _, c := range []struct {
		name string
		opt  Options
		want []string
	}{
		{"the image's own", Options{}, []string{"/entry", "serve"}},
		{"a command replaces the image's", Options{Args: []string{"x"}}, []string{"/entry", "x"}},
		{"an entrypoint drops the image's command", Options{Entrypoint: ptr("sh")}, []string{"sh"}},
		{"an entrypoint keeps the user's command", Options{Entrypoint: ptr("sh"), Args: []string{"-c", "x"}}, []string{"sh", "-c", "x"}},
		{"an empty entrypoint", Options{Entrypoint: ptr(""), Args: []string{"x"}}, []string{"x"}},
		{"an entrypoint of several words", Options{Entrypoint: ptr(`["a","b"]`), Args: []string{"x"}}, []string{"a", "b", "x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := build(t, c.opt, image).Spec.Process.Args; !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestUsers(t *testing.T) {
	for _, c := range []struct {
		name     string
		user     string
		add      []string
		uid, gid uint32
		groups   []uint32
		home     string
	}{
		{"root by default", "", nil, 0, 0, nil, "/root"},
		{"a name brings its groups, but for those that are not mapped", "postgres", nil, 999, 998, []uint32{104}, "/var/lib/postgresql"},
		{"a named group drops the others", "postgres:www", nil, 999, 33, nil, "/var/lib/postgresql"},
		{"numbers need no entry", "1234:4321", nil, 1234, 4321, nil, "/"},
		{"a number with an entry", "33", nil, 33, 33, nil, "/var/www"},
		{"groups are added by name and number", "www", []string{"ssl", "7", "7"}, 33, 33, []uint32{7, 104}, "/var/www"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := build(t, Options{User: c.user, GroupAdd: c.add}).Spec.Process
			u := got.User
			if u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.AdditionalGids, c.groups) || !slices.Contains(got.Env, "HOME="+c.home) {
				t.Errorf("%+v %q", u, got.Env)
			}
		})
	}
}

func TestPublish(t *testing.T) {
	for s, want := range map[string][]string{
		"80":                      {"*:0->80/tcp"},
		"8080:80":                 {"*:8080->80/tcp"},
		"8080:80/udp":             {"*:8080->80/udp"},
		"127.0.0.1:8080:80":       {"127.0.0.1:8080->80/tcp"},
		"127.0.0.1::80":           {"127.0.0.1:0->80/tcp"},
		"[::1]:8080:80":           {"::1:8080->80/tcp"},
		"8000-8001:80-81":         {"*:8000->80/tcp", "*:8001->81/tcp"},
		"80-81":                   {"*:0->80/tcp", "*:0->81/tcp"},
		"::80":                    {"*:0->80/tcp"},
		"8000-8010:80":            {"*:8000-8010->80/tcp"},
		"0.0.0.0:65535:65535/TCP": {"0.0.0.0:65535->65535/tcp"},
	} {
		ports, err := parsePublish(s)
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, p := range ports {
			got = append(got, show(p))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

func TestAttachments(t *testing.T) {
	for s, want := range map[string]string{
		"a":   "[{a [] invalid IP invalid IP }]",
		"a,b": "[{a [] invalid IP invalid IP } {b [] invalid IP invalid IP }]",
		"a:ip=10.1.1.1,alias=x,alias=y,mac=02:00:00:00:00:01": "[{a [x y] 10.1.1.1 invalid IP 02:00:00:00:00:01}]",
		"name=a,ip6=fd00::1,mac-address=02:00:00:00:00:01":    "[{a [] invalid IP fd00::1 02:00:00:00:00:01}]",
		"a:": "[{a [] invalid IP invalid IP }]",
	} {
		got, err := parseAttachments(s)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v, want %s", s, got, err, want)
		}
	}
}

func show(p Port) string {
	ip := "*"
	if p.HostIP.IsValid() {
		ip = p.HostIP.String()
	}
	host := strconv.Itoa(int(p.HostPort))
	if p.HostPortEnd != 0 {
		host += "-" + strconv.Itoa(int(p.HostPortEnd))
	}
	return fmt.Sprintf("%s:%s->%d/%s", ip, host, p.ContainerPort, p.Proto)
}

func TestCheckFindsFlagErrorsWithoutAnImage(t *testing.T) {
	facts := Facts{Host: testFacts().Host, NumCPU: 4}
	if err := Check(Options{User: "nobody", Volumes: []string{"data:/x"}}, facts); err != nil {
		t.Error(err)
	}
	if err := Check(Options{Publish: []string{"x"}}, facts); err == nil {
		t.Error("no error")
	}
}

func TestBuildIsPure(t *testing.T) {
	facts := testFacts()
	facts.Image.Entrypoint = make([]string, 1, 8)
	facts.Image.Entrypoint[0] = "e"
	opt := Options{Args: []string{"a"}, Env: []string{"A=1"}, SecurityOpts: []string{"unmask=ALL"}}
	first, err := Build(opt, facts)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(opt, facts)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Error("two builds of the same differ")
	}
}
