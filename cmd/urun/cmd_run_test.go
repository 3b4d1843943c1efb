package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/urun-dev/urun/internal/handoff"
)

// The test binary stands in for urun: it is what run executes stages of.
func TestMain(m *testing.M) {
	if handoff.IsStage(os.Args) {
		main()
	}
	os.Exit(m.Run())
}

// The image can not be had: an error about it would mean that it was asked for.
func TestMistypedFlagsAreFoundBeforeAnImageIsPulled(t *testing.T) {
	t.Setenv("URUN_LINGER", "0s") // or its holder keeps open for minutes what these tests were started with
	for _, args := range [][]string{{"--memory", "lots"}, {"-p", "x"}, {"--network=host", "-p", "80:80"}, {"--userns=martian"}} {
		var stderr bytes.Buffer
		line := append(append([]string{"run"}, args...), "127.0.0.1:1/none", "true")
		t.Setenv("URUN_ROOT", t.TempDir())
		if code := run(line, os.Stdin, &bytes.Buffer{}, &stderr); code != exitRuntime || strings.Contains(stderr.String(), "pull") {
			t.Errorf("%v: status %d, %s", args, code, stderr.String())
		}
	}
}
