#!/bin/sh
# Proves cgdelegate's limits in a small virtual machine: the cgroup controllers of a Debian kernel, an
# ordinary user in a delegated subtree, no systemd. The whole machine is a kernel and an initramfs with busybox
# and the package's test binary; software emulation, 15-30 s.
#
#   integration/limits-vm.sh [TEST-REGEXP]
#
# Needs the packages qemu-system-x86 and busybox-static, and downloads Debian's cloud kernel by apt-get once, to
# ~/.cache/urun-test. Exit status 77: something is missing; the last line on stderr names it.
set -eu
cd "$(dirname "$0")/.."
regexp=${1:-TestRealLimits}

missing() {
	echo "missing: $1" >&2
	exit 77
}
command -v qemu-system-x86_64 >/dev/null || missing "qemu (apt-get install --no-install-recommends qemu-system-x86)"
command -v busybox >/dev/null || missing "busybox (apt-get install busybox-static)"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/urun-test
mkdir -p "$cache"
if ! ls "$cache"/vmlinuz-*-cloud-amd64 >/dev/null 2>&1; then
	work=$(mktemp -d)
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
	(cd "$work" && apt-get download "$package" >/dev/null 2>&1 && dpkg-deb -x ./*.deb x) || missing "the package linux-image-cloud-amd64 in apt's sources"
	cp "$work"/x/boot/vmlinuz-*-cloud-amd64 "$cache"
	rm -rf "$work"
fi
kernel=$(ls "$cache"/vmlinuz-*-cloud-amd64 | tail -n 1)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/bin "$root"/etc "$root"/proc "$root"/sys "$root"/dev "$root"/tmp "$root"/home
chmod 755 "$root"
chmod 1777 "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
CGO_ENABLED=0 ${GO:-go} test -c -o "$root/bin/cgdelegate.test" ./cgdelegate
echo 'root:x:0:0::/:/bin/sh
job:x:1000:1000::/home:/bin/sh' >"$root/etc/passwd"
cat >"$root/init" <<-'INIT'
	#!/bin/busybox sh
	/bin/busybox --install -s /bin
	export PATH=/bin
	mount -t proc none /proc
	mount -t sysfs none /sys
	mount -t devtmpfs none /dev
	mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
	cd /sys/fs/cgroup
	for c in $(cat cgroup.controllers); do echo +$c >cgroup.subtree_control; done
	# A subtree as a batch system delegates it (cgroup-v2.rst, "Delegation Containment").
	mkdir job
	chown 1000:1000 job job/cgroup.procs job/cgroup.subtree_control job/cgroup.threads
	echo $$ >job/cgroup.procs
	cd /home
	regexp=$(sed 's/.*urun.run=\([^ ]*\).*/\1/' /proc/cmdline)
	su job -c "exec cgdelegate.test -test.v -test.run '$regexp'"
	echo "urun-status=$?"
	poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$root.cpio"
trap 'rm -rf "$root" "$root.cpio" "$root.log"' EXIT
timeout 300 qemu-system-x86_64 -M q35,smm=off,hpet=off,vmport=off -accel tcg,thread=multi -cpu max -m 512 -smp 2 \
	-display none -no-reboot -nic none -monitor none -serial stdio \
	-kernel "$kernel" -initrd "$root.cpio" \
	-append "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check panic=-1 urun.run=$regexp" \
	</dev/null | tee "$root.log"
grep -q '^urun-status=0' "$root.log"
