package integration

import (
	"os"
	"strings"
	"testing"
)

// What only the machine's root can cure is tried in a mount namespace of root's, in which /etc, /dev and /var/tmp are
// copies: there the faults are, there a user that nobody knows outside asks doctor, and there root does what the hint says, to the letter.
const ownMachine = `
mount -t tmpfs -o mode=1777 none /var/tmp
cp "$URUN" /var/tmp/urun; cp -r "$LAYOUT" /var/tmp/image; chmod -R a+rX /var/tmp/image
cp -a /etc /var/tmp/etc; mount --bind /var/tmp/etc /etc
useradd --no-log-init --no-create-home --home-dir /var/tmp/home --shell /bin/sh --uid 59021 it-doctor >&2
usermod --add-subuids 2000000-2065535 --add-subgids 2000000-2065535 it-doctor
mkdir -m 755 /var/tmp/home /var/tmp/bin
cp "$(command -v newuidmap)" "$(command -v newgidmap)" /var/tmp/bin/; chmod 4755 /var/tmp/bin/new?idmap
chown -R it-doctor /var/tmp/home
mount -t tmpfs -o mode=755 none /dev
mkdir /dev/net /dev/shm /dev/pts; ln -s pts/ptmx /dev/ptmx; ln -s /proc/self/fd /dev/fd
mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts
mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/zero c 1 5; mknod -m 666 /dev/full c 1 7; mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/tty c 5 0; mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/net/tun c 10 200
AS='setpriv --reuid 59021 --regid it-doctor --clear-groups'; SHELL=sh
`

// asDoctorsUser is examineAndRun by that user.
const asDoctorsUser = `
cd /
exec env -i USER=it-doctor HOME=/var/tmp/home PATH=/var/tmp/bin:/usr/sbin:/usr/bin:/sbin:/bin URUN=/var/tmp/urun URUN_LINGER=0s \
	IMAGE=oci:/var/tmp/image:latest $AS $SHELL -ec "$EXAMINE"
`

// ofRoot are faults that root makes, and cures.
var ofRoot = []fault{
	{
		name: "newuidmap is not setuid", prepare: "chmod u-s /var/tmp/bin/new?idmap",
		check: "subordinate ids", status: "degraded", says: "neither setuid root", cures: "chmod u+s /var/tmp/bin/newuidmap",
	},
	{
		name: "newuidmap is setuid, but the job's root can not make maps", prepare: "AS=\"$AS --bounding-set -sys_admin\"",
		check: "subordinate ids", status: "degraded", says: "CAP_SYS_ADMIN", cures: "setcap cap_setuid+ep /var/tmp/bin/newuidmap",
	},
	{
		name: "no subordinate ids", prepare: "sed -i /^it-doctor:/d /etc/subuid /etc/subgid",
		check: "subordinate ids", status: "degraded", says: "it-doctor has no subordinate uids", cures: "usermod --add-subuids",
	},
	{
		name: "no subordinate gids", prepare: "sed -i /^it-doctor:/d /etc/subgid",
		check: "subordinate ids", status: "degraded", says: "it-doctor has no subordinate gids", cures: "usermod --add-subuids",
	},
	{
		name: "a closed /dev/fuse", prepare: "chmod 600 /dev/fuse",
		check: "image layers", status: "degraded", says: "permission denied", cures: "chmod 666 /dev/fuse",
	},
	{
		name: "no /dev/fuse", prepare: "rm /dev/fuse",
		check: "image layers", status: "degraded", says: "no such file", cures: "mknod -m 666 /dev/fuse",
	},
	{
		name: "a closed /dev/net/tun", prepare: "chmod 600 /dev/net/tun",
		check: "network", status: "degraded", says: "permission denied", cures: "chmod 666 /dev/net/tun",
	},
	{
		name: "no /dev/net/tun", prepare: "rm -r /dev/net",
		check: "network", status: "degraded", says: "no such file", cures: "mknod -m 666 /dev/net/tun",
	},
	{
		name: "nobody may ping", prepare: "sysctl -q -w net.ipv4.ping_group_range='1 0'",
		check: "ping", status: "degraded", says: `"1 0"`, cures: "sysctl -w net.ipv4.ping_group_range",
	},
	{
		// It holds from the next login on.
		name: "few open files", prepare: "echo 'it-doctor hard nofile 300' >>/etc/security/limits.conf; AS='su it-doctor'; SHELL=--",
		check: "open files", status: "degraded", says: "300", cures: "/etc/security/limits.d/it-doctor.conf",
	},
}

// machine is a script that makes the machine with the fault, has root do what is against it, and the user look.
func (f *fault) machine(cure string) string {
	script := ownMachine + f.prepare + "\n{ :\n" + cure + "\n} >&2\nEXAMINE=" + quoted(examineAndRun) + "\n" + asDoctorsUser
	return "SCRIPT=" + quoted(script) + "; exec unshare --mount --net --propagation private sh -ec \"$SCRIPT\""
}

func TestDoctorsCuresByRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("missing: root, who makes these faults and cures them")
	}
	for _, f := range ofRoot {
		t.Run(f.name, func(t *testing.T) {
			e := examine(t, f.machine(""))
			got := e.checks[f.check]
			if got.Status != f.status || !strings.Contains(got.Detail, f.says) || !strings.Contains(got.Admin, f.cures) {
				t.Fatalf("%s: %+v", f.check, got)
			}
			if !e.works || !e.runs {
				t.Errorf("works: %v, runs: %v\n%s", e.works, e.runs, e.said)
			}
			after := examine(t, f.machine(got.Admin))
			if now := after.checks[f.check]; now.Status != "ok" || !after.works || !after.runs {
				t.Errorf("after %s: %+v, works: %v, runs: %v\n%s", got.Admin, now, after.works, after.runs, after.said)
			}
		})
	}
}
