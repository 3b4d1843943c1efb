#!/bin/sh
# root.sh TREE DISK SIZE: turns a fresh Debian tree into the virtual host's root, and makes the disk of it; mmdebstrap
# runs it, as root or as the root of a namespace. The users:
#   alice  subordinate ids, lingers: an ordinary user on an ordinary Debian
#   bob    no subordinate ids, lingers; all controllers are delegated to him
#   dave   subordinate ids, does not linger: what he leaves behind when he logs out
#   carol  subordinate ids, neither user manager nor session bus: as under su, cron or a batch system
set -eu
root=$1 disk=$2 size=$3

for user in alice:1001 bob:1002 carol:1003 dave:1004; do
	chroot "$root" useradd --create-home --shell /bin/bash --uid "${user#*:}" "${user%:*}"
done
chroot "$root" usermod --del-subuids 0-4294967294 --del-subgids 0-4294967294 bob
sed -i '/^bob:/d' "$root/etc/subuid" "$root/etc/subgid"
mkdir -p "$root/var/lib/systemd/linger" "$root/lib/modules" "$root/urun"
touch "$root/var/lib/systemd/linger/alice" "$root/var/lib/systemd/linger/bob"
mkdir -p "$root/etc/systemd/system/user@1002.service.d"
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >"$root/etc/systemd/system/user@1002.service.d/delegate.conf"
echo virtual-host >"$root/etc/hostname"
printf '127.0.0.1 localhost virtual-host\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
printf 'fuse\noverlay\ntun\nvirtio_pci\nvirtio_console\n' >"$root/etc/modules-load.d/urun.conf"

# What only costs time here.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
	getty@tty1.service serial-getty@ttyS0.service systemd-timesyncd.service systemd-networkd.service systemd-update-utmp.service \
	systemd-journal-flush.service systemd-random-seed.service systemd-pstore.service systemd-journal-catalog-update.service \
	systemd-hwdb-update.service ldconfig.service systemd-binfmt.service systemd-sysusers.service systemd-update-utmp-runlevel.service \
	modprobe@configfs.service modprobe@drm.service modprobe@dm_mod.service modprobe@loop.service proc-sys-fs-binfmt_misc.automount \
	sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount systemd-machine-id-commit.service docker-registry.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -rf "$root/etc/systemd/user/sockets.target.wants" # those of gnupg
# Not for every device that there is: to look at each processor, terminal and button, and to load and test what modules there are for them, takes
# emulation longer than all the rest of the boot.
mkdir -p "$root/etc/systemd/system/systemd-udev-trigger.service.d"
cat >"$root/etc/systemd/system/systemd-udev-trigger.service.d/few.conf" <<'END'
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=pci --subsystem-match=virtio --subsystem-match=virtio-ports --subsystem-match=misc
END
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/urun.conf"

cat >"$root/etc/systemd/system/agent.service" <<'END'
[Unit]
Description=Runs commands for the machine outside
After=dbus.socket systemd-logind.service
[Service]
ExecStart=/urun/bin/agent /run/user/1001/bus /run/user/1002/bus
StandardError=journal+console
Environment=LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LimitCORE=0
[Install]
WantedBy=multi-user.target
END
cat >"$root/usr/local/bin/as-user" <<'END'
#!/bin/sh
# as-user USER COMMAND...: as root, runs a command as a user, with a login's environment on top of ours. Whose user
# manager runs gets his bus and a session's scope, as by ssh; another user is where we are, as by su or cron.
user=$1
shift
uid=$(id -u "$user")
set -- env HOME="$(getent passwd "$user" | cut -d: -f6)" USER="$user" LOGNAME="$user" SHELL=/bin/bash "$@"
if [ -S "/run/user/$uid/bus" ]; then
	exec systemd-run --scope --quiet --slice="user-$uid.slice" --unit="session-x$$.scope" --uid="$uid" --gid="$(id -g "$user")" -- \
		env XDG_RUNTIME_DIR="/run/user/$uid" DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" "$@"
fi
exec setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS "$@"
END
chmod 755 "$root/usr/local/bin/as-user"
systemctl --root="$root" --quiet enable agent.service
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*

# Without what is mounted in the tree while hooks run.
bare=$(mktemp -d)
mount --bind "$root" "$bare"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -L urun-root -m 0 -d "$bare" "$disk" "$size"
umount "$bare"
rmdir "$bare"
