#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Makes sure that this machine has what the build and the tests need: installs
# it where it can (root on Debian 12 or 13), otherwise says what to run.
#
# host-packages.sh         check, install
# host-packages.sh path    the PATH under which cargo is new enough
# host-packages.sh tools   what developers may want besides: cargo-make

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

RUST_MIN=1.85
QEMU_MIN=10
BINDGEN_VERSION=0.72.1
CARGO_MAKE_VERSION=0.37.24

PACKAGES=(
	bc bison ca-certificates clang-19 cpio debian-archive-keyring e2fsprogs flex g++ gcc
	git kmod libc6-dev libclang-19-dev libelf-dev libssl-dev lld-19 llvm-19 make patch perl
	python3 python3-pip rsync shellcheck xz-utils
)
# What the same needs as commands, for other distributions.
COMMANDS=(
	bc bison clang-19 cpio flex g++ gcc git mke2fs patch perl pip3 python3 rsync ld.lld-19
	llvm-ar-19 xz rustc cargo rustfmt clippy-driver bindgen qemu-system-x86_64
)

# at_least VERSION MINIMUM
at_least() {
	[ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

version_of() {
	"$@" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1
}

# Is the first `cargo` on PATH, with its rustfmt and clippy, of use?
cargo_serves() {
	local version
	version=$(version_of cargo) && at_least "$version" "$RUST_MIN" &&
		cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1
}

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Adds the packages that depend on the release and on what is there already.
wanted() {
	case $1 in
	12)
		PACKAGES+=(rustc-web rust-web-src rust-web-clippy)
		cargo_serves || PACKAGES+=(cargo-web rustfmt-web)
		;;
	13)
		PACKAGES+=(rustc rust-src rust-clippy bindgen qemu-system-x86)
		cargo_serves || PACKAGES+=(cargo rustfmt)
		;;
	esac
}

need_qemu_backport() {
	local version
	[ "$1" = 12 ] || return 1
	version=$(version_of qemu-system-x86_64) || return 0
	! at_least "$version" "$QEMU_MIN"
}

install_all() {
	local log=$CACHE/apt/host.log
	lock apt-host
	if [ ${#missing[@]} -gt 0 ]; then
		say "installing ${missing[*]}"
		# A third-party archive that fails to answer is no reason to stop.
		run_logged "$log" apt-get update || true
		DEBIAN_FRONTEND=noninteractive run_logged "$log" \
			apt-get install -y --no-install-recommends "${missing[@]}" ||
			die "apt-get cannot install the host packages ($(sed -n 's/^E: *//p' "$log" | head -n 1)): see $log"
	fi
	if [ "$backport" = yes ]; then
		say "installing qemu-system-x86 from bookworm-backports"
		"$ROOT/scripts/apt-private.sh" bookworm bookworm-updates bookworm-backports -- install qemu-system-x86
	fi
}

explain() {
	local command=""
	[ ${#missing[@]} -eq 0 ] ||
		command="apt-get install -y --no-install-recommends ${missing[*]}"
	[ "$backport" = no ] ||
		command+="${command:+ && }scripts/apt-private.sh bookworm bookworm-updates bookworm-backports -- install qemu-system-x86"
	die "host packages are missing; as root, run: $command"
}

other_distribution() {
	local command absent=()
	for command in "${COMMANDS[@]}"; do
		command -v "$command" >/dev/null || absent+=("$command")
	done
	[ ${#absent[@]} -eq 0 ] ||
		die "packages are known for Debian 12 and 13 only; install what provides: ${absent[*]}"
}

# cargo_tool CRATE VERSION: into the cache, pinned.
cargo_tool() {
	local log=$TOOLS/$1.log
	lock tools
	say "installing $1 $2 into $TOOLS"
	run_logged "$log" cargo install --locked "$1" --version "$2" --root "$TOOLS" ||
		die "cargo cannot install $1 $2 ($(grep -m 1 '^error' "$log")): check the network, see $log"
}

main() {
	local release package
	[ "$(uname -m)" = x86_64 ] || die "this builds and emulates x86_64 only, not $(uname -m)"
	release=$(os_release VERSION_ID)
	case $(os_release ID)$release in
	debian12 | debian13) wanted "$release" ;;
	*)
		other_distribution
		return
		;;
	esac

	missing=()
	for package in "${PACKAGES[@]}"; do
		installed "$package" || missing+=("$package")
	done
	backport=no
	if need_qemu_backport "$release"; then backport=yes; fi
	if [ ${#missing[@]} -gt 0 ] || [ "$backport" = yes ]; then
		[ "$(id -u)" -eq 0 ] || explain
		install_all
	fi
	[ -x "$TOOLS/bin/bindgen" ] || command -v bindgen >/dev/null ||
		PATH=$(usable_path) cargo_tool bindgen-cli "$BINDGEN_VERSION"
}

# An old cargo before Debian's own on PATH would win over it.
usable_path() {
	if cargo_serves; then echo "$PATH"; else echo "/usr/bin:$PATH"; fi
}

case ${1:-} in
"") main ;;
path) usable_path ;;
tools)
	[ -x "$TOOLS/bin/cargo-make" ] || cargo_tool cargo-make "$CARGO_MAKE_VERSION"
	say "for the tasks of Makefile.toml: PATH=$TOOLS/bin:\$PATH cargo make check"
	;;
*) die "usage: host-packages.sh [path|tools]" ;;
esac
