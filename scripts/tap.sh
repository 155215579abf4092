# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Sourced: checks as TAP lines.

failures=0
number=0

# item NAME COMMAND...: one check; what the command prints is shown when it fails.
item() {
	local name=$1 out
	shift
	number=$((number + 1))
	if out=$("$@" 2>&1 </dev/null); then
		echo "ok $number - $name"
	else
		failures=$((failures + 1))
		echo "not ok $number - $name"
		printf '%s\n' "$out" | tail -n 40 | sed 's/^/#   /'
	fi
}

skip() {
	number=$((number + 1))
	echo "ok $number - $1 # SKIP $2"
}

finish() {
	echo "1..$number"
	[ "$failures" -eq 0 ]
}
