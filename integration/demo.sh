#!/bin/sh
# The demo: one command in one container, from an image made here and now, beside the host for comparison.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/urun-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export URUN_ROOT="$work/store" URUN_LINGER=0s

"$bin/demoimage" "$work/image"
layers=$(tr ',' '\n' <"$work/image/blobs/sha256/$(sed -n 's/.*"digest": "sha256:\([0-9a-f]*\)".*/\1/p' "$work/image/index.json" | head -n 1)" | grep -c 'layer')
echo "== an image of $layers layers, made from this machine's own shell and coreutils: oci:DIR"

host() { # what must not change
	printf 'uid %s, host name %s, mounts that urun made: %s, host routes to 10.0.2.0: %s\n' "$(id -u)" "$(uname -n)" \
		"$(grep -c "$work" /proc/self/mountinfo)" "$(grep -c ' 10\.0\.2\.' /proc/net/fib_trie)"
	cat "$work/witness"
}
echo 'a file of the host' >"$work/witness"
before=$(host)
echo
echo "== the host before:"
echo "$before"
echo
echo "== urun run --rm --hostname demo oci:DIR sh -c ..."
"$bin/urun" run --rm --hostname demo --label demo "oci:$work/image:latest" sh -c '
say() { printf "%-22s %s\n" "$1" "$2"; }
say "user inside" "$(id)"
say "its ids on the host" "$(tr "\n" ";" </proc/self/uid_map | tr -s " ")"
say "pid of the command" "$$"
say "all processes" "$(cd /proc && echo [0-9]*)"
say "host name" "$(uname -n)"
say "root mount" "$(while read -r _ _ _ _ at _ rest; do [ "$at" != / ] || echo "${rest#*- }"; done </proc/self/mountinfo | cut -d " " -f 1,2)"
say "mounts" "$(while read -r _ _ _ _ at _; do printf "%s " "$at"; done </proc/self/mountinfo)"
say "network links" "$(ls /sys/class/net | tr "\n" " ")"
say "name server" "$(grep nameserver /etc/resolv.conf | tr "\n" " ")"
say "/demo/kept" "$(cat /demo/kept)"
say "/demo/replaced" "$(cat /demo/replaced) (it hid the one of layer 3)"
say "/demo/deleted" "$(cat /demo/deleted 2>/dev/null || echo "is gone: a whiteout in layer 4")"
say "/demo/opaque" "$(ls /demo/opaque) (the old content is hidden)"
say "/demo/owned" "$(stat -c "%U:%G %a" /demo/owned)"
echo written >/demo/kept && chown 1:1 /demo/kept 2>/dev/null
say "written and chowned" "$(stat -c "%U:%G" /demo/kept) $(cat /demo/kept)"
rm -rf /usr/lib && say "rm -rf /usr/lib" "done: in this container only"
'
echo
echo "== the host after:"
after=$(host)
echo "$after"
[ "$before" = "$after" ] || { echo "demo: the host changed" >&2; exit 1; }
[ "$("$bin/urun" run --rm "oci:$work/image:latest" cat /demo/kept)" = "from layer 3" ] ||
	{ echo "demo: a second container sees what the first wrote" >&2; exit 1; }
echo
echo "== a second container of the image starts from the image, not from what the first one did to it: yes"
du -sh "$URUN_ROOT" | awk '{print "== the store held " $1 " and is removed now; nothing else was written"}'
