package integration

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

var containers atomic.Int64

// unique gives a container name that no other test has.
func unique(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("it-%d-%d", os.Getpid(), containers.Add(1))
}

// detach starts a container of the demo image in the background and removes it when the test ends.
func detach(t *testing.T, flags []string, command ...string) string {
	t.Helper()
	name := unique(t)
	args := append([]string{"run", "-d", "--name", name}, flags...)
	args = append(append(args, harness.DemoImage), command...)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	if id := harness.Urun(t, args...).OK(); id == "" || strings.ContainsAny(id, " \n") {
		t.Fatalf("run -d printed %q, want an id", id)
	}
	return name
}

func ownerOf(fi os.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
