#!/bin/sh
# Runs the tests of tests.txt in the virtual host, with ALL those of all.txt. KERNEL chooses the kernel (6.1), RUN the tests by a
# regular expression.
set -eu
cd "$(dirname "$0")/../.."
go=${GO:-go}
plan=integration/host/tests.txt images=debian users=alice,bob,carol
[ -z "${ALL-}" ] || plan=integration/host/all.txt images=debian,tools,nine users=$users,root
export CGO_ENABLED=0
"$go" build -buildvcs=false -trimpath -o bin/runtests ./integration/runtests
"$go" build -buildvcs=false -trimpath -o bin/host ./integration/host
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
bin/runtests -prepare "$dir" -plan "$plan" -images "$images"
set --
for name in CI URUN_KILLS URUN_SEED URUN_TEST_VERBOSE; do
	eval "value=\${$name-}"
	[ -z "$value" ] || set -- "$@" "$name=$value"
done
bin/host -kernel "${KERNEL:-6.1}" -disk "$dir" -timeout "${URUN_HOST_TIMEOUT:-90m}" run \
	env URUN_TEST_SLOW=10 URUN_VIRTUAL_HOST=1 "$@" /urun/bin/runtests -prepared /urun -plan "/urun/src/$plan" \
	-users $users ${RUN:+-run "$RUN"} </dev/null
