package integration

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

type finding struct{ Check, Status, Detail, Cure, Admin string }

// examine runs urun doctor by a shell script that prepares a fault; $URUN is the binary.
func examine(t *testing.T, script string) (works bool, checks map[string]finding) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Env = append(cmd.Environ(), "URUN="+harness.Binary, "TMPDIR="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var said struct {
		Works    bool
		Findings []finding
	}
	if jerr := json.Unmarshal(out, &said); jerr != nil {
		t.Fatalf("%s: %v (%v)\n%s%s", script, jerr, err, out, stderr.String())
	}
	if (err == nil) != said.Works {
		t.Errorf("works: %v, but it ended with: %v", said.Works, err)
	}
	checks = map[string]finding{}
	for _, f := range said.Findings {
		checks[f.Check] = f
	}
	return said.Works, checks
}

func TestDoctorFindsThisMachineFit(t *testing.T) {
	works, checks := examine(t, `exec "$URUN" doctor --json`)
	if !works {
		t.Fatalf("these tests run here, but: %+v", checks)
	}
	if got := checks["subordinate ids"].Status == "ok"; got != harness.Ranges(t) {
		t.Errorf("subordinate ids: %+v", checks["subordinate ids"])
	}
	harness.Urun(t, "doctor").Has("user namespace", "writable layer", "store")
}

// Faults that a user can make for himself. What follows the name prepares one; the
// examination happens in it.
func TestDoctorFindsInjectedFaults(t *testing.T) {
	const inside = `unshare --user --map-root-user --mount --propagation private sh -ec `
	for _, c := range []struct {
		fault, script, check, status, says, cures string
		plainRunFails                             bool
		needsRanges                               bool
	}{
		{
			"user.max_user_namespaces is 0",
			inside + `'echo 0 >/proc/sys/user/max_user_namespaces; exec "$URUN" doctor --json'`,
			// Root, as here, makes do without.
			"user namespace", "degraded", "max_user_namespaces is 0", "sysctl -w user.max_user_namespaces", false, false,
		},
		{
			"user.max_net_namespaces is 0",
			inside + `'echo 0 >/proc/sys/user/max_net_namespaces; exec "$URUN" doctor --json'`,
			"namespaces", "missing", "network namespace", "sysctl -w user.max_net_namespaces", true, false,
		},
		{
			"no_new_privs",
			`exec setpriv --no-new-privs "$URUN" doctor --json`,
			"subordinate ids", "degraded", "no_new_privs", "no_new_privs", false, true,
		},
		{
			"newuidmap is not on the path",
			`d=$(mktemp -d); PATH=$d; export PATH; exec "$URUN" doctor --json`,
			"subordinate ids", "degraded", "newuidmap", "uidmap", false, true,
		},
		{
			"no /dev/fuse",
			inside + `'mount --bind /dev/null /dev/fuse; mount -t tmpfs none /dev/net; chmod 0 /dev/net; d=$(mktemp -d); mount -t tmpfs none "$d"; for n in null zero random urandom tty; do touch "$d/$n"; mount --bind /dev/$n "$d/$n"; done; mount --rbind "$d" /dev; exec "$URUN" doctor --json'`,
			"image layers", "degraded", "/dev/fuse", "modprobe fuse", false, false,
		},
		{
			"no /dev/net/tun",
			inside + `'mount -t tmpfs none /dev/net; exec "$URUN" doctor --json'`,
			"network", "degraded", "/dev/net/tun", "modprobe tun", false, false,
		},
		{
			"a masked /proc",
			inside + `'mount -t tmpfs none /proc/fs; exec "$URUN" doctor --json'`,
			"/proc", "degraded", "masked", "unmask=ALL", false, false,
		},
		{
			"a masked /sys",
			inside + `'mount -t tmpfs none /sys/kernel; exec "$URUN" doctor --json'`,
			"/sys", "degraded", "masked", "unmask=ALL", false, false,
		},
		{
			"a store that cannot be written",
			`unset URUN_ROOT XDG_DATA_HOME; HOME=/proc exec "$URUN" doctor --json`,
			"store", "missing", "/proc/.local", "URUN_ROOT", true, false,
		},
		{
			"a small disk",
			inside + `'d=$(mktemp -d); mount -t tmpfs -o size=4m none "$d"; URUN_ROOT=$d exec "$URUN" doctor --json'`,
			"store", "degraded", "MB are free", "prune", false, false,
		},
		{
			"few inodes",
			inside + `'d=$(mktemp -d); mount -t tmpfs -o nr_inodes=100 none "$d"; URUN_ROOT=$d exec "$URUN" doctor --json'`,
			"store", "degraded", "inodes are free", "prune", false, false,
		},
		{
			"few open files",
			`ulimit -n 300; exec "$URUN" doctor --json`,
			"open files", "degraded", "300", "limits.d", false, false,
		},
		{
			"a chroot",
			inside + `'d=$(mktemp -d); mkdir "$d/r"; for n in usr bin lib lib64 sbin proc dev sys etc tmp; do [ -e /$n ] || continue; mkdir "$d/r/$n"; mount --rbind /$n "$d/r/$n"; done; touch "$d/r/urun"; mount --bind "$URUN" "$d/r/urun"; exec chroot "$d/r" /urun --root /tmp/none doctor --json'`,
			"user namespace", "degraded", "chroot", "outside of it", false, false,
		},
	} {
		if c.needsRanges && !harness.Ranges(t) {
			continue // the fault is there already
		}
		t.Run(c.fault, func(t *testing.T) {
			works, checks := examine(t, c.script)
			f := checks[c.check]
			if f.Status != c.status || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Cure+"\n"+f.Admin, c.cures) {
				t.Errorf("%s: %+v", c.check, f)
			}
			if works == c.plainRunFails {
				t.Errorf("works: %v; %+v", works, checks)
			}
		})
	}
}
