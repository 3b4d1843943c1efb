#!/bin/sh
# initrd.sh FILE: makes the initramfs of the virtual host, which mounts its three disks before systemd asks for a module of
# the kernel. All drivers that it needs itself are built into Debian's cloud kernels.
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/bin" "$root/dev" "$root/proc" "$root/root"
cp "$(command -v busybox)" "$root/bin/busybox"
cat >"$root/init" <<'END'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for disk in root:/root:rw modules:/root/lib/modules:ro,noload payload:/root/urun:ro,noload; do
	name=${disk%%:*}
	rest=${disk#*:}
	n=0
	until device=$($b findfs "LABEL=urun-$name" 2>/dev/null); do
		n=$((n + 1))
		[ $n -lt 600 ] || { echo "no disk urun-$name"; exec $b poweroff -f; }
		$b sleep 0.05
	done
	$b mount -t ext4 -o "${rest#*:}" "$device" "${rest%:*}" || exec $b poweroff -f
done
$b mount -o move /dev /root/dev
$b umount /proc
exec $b switch_root /root /sbin/init
END
chmod 755 "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$1"
