package spec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const fakeVendor = `{"cdiVersion": "1.1.0", "kind": "fake.com/gpu",
"containerEdits": {"env": ["FAKE_ALL=yes"]},
"devices": [
 {"name": "0", "containerEdits": {
  "env": ["FAKE_DEVICE=0", "LANG=fake"],
  "deviceNodes": [{"path": "/dev/fake0", "hostPath": "/dev/fuse"}, {"path": "/dev/fuse"}],
  "mounts": [{"hostPath": "/srv/data/file", "containerPath": "/usr/lib/libfake.so", "options": ["ro", "nosuid"]}],
  "hooks": [{"hookName": "createContainer", "path": "/srv/data/file", "args": ["link", "--all"], "env": ["A=1"]}],
  "additionalGids": [44]}},
 {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/fuse"}]}},
 {"name": "outside", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/srv/data/file"}]}},
 {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/gone"}]}},
 {"name": "net", "containerEdits": {"netDevices": [{"hostInterfaceName": "ib0", "name": "ib0"}]}},
 {"name": "disk", "containerEdits": {"mounts": [{"hostPath": "/dev/fuse", "containerPath": "/x", "type": "ext4"}]}}
]}`

func vendorDir(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fake.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestADeviceOfASpecification(t *testing.T) {
	facts := testFacts()
	facts.Groups = []int{44, 1000}
	c, err := Build(Options{
		CDIDirs: []string{vendorDir(t, fakeVendor)}, Devices: []string{"fake.com/gpu=0", "fake.com/gpu=1"}, Env: []string{"FAKE_DEVICE=mine"},
	}, facts)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range []string{"FAKE_ALL=yes", "FAKE_DEVICE=mine", "LANG=fake"} {
		if !slices.Contains(c.Spec.Process.Env, kv) {
			t.Errorf("no %s in %v", kv, c.Spec.Process.Env)
		}
	}
	got := map[string]specs.Mount{}
	for _, m := range c.Spec.Mounts {
		if _, twice := got[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		got[m.Destination] = m
	}
	for target, source := range map[string]string{"/dev/fake0": "/dev/fuse", "/dev/fuse": "/dev/fuse", "/usr/lib/libfake.so": "/srv/data/file"} {
		if m := got[target]; m.Source != source || m.Type != "bind" {
			t.Errorf("%s is %+v, want a bind of %s", target, m, source)
		}
	}
	if o := got["/usr/lib/libfake.so"].Options; !slices.Equal(o, []string{"rbind", "ro", "nosuid"}) {
		t.Errorf("options %v", o)
	}
	hooks := c.Spec.Hooks.CreateContainer
	if len(hooks) != 1 || hooks[0].Path != "/srv/data/file" || !slices.Equal(hooks[0].Args, []string{"link", "--all"}) {
		t.Errorf("hooks %+v", hooks)
	}
	if !c.KeepGroups {
		t.Error("the group that the device is for is not kept")
	}
	if !slices.Equal(c.CDIDevices, []string{"fake.com/gpu=0", "fake.com/gpu=1"}) {
		t.Errorf("recorded are %v", c.CDIDevices)
	}
}

func TestAGroupThatTheCallerHasNotIsTold(t *testing.T) {
	c, err := Build(Options{CDIDirs: []string{vendorDir(t, fakeVendor)}, Devices: []string{"fake.com/gpu=0"}}, testFacts())
	if err != nil {
		t.Fatal(err)
	}
	if c.KeepGroups || !slices.ContainsFunc(c.Notices, func(s string) bool { return strings.Contains(s, "group 44") }) {
		t.Errorf("groups kept: %t; notices %q", c.KeepGroups, c.Notices)
	}
}

func TestDevicesThatCannotBeHad(t *testing.T) {
	dir, empty, broken := vendorDir(t, fakeVendor), t.TempDir(), vendorDir(t, "{")
	for _, c := range []struct {
		dir, device string
		words       []string
	}{
		{dir, "fake.com/gpu=9", []string{"no such device", dir}},
		{empty, "fake.com/gpu=0", []string{"no such device", empty}},
		{broken, "fake.com/gpu=0", []string{filepath.Join(broken, "fake.json")}},
		{dir, "fake.com/gpu=outside", []string{"createRuntime", "fake.json"}},
		{dir, "fake.com/gpu=gone", []string{"dev/gone", "fake.json"}},
		{dir, "fake.com/gpu=net", []string{"network device"}},
		{dir, "fake.com/gpu=disk", []string{"ext4"}},
		{dir, "gpu0", []string{"not an absolute path"}},
	} {
		err := Check(Options{CDIDirs: []string{c.dir}, Devices: []string{c.device}}, testFacts())
		if err == nil {
			t.Errorf("%s is accepted", c.device)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q, want one line that names %q", c.device, err, w)
			}
		}
	}
}

func TestWhereSpecificationsAreLookedFor(t *testing.T) {
	facts := testFacts()
	m := facts.Host.(machine)
	dirs := func(opt Options) []string { return newBuilder(opt, facts).cdiDirs() }
	if got := dirs(Options{}); !slices.Equal(got, []string{"/etc/cdi", "/var/run/cdi", "/home/alice/.config/cdi"}) {
		t.Errorf("by default: %v", got)
	}
	m.env["CDI_SPEC_DIRS"] = "/a:/b"
	if got := dirs(Options{}); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("by the variable: %v", got)
	}
	if got := dirs(Options{CDIDirs: []string{"/c"}}); !slices.Equal(got, []string{"/c"}) {
		t.Errorf("by the flag: %v", got)
	}
}
