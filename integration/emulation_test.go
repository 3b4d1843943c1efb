package integration

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/urun-dev/urun/integration/harness"
)

// emulated runs a script in a container with one id, whose others are emulated.
func emulated(t *testing.T, args ...string) *harness.Result {
	t.Helper()
	return harness.Sh(t, append([]string{"--userns", "single", "--root-emulation", "on"}, args...)...)
}

func TestEmulatedOwnersAreShownAndKept(t *testing.T) {
	name := unique(t)
	t.Cleanup(func() { harness.Urun(t, "rm", "-f", name).OK() })
	script := `set -e
: >/f; chown 33:44 /f; chmod 4755 /f
mkdir /d; chown 7 /d; chown :8 /d
ln -s nowhere /link; chown -h 5:6 /link
cp -p /etc/hosts /keep; chown 1:2 /keep; chown 0:0 /keep
chown 9:9 /demo/kept
mknod /device c 1 3
exec 3>/open; chown 11:12 /proc/self/fd/3
stat -c "%u:%g %a %n" /f /d /link /keep /demo/kept /open
stat -c "%t:%T %F" /device
/probe become 33 44 sh -c 'cd /tmp; : >a; mkdir b; : >b/c; ln -s x l; stat -c "%u:%g %n" a b b/c l; chown 0:5 a || echo refused'`
	harness.Urun(t, "run", "--name", name, "--userns", "single", harness.DemoImage, "sh", "-c", script).Says(strings.Join([]string{
		"33:44 4755 /f", "7:8 755 /d", "5:6 777 /link", "0:0 644 /keep", "9:9 644 /demo/kept", "11:12 644 /open", "1:3 character special file",
		"33:44 a", "33:44 b", "33:44 b/c", "33:44 l", "refused",
	}, "\n"))
	owners := map[string]string{"f": "33:44", "d/": "7:8", "link": "5:6", "keep": "0:0", "demo/kept": "9:9", "tmp/b/c": "33:44"}
	check := func(when string) {
		t.Helper()
		r := tar.NewReader(strings.NewReader(harness.Urun(t, "export", name).Stdout))
		found := 0
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			want, ok := owners[strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), "/")]
			if got := fmt.Sprintf("%d:%d", h.Uid, h.Gid); ok && got != want {
				t.Errorf("%s: %s is %s in the export, want %s", when, h.Name, got, want)
			} else if ok {
				found++
			}
		}
		if found != len(owners) {
			t.Errorf("%s: %d of %d files are in the export as they should be", when, found, len(owners))
		}
	}
	check("when it has ended")
	harness.Urun(t, "diff", name).Has("C /demo/kept", "A /f")
}

func TestEmulatedIDs(t *testing.T) {
	// The limit in which they are kept does not show, and cannot be changed.
	emulated(t, `set -e
/probe become 33 44 sh -c 'id -u; id -g; sleep 0 & wait; (id -u); ulimit -S -a >/dev/null; env sh -c "id -u"'
id -u`).Says("33\n44\n33\n33\n0")
	// By the flag, and in what is executed in a container that runs.
	emulated(t, "-u", "33:44", "id -u; id -g; : >/tmp/x; stat -c %u:%g /tmp/x").Says("33\n44\n33:44")
	name := detach(t, []string{"--userns", "single"}, "sleep", "1000")
	harness.Urun(t, "inspect", "-f", "{{.HostConfig.RootEmulation}}", name).Says("true")
	harness.Urun(t, "exec", "-u", "55", name, "sh", "-c", "id -u; : >/tmp/x").Says("55")
	harness.Urun(t, "exec", name, "stat", "-c", "%u", "/tmp/x").Says("55")
	// A set-id file gives its owner's id, but not with no_new_privs.
	script := `cp $(command -v id) /tmp/id 2>/dev/null || cp /bin/busybox /tmp/id; chmod 4755 /tmp/id; /probe become 33 44 /tmp/id -u`
	emulated(t, script).Says("0")
	emulated(t, "--security-opt", "no-new-privileges", script).Says("33")
	// With an init, too.
	emulated(t, "--init", "/probe become 33 44 id -u").Says("33")
}

func TestEmulatedOwnersOutsideOfTheUnion(t *testing.T) {
	// What nobody remembers is shown as the asking user's own, so that services take
	// their directories.
	for _, flags := range [][]string{{"-v", t.TempDir() + ":/data"}, {"--tmpfs", "/data"}, {"--storage", "overlay"}} {
		emulated(t, append(flags, `mkdir -p /data; chown 33:44 /data && /probe become 33 44 sh -c "stat -c %u:%g /data; : >/data/x; stat -c %u:%g /data/x"`)...).Says("33:44\n33:44")
	}
}

func TestWithoutRootEmulation(t *testing.T) {
	r := harness.Sh(t, "--userns", "single", "--root-emulation", "off", "chown 33 /demo/kept || id -u")
	r.Says("0")
	if !strings.Contains(r.Stderr, "nvalid argument") {
		t.Errorf("%s\nwant EINVAL of chown", r)
	}
	harness.Run(t, "--userns", "single", "--root-emulation", "off", "-u", "33", "--", "true").Refused("33", "not mapped")
	harness.Run(t, "--userns", "keep-id", "--root-emulation", "on", "--", "true").Refused("--root-emulation=on")
	harness.Run(t, "--root-emulation", "maybe", "--", "true").Refused("maybe", "auto, on, off")
}

// The acceptance test of what emulation is for: Debian's own packages, with users of their own.
func TestServicesInstallWithOneID(t *testing.T) { services(t) }

// services installs packages that have users of their own and starts what they serve.
func services(t *testing.T) {
	t.Helper()
	if os.Getenv("URUN_SERVICES") == "" {
		t.Skip("takes minutes: URUN_SERVICES=1")
	}
	layout := debianImage(t)
	c, err := net.DialTimeout("tcp", net.JoinHostPort(mirrorHost(t), "80"), 10*time.Second)
	if err != nil {
		t.Skipf("no package mirror: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	defer func(short time.Duration) { harness.Timeout = short }(harness.Timeout)
	harness.Timeout = 8 * time.Minute
	in(t, "oci:"+layout+":latest", []string{"--userns", "single", "-e", "DEBIAN_FRONTEND=noninteractive"},
		"apt-get -q update",
		"apt-get -q install -y --no-install-recommends openssh-server dbus cron sudo postgresql git",
		"dpkg --audit",
		"stat -c %U:%G:%a /usr/bin/crontab /usr/lib/dbus-1.0/dbus-daemon-launch-helper",
		"v=$(ls /etc/postgresql)",
		"pg_ctlcluster $v main start",
		"su postgres -c \"psql -Atc 'select 6*7, current_user'\"",
		"sudo -u www-data id",
		"setpriv --reuid=www-data --regid=www-data --init-groups id -un",
		"pg_ctlcluster $v main stop").
		Has("root:crontab:2755", "root:messagebus:4754", "42|postgres", "uid=33(www-data) gid=33(www-data) groups=33(www-data)")
}
