#!/bin/sh
# go vet, staticcheck, gofumpt and govulncheck at the versions of tools/go.mod. All run before the verdict.
set -u
cd "$(dirname "$0")/.." || exit 1
go=${GO:-go}
mkdir -p bin/tools
(cd tools && CGO_ENABLED=0 "$go" build -buildvcs=false -o ../bin/tools/ tool) || exit 1
bad=0

step() { # NAME COMMAND...
	name=$1
	shift
	if "$@"; then echo "ok    $name"; else
		echo "FAIL  $name"
		bad=1
	fi
}
formatted() {
	out=$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ ! -e "$f" ] || echo "$f"; done | xargs bin/tools/gofumpt -l) || return 1
	[ -z "$out" ] || {
		echo "not as gofumpt writes them (make fmt):"
		echo "$out"
		return 1
	}
}
step "go vet" "$go" vet ./...
step "modules" sh -c "$go mod verify && cd tools && $go mod verify"
step "staticcheck" bin/tools/staticcheck ./...
step "gofumpt" formatted

# govulncheck needs its database from the network; offline it is said, not passed over.
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
if timeout 300 bin/tools/govulncheck ./... >"$log" 2>&1; then
	echo "ok    govulncheck"
elif grep -q -E '^Vulnerability #' "$log"; then
	cat "$log"
	echo "FAIL  govulncheck"
	bad=1
else
	echo "----  govulncheck NOT RUN: no vulnerability database: $(tail -n 1 "$log")"
fi
exit $bad
