package launch

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/spec"
	"github.com/urun-dev/urun/internal/state"
	"github.com/urun-dev/urun/slirp"
)

func testContainer(n spec.Network) *spec.Container {
	return &spec.Container{Name: "web", Network: n, Spec: &specs.Spec{Hostname: "h1", Domainname: "example"}}
}

func TestEtcFilesTellOfTheContainersNameAndNetwork(t *testing.T) {
	c := testContainer(spec.Network{
		Mode: "slirp", Slirp: spec.Slirp{AllowHostLoopback: true}, DNSSearch: []string{"corp"}, DNSOptions: []string{"ndots:2"},
		Hosts: []spec.HostEntry{{Name: "db", IP: "192.0.2.7"}, {Name: "host", IP: "host-gateway"}},
	})
	net, err := slirpConfig(c.Network)
	if err != nil {
		t.Fatal(err)
	}
	files, err := (&Plan{Container: c}).etcFiles(net)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"hosts":       {"127.0.0.1\tlocalhost\n", "192.0.2.7\tdb\n", "10.0.2.2\thost\n", "10.0.2.2\thost.containers.internal host.docker.internal\n", "10.0.2.100\th1.example h1 web\n"},
		"resolv.conf": {"nameserver 10.0.2.3\n", "search corp\n", "options ndots:2\n"},
		"hostname":    {"h1\n"},
	} {
		for _, line := range want {
			if !strings.Contains(files[name], line) {
				t.Errorf("/etc/%s lacks %q:\n%s", name, line, files[name])
			}
		}
	}
	if _, ok := files["passwd"]; ok {
		t.Error("passwd is generated though no line is to be added")
	}
}

func TestTheHostIsReachedByItsOwnAddressUnlessItsLoopbackIsOpen(t *testing.T) {
	c := testContainer(spec.Network{Mode: "slirp", Hosts: []spec.HostEntry{{Name: "host", IP: "host-gateway"}}, KeepResolvConf: true})
	files, err := (&Plan{Container: c}).etcFiles(mustNet(t, c))
	if errors.Is(err, errNoHostAddr) {
		t.Skip("this host has no address but its loopback's")
	}
	if err != nil {
		t.Fatal(err)
	}
	want, err := hostAddr()
	if err != nil || want.IsLoopback() || !strings.Contains(files["hosts"], want.String()+"\thost\n") || strings.Contains(files["hosts"], "host.docker.internal") {
		t.Errorf("host is %v, %v:\n%s", want, err, files["hosts"])
	}
	if got, ok := files["resolv.conf"]; ok {
		t.Errorf("resolv.conf is generated with --dns none: %q", got)
	}
}

func TestALineIsAddedToTheImagesPasswd(t *testing.T) {
	c := testContainer(spec.Network{Mode: "none"})
	c.PasswdLine = "me:x:1000:1000::/:/bin/sh"
	files, err := (&Plan{Container: c, Passwd: []byte("root:x:0:0::/root:/bin/sh")}).etcFiles(mustNet(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if want := "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/:/bin/sh\n"; files["passwd"] != want {
		t.Errorf("got %q", files["passwd"])
	}
}

func TestFilesThatTheUserMountsAreNotGenerated(t *testing.T) {
	for _, target := range []string{"/etc/hosts", "/etc"} {
		c := testContainer(spec.Network{Mode: "none"})
		c.Spec.Mounts = []specs.Mount{{Destination: target, Type: "bind", Source: "/x"}}
		dir := t.TempDir()
		if err := bindEtc(c, dir, map[string]string{"hosts": "h"}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "hosts")); err == nil || len(c.Spec.Mounts) != 1 {
			t.Errorf("%s: hosts was generated", target)
		}
	}
}

func TestGeneratedFilesAreReadableWhateverTheUmask(t *testing.T) {
	c := testContainer(spec.Network{Mode: "none"})
	dir := t.TempDir()
	if err := bindEtc(c, dir, map[string]string{"hosts": "h"}); err != nil {
		t.Fatal(err)
	}
	placeEtc(c, dir)
	m := c.Spec.Mounts[0]
	info, err := os.Stat(m.Source)
	if err != nil || info.Mode().Perm() != 0o644 || m.Destination != "/etc/hosts" {
		t.Fatalf("%+v: %v %v", m, info, err)
	}
}

func TestANetworkOfAnotherContainerComesWithItsFiles(t *testing.T) {
	root := t.TempDir()
	st, err := state.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	h, err := st.Create(state.Record{ID: state.NewID(), Name: "db"}, func(dir string) error {
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "etc", "hosts"), []byte("theirs"), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	c := testContainer(spec.Network{Mode: "container", Container: "db"})
	files, err := (&Plan{Container: c, StateRoot: root}).etcFiles(mustNet(t, c))
	if err != nil || files["hosts"] != "theirs" {
		t.Fatalf("got %v, %v", files, err)
	}
}

func TestNetworkFlagsReachTheStack(t *testing.T) {
	cfg, err := slirpConfig(spec.Network{
		Mode: "slirp", Slirp: spec.Slirp{AllowHostLoopback: true},
		DNS:   []netip.Addr{netip.MustParseAddr("192.0.2.53")},
		Ports: []spec.Port{{HostPort: 8080, ContainerPort: 80, Proto: "udp"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.AllowHostLoopback || cfg.Resolvers[0] != netip.MustParseAddrPort("192.0.2.53:53") ||
		cfg.Ports[0].HostPort != 8080 || cfg.Ports[0].Protocol != "udp" {
		t.Errorf("got %+v", cfg)
	}
}

func TestVolumesAreNamedBeforeTheyAreMade(t *testing.T) {
	root := t.TempDir()
	c := testContainer(spec.Network{Mode: "none"})
	c.Spec.Mounts = make([]specs.Mount, 2)
	c.Volumes = []spec.Volume{{Name: "data", Mount: 0}, {Mount: 1}}
	var rec state.Record
	err := nameVolumes(c, root, &rec)
	if err != nil || len(rec.Volumes) != 1 || !slices.Equal(rec.NamedVolumes, []string{"data"}) {
		t.Fatalf("got %v and %v, %v", rec.Volumes, rec.NamedVolumes, err)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Fatalf("made already: %v", entries)
	}
	if err := makeVolumes(c, root, &rec); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Spec.Mounts {
		if info, err := os.Stat(m.Source); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", m.Source, err)
		}
	}
	c.Volumes = []spec.Volume{{Name: "../x"}}
	if err := nameVolumes(c, root, &rec); err == nil {
		t.Error("a name that leads elsewhere was taken")
	}
}

func mustNet(t *testing.T, c *spec.Container) (cfg slirp.Config) {
	t.Helper()
	cfg, err := slirpConfig(c.Network)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}
