#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Everything there is to test, cheapest first. The last line on standard output
# is `N passed, N failed`, with `, N skipped` where some were; status 1 unless
# all passed.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"
exec </dev/null

LOGS=$CACHE/test-logs
passed=0 failed=0 skipped=0

close() {
	local line="$passed passed, $failed failed"
	[ "$skipped" -eq 0 ] || line+=", $skipped skipped"
	echo "$line"
	[ "$failed" -eq 0 ]
}

# tier NAME COMMAND...: runs it and adds up its results. A tier that dies, or
# that tests nothing, has failed whatever it printed.
tier() {
	local name=$1 log=$LOGS/$1.log status=0 p f s
	shift
	echo "== $name"
	SECONDS=0
	"$@" 2>&1 | tee "$log" || status=$?
	read -r p f s < <(awk -f scripts/count.awk "$log")
	if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
		echo "not ok - $name ended with status $status"
		f=1
	elif [ $((p + f)) -eq 0 ]; then
		echo "not ok - $name ran no test"
		f=1
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	echo "== $name: $p passed, $f failed, $s skipped in $SECONDS s"
}

make=(make --no-print-directory)
mkdir -p "$LOGS"
if ! "${make[@]}" all harness fusedax-check; then
	echo "not ok - build"
	failed=1
	close
	exit
fi
tier lint "${make[@]}" lint
tier pipeline scripts/test-pipeline.sh
tier host "${make[@]}" test-host
tier fuzz "${make[@]}" test-fuzz
tier vm "${make[@]}" test-vm
close
