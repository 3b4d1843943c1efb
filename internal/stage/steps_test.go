package stage

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/urun-dev/urun/internal/rootfs"
)

func TestMountHints(t *testing.T) {
	for _, c := range []struct {
		plan rootfs.Plan
		err  error
		want string // part of the hint
	}{
		{rootfs.Plan{Type: "proc", Target: "/proc"}, unix.EPERM, "masked"},
		{rootfs.Plan{Bind: true, Target: "/etc/hosts"}, fmt.Errorf("create mount point: %w", unix.EOVERFLOW), "/etc/hosts"},
		{rootfs.Plan{Type: "tmpfs", Target: "/tmp"}, unix.EPERM, ""},
	} {
		got := Failure(mountHint(c.plan, c.err)).Hint
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %v: %q", c.plan.Target, c.err, got)
		}
	}
}
