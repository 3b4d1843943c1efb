#!/bin/sh
# Every fuzz target of the module, FUZZTIME each. Fails if there is none: then the search itself is broken.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
# Most targets write small files; and an input that is no failure need not be made small for a minute.
[ -w /dev/shm ] && export TMPDIR=/dev/shm
n=0
for file in $(git ls-files -co --exclude-standard '*_test.go'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing\.F).*/\1/p' "$file"); do
		echo "fuzz ./$(dirname "$file") $target ${FUZZTIME:-10s}"
		"$go" test "./$(dirname "$file")" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" -fuzzminimizetime 20x
		n=$((n + 1))
	done
done
[ "$n" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "ok    $n fuzz targets"
