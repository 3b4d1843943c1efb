#!/bin/sh
# kernel.sh VERSION DIR: gets Debian's cloud kernel of a series (5.10, 6.1, 6.12) by apt from the mirror that this machine
# uses, and makes DIR/vmlinuz and DIR/modules. Series that this machine's release does not have are taken
# from the release that has them, in a state directory of apt's own: the machine's apt is left alone.
set -eu
version=$1 dir=$2
case $version in
5.10) suite=bullseye ;;
6.1) suite=bookworm ;;
6.12) suite=bookworm-backports ;;
*) echo "kernel.sh: no such kernel: $version (5.10, 6.1, 6.12)" >&2 && exit 1 ;;
esac
# The archive itself, not that of security updates, which has no such suites.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
[ -n "$mirror" ] || { echo "kernel.sh: apt's sources name no Debian mirror" >&2 && exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
apt() {
	command=$1
	shift
	"$command" -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists" \
		-o Dir::State::Status="$work/status" -o Dir::Cache="$work/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}
apt apt-get update
package=$(apt apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-'"$version"'[.-]/ { print $2; exit }')
[ -n "$package" ] || { echo "kernel.sh: $suite has no linux-image of $version" >&2 && exit 1; }
(cd "$work" && apt apt-get download "$package")
dpkg-deb -x "$work"/*.deb "$work/x"
mkdir -p "$dir"
cp "$work"/x/boot/vmlinuz-* "$dir/vmlinuz"
PATH=$PATH:/usr/sbin:/sbin depmod -b "$work/x" "$(ls "$work/x/lib/modules")"
cp -r "$work/x/lib/modules" "$dir/modules"
