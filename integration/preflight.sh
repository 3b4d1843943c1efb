#!/bin/sh
# preflight.sh GROUP: name everything that the group (see packages.txt) lacks, each with its cure.
set -u
cd "$(dirname "$0")/.." || exit 1
group=${1:?usage: preflight.sh build|demo|test|bench|host}
go=${GO:-go}
bad=0

miss() { # WHAT CURE
	printf 'missing: %s\n   cure: %s\n' "$1" "$2" >&2
	bad=1
}
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo "

# --- Go -----------------------------------------------------------------------------------------
want=$(awk '$1 == "go" { print $2 }' go.mod)
cure="Debian 12's golang-go is 1.19: too old. Install Go from https://go.dev/dl, or bookworm-backports' golang-go (1.21 or
         later fetches the Go that go.mod asks for by itself, unless GOTOOLCHAIN=local)"
if ! command -v "$go" >/dev/null 2>&1; then
	miss "Go $want or later: no '$go' in PATH" "$cure"
else
	# GOTOOLCHAIN: a Go of 1.21 or later that may download toolchains answers with the version it switches to.
	have=$("$go" env GOVERSION 2>/dev/null)
	have=${have#go}
	oldest=$(printf '%s\n%s\n' "$want" "${have:-0}" | sort -V | head -n 1)
	[ "$oldest" = "$want" ] || miss "Go $want or later: '$go' is ${have:-unusable}" "$cure"
fi

# --- packages -----------------------------------------------------------------------------------
rank() { case $1 in build) echo 1 ;; demo) echo 2 ;; test) echo 3 ;; bench | host) echo 4 ;; *) echo 0 ;; esac; }
top=$(rank "$group")
[ "$top" != 0 ] || { echo "preflight.sh: no group $group" >&2; exit 1; }
lacking=
while read -r g package program why; do
	case $g in '' | '#'*) continue ;; esac
	[ "$(rank "$g")" -lt "$top" ] || [ "$g" = "$group" ] || continue
	PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null 2>&1 || {
		lacking="$lacking $package"
		printf 'missing: %s (%s)\n' "$package" "$why" >&2
	}
done <integration/packages.txt
if [ -n "$lacking" ]; then
	printf '   cure: %sapt-get install --no-install-recommends%s\n' "$sudo" "$lacking" >&2
	bad=1
fi

# --- devices and kernel -------------------------------------------------------------------------
if [ "$top" -ge 2 ]; then
	for dev in fuse:/dev/fuse:10:229 tun:/dev/net/tun:10:200; do
		module=${dev%%:*}
		rest=${dev#*:}
		node=${rest%%:*}
		rest=${rest#*:}
		if [ ! -c "$node" ]; then
			miss "$node" "${sudo}modprobe $module; in a container, have $node passed in (--device $node)"
		elif [ "$(id -u)" != 0 ] && ! { [ -r "$node" ] && [ -w "$node" ]; }; then
			miss "$node is not open to $(id -un)" "${sudo}chmod 0666 $node (udev's normal mode)"
		fi
	done
	for knob in kernel/unprivileged_userns_clone:0:1 user/max_user_namespaces:0:15000 kernel/apparmor_restrict_unprivileged_userns:1:0; do
		name=${knob%%:*}
		rest=${knob#*:}
		[ -r "/proc/sys/$name" ] || continue
		[ "$(cat "/proc/sys/$name")" != "${rest%%:*}" ] ||
			miss "user namespaces for ordinary users ($name is ${rest%%:*})" "${sudo}sysctl -w $(echo "$name" | tr / .)=${rest##*:}"
	done
fi
exit $bad
