package spec

import (
	"slices"
	"strings"
	"testing"
)

func onRungs(r Rungs) Facts {
	f := testFacts()
	f.Rungs = r
	return f
}

func TestAChrootHasNothingThatTakesAMount(t *testing.T) {
	c, err := Build(Options{Image: "x", Args: []string{"true"}}, onRungs(Rungs{NoUserNS: true, NoMounts: true}))
	if err != nil {
		t.Fatal(err)
	}
	caps := c.Spec.Process.Capabilities
	switch {
	case len(c.Spec.Mounts) > 0, len(c.Spec.Linux.MaskedPaths) > 0, len(c.Spec.Linux.ReadonlyPaths) > 0:
		t.Errorf("mounts: %v", c.Spec.Mounts)
	case !c.Chroot || !c.Plain || c.Storage != "copy" || c.Network.Mode != "host" || c.Namespaces.PID.Mode != HostNS:
		t.Errorf("%+v", c)
	case !c.SeccompUnconfined:
		t.Error("a filter that cannot be installed")
	case slices.Contains(caps.Bounding, "CAP_SYS_CHROOT") || slices.Contains(caps.Permitted, "CAP_SYS_CHROOT"):
		t.Errorf("it may leave: %v", caps)
	case len(c.Notices) != 1 || !strings.Contains(c.Notices[0], "chroot"):
		t.Errorf("notices: %q", c.Notices)
	}
}

func TestAChrootIsRefusedWhatItCannotKeep(t *testing.T) {
	for _, c := range []struct {
		opt  Options
		says string // "": it is taken
	}{
		{Options{Volumes: []string{"/a:/b"}}, "--volume"},
		{Options{Network: "none"}, "--network none"},
		{Options{Network: "host"}, ""},
		{Options{PID: "private"}, "--pid private"},
		{Options{PID: "host"}, ""},
		{Options{Publish: []string{"80"}}, "--publish"},
		{Options{Storage: "overlay"}, "--storage overlay"},
		{Options{Storage: "copy"}, ""},
		{Options{SecurityOpts: []string{"seccomp=x.json"}}, "seccomp=x.json"},
		{Options{SecurityOpts: []string{"seccomp=unconfined"}}, ""},
		{Options{SecurityOpts: []string{"no-new-privileges"}}, ""},
	} {
		c.opt.Image, c.opt.Args = "x", []string{"true"}
		_, err := Build(c.opt, onRungs(Rungs{NoMounts: true}))
		if c.says == "" && err != nil {
			t.Error(err)
		}
		if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.says, err)
		}
	}
}

func TestWithoutFuseAnImageIsPlainFiles(t *testing.T) {
	opt := Options{Image: "x", Args: []string{"true"}}
	c, err := Build(opt, onRungs(Rungs{NoFuse: true}))
	if err != nil || !c.Plain || c.Chroot || c.Storage != "auto" {
		t.Errorf("%+v, %v", c, err)
	}
	opt.Storage = "fuse"
	if _, err := Build(opt, onRungs(Rungs{NoFuse: true})); err == nil || !strings.Contains(err.Error(), "no FUSE mount") {
		t.Errorf("%v", err)
	}
}
