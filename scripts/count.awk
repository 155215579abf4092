# SPDX-License-Identifier: GPL-2.0-only
#
# Reads one tier's output, prints "PASSED FAILED SKIPPED". Known are cargo test's
# closing lines, TAP at the left margin (nested KTAP is in its parent's line),
# and a runner's own closing line, which then stands for its TAP.

/^test result: / {
	passed += $4
	failed += $6
	skipped += $8
}

/^(not )?ok [0-9]/ {
	if (/ # SKIP/)
		tap_skipped++
	else if (/^ok/)
		tap_passed++
	else
		tap_failed++
}

/^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/ {
	closed = 1
	passed += $1
	failed += $3
	skipped += $5
}

END {
	if (!closed) {
		passed += tap_passed
		failed += tap_failed
		skipped += tap_skipped
	}
	print passed + 0, failed + 0, skipped + 0
}
