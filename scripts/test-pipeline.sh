#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Tests of the build pipeline itself, as TAP: the errors that a newcomer can
# meet, and that the cache never serves what it should not. A toy kernel source
# stands in for Linux, so that each takes a second.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/tap.sh
. "$ROOT/scripts/tap.sh"

BINDGEN=$TOOLS/bin/bindgen
[ -x "$BINDGEN" ] || BINDGEN=$(command -v bindgen)
export BINDGEN
unset KDIR KERNEL_SRC VARIANT BZIMAGE BZIMAGE_STOCK SYSTEM_MAP MAKEFLAGS MFLAGS MAKELEVEL

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
REPO=$WORK/repo
FAKE=$WORK/bin
SRC=$WORK/src

# A project with its own cache, a toy source, and a folder of commands that
# shadow the machine's.
fresh() {
	rm -rf "${WORK:?}"/*
	mkdir -p "$REPO/qemu" "$REPO/patches" "$FAKE" "$SRC/fs/fuse" "$WORK/cache"
	cp -r "$ROOT/scripts" "$ROOT/Makefile" "$REPO/"
	echo CONFIG_FUSE_FS=y >"$REPO/qemu/kernel-$SERIES.config"
	echo original >"$SRC/fs/fuse/file.c"
	echo object >"$SRC/object.o"
	# Counts its builds in $WORK/builds; fails while $WORK/broken exists. Like make, it takes a product that is newer
	# than its source for up to date.
	cat >"$SRC/Makefile" <<-TOY
		kernelversion: ; @echo 7.2.99
		mrproper: ; @rm -f object.o
		olddefconfig modules modules_prepare: ; @true
		bzImage: ; @echo x >>$WORK/builds && sleep 0.3 && mkdir -p \$(O)/arch/x86/boot && \\
		{ test \$(O)/arch/x86/boot/bzImage -nt fs/fuse/file.c || cp fs/fuse/file.c \$(O)/arch/x86/boot/bzImage; } && \\
		test ! -e $WORK/broken
	TOY
	touch -d '1 day ago' "$SRC/Makefile" "$SRC/fs/fuse/file.c"
}

# The project's kernel.sh (or another script) in that project.
run() {
	(cd "$REPO" && XDG_CACHE_HOME=$WORK/cache PATH=$FAKE:$PATH "$@")
}

kernel() {
	KERNEL_SRC=$SRC run scripts/kernel.sh "$@"
}

kernel_variant() {
	VARIANT=$1 kernel "${@:2}"
}

fake() {
	printf '#!/bin/sh\n%s\n' "$2" >"$FAKE/$1"
	chmod +x "$FAKE/$1"
}

patch_for_toy() {
	mkdir -p "$REPO/patches/linux-$SERIES"
	printf -- '--- a/fs/fuse/file.c\n+++ b/fs/fuse/file.c\n@@ -1 +1 @@\n-%s\n+%s\n' "$1" "$2" \
		>"$REPO/patches/linux-$SERIES/0001-toy.patch"
}

builds() {
	if [ -e "$WORK/builds" ]; then wc -l <"$WORK/builds"; else echo 0; fi
}

is() {
	[ "$1" = "$2" ] || { echo "got '$1', not '$2'" && return 1; }
}

# refuses REGEX COMMAND...: it fails, and stderr is one line that matches.
refuses() {
	local regex=$1 status=0
	shift
	"$@" >"$WORK/out" 2>"$WORK/err" || status=$?
	cat "$WORK/err"
	[ "$status" -ne 0 ] || { echo "it ended with status 0" && return 1; }
	is "$(wc -l <"$WORK/err")" 1 && grep -qE "^famfs-rs: $regex" "$WORK/err"
}

unreachable_archive() {
	fresh
	fake apt-get 'exec /usr/bin/apt-get "$@" -o Acquire::http::Proxy=http://127.0.0.1:9 -o Acquire::https::Proxy=http://127.0.0.1:9 -o Acquire::Retries=0'
	refuses "no kernel source: cannot reach the Debian archive at [a-z]+://.* for trixie trixie-backports .*KERNEL_SRC=DIR" \
		run scripts/kernel.sh build
}

series_gone() {
	fresh
	fake apt-get 'case "$*" in
		*indextargets*) exec /usr/bin/apt-get "$@" ;;
		*download*) echo "E: Unable to locate package linux-source-7.2" >&2; exit 100 ;;
	esac'
	refuses "no kernel source: cannot download linux-source-7.2 from .*Unable to locate package" \
		run scripts/kernel.sh build
}

no_archive() {
	fresh
	fake apt-get 'exit 0'
	refuses "no kernel source: this machine's apt knows no Debian archive" run scripts/kernel.sh build
}

# A container image comes without apt's lists.
no_lists() {
	fresh
	mkdir "$WORK/lists"
	fake apt-get 'case "$*" in
		*indextargets*) exec /usr/bin/apt-get -o Dir::State::Lists='"$WORK/lists"' "$@" ;;
		*download*) echo "E: the download" >&2; exit 100 ;;
	esac'
	refuses "no kernel source: cannot download linux-source-7.2 from .* at [a-z+]+:/" run scripts/kernel.sh build
}

bogus_patch() {
	fresh
	patch_for_toy 'what is not there' new
	refuses "patches/linux-7.2/0001-toy.patch does not apply to Linux 7.2.99 .*: fs/fuse/file.c: Hunk #1 FAILED" \
		kernel build && is "$(builds)" 0
}

wrong_sources() {
	fresh
	sed -i 's/7\.2\.99/6.1.7/' "$SRC/Makefile"
	refuses "KERNEL_SRC=$SRC is Linux 6.1.7, the patches are for 7.2" kernel build || return 1
	rm "$SRC/Makefile"
	refuses "KERNEL_SRC=$SRC is not a Linux source tree" kernel build || return 1
	rm -r "$SRC"
	refuses "KERNEL_SRC=$SRC: no such directory" kernel build
}

wrong_kdir() {
	fresh
	refuses "KDIR=$WORK/none: no such directory" run scripts/kernel.sh check-kdir "$WORK/none" || return 1
	mkdir -p "$WORK/k/include/generated"
	touch "$WORK/k/include/generated/rustc_cfg"
	refuses "KDIR=$WORK/k lacks rust/libkernel.rmeta: it must be a built kernel tree with CONFIG_RUST=y" \
		run scripts/kernel.sh check-kdir "$WORK/k" || return 1
	mkdir "$WORK/k/rust"
	touch "$WORK/k/rust/libkernel.rmeta" "$WORK/k/rust/libmacros.so"
	echo '0x0 fuse_dev_alloc vmlinux EXPORT_SYMBOL_GPL' >"$WORK/k/Module.symvers"
	refuses "KDIR=$WORK/k is built from a kernel without patches/linux-7.2" \
		run scripts/kernel.sh check-kdir "$WORK/k" || return 1
	echo '0x0 fuse_fmap_register vmlinux EXPORT_SYMBOL_GPL' >>"$WORK/k/Module.symvers"
	run scripts/kernel.sh check-kdir "$WORK/k"
}

lost_symbol() {
	fresh
	printf 'CONFIG_FUSE_FS=y\n# CONFIG_GONE is not set\nCONFIG_CXL_BUS=y\n' >"$WORK/fragment"
	printf 'CONFIG_FUSE_FS=y\nCONFIG_CXL_BUS=y\n' >"$WORK/config"
	run scripts/kernel.sh check-config "$WORK/config" "$WORK/fragment" || return 1
	printf 'CONFIG_FUSE_FS=y\n# CONFIG_CXL_BUS is not set\n' >"$WORK/config"
	refuses "$WORK/fragment wants 'CONFIG_CXL_BUS=y', but the kernel's configuration has '# CONFIG_CXL_BUS is not set'" \
		run scripts/kernel.sh check-config "$WORK/config" "$WORK/fragment" || return 1
	printf '# CONFIG_CXL_BUS is not set\n' >"$WORK/later"
	run scripts/kernel.sh check-config "$WORK/config" "$WORK/fragment" "$WORK/later" || return 1
	printf 'CONFIG_FUSE_FS=m\n' >>"$WORK/later"
	refuses "$WORK/later wants 'CONFIG_FUSE_FS=m', but the kernel's configuration has 'CONFIG_FUSE_FS=y'" \
		run scripts/kernel.sh check-config "$WORK/config" "$WORK/fragment" "$WORK/later"
}

missing_packages() {
	fresh
	fake id 'echo 1000'
	# shellcheck disable=SC2016
	fake dpkg-query '[ "$4" != flex ] && echo installed'
	fake qemu-system-x86_64 'echo QEMU emulator version 10.0.2'
	refuses "host packages are missing; as root, run: apt-get install -y --no-install-recommends flex$" \
		run scripts/host-packages.sh
}

old_qemu() {
	fresh
	fake id 'echo 1000'
	fake dpkg-query 'echo installed'
	fake qemu-system-x86_64 'echo QEMU emulator version 7.2.17'
	refuses "host packages are missing; as root, run: scripts/apt-private.sh .*bookworm-backports -- install qemu-system-x86$" \
		run scripts/host-packages.sh
}

failing_install() {
	fresh
	fake id 'echo 0'
	fake dpkg-query 'false'
	fake apt-get 'echo "E: Unable to locate package flex"; exit 100'
	refuses "apt-get cannot install the host packages .Unable to locate package flex.*log" \
		run scripts/host-packages.sh
}

built_once() {
	fresh
	patch_for_toy original patched
	kernel build && kernel build || return 1
	# Twice: the stock and the patched one.
	is "$(builds)" 2 &&
		is "$(cat "$(kernel paths | sed -n 's/^KDIR=//p')/arch/x86/boot/bzImage")" patched &&
		is "$(cat "$(kernel paths | sed -n 's/^BZIMAGE_STOCK=//p')")" original
}

source_untouched() {
	fresh
	patch_for_toy original patched
	local before
	before=$(cd "$SRC" && find . -printf '%P %s %T@ %n\n' | sort)
	kernel build || return 1
	is "$(cd "$SRC" && find . -printf '%P %s %T@ %n\n' | sort)" "$before"
}

partial_build() {
	fresh
	touch "$WORK/broken"
	refuses "building the stock kernel failed: .*build.log" kernel build || return 1
	refuses "building the stock kernel failed: .*build.log" kernel build || return 1
	rm "$WORK/broken"
	kernel build && is "$(builds)" 3
}

changes_rebuild() {
	local kdir other
	fresh
	kernel build || return 1
	kdir=$(kernel paths | grep KDIR)
	patch_for_toy original patched
	other=$(kernel paths | grep KDIR)
	[ "$kdir" != "$other" ] || { echo "a patch leaves KDIR as it was" && return 1; }
	kernel build && is "$(builds)" 2 || return 1
	sed -i '1i Subject: [PATCH] toy: say why\n---' "$REPO/patches/linux-$SERIES/0001-toy.patch"
	is "$(kernel paths | grep KDIR)" "$other" || return 1
	echo more >"$SRC/fs/fuse/inode.c"
	is "$(kernel paths | grep KDIR)" "$other" && kernel build && is "$(builds)" 4
}

variant_of_kernel() {
	local plain kdir
	fresh
	patch_for_toy original patched
	plain=$(kernel paths | grep KDIR)
	refuses "VARIANT=slow: there is no qemu/kernel-7.2.slow.config" kernel_variant slow build || return 1
	echo CONFIG_SLOW=y >"$REPO/qemu/kernel-$SERIES.slow.config"
	kdir=$(kernel_variant slow paths | sed -n 's/^KDIR=//p')
	is "$(kernel paths | grep KDIR)" "$plain" && [ "$plain" != "KDIR=$kdir" ] || return 1
	# No stock kernel goes with it.
	kernel_variant slow build && kernel_variant slow build && is "$(builds)" 1 || return 1
	is "$(cat "$kdir/arch/x86/boot/bzImage")" patched && is "$(xargs <"$kdir/.config")" "CONFIG_FUSE_FS=y CONFIG_SLOW=y" &&
		kernel build && is "$(builds)" 3 || return 1
	is "$(run make -s where KERNEL_SRC="$SRC" VARIANT=slow | head -n 1)" "KDIR=$kdir" || return 1
	echo CONFIG_SLOWER=y >>"$REPO/qemu/kernel-$SERIES.slow.config"
	kernel_variant slow build && is "$(builds)" 4
}

two_at_once() {
	fresh
	kernel build &
	kernel build && wait $! && is "$(builds)" 1
}

where_is_final() {
	local before names
	fresh
	before=$(run make -s where KERNEL_SRC="$SRC") && kernel build || return 1
	is "$(run make -s where KERNEL_SRC="$SRC")" "$before" || return 1
	names=$(cut -d= -f1 <<<"$before" | xargs)
	is "$names" "KDIR BZIMAGE BZIMAGE_STOCK SYSTEM_MAP KO KUNIT_KO FAMFS INITRD" &&
		is "$(grep -vcE '^[A-Z_]+=/' <<<"$before")" 0 &&
		is "$(run make -s where KDIR=/k | sed -n 2p)" "BZIMAGE=/k/arch/x86/boot/bzImage"
}

# counts EXPECTED INPUT
counts() {
	is "$(printf '%b' "$2" | awk -f "$ROOT/scripts/count.awk")" "$1"
}

summing() {
	counts "15 2 1" 'test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured\ntest result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured\n' &&
		counts "1 1 1" '1..3\n    ok 1 - nested\nok 1 - a\nnot ok 2 - b\nok 3 - c # SKIP no\n' &&
		counts "5 1 2" 'ok 1 - a\n5 passed, 1 failed, 2 skipped\n' &&
		counts "0 0 0" 'nothing\n'
}

# A tier that dies, or that runs nothing, must show in the closing line.
closing_line() {
	fresh
	printf '#!/bin/sh\necho "ok 1 - p"\n' >"$REPO/scripts/test-pipeline.sh"
	fake make 'case "$*" in
		*lint) echo "ok 1 - l"; echo "ok 2 - s # SKIP x" ;;
		*test-host) echo "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured" ;;
		*test-fuzz) echo "ok 1 - f" ;;
		*test-vm) [ ! -e dies ] || { echo "ok 1 - v"; exit 3; }; [ -e empty ] || echo "7 passed, 0 failed" ;;
		*) [ ! -e unbuilt ] ;;
	esac'
	is "$(run scripts/test.sh | tail -n 1)" "15 passed, 0 failed, 1 skipped" || return 1
	touch "$REPO/dies"
	! run scripts/test.sh >"$WORK/out" && is "$(tail -n 1 "$WORK/out")" "9 passed, 1 failed, 1 skipped" || return 1
	mv "$REPO/dies" "$REPO/empty"
	! run scripts/test.sh >"$WORK/out" && is "$(tail -n 1 "$WORK/out")" "8 passed, 1 failed, 1 skipped" || return 1
	touch "$REPO/unbuilt"
	! run scripts/test.sh >"$WORK/out" && is "$(tail -n 1 "$WORK/out")" "0 passed, 1 failed"
}

# A kernel's own release decides where its module goes.
installs() {
	local famfs=$REPO/userspace/target/x86_64-unknown-linux-gnu/release/famfs made dest=$WORK/dest
	fresh
	mkdir -p "$(dirname "$famfs")" "$REPO/userspace/famfs"
	cp -r "$ROOT/userspace/famfs/systemd" "$REPO/userspace/famfs/"
	cat >"$famfs" <<-'TOY'
		#!/bin/sh
		cd "$2" && mkdir man1 bash zsh fish && touch man1/famfs.1 bash/famfs.bash zsh/_famfs fish/famfs.fish
	TOY
	chmod +x "$famfs"
	fake modinfo 'echo 7.2.99-toy SMP preempt'
	fake depmod "echo \"\$@\" >$WORK/depmod"
	run make install "DESTDIR=$dest" PREFIX=/opt/famfs >"$WORK/out"
	grep -q 'make modules install-module KDIR=/lib/modules/' "$WORK/out" || return 1
	is "$(readlink "$dest/opt/famfs/sbin/mount.famfs")" ../bin/famfs || return 1
	is "$(find "$dest/opt/famfs" -name '*famfs.1')" "$dest/opt/famfs/share/man/man1/famfs.1" || return 1
	grep -q '^ExecStart=/opt/famfs/bin/famfs mount' "$dest/opt/famfs/lib/systemd/system/famfs@.service" || return 1
	[ ! -e "$WORK/depmod" ] || return 1
	mkdir -p "$REPO/rust" && echo module >"$REPO/rust/famfs.ko"
	run make install "DESTDIR=$dest" >/dev/null
	made=$dest/lib/modules/7.2.99-toy/updates/famfs.ko
	is "$(cat "$made"; stat -c %a "$made")" "$(printf 'module\n644')" || return 1
	is "$(cat "$WORK/depmod")" "-b $dest/ 7.2.99-toy"
}

item "archive out of reach" unreachable_archive
item "series no longer in the archive" series_gone
item "apt without a Debian archive" no_archive
item "archive is known before the first apt-get update" no_lists
item "patch that does not apply, before anything is built" bogus_patch
item "KERNEL_SRC: other version, no source, no directory" wrong_sources
item "KDIR: no directory, no Rust metadata, not patched" wrong_kdir
item "symbol of the fragment without effect" lost_symbol
item "missing package, not root" missing_packages
if [ "$(os_release VERSION_ID)" = 12 ]; then
	item "QEMU too old, not root" old_qemu
else
	skip "QEMU too old, not root" "only Debian 12 has one"
fi
item "failing apt-get install" failing_install
item "kernels are built once, stock and patched" built_once
item "KERNEL_SRC stays as it was" source_untouched
item "broken build is not taken for a good one" partial_build
item "changed patch, changed source" changes_rebuild
item "a variant has its own kernel, built alone" variant_of_kernel
item "two makes at once build once" two_at_once
item "make where is final before building" where_is_final
item "make install, with the module and without" installs
item "every runner's results are counted" summing
item "a tier that dies or runs nothing fails the whole" closing_line
finish
