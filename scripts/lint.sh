#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The linters, each a line of TAP. Needs $KDIR; cargo is the first on PATH.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/tap.sh
. "$ROOT/scripts/tap.sh"
cd "$ROOT"

: "${KDIR:?is set by make lint}"
KSRC=$KDIR/source
[ -e "$KSRC" ] || KSRC=$KDIR

# tracked PATHSPEC...: the files of the project, new ones too.
tracked() {
	git ls-files --cached --others --exclude-standard --deduplicate -- "$@" |
		while read -r file; do [ ! -f "$file" ] || echo "$file"; done
}

kernel_rustfmt() {
	local files
	mapfile -t files < <(tracked 'rust/*.rs' 'kunit/*.rs')
	rustfmt --check --color never --edition 2021 --config-path "$KSRC/.rustfmt.toml" "${files[@]}"
}

# In a copy: kbuild would take the switch of compilers in the tree itself for a
# reason to build everything again, twice.
kernel_clippy() {
	local copy=$CACHE/clippy log=$CACHE/clippy.log
	rm -rf "$copy"
	mkdir -p "$copy"
	tracked Kbuild rust kunit testdata | tar -c --ignore-failed-read -T - | tar -x -C "$copy"
	run_logged "$log" scripts/kmake -C "$KDIR" M="$copy" CLIPPY=1 W=1 modules || {
		grep -A 12 -E '^(error|make|.*error:)' "$log" || cat "$log"
		return 1
	}
	! grep -A 12 -E '^warning|: warning:' "$log"
}

checkpatch() {
	perl "$KSRC/scripts/checkpatch.pl" --root="$KSRC" --strict --no-summary --terse \
		--ignore FILE_PATH_CHANGES "$@"
}

# Out-of-tree patches stay reviewable, and portable to the next kernel, by being small.
patch_size() {
	local lines
	lines=$(git apply --numstat "$@" | awk '{ n += $1 + $2 } END { print n + 0 }')
	echo "$lines changed lines in $*, the budget is 400"
	[ "$lines" -lt 400 ]
}

cargo_fmt() {
	cd "$1" && cargo fmt --all --check -- --color never
}

cargo_clippy() {
	cd "$1" && cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
}

shell_scripts() {
	local files
	mapfile -t files < <(tracked scripts .ci userspace/fuzz/run | grep -v '\.awk$')
	shellcheck -x "${files[@]}"
}

# Formats that have no comments, texts that are not ours, and what generates itself.
spdx() {
	local file bad=0
	while read -r file; do
		if ! head -n 2 "$file" | grep -q 'SPDX-License-Identifier: '; then
			echo "$file: no SPDX line at its top"
			bad=1
		fi
	done < <(tracked | grep -vE '(^LICENSES/|\.(lock|json|jsonl|bin|hex|patch)$|proptest-regressions/|^userspace/fuzz/seeds/)')
	return $bad
}

# none REGEX MESSAGE PATHSPEC...: no line of code (comments aside) matches.
none() {
	local regex=$1 message=$2 found
	shift 2
	found=$(tracked "$@" | xargs -r grep -nHE "$regex" | grep -vE '^[^:]*:[0-9]+:[[:space:]]*//' || true)
	[ -z "$found" ] || { printf '%s\n' "$message" "$found" && return 1; }
}

unsafe_places() {
	none '\bunsafe[[:space:]]*(\{|fn|impl|extern)' 'unsafe belongs into rust/sys/, kunit/fake.rs, userspace/fuse/src/ioctl.rs and qemu/init/src/sys.rs' \
		'rust/*.rs' 'kunit/*.rs' 'userspace/*.rs' 'qemu/*.rs' \
		':!rust/sys/*' ':!kunit/fake.rs' ':!userspace/fuse/src/ioctl.rs' ':!qemu/init/src/sys.rs'
}

layers() {
	none '\b(kernel::bindings|bindings::)' 'kernel::bindings belongs into rust/sys/' 'rust/*.rs' ':!rust/sys/*' &&
		none '\bcrate::|\bkernel::' 'rust/fmap/ imports core and zerocopy only' 'rust/fmap/*.rs' &&
		none '\bcrate::(daxdev|file|mount|open|provider|stats)\b' 'rust/sys/ knows no layer above it' 'rust/sys/*.rs'
}

item "rustfmt: rust/ and kunit/" kernel_rustfmt
item "clippy: famfs.ko and famfs_kunit.ko, W=1" kernel_clippy
item "layers of the module" layers
item "unsafe only where it belongs" unsafe_places
for patch in patches/linux-"$SERIES"/*.patch; do
	item "checkpatch --strict: ${patch##*/}" checkpatch "$PWD/$patch"
done
item "size of the patches" patch_size patches/linux-"$SERIES"/*.patch
while read -r file; do
	item "checkpatch --strict: $file" checkpatch --no-tree -f "$file"
done < <(tracked '*.c' '*.h')
for workspace in userspace userspace/fuzz qemu; do
	item "cargo fmt: $workspace/" cargo_fmt "$workspace"
	item "cargo clippy: $workspace/" cargo_clippy "$workspace"
done
item "shellcheck" shell_scripts
item "SPDX lines" spdx
finish
