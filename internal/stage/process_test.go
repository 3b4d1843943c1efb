package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLookupFindsCommandsAsAShellDoes(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, file := range []string{filepath.Join(a, "one"), filepath.Join(b, "one"), filepath.Join(b, "two")} {
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(a, "two"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=/nothing", "PATH=" + a + ":.:" + b}
	for _, tt := range []struct {
		name string
		args []string
		want []string
		code int
	}{
		{"all places in order", []string{"one"}, []string{filepath.Join(a, "one"), filepath.Join(b, "one")}, 0},
		{"a directory is no command", []string{"two"}, []string{filepath.Join(b, "two")}, 0},
		{"a name with a slash is a path", []string{"./x"}, []string{"./x"}, 0},
		{"what is nowhere is status 127", []string{"three"}, nil, 127},
		{"an empty name is status 127", []string{""}, nil, 127},
		{"no command is status 125", nil, nil, 125},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Process{Spec: &specs.Process{Args: tt.args, Env: env}}.lookup()
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if code := Failure(orNil(err)).Code; err != nil && code != tt.code || err == nil && tt.code != 0 {
				t.Errorf("status %d, want %d (%v)", code, tt.code, err)
			}
		})
	}
}

func orNil(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

func TestFailuresKeepTheirStatusAndHintThroughWrapping(t *testing.T) {
	err := fmt.Errorf("step: %w", &codedError{127, &hintError{errors.New("cause"), "cure"}})
	if f := Failure(err); f.Code != 127 || f.Hint != "cure" || f.Error != "step: cause" {
		t.Errorf("got %+v", f)
	}
	if f := Failure(errors.New("x")); f.Code != 125 {
		t.Errorf("got %+v", f)
	}
}

func TestCapabilitiesAndLimitsHaveNumbers(t *testing.T) {
	if n, err := capabilityNumber("CAP_SYS_ADMIN"); err != nil || n != 21 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := capabilityNumber("CAP_FLY"); err == nil {
		t.Error("an unknown capability was taken")
	}
	if n, ok := rlimitNumber("RLIMIT_NOFILE"); !ok || n != 7 {
		t.Errorf("got %d", n)
	}
	if _, ok := rlimitNumber("RLIMIT_X"); ok {
		t.Error("an unknown limit was taken")
	}
}

// The order of some steps is a matter of security: see the comments in steps.
func TestStepsAreInOrder(t *testing.T) {
	var names []string
	for _, s := range steps() {
		names = append(names, s.name)
	}
	order := []string{"make mounts private", "open host files", "become root", "mount image", "mount root", "mount", "set kernel parameters", "hide paths", "make root read-only", "change root"}
	last := -1
	for _, name := range order {
		i := slices.Index(names, name)
		if i <= last {
			t.Fatalf("%q comes too early or not at all in %s", name, strings.Join(names, ", "))
		}
		last = i
	}
}
