#!/bin/sh
# Runs urun where neither the tests' own machine nor the virtual host (integration/host) can show it: with / on the
# initramfs (which pivot_root refuses), as on diskless compute nodes, as an ordinary user without subordinate ids in a
# delegated cgroup subtree with all controllers and without systemd, as a batch system gives it. The whole machine is a
# kernel and an initramfs with busybox and urun; software emulation, 15-30 s.
#
#   integration/initramfs.sh [URUN-BINARY]
#
# Needs the packages qemu-system-x86, busybox-static and kmod, and gets Debian's cloud kernel (KERNEL=6.1) by apt once, to
# ~/.cache/urun-test. Exit status 77: something is missing; the last line on stderr names it.
set -eu
cd "$(dirname "$0")/.."
urun=${1:-bin/urun}

missing() {
	echo "missing: $1" >&2
	exit 77
}
command -v qemu-system-x86_64 >/dev/null || missing "qemu (apt-get install --no-install-recommends qemu-system-x86)"
command -v busybox >/dev/null || missing "busybox (apt-get install busybox-static)"
[ -x "$urun" ] || missing "$urun (make build)"

series=${KERNEL:-6.1}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/urun-test/initramfs-kernel-$series
if [ ! -e "$cache" ]; then
	work=$(mktemp -d)
	integration/host/kernel.sh "$series" "$work" >&2 || missing "Debian's kernel $series in apt's sources"
	mkdir -p "$cache.tmp"
	cp "$work/vmlinuz" "$cache.tmp"
	for module in fs/fuse/fuse fs/overlayfs/overlay drivers/net/tun; do
		# Built into some kernels, compressed in others.
		for file in "$work"/modules/*/kernel/$module.ko*; do
			case $file in
			*.ko.xz) xz -dc "$file" >"$cache.tmp/${module##*/}.ko" ;;
			*.ko) cp "$file" "$cache.tmp" ;;
			esac
		done
	done
	rm -rf "$work"
	mv "$cache.tmp" "$cache"
fi

root=$(mktemp -d)
trap 'rm -rf "$root" "$root.cpio" "$root.log"' EXIT
mkdir -p "$root"/bin "$root"/etc "$root"/proc "$root"/sys "$root"/dev "$root"/tmp "$root"/home "$root"/mod "$root"/img/bin "$root"/img/etc
chmod 755 "$root"
chmod 1777 "$root/tmp" "$root/home"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$urun" "$root/bin/urun"
cp "$cache"/*.ko "$root/mod"
cp "$(command -v busybox)" "$root/img/bin/busybox"
for name in sh cat head tail sleep id; do
	ln -s busybox "$root/img/bin/$name"
done
echo 'root:x:0:0::/:/bin/sh' >"$root/img/etc/passwd"
tar -C "$root/img" -cf "$root/img.tar" .
rm -rf "$root/img"
printf 'root:x:0:0::/:/bin/sh\njob:x:1000:1000::/home:/bin/sh\n' >"$root/etc/passwd"

cat >"$root/test.sh" <<-'TEST'
	export HOME=/home
	failed=0
	check() { # NAME GOT WANT
		if [ "$2" = "$3" ]; then echo "ok $1"; else echo "FAILED $1: got '$2', want '$3'"; failed=1; fi
	}
	urun import /img.tar localhost/bb:1 || exit 1
	check "runs with / on the initramfs" "$(urun run --rm localhost/bb:1 id -u)" 0
	urun run --name oom --memory 50m localhost/bb:1 sh -c 'head -c 104857600 /dev/zero | tail -c 104857600 >/dev/null; exit 0' 2>/dev/null
	check "--memory kills, and that is noted" "$(urun inspect -f '{{.OOMKilled}}' oom)" true
	urun rm oom >/dev/null
	urun run --rm --pids-limit 10 localhost/bb:1 sh -c 'i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done' 2>/tmp/err
	grep -q "can't fork" /tmp/err; check "--pids-limit stops forks" $? 0
	urun run -d --name det --memory 50m localhost/bb:1 sleep 100 >/dev/null
	kill -9 "$(urun inspect -f '{{.Monitor.PID}}' det)"
	check "a killed monitor's container is swept" "$(urun ps -a --format '{{.Names}} {{.State}}')" "det exited"
	cd /sys/fs/cgroup/job
	check "no cgroup is left" "$(ls -d urun* 2>/dev/null)" ""
	check "the job is back in its own cgroup" "$(cat /proc/self/cgroup)" 0::/job
	check "the job's cgroup shares nothing out" "$(cat cgroup.subtree_control)" ""
	urun run -d --name one --memory 50m localhost/bb:1 sleep 100 >/dev/null
	urun run --rm --memory 50m localhost/bb:1 id >/dev/null
	check "a container that runs keeps its limit" "$(cat "$(urun inspect -f '{{.Cgroup}}' one)/payload/memory.max")" 52428800
	check "and the job out of the way" "$(cat /proc/self/cgroup)" 0::/job/urun.others
	urun rm -f one >/dev/null
	check "no cgroup is left of two" "$(ls -d urun* 2>/dev/null)" ""
	for i in 1 2 3 4 5 6; do (urun run --rm --memory 50m localhost/bb:1 id -u || echo failed) >>/tmp/many & done
	wait
	check "six at once" "$(cat /tmp/many | tr '\n' ' ')" "0 0 0 0 0 0 "
	check "no cgroup is left of six" "$(ls -d urun* 2>/dev/null)" ""
	echo "urun-status=$failed"
TEST

cat >"$root/init" <<-'INIT'
	#!/bin/busybox sh
	/bin/busybox --install -s /bin
	export PATH=/bin
	mount -t proc none /proc
	mount -t sysfs none /sys
	mount -t devtmpfs none /dev
	mkdir -p /dev/pts /dev/shm
	mount -t devpts none /dev/pts
	for m in /mod/*.ko; do insmod $m; done
	chmod 666 /dev/fuse /dev/net/tun
	ip link set lo up
	mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup
	cd /sys/fs/cgroup
	for c in $(cat cgroup.controllers); do echo +$c >cgroup.subtree_control; done
	# A subtree as a batch system delegates it (cgroup-v2.rst, "Delegation Containment").
	mkdir job
	chown 1000:1000 job job/cgroup.procs job/cgroup.subtree_control job/cgroup.threads
	echo $$ >job/cgroup.procs
	cd /home
	su job -c "sh /test.sh"
	poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$root.cpio"
timeout "${URUN_HOST_TIMEOUT:-300}" qemu-system-x86_64 -M q35,smm=off,hpet=off,vmport=off -accel tcg,thread=multi -cpu max -m 768 -smp 2 \
	-display none -no-reboot -nic none -monitor none -serial stdio \
	-kernel "$cache/vmlinuz" -initrd "$root.cpio" \
	-append "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check panic=-1" \
	</dev/null | tee "$root.log"
grep -q '^urun-status=0' "$root.log"
