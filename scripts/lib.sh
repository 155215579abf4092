# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use its variables
# Sourced by the other scripts: what they all share.

set -euo pipefail
export LC_ALL=C

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/famfs-rs
TOOLS=$CACHE/tools
SERIES=7.2

die() {
	printf 'famfs-rs: %s\n' "$*" >&2
	exit 1
}

say() {
	printf 'famfs-rs: %s\n' "$*"
}

# run_logged LOG COMMAND...: the command's output goes to LOG only; its exit
# status is returned.
run_logged() {
	local log=$1
	shift
	mkdir -p "${log%/*}"
	"$@" >"$log" 2>&1 </dev/null
}

# lock NAME: hold the cache's lock NAME until this process ends.
lock() {
	mkdir -p "$CACHE"
	exec 9>"$CACHE/$1.lock"
	if ! flock -n 9; then
		say "waiting for another make that holds $CACHE/$1.lock"
		flock 9
	fi
}

# os_release KEY
os_release() {
	sed -n "s/^$1=\"\{0,1\}\([^\"]*\).*/\1/p" /etc/os-release
}

digest() {
	sha256sum | cut -c1-16
}
