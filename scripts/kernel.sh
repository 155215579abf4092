#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel.sh paths            KDIR= and BZIMAGE_STOCK=, the same before and after building
# kernel.sh build            the stock and the patched kernel, where they are not up to date
# kernel.sh fusedax-check    fs/fuse of the patched source with and without CONFIG_FUSE_DAX
# kernel.sh check-kdir DIR   can famfs.ko be built against DIR?
# kernel.sh check-config CONFIG FRAGMENT...
#
# VARIANT=NAME makes `paths` and `build` mean the patched kernel with the lines of
# qemu/kernel-$SERIES.NAME.config on top. A kernel of its own: there is no stock one
# to it, and it has its own lock, log and tree.
#
# Cache layout, under $CACHE/linux-7.2/:
#   SOURCE/                  pristine source; .famfs-source, written last, holds its version
#   SOURCE-DIGEST/           hard links to it, patched; DIGEST covers fragments and patches, not
#                            what the latter say of themselves
#   SOURCE-DIGEST/build/     KDIR; .famfs-built, written last, holds all that it was built from
# SOURCE is `debian`, or `src-DIGEST` of the path in KERNEL_SRC. kbuild uses
# relative paths where the output directory lies in the source directory, so
# the patched kernel starts as a copy of the stock one and compiles only what
# the patches touch.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

VARIANT=${VARIANT:-}
FRAGMENT=$ROOT/qemu/kernel-$SERIES.config
FRAGMENTS=("$FRAGMENT")
if [ -n "$VARIANT" ]; then
	FRAGMENTS+=("${FRAGMENT%.config}.$VARIANT.config")
	[ -e "${FRAGMENTS[1]}" ] || die "VARIANT=$VARIANT: there is no ${FRAGMENTS[1]#"$ROOT/"}"
fi
PATCHES=("$ROOT/patches/linux-$SERIES"/*.patch)
[ -e "${PATCHES[0]}" ] || PATCHES=()
HOME_DIR=$CACHE/linux-$SERIES
KMAKE=$ROOT/scripts/kmake
LOG=$HOME_DIR/build${VARIANT:+-$VARIANT}.log

if [ -n "${KERNEL_SRC:-}" ]; then
	[ -d "$KERNEL_SRC" ] || die "KERNEL_SRC=$KERNEL_SRC: no such directory"
	KERNEL_SRC=$(realpath "$KERNEL_SRC")
	SOURCE=$HOME_DIR/src-$(printf %s "$KERNEL_SRC" | digest)
else
	SOURCE=$HOME_DIR/debian
fi

# Where the source with what comes from stdin is built.
tree() {
	echo "$SOURCE-$(digest)"
}

STOCK=$(tree <"$FRAGMENT")
PATCHED=$({
	cat "${FRAGMENTS[@]}"
	sed -sn '/^diff \|^--- ./,$p' "${PATCHES[@]}" </dev/null
} | tree)

# --- the source --------------------------------------------------------------

# A changed file in KERNEL_SRC is another source.
fingerprint() {
	(cd "$KERNEL_SRC" && find . -name .git -prune -o -type f -printf '%P %s %T@\n') |
		sort | digest
}

check_version() {
	local version
	version=$(make -s -C "$1" kernelversion 2>/dev/null) ||
		die "$2 is not a Linux source tree"
	case $version in
	"$SERIES" | "$SERIES".* | "$SERIES"-*) echo "$version" ;;
	*) die "$2 is Linux $version, the patches are for $SERIES" ;;
	esac
}

copy_user_source() {
	local version
	version=$(check_version "$KERNEL_SRC" "KERNEL_SRC=$KERNEL_SRC")
	version+=" $(fingerprint)"
	[ "$(cat "$SOURCE/.famfs-source" 2>/dev/null)" != "$version" ] || return 0
	say "copying $KERNEL_SRC"
	rm -rf "$SOURCE"
	mkdir -p "$SOURCE"
	rsync -a --exclude /.git "$KERNEL_SRC/" "$SOURCE/"
	run_logged "$LOG" "$KMAKE" -C "$SOURCE" mrproper ||
		die "make mrproper failed in the copy of $KERNEL_SRC: see $LOG"
	echo "$version" >"$SOURCE/.famfs-source"
}

fetch_debian_source() {
	[ ! -e "$SOURCE/.famfs-source" ] || return 0
	local get=$HOME_DIR/download deb why
	say "fetching Debian's linux-source-$SERIES"
	rm -rf "$get" "$SOURCE"
	mkdir -p "$get" "$SOURCE"
	why=$(cd "$get" && "$ROOT/scripts/apt-private.sh" trixie trixie-backports -- download "linux-source-$SERIES" 2>&1 >/dev/null) ||
		die "no kernel source: ${why#famfs-rs: }; KERNEL_SRC=DIR takes a $SERIES tree, KDIR=DIR a built one"
	deb=$(echo "$get"/*.deb)
	dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards "./usr/src/linux-source-$SERIES.tar.xz" |
		tar -xJ -C "$SOURCE" --strip-components=1 || die "cannot unpack $deb"
	check_version "$SOURCE" "$deb" >/dev/null
	dpkg-deb -f "$deb" Version >"$SOURCE/.famfs-source"
	rm -rf "$get"
}

get_source() {
	if [ -n "${KERNEL_SRC:-}" ]; then copy_user_source; else fetch_debian_source; fi
}

# --- the trees ---------------------------------------------------------------

toolchain() {
	local bindgen=${BINDGEN:-$TOOLS/bin/bindgen}
	[ -x "$bindgen" ] || bindgen=bindgen
	"${RUSTC:-/usr/bin/rustc}" -V
	"$bindgen" --version
	"clang${LLVM--19}" --version | head -n 1
}

# built_from TREE: what TREE/build is made of, as its stamp says it.
built_from() {
	echo "source $(cat "$SOURCE/.famfs-source")"
	echo "tree ${1##*/}"
	toolchain
}

up_to_date() {
	[ "$(cat "$1/build/.famfs-built" 2>/dev/null)" = "$(built_from "$1")" ]
}

# make_tree TREE [PATCH...]: a source tree without a build directory.
make_tree() {
	local tree=$1 patch
	shift
	rm -rf "$tree"
	cp -al "$SOURCE" "$tree"
	for patch in "$@"; do
		# patch(1) replaces files, so the pristine source's stay as they are.
		run_logged "$LOG" patch -d "$tree" -p1 --forward --no-backup-if-mismatch -i "$patch" ||
			die "${patch#"$ROOT/"} does not apply to Linux $(cat "$SOURCE/.famfs-source"): $(patch_reason)"
	done
}

# seed NAME: gives the patched tree the stock one's products in the directory NAME, so that only what the patches change
# is compiled. Those were made after the patches were applied: make must not take them for up to date.
seed() {
	cp -a --reflink=auto "$STOCK/$1" "$PATCHED/$1"
	[ "${#PATCHES[@]}" -eq 0 ] || sed -nE 's,^\+\+\+ b/([^[:space:]]+).*,\1,p' "${PATCHES[@]}" | sort -u |
		(cd "$PATCHED" && xargs touch --)
}

patch_reason() {
	awk '/^patching file/ { f = $3 } /FAILED|can.t find file|Reversed|malformed/ { print (f ? f ": " : "") $0; exit }' "$LOG"
}

# The fragments' last word on each symbol must have taken effect: `olddefconfig`
# drops in silence what has an unmet dependency.
check_config() {
	local config=$1 fragment symbol line now
	shift
	while IFS=$'\t' read -r fragment symbol line; do
		now=$(grep -E "^(# )?$symbol(=| is not set)" "$config") || now="# $symbol is not set"
		[ "$now" = "$line" ] ||
			die "${fragment#"$ROOT/"} wants '$line', but the kernel's configuration has '$now': a dependency is missing, or the symbol is gone"
	done < <(awk '
		/^CONFIG_[A-Z0-9_a-z]+=/ { symbol = $0; sub(/=.*/, "", symbol) }
		/^# CONFIG_[A-Z0-9_a-z]+ is not set$/ { symbol = $2 }
		symbol { last[symbol] = FILENAME "\t" symbol "\t" $0; symbol = "" }
		END { for (symbol in last) print last[symbol] }' "$@")
}

configure() {
	cat "${FRAGMENTS[@]}" >"$1/.config"
	run_logged "$LOG" "$KMAKE" -C "${1%/*}" O="$1" olddefconfig ||
		die "make olddefconfig failed: see $LOG"
	check_config "$1/.config" "${FRAGMENTS[@]}"
}

# build TREE NAME: compiles TREE/build and stamps it.
build() {
	local tree=$1 name=$2 out=$1/build
	say "building the $name kernel (log: $LOG)"
	mkdir -p "$out"
	rm -f "$out/.famfs-built"
	configure "$out"
	run_logged "$LOG" nice "$KMAKE" -C "$tree" O="$out" -j"$(nproc)" bzImage modules modules_prepare ||
		die "building the $name kernel failed: $(grep -m 1 -E 'error(\[|:)|Error ' "$LOG" || tail -n 1 "$LOG") (see $LOG)"
	built_from "$tree" >"$out/.famfs-built"
}

# From scratch: nothing of the stock kernel's products would be left standing.
build_variant() {
	lock "kernel-$VARIANT"
	# The long part does not keep others from the kernels that they need.
	(
		lock kernel
		get_source
		up_to_date "$PATCHED" || make_tree "$PATCHED" "${PATCHES[@]}"
	)
	up_to_date "$PATCHED" || build "$PATCHED" "$VARIANT"
}

build_all() {
	lock kernel
	get_source
	if up_to_date "$STOCK" && up_to_date "$PATCHED"; then
		return 0
	fi
	# Patches first: one that does not apply should not cost a build.
	[ "$PATCHED" = "$STOCK" ] || up_to_date "$PATCHED" || make_tree "$PATCHED" "${PATCHES[@]}"
	if ! up_to_date "$STOCK"; then
		make_tree "$STOCK"
		build "$STOCK" stock
	fi
	if ! up_to_date "$PATCHED"; then
		rm -rf "$PATCHED/build"
		seed build
		build "$PATCHED" patched
	fi
}

# --- checks ------------------------------------------------------------------

check_kdir() {
	local dir=$1 need
	[ -d "$dir" ] || die "KDIR=$dir: no such directory"
	for need in include/generated/rustc_cfg rust/libkernel.rmeta rust/libmacros.so Module.symvers; do
		[ -e "$dir/$need" ] ||
			die "KDIR=$dir lacks $need: it must be a built kernel tree with CONFIG_RUST=y (a headers package will not do)"
	done
	grep -qw fuse_fmap_register "$dir/Module.symvers" ||
		die "KDIR=$dir is built from a kernel without patches/linux-$SERIES: its Module.symvers lacks fuse_fmap_register"
}

# fuse_objects TREE NAME=y|n...: compiles TREE's fs/fuse with these. Leaves its
# W=1 warnings, less line numbers, in TREE/fuse/warnings.
fuse_objects() {
	local tree=$1 out=$1/fuse setting
	shift
	"$tree/scripts/config" --file "$out/.config" -d RUST -e VIRTIO_FS
	for setting in "$@"; do
		"$tree/scripts/config" --file "$out/.config" --set-val "${setting%=*}" "${setting#*=}"
	done
	run_logged "$LOG" "$KMAKE" -C "$tree" O="$out" olddefconfig ||
		die "make olddefconfig failed: see $LOG"
	for setting in "$@"; do
		grep -qxE "CONFIG_$setting|# CONFIG_${setting%=n} is not set" "$out/.config" ||
			die "CONFIG_$setting did not take effect for fs/fuse"
	done
	run_logged "$LOG" nice "$KMAKE" -C "$tree" O="$out" -j"$(nproc)" prepare ||
		die "make prepare for fs/fuse failed: see $LOG"
	run_logged "$LOG" nice "$KMAKE" -C "$tree" O="$out" -j"$(nproc)" W=1 fs/fuse/ ||
		die "fs/fuse with $* does not compile: $(grep -m 1 error: "$LOG") (see $LOG)"
	sed -nE 's,^(\.\./)?([^:]+):[0-9:]+ (warning: .*),\2: \3,p' "$LOG" >>"$out/warnings"
}

# The patches compile with and without virtiofs's DAX and their own symbol, and
# bring no warning that was not there before.
fusedax_check() {
	local new stamp=$PATCHED/fuse/.famfs-built
	LOG=$HOME_DIR/fuse.log
	lock kernel
	up_to_date "$PATCHED" || die "the patched kernel is not built: make kernel"
	[ "$(cat "$stamp" 2>/dev/null)" != "$(built_from "$PATCHED")" ] || return 0
	rm -rf "$STOCK/fuse" "$PATCHED/fuse"
	mkdir "$STOCK/fuse"
	cp "$FRAGMENT" "$STOCK/fuse/.config"
	fuse_objects "$STOCK" FUSE_DAX=y
	fuse_objects "$STOCK" FUSE_DAX=n
	seed fuse
	rm -f "$PATCHED/fuse/warnings"
	fuse_objects "$PATCHED" FUSE_DAX=n FUSE_FMAP=y
	fuse_objects "$PATCHED" FUSE_DAX=y FUSE_FMAP=y
	fuse_objects "$PATCHED" FUSE_DAX=y FUSE_FMAP=n
	new=$(sort -u "$PATCHED/fuse/warnings" | comm -23 - <(sort -u "$STOCK/fuse/warnings"))
	[ -z "$new" ] || die "the patches bring warnings with W=1: $new"
	built_from "$PATCHED" >"$stamp"
}

case ${1:-} in
paths)
	echo "KDIR=$PATCHED/build"
	echo "BZIMAGE_STOCK=$STOCK/build/arch/x86/boot/bzImage"
	;;
build) if [ -n "$VARIANT" ]; then build_variant; else build_all; fi ;;
fusedax-check) fusedax_check ;;
check-kdir) check_kdir "$2" ;;
check-config) check_config "${@:2}" ;;
*) die "usage: kernel.sh paths|build|fusedax-check|check-kdir DIR|check-config CONFIG FRAGMENT..." ;;
esac; exit # bash reads on otherwise, and the file may have changed since it started
