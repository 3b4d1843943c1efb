package integration

import (
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urun-dev/urun/integration/harness"
)

type finding struct{ Check, Status, Detail, Cure, Admin string }

// examination is what doctor said of a place, and how a plain run fared there.
type examination struct {
	works  bool
	checks map[string]finding
	runs   bool
	said   string // by the run, on standard error
}

// examineAndRun is the end of each script that prepares a fault; what it uses is the shell's own.
const examineAndRun = `
set +e
"$URUN" doctor --json
echo "doctor $?"
said=$("$URUN" run --rm "$IMAGE" true 2>&1)
printf '%s\n' "run $?" "$said"
`

// examine has a shell script prepare a place, and looks what doctor and a plain run say there. $URUN is the
// binary, $IMAGE an image, and the store is empty.
func examine(t *testing.T, script string) examination {
	t.Helper()
	dir := t.TempDir()
	// A hint calls urun by its name.
	bin := filepath.Join(dir, "bin")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(harness.Binary, filepath.Join(bin, "urun"))); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-ec", script)
	cmd.Env = append(cmd.Environ(), "URUN="+harness.Binary, "LAYOUT="+harness.DemoLayout(), "IMAGE=oci:"+harness.DemoLayout()+":latest",
		"TMPDIR="+dir, "URUN_ROOT="+filepath.Join(dir, "store"), "XDG_RUNTIME_DIR="+dir, "URUN_LINGER=0s",
		"PATH="+bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	lines := strings.SplitN(string(out), "\n", 4)
	var said struct {
		Works    bool
		Findings []finding
	}
	if len(lines) < 4 || json.Unmarshal([]byte(lines[0]), &said) != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, stderr.String())
	}
	e := examination{works: said.Works, checks: map[string]finding{}, runs: lines[2] == "run 0", said: lines[2] + "\n" + lines[3]}
	for _, f := range said.Findings {
		e.checks[f.Check] = f
	}
	if (lines[1] == "doctor 0") != said.Works {
		t.Errorf("works: %v, but it ended with: %s", said.Works, lines[1])
	}
	return e
}

func TestDoctorFindsThisMachineFit(t *testing.T) {
	e := examine(t, examineAndRun)
	if !e.works || !e.runs {
		t.Fatalf("these tests run here, but: %+v", e)
	}
	if got := e.checks["subordinate ids"].Status == "ok"; got != harness.Ranges(t) {
		t.Errorf("subordinate ids: %+v", e.checks["subordinate ids"])
	}
	harness.Urun(t, "doctor").Has("user namespace", "writable layer", "store")
}

// Cures. The first two are the line of the finding, to the letter, by the shell that the fault is in; the others do what it means.
var (
	asUser  = func(f finding) string { return f.Cure }
	asAdmin = func(f finding) string { return f.Admin }
	uncover = func(dir string) func(finding) string { return func(finding) string { return "umount " + dir } }
	instead = func(script string) func(finding) string { return func(finding) string { return script } }
)

// fault is one that a user can make for himself.
type fault struct {
	name string
	// prepare makes it; by root of a user namespace if that says so.
	root    bool
	prepare string
	// What doctor is to say.
	check, status, says, cures string
	// breaks says that a plain run fails, which is to have the same hint.
	breaks bool
	// cure is what follows the hint; nil where only the machine's administrator could. What it then says is "ok", or after.
	cure  func(finding) string
	after string
	// needsRanges: without, the fault is there already.
	needsRanges bool
}

const (
	// anotherDisk is what the hint to keep the store elsewhere finds in /var/tmp.
	anotherDisk = `mount -t tmpfs -o mode=1777,size=2g,nr_inodes=100k none /var/tmp; `
	smallStore  = anotherDisk + `URUN_ROOT=$(mktemp -d); export URUN_ROOT; mount -t tmpfs -o `
)

var faults = []fault{
	{name: "no user namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_user_namespaces", // root, as here, makes do without
		check: "user namespace", status: "degraded", says: "max_user_namespaces is 0", cures: "sysctl -w user.max_user_namespaces", cure: asAdmin},
	{
		name: "no network namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_net_namespaces",
		check: "namespaces", status: "missing", says: "network namespace", cures: "sysctl -w user.max_net_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no pid namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_pid_namespaces",
		check: "namespaces", status: "missing", says: "pid namespace", cures: "sysctl -w user.max_pid_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no mount namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_mnt_namespaces",
		check: "namespaces", status: "missing", says: "mount namespace", cures: "sysctl -w user.max_mnt_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no uts namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_uts_namespaces",
		check: "namespaces", status: "missing", says: "uts namespace", cures: "sysctl -w user.max_uts_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no ipc namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_ipc_namespaces",
		check: "namespaces", status: "missing", says: "ipc namespace", cures: "sysctl -w user.max_ipc_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no cgroup namespaces", root: true, prepare: "echo 0 >/proc/sys/user/max_cgroup_namespaces",
		check: "namespaces", status: "missing", says: "cgroup namespace", cures: "sysctl -w user.max_cgroup_namespaces", breaks: true, cure: asAdmin,
	},
	{
		name: "no_new_privs", prepare: `[ -n "$AGAIN" ] || AGAIN=1 exec setpriv --no-new-privs sh -c "$SELF"`,
		check: "subordinate ids", status: "degraded", says: "no_new_privs", cures: "without no_new_privs", needsRanges: true,
	},
	{
		name: "no newuidmap", prepare: `OLD=$PATH; PATH=$(mktemp -d)`,
		check: "subordinate ids", status: "degraded", says: "newuidmap", cures: "uidmap", cure: instead("PATH=$OLD"), needsRanges: true,
	},
	{
		name: "newuidmap without its privilege", prepare: `OLD=$PATH; d=$(mktemp -d); cp "$(command -v newuidmap)" "$(command -v newgidmap)" "$d"; chmod 755 "$d"/*; PATH=$d:$PATH`,
		check: "subordinate ids", status: "degraded", says: "newuidmap", cures: "newuidmap", needsRanges: true,
	},
	{
		name: "no /dev/fuse", root: true, prepare: `d=$(mktemp -d); mount -t tmpfs none "$d"; mkdir "$d/net"; for n in null zero random urandom tty net/tun; do touch "$d/$n"; mount --bind /dev/$n "$d/$n"; done; mount --rbind "$d" /dev`,
		check: "image layers", status: "degraded", says: "/dev/fuse", cures: "/dev/fuse c 10 229 # for the inside of a container: start it with --device /dev/fuse", cure: instead("umount -l /dev"),
	},
	{
		name: "no /dev/net/tun", root: true, prepare: "mount -t tmpfs none /dev/net",
		check: "network", status: "degraded", says: "/dev/net/tun", cures: "/dev/net/tun c 10 200 # for the inside of a container: start it with --device /dev/net/tun", cure: uncover("/dev/net"),
	},
	{
		name: "a masked /proc", root: true, prepare: "mount -t tmpfs none /proc/fs",
		check: "/proc", status: "degraded", says: "masked", cures: "unmask=ALL", cure: uncover("/proc/fs"),
	},
	{
		name: "a masked /sys", root: true, prepare: "mount -t tmpfs none /sys/kernel",
		check: "/sys", status: "degraded", says: "masked", cures: "unmask=ALL", cure: uncover("/sys/kernel"),
	},
	{
		name: "a home that is not there", root: true, prepare: anotherDisk + "unset URUN_ROOT XDG_DATA_HOME; HOME=/proc/none; export HOME",
		check: "store", status: "missing", says: "/proc/none/.local", cures: "URUN_ROOT=", breaks: true, cure: asUser,
	},
	{
		name: "a directory of somebody else's", root: true, prepare: anotherDisk + "URUN_ROOT=/usr/urun-store; export URUN_ROOT; unset XDG_DATA_HOME; HOME=/usr/nobody; export HOME",
		check: "store", status: "missing", says: "permission denied", cures: "URUN_ROOT=", breaks: true, cure: asUser,
	},
	{
		name: "a directory that is closed to its owner", prepare: `URUN_ROOT=$KEPT/store; mkdir -p "$URUN_ROOT"; chmod 500 "$URUN_ROOT"; export URUN_ROOT`,
		check: "store", status: "missing", says: "holds no images", cures: "chmod u+rwx", breaks: true, cure: asUser,
	},
	{
		name: "a read-only disk", root: true, prepare: smallStore + `ro none "$URUN_ROOT"`,
		check: "store", status: "missing", says: "holds no images", cures: "URUN_ROOT=", breaks: true, cure: asUser,
	},
	{
		name: "a full disk", root: true, prepare: smallStore + `size=100m none "$URUN_ROOT"; "$URUN" run --network none "$IMAGE" dd if=/dev/zero of=/junk bs=1M count=8 >&2; cat /dev/zero >"$URUN_ROOT/full" 2>/dev/null || :`,
		check: "store", status: "missing", says: "no space left", cures: "urun system prune", cure: asUser, after: "degraded",
	},
	{
		name: "a disk that is nearly full", root: true, prepare: smallStore + `size=100m none "$URUN_ROOT"`,
		check: "store", status: "degraded", says: "MB are free", cures: "urun image prune", cure: asUser,
	},
	{
		name: "no inodes", root: true, prepare: smallStore + `nr_inodes=4 none "$URUN_ROOT"; touch "$URUN_ROOT/a" "$URUN_ROOT/b" "$URUN_ROOT/c"`,
		check: "store", status: "missing", says: "no space left", cures: "--root", breaks: true,
	},
	{
		name: "few inodes", root: true, prepare: smallStore + `nr_inodes=900 none "$URUN_ROOT"`,
		check: "store", status: "degraded", says: "inodes are free", cures: "urun image prune", cure: asUser,
	},
	{
		name: "few open files", prepare: "ulimit -n 300",
		check: "open files", status: "degraded", says: "300", cures: "limits.d",
	},
	{
		name: "a chroot", root: true, prepare: `d=$(mktemp -d); mkdir "$d/r"; for n in usr bin lib lib64 sbin proc dev sys etc tmp; do [ -e /$n ] || continue; mkdir "$d/r/$n"; mount --rbind /$n "$d/r/$n"; done;
		mkdir "$d/r/image"; mount --bind "$LAYOUT" "$d/r/image"; touch "$d/r/urun"; mount --bind "$URUN" "$d/r/urun"; [ -n "$AGAIN" ] || AGAIN=1 URUN=/urun IMAGE=oci:/image:latest URUN_ROOT=/tmp/none-$$ exec chroot "$d/r" sh -c "$SELF"`,
		check: "user namespace", status: "degraded", says: "chroot", cures: "outside of it",
	},
}

// place is the script that makes the fault, and what is done against it.
func (f *fault) place(cure string) string {
	script := f.prepare + "\n{ :\n" + cure + "\n} >&2\n" + examineAndRun
	if strings.Contains(f.prepare, "$SELF") {
		// The second time it runs it is in the place already.
		return "SELF=" + quoted(examineAndRun) + "; export SELF\n" + f.inside(script)
	}
	return f.inside(script)
}

func quoted(script string) string { return "'" + strings.ReplaceAll(script, "'", `'"'"'`) + "'" }

func (f *fault) inside(script string) string {
	if !f.root {
		return script
	}
	return "SCRIPT=$(cat <<'END'\n" + script + "\nEND\n)\nexec unshare --user --map-root-user --mount --propagation private sh -ec \"$SCRIPT\""
}

func TestDoctorFindsInjectedFaults(t *testing.T) {
	for _, f := range faults {
		if f.needsRanges && !harness.Ranges(t) {
			continue // the fault is there already
		}
		t.Run(f.name, func(t *testing.T) {
			// For what a hint names by its path.
			t.Setenv("KEPT", t.TempDir())
			e := examine(t, f.place(""))
			got := e.checks[f.check]
			if got.Status != f.status || !strings.Contains(got.Detail, f.says) || !strings.Contains(got.Cure+"\n"+got.Admin, f.cures) {
				t.Errorf("%s: %+v", f.check, got)
			}
			if e.works != e.runs {
				t.Errorf("doctor says works: %v, but a run fares: %v\n%s", e.works, e.runs, e.said)
			}
			if f.breaks && (e.runs || !strings.Contains(e.said, "hint: ") || !strings.Contains(e.said, f.cures)) {
				t.Errorf("a run is to fail with the hint %q, but: %v\n%s", f.cures, e.runs, e.said)
			}
			if f.cure == nil {
				return
			}
			after := examine(t, f.place(f.cure(got)))
			if now := after.checks[f.check]; now.Status != cmp.Or(f.after, "ok") || !after.works || !after.runs {
				t.Errorf("who follows the hint has: %+v, works: %v, runs: %v\n%s", now, after.works, after.runs, after.said)
			}
		})
	}
}

// What an outer container keeps from urun is cured by flags of that container, which doctor names; urun is the outer engine, too.
func TestDoctorNamesTheOuterContainersFlags(t *testing.T) {
	var flags []string
	for _, c := range []struct{ check, says, flag string }{
		{"user namespace", "seccomp filter", "--security-opt seccomp=unconfined"},
		{"/proc", "masked", "--security-opt unmask=ALL"},
		{"image layers", "/dev/fuse", "--device /dev/fuse"},
		{"network", "/dev/net/tun", "--device /dev/net/tun"},
	} {
		within := func() examination {
			return examine(t, `exec "$URUN" run --rm `+strings.Join(flags, " ")+` -v "$URUN:/urun:ro" -v "$LAYOUT:/image:ro" -e URUN=/urun -e IMAGE=oci:/image:latest `+
				`-e URUN_ROOT=/tmp/store -e URUN_LINGER=0s "$IMAGE" sh -c `+quoted(examineAndRun))
		}
		before := within()
		f := before.checks[c.check]
		if f.Status == "ok" || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Cure+"\n"+f.Admin, c.flag) {
			t.Errorf("%v: %s: %+v", flags, c.check, f)
		}
		flags = append(flags, c.flag)
		after := within()
		if f := after.checks[c.check]; f.Status != "ok" {
			t.Errorf("with %v: %s: %+v", flags, c.check, f)
		}
		for _, e := range []examination{before, after} {
			if e.works != e.runs {
				t.Errorf("%v: doctor says works: %v, but a run fares: %v\n%s", flags, e.works, e.runs, e.said)
			}
		}
	}
}
