#!/bin/sh
# Runs a command as an ordinary user under a real systemd that is process 1 of private pid, mount, uts and
# cgroup namespaces. Scopes, slices, D-Bus, freezing and killing work in there as on a real host; controllers
# (memory, cpu, ...) are there only if the machine's cgroup v2 tree has them.
#
#   integration/systemd-ns.sh [--user USER] [--no-systemd] COMMAND [ARGUMENT...]
#
# The user lingers: his user manager and his session bus run. The command gets XDG_RUNTIME_DIR and
# DBUS_SESSION_BUS_ADDRESS and starts in a scope of user-UID.slice, as in an ssh session. Its standard files
# and its exit status come through. Exit status 77: something is missing; the last line on stderr names it.
#
# Needs real root and the packages systemd, dbus, dbus-user-session, libpam-systemd. What it touches of the
# machine is one cgroup below /sys/fs/cgroup (or its unified/), removed at the end. /etc, /proc/sys and /sys are
# read-only inside: systemd would otherwise write the machine's sysctls and machine-id.
set -eu

user=alice
while [ $# -gt 0 ]; do
	case $1 in
	--user) user=$2; shift 2 ;;
	--stage2) shift; stage2=1; break ;;
	--) shift; break ;;
	-*) echo "systemd-ns.sh: unknown option $1" >&2; exit 2 ;;
	*) break ;;
	esac
done

missing() {
	echo "missing: $1" >&2
	exit 77
}

# Everything up to systemd's own start: runs inside the namespaces.
if [ "${stage2:-}" ]; then
	uid=$1
	mount --make-rprivate /
	empty() { for d; do [ -d "$d" ] && mount -t tmpfs -o mode=755 none "$d" || true; done; }
	mount -t proc proc /proc
	mount --bind /proc/sys /proc/sys
	mount -o remount,bind,ro /proc/sys
	mount --bind /sys /sys
	mount -o remount,bind,ro /sys
	mount -t cgroup2 none /sys/fs/cgroup
	mount -t tmpfs -o mode=755 none /run
	mkdir -p /run/dev /run/systemd/system /run/lock
	# A /dev of its own, so that nothing can reach the machine's terminals and disks.
	for n in null zero full random urandom tty fuse net/tun; do
		if [ -e /dev/$n ]; then
			mkdir -p "/run/dev/$(dirname $n)"
			: >/run/dev/$n
			mount --bind /dev/$n /run/dev/$n
		fi
	done
	mkdir -p /run/dev/pts /run/dev/shm /run/dev/mqueue
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 none /run/dev/pts
	mount -t tmpfs -o mode=1777 none /run/dev/shm
	mount -t mqueue none /run/dev/mqueue
	ln -s pts/ptmx /run/dev/ptmx
	ln -s /proc/self/fd /run/dev/fd
	for n in 0:stdin 1:stdout 2:stderr; do ln -s /proc/self/fd/${n%:*} /run/dev/${n#*:}; done
	mount --rbind /run/dev /dev
	mount --bind /etc /etc
	mount -o remount,bind,ro /etc
	empty /var/lib/systemd /var/log /usr/lib/systemd/system-generators /usr/lib/systemd/user-generators \
		/usr/lib/systemd/system/sysinit.target.wants /etc/systemd/system/sysinit.target.wants \
		/usr/lib/systemd/system/local-fs.target.wants /usr/lib/systemd/system/sockets.target.wants \
		/etc/systemd/user/sockets.target.wants /etc/systemd/user/default.target.wants /etc/systemd/user/graphical-session-pre.target.wants
	mkdir -p /var/lib/systemd/linger
	: >"/var/lib/systemd/linger/$2"
	mkdir /usr/lib/systemd/system/sockets.target.wants/ 2>/dev/null || true
	cat >/run/systemd/system/urun-test.target <<-UNIT
		[Unit]
		DefaultDependencies=no
		AllowIsolate=yes
		Requires=dbus.socket
		Wants=user@$uid.service
	UNIT
	for n in systemd-sysctl systemd-journald systemd-networkd systemd-resolved systemd-timesyncd; do
		ln -s /dev/null /run/systemd/system/$n.service
	done
	hostname systemd-ns
	ip link set lo up 2>/dev/null || true
	exec env -i PATH="$PATH" container=urun-test LANG=C.UTF-8 \
		/lib/systemd/systemd --system --unit=urun-test.target --log-target=console --log-level="${SYSTEMD_LOG:-warning}" --show-status=no
fi

[ $# -gt 0 ] || { echo "systemd-ns.sh: no command" >&2; exit 2; }
[ "$(id -u)" = 0 ] || missing "root, to start systemd in namespaces"
[ -x /lib/systemd/systemd ] || missing "systemd (apt-get install systemd dbus dbus-user-session libpam-systemd)"
[ -e /usr/lib/systemd/user/dbus.socket ] || missing "a user bus (apt-get install dbus-user-session)"
uid=$(id -u "$user" 2>/dev/null) || missing "the user $user (useradd -m $user)"
gid=$(id -g "$user")

# A cgroup of its own, which the cgroup namespace makes the root that systemd sees.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	tree=/sys/fs/cgroup
elif [ -e /sys/fs/cgroup/unified/cgroup.controllers ]; then
	tree=/sys/fs/cgroup/unified
else
	missing "a cgroup v2 hierarchy on /sys/fs/cgroup or /sys/fs/cgroup/unified"
fi
group=$tree/urun-systemd-$$
mkdir "$group" 2>/dev/null || missing "write access to $tree"
boot=
log=$(mktemp)
cleanup() {
	[ -z "$boot" ] || kill -KILL "$boot" 2>/dev/null || true # unshare takes process 1 with it
	[ -z "$boot" ] || wait "$boot" 2>/dev/null || true
	rm -f "$log"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
		sleep 0.1
	done
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

(
	echo 0 >"$group/cgroup.procs"
	exec unshare --mount --uts --pid --cgroup --fork --kill-child=KILL "$0" --stage2 "$uid" "$user" "$0" </dev/null >"$log" 2>&1
) &
boot=$!

waited=0
init=
until [ -n "$init" ] && [ -S "/proc/$init/root/run/user/$uid/bus" ]; do
	init=$(cat "/proc/$boot/task/$boot/children" 2>/dev/null) || init=
	init=${init%% *}
	if ! kill -0 "$boot" 2>/dev/null || [ $waited -gt 300 ]; then
		cat "$log" >&2
		missing "a systemd that starts here (see above)"
	fi
	sleep 0.05
	waited=$((waited + 1))
done

set +e
nsenter --target "$init" --mount --uts --pid --cgroup --wdns="$PWD" -- \
	systemd-run --scope --quiet --slice="user-$uid.slice" --unit="session-$$.scope" --uid="$uid" --gid="$gid" \
	-- env HOME="$(getent passwd "$user" | cut -d: -f6)" USER="$user" LOGNAME="$user" \
	XDG_RUNTIME_DIR="/run/user/$uid" DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" "$@"
status=$?
[ -z "${SYSTEMD_LOG:-}" ] || cat "$log" >&2
exit $status
