package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func parseRun(t testing.TB, args ...string) (*RunCmd, error) {
	t.Helper()
	var cli struct {
		Run RunCmd `cmd:""`
	}
	opts := append(runFlagOptions(), kong.Name("urun"), kong.Exit(func(int) { t.Fatal("the parser ended the program") }))
	p, err := kong.New(&cli, opts...)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Parse(append([]string{"run"}, args...))
	return &cli.Run, err
}

func TestWhatFollowsTheImageBelongsToTheCommand(t *testing.T) {
	for _, c := range []struct {
		line    string
		image   string
		command []string
	}{
		{"debian ls -la --color", "debian", []string{"ls", "-la", "--color"}},
		{"debian -- x", "debian", []string{"--", "x"}},
		{"-it debian sh -c exit", "debian", []string{"sh", "-c", "exit"}},
		{"--rm debian --help", "debian", []string{"--help"}},
		{"debian -e A=1 --name x", "debian", []string{"-e", "A=1", "--name", "x"}},
		{"debian a -- b", "debian", []string{"a", "--", "b"}},
		{"-- debian ls", "debian", []string{"ls"}},
		{"--rootfs /srv ls -l", "", []string{"ls", "-l"}},
		{"debian", "debian", nil},
	} {
		t.Run(c.line, func(t *testing.T) {
			f, err := parseRun(t, strings.Fields(c.line)...)
			if err != nil {
				t.Fatal(err)
			}
			o, err := f.options()
			if err != nil {
				t.Fatal(err)
			}
			if f.image() != c.image || strings.Join(o.Args, "|") != strings.Join(c.command, "|") {
				t.Errorf("image %q, command %q", f.image(), o.Args)
			}
		})
	}
}

func TestFlagsHaveDockersForms(t *testing.T) {
	f, err := parseRun(t, "-itd", "-e", "A=1,2", "-e", "B", "-p8080:80", "--rm=false", "--cpus=1.5", "-h", "box", "-m512m",
		"-v", "/a:/b:ro", "--net=host", "--tz=UTC", "-lx=y", "-uroot", "-w/", "--sig-proxy=false", "--entrypoint=", "--stop-timeout=-1",
		"--pids-limit", "-1", "--memory-swap=-1", "--cap-add=NET_RAW,KILL", "-c", "512", "-q", "-P", "img")
	if err != nil {
		t.Fatal(err)
	}
	o, err := f.options()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"-itd", []bool{o.Interactive, o.TTY, o.Detach}, []bool{true, true, true}},
		{"-e keeps commas", o.Env, []string{"A=1,2", "B"}},
		{"-p", o.Publish, []string{"8080:80"}},
		{"--rm=false", o.Remove, false},
		{"--cpus", o.Resources.CPUs, "1.5"},
		{"-h", o.Hostname, "box"},
		{"-m", o.Resources.Memory, "512m"},
		{"-v", o.Volumes, []string{"/a:/b:ro"}},
		{"--net", o.Network, "host"},
		{"--tz", o.Timezone, "UTC"},
		{"-l", o.Labels, []string{"x=y"}},
		{"-u", o.User, "root"},
		{"-w", o.Workdir, "/"},
		{"--sig-proxy", *o.SigProxy, false},
		{"--entrypoint=", *o.Entrypoint, ""},
		{"--stop-timeout", *o.StopTimeout, -1},
		{"--pids-limit", *o.Resources.PidsLimit, int64(-1)},
		{"--memory-swap", o.Resources.MemorySwap, "-1"},
		{"--cap-add", o.CapAdd, []string{"NET_RAW", "KILL"}},
		{"-c", o.Resources.CPUShares, int64(512)},
		{"-q -P", []bool{o.Quiet, o.PublishAll}, []bool{true, true}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestUnknownFlagsAreErrors(t *testing.T) {
	for _, line := range []string{"--link x debian", "--foo debian", "-Z debian", "--rm=maybe debian", "--cpu-shares=many debian"} {
		if _, err := parseRun(t, strings.Fields(line)...); err == nil {
			t.Errorf("%s: no error", line)
		}
	}
}

func TestARunNeedsAnImage(t *testing.T) {
	f, err := parseRun(t, "--rm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.options(); err == nil {
		t.Error("no error")
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := parseRun(b, "--rm", "-it", "-e", "A=1", "debian", "true"); err != nil {
			b.Fatal(err)
		}
	}
}
