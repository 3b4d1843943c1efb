package main

import (
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/urun-dev/urun/internal/state"
)

func TestACommittedImageRunsAsItsContainerDid(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "MODE=slow"}}
	process := &specs.Process{Env: []string{"PATH=/bin", "MODE=fast", "HOME=/root", "HOSTNAME=0123", "TERM=xterm"}, Cwd: "/", User: specs.User{UID: 7, GID: 8}}
	for what, c := range map[string]struct {
		command         []string
		entrypoint, cmd []string
	}{
		"the image's own command":  {[]string{"/entry", "serve"}, []string{"/entry"}, []string{"serve"}},
		"another command":          {[]string{"/entry", "check", "-v"}, []string{"/entry"}, []string{"check", "-v"}},
		"no command":               {[]string{"/entry"}, []string{"/entry"}, nil},
		"an entrypoint of its own": {[]string{"sh", "-c", "x"}, nil, []string{"sh", "-c", "x"}},
		"a shorter one of its own": {[]string{"sh"}, nil, []string{"sh"}},
	} {
		got := committedConfig(image, &state.Record{Command: c.command}, &specs.Spec{Process: process}, false)
		if !slices.Equal(got.Entrypoint, c.entrypoint) || !slices.Equal(got.Cmd, c.cmd) {
			t.Errorf("%s: got %q %q, want %q %q", what, got.Entrypoint, got.Cmd, c.entrypoint, c.cmd)
		}
		if !slices.Equal(got.Env, []string{"PATH=/bin", "MODE=fast"}) || got.WorkingDir != "" || got.User != "7:8" {
			t.Errorf("%s: got %+v", what, got)
		}
	}
	if image.Env[1] != "MODE=slow" {
		t.Error("the image's own config was changed")
	}
	own := committedConfig(image, &state.Record{Command: image.Entrypoint}, &specs.Spec{Process: process}, true)
	if own.User != "" {
		t.Errorf("keep-id: the image got the user %s", own.User)
	}
}
