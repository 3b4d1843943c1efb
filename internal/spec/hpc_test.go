package spec

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// node is a compute node, and a process of a job on it.
func node(env map[string]string) Facts {
	f := testFacts()
	dir, dev := fs.ModeDir|0o755, fs.ModeDevice|fs.ModeCharDevice|0o666
	m := f.Host.(machine)
	m.env = env
	m.files = maps.Clone(m.files)
	maps.Copy(m.files, fstest.MapFS{
		"scratch": {Mode: dir}, "dev/infiniband": {Mode: dir}, "dev/hfi1_0": {Mode: dev}, "dev/hfi1_1": {Mode: dev},
		"spool/pmix.5.0": {Mode: dir},
	})
	f.Host, f.Files = m, []uint{3, 9}
	return f
}

func mountAt(c *Container, target string) (specs.Mount, bool) {
	i := slices.IndexFunc(c.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == target })
	if i < 0 {
		return specs.Mount{}, false
	}
	return c.Spec.Mounts[i], true
}

func TestBinds(t *testing.T) {
	f := node(nil)
	got, err := Build(Options{HPCOptions: HPCOptions{Binds: []string{"/scratch,/srv:/x:ro", "src:/y"}}}, f)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]specs.Mount{
		"/scratch": {Source: "/scratch", Options: []string{"rbind", "rprivate"}},
		"/x":       {Source: "/srv", Options: []string{"rbind", "rprivate", "ro"}},
		"/y":       {Source: "/home/alice/src", Options: []string{"rbind", "rprivate"}},
	} {
		m, ok := mountAt(got, target)
		if !ok || m.Source != want.Source || !slices.Equal(m.Options, want.Options) {
			t.Errorf("%s: got %+v", target, m)
		}
	}
	for flag, want := range map[string]string{
		"/scratch:":        "must be SOURCE[:TARGET[:ro]]",
		"/scratch:/x:sync": "must be ro or rw",
		"/nowhere":         "does not exist",
		"/scratch:x":       "absolute path",
	} {
		if _, err := Build(Options{HPCOptions: HPCOptions{Binds: []string{flag}}}, f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--bind %s: got %v, want an error with %q", flag, err, want)
		}
	}
}

func TestBindsOfTheConfigurationGiveWay(t *testing.T) {
	got, err := Build(Options{Volumes: []string{"/srv:/scratch"}, HPCOptions: HPCOptions{SiteBinds: []string{"/scratch", "/nowhere", "/srv"}}}, node(nil))
	if err != nil {
		t.Fatal(err)
	}
	if m, _ := mountAt(got, "/scratch"); m.Source != "/srv" {
		t.Errorf("the flag's mount is not there: %+v", m)
	}
	if m, ok := mountAt(got, "/srv"); !ok || m.Source != "/srv" {
		t.Errorf("/srv: %+v", m)
	}
	if _, ok := mountAt(got, "/nowhere"); ok || len(got.Notices) != 1 || !strings.Contains(got.Notices[0], "/nowhere") {
		t.Errorf("a missing source: %v", got.Notices)
	}
}

func TestHome(t *testing.T) {
	for _, c := range []struct {
		name, cwd, flag, workdir string
		bound                    []string
		notice                   bool
	}{
		{"below home", "/home/alice/src", "", "/home/alice/src", []string{"/home/alice"}, false},
		{"elsewhere", "/scratch", "", "/scratch", []string{"/home/alice", "/scratch"}, false},
		{"--workdir", "/scratch", "/srv", "/srv", []string{"/home/alice", "/scratch"}, false},
		{"where the image has its own", "/etc", "", "/home/alice", []string{"/home/alice"}, true},
		{"the root", "/", "", "/home/alice", []string{"/home/alice"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := node(nil)
			f.Cwd = c.cwd
			got, err := Build(Options{Workdir: c.flag, HPCOptions: HPCOptions{Home: true}}, f)
			if err != nil {
				t.Fatal(err)
			}
			if got.Spec.Process.Cwd != c.workdir {
				t.Errorf("working directory %s", got.Spec.Process.Cwd)
			}
			for _, dir := range []string{"/home/alice", "/scratch", "/etc"} {
				if m, ok := mountAt(got, dir); ok != slices.Contains(c.bound, dir) || ok && m.Source != dir {
					t.Errorf("%s: %v %+v", dir, ok, m)
				}
			}
			if !slices.Contains(got.Spec.Process.Env, "HOME=/home/alice") {
				t.Errorf("environment: %v", got.Spec.Process.Env)
			}
			if (len(got.Notices) > 0) != c.notice {
				t.Errorf("notices: %v", got.Notices)
			}
		})
	}
	f := node(nil)
	f.HomeDir = ""
	if _, err := Build(Options{HPCOptions: HPCOptions{Home: true}}, f); err == nil || !strings.Contains(err.Error(), "--home") {
		t.Errorf("without HOME: %v", err)
	}
}

func TestHPC(t *testing.T) {
	f := node(map[string]string{
		"SLURM_PROCID": "3", "PMIX_RANK": "3", "OMPI_COMM_WORLD_RANK": "3", "SECRET": "x", "MODULEPATH": "/m", "LANG": "de",
		"PMIX_SERVER_TMPDIR": "/spool/pmix.5.0", "PMIX_SECURITY_MODE": "munge,native", "PMI_FD": "9",
	})
	got, err := Build(Options{Env: []string{"PMIX_RANK=4"}, HPCOptions: HPCOptions{HPC: true, EnvPass: []string{"MODULE*"}}}, f)
	if err != nil {
		t.Fatal(err)
	}
	env := got.Spec.Process.Env
	for _, want := range []string{"SLURM_PROCID=3", "PMIX_RANK=4", "OMPI_COMM_WORLD_RANK=3", "MODULEPATH=/m", "LANG=C.UTF-8", "PMIX_MCA_psec=munge,native", "PMI_FD=9"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %v", want, env)
		}
	}
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "SECRET=") }) {
		t.Errorf("the environment has what is not asked for: %v", env)
	}
	if got.Network.Mode != "host" || got.Namespaces.IPC.Mode != HostNS || got.Namespaces.PID.Mode != HostNS || !got.KeepGroups {
		t.Errorf("network %s, namespaces %+v, groups kept: %v", got.Network.Mode, got.Namespaces, got.KeepGroups)
	}
	for _, want := range []string{"/dev/infiniband", "/dev/hfi1_0", "/dev/hfi1_1", "/spool/pmix.5.0"} {
		if m, ok := mountAt(got, want); !ok || m.Source != want {
			t.Errorf("%s: %+v", want, m)
		}
	}
	if !slices.Equal(got.PreserveFDs, []uint{9}) {
		t.Errorf("files: %v", got.PreserveFDs)
	}
}

func TestFlagsGoBeforeHPC(t *testing.T) {
	got, err := Build(Options{Network: "none", PID: "private", ShmSize: "1g", HPCOptions: HPCOptions{HPC: true}}, node(nil))
	if err != nil {
		t.Fatal(err)
	}
	if got.Network.Mode != "none" || got.Namespaces.IPC.Mode != Private || got.Namespaces.PID.Mode != Private {
		t.Errorf("network %s, namespaces %+v", got.Network.Mode, got.Namespaces)
	}
}

func TestFilesThatAreNotOpenCannotBeKept(t *testing.T) {
	for _, c := range []struct {
		opt  HPCOptions
		env  map[string]string
		want string
	}{
		{HPCOptions{PreserveFDs: []uint{50}}, nil, "--preserve-fd 50: no file"},
		{HPCOptions{PreserveFDs: []uint{1}}, nil, "--preserve-fd 1: the standard files"},
		{HPCOptions{HPC: true}, map[string]string{"PMI_FD": "50"}, "PMI_FD 50: no file"},
		{HPCOptions{HPC: true}, map[string]string{"PMI_FD": "x"}, "PMI_FD=x"},
		{HPCOptions{EnvPass: []string{"[A"}}, nil, "not a pattern"},
	} {
		if _, err := Build(Options{HPCOptions: c.opt}, node(c.env)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v %v: got %v, want an error with %q", c.opt, c.env, err, c.want)
		}
	}
}
