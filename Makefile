# SPDX-License-Identifier: GPL-2.0-only
#
# The menu; the work is in scripts/, cargo and kbuild. kbuild prefers the Kbuild
# beside this file, so `make -C $KDIR M=$PWD` works without it.

TOPOLOGY ?= cxl
MINUTES ?= 10

# make before 4.4 hides from $(shell) what its own command line sets.
paths := $(shell KERNEL_SRC='$(KERNEL_SRC)' VARIANT='$(VARIANT)' scripts/kernel.sh paths)
path_of = $(patsubst $(1)=%,%,$(filter $(1)=%,$(paths)))

ifdef KDIR
kernel_step := scripts/kernel.sh check-kdir $(KDIR)
else
KDIR := $(call path_of,KDIR)
kernel_step := scripts/kernel.sh build
endif
BZIMAGE ?= $(KDIR)/arch/x86/boot/bzImage
BZIMAGE_STOCK ?= $(call path_of,BZIMAGE_STOCK)
SYSTEM_MAP ?= $(KDIR)/System.map
# Modules for another kernel are built in a copy: kbuild would take the products
# of one kernel that lie in the tree for those of the other.
OUT := $(CURDIR)$(VARIANT:%=/target/%)
KO := $(OUT)/rust/famfs.ko
KUNIT_KO := $(OUT)/kunit/famfs_kunit.ko
FAMFS := $(CURDIR)/userspace/target/x86_64-unknown-linux-gnu/release/famfs
INITRD := $(CURDIR)/qemu/target/guest/initrd$(VARIANT:%=-%).cpio
outputs := KDIR BZIMAGE BZIMAGE_STOCK SYSTEM_MAP KO KUNIT_KO FAMFS INITRD

# Targets and flags that the caller's environment may set would move the outputs.
unexport CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR CARGO_BUILD_TARGET RUSTFLAGS
# Not for `test`, which runs make again: there they would look like the user's own.
$(foreach name,$(outputs),$(eval initrd demo shell lint test-vm soak-vm bench-vm profile-vm: export $(name) := $($(name))))

# .cargo/config.toml is found from the working directory, hence cd. An old cargo
# may precede a usable one on PATH; which is known only after `packages`.
cargo = export PATH="$$(scripts/host-packages.sh path)" && cd $(1) && cargo
harness = $(call cargo,qemu) run --release --quiet --

.PHONY: help all packages kernel fusedax-check modules userspace harness initrd demo shell \
	test test-host test-fuzz test-vm test-debug soak soak-vm bench bench-vm bench-host profile profile-vm \
	fuzz lint where install install-module tools clean distclean

help:
	@echo 'famfs-rs: shared memory as files'
	@echo
	@echo '  make demo        boot an emulated CXL machine and show famfs at work'
	@echo '                   (TOPOLOGY=pmem: plain memory, faster)'
	@echo '  make test        everything there is to test; ends with "N passed, N failed"'
	@echo '  make shell       the same guest with a shell, the file system mounted'
	@echo
	@echo '  make all         kernel, modules, userspace and the guest'"'"'s image'
	@echo '  make kernel      Linux 7.2 with patches/, into the cache'
	@echo '                   (KERNEL_SRC=DIR: from this source; KDIR=DIR: use this built tree;'
	@echo '                   VARIANT=debug: with all checkers, see qemu/kernel-7.2.debug.config)'
	@echo '  make modules     famfs.ko and the KUnit module'
	@echo '  make userspace   the famfs binary'
	@echo '  make test-host   the unit tests alone; test-vm: those in the guest alone'
	@echo '  make fuzz        a long run of the fuzzers (MINUTES=10, each)'
	@echo '  make test-debug  KUnit, the guests'"'"' tests and the demo on a kernel with all checkers'
	@echo '  make soak        MINUTES=20 of everything that can happen to a mount, there, from SEED='
	@echo '  make bench       what faults, reads and opens cost, in instructions: docs/performance.md'
	@echo '  make profile ROW="SUBJECT: OPERATION"   the functions that a row of it is made of'
	@echo '  make bench-host  what 10,000 files and a look into a map cost user space, in time and memory'
	@echo '  make lint        rustfmt, clippy, checkpatch, shellcheck, house rules'
	@echo '  make -s where    NAME=path of each thing that is built'
	@echo '  make install     famfs, its links, man pages, completions, systemd unit (PREFIX, DESTDIR), and'
	@echo '                   famfs.ko if it is built; install-module: that alone'
	@echo '  make packages    what this machine needs (as root: installs it)'
	@echo '  make tools       cargo-make, for the task graph in Makefile.toml'
	@echo '  make clean       what was built in this tree; distclean: the cache as well'
	@echo
	@echo 'A first run fetches and builds a kernel: about 15 minutes on two cores.'

all: initrd

packages:
	@scripts/host-packages.sh

kernel: packages
	@$(kernel_step)

fusedax-check: kernel
	@scripts/kernel.sh fusedax-check

modules: kernel
ifdef VARIANT
	@mkdir -p $(OUT) && rsync -a --delete --exclude-from=.gitignore Kbuild rust kunit testdata $(OUT)/
endif
	@scripts/kmake -s -C $(KDIR) M=$(OUT) modules

userspace: packages
	@$(call cargo,userspace) build --release --quiet

harness: packages
	@$(call cargo,qemu) build --release --quiet

# The guest's image: tools, the modules, the famfs binary.
initrd: modules userspace
	@$(harness) initrd >/dev/null

demo: modules userspace
	@$(harness) demo --topology $(TOPOLOGY)

shell: modules userspace
	@$(harness) shell --topology $(TOPOLOGY)

# The patched kernel's header, where it is there; the host's may be too old.
fuse_h := $(wildcard $(KDIR)/source/include/uapi/linux/fuse.h)
ifneq ($(fuse_h),)
test-host: export KERNEL_FUSE_H := $(fuse_h)
endif
test-host: packages
	@$(call cargo,userspace) test --workspace --locked --no-fail-fast
	@$(call cargo,qemu) test --workspace --locked --no-fail-fast

# A bounded run; what grows the seeds is `fuzz`.
test-fuzz: packages
	@export PATH="$$(scripts/host-packages.sh path)" && userspace/fuzz/run test

fuzz: packages
	@export PATH="$$(scripts/host-packages.sh path)" && userspace/fuzz/run $$(($(MINUTES) * 60))

test-vm: modules userspace
	@$(harness) test $(if $(filter debug,$(VARIANT)),--debug)

# On the kernel with all checkers.
test-debug:
	@$(MAKE) --no-print-directory VARIANT=debug test-vm

# The same kernel, a random order: `make soak MINUTES=20 SEED=1`.
soak:
	@$(MAKE) --no-print-directory VARIANT=debug soak-vm

soak-vm: modules userspace
	@$(harness) soak $(if $(filter debug,$(VARIANT)),--debug)

# On a kernel whose counts compare with those of the C series.
bench:
	@$(MAKE) --no-print-directory VARIANT=bench bench-vm

bench-vm: modules userspace
	@$(harness) bench --out $(CURDIR)/docs --commit "$$(git -C $(CURDIR) describe --always --dirty)"

profile:
	@$(MAKE) --no-print-directory VARIANT=bench profile-vm

profile-vm: modules userspace
	@$(harness) profile '$(ROW)'

# User space's part of a file system with 10,000 files; the resolver.
bench-host: packages
	@$(call cargo,userspace) test --release --quiet --package famfs --bin famfs ten_thousand -- --ignored --nocapture
	@$(call cargo,userspace) bench --quiet --package famfs-fmap --bench resolve

lint: kernel
	@export PATH="$$(scripts/host-packages.sh path)" && scripts/lint.sh

# Builds what it needs itself, so that a build that fails is in the count too.
test:
	@+scripts/test.sh

where:
	@$(foreach name,$(outputs),echo '$(name)=$($(name))';)

PREFIX ?= /usr
unitdir ?= $(PREFIX)/lib/systemd/system

install:
	@[ -x $(FAMFS) ] || { echo 'first, as a user: make userspace'; exit 1; }
	install -D -t $(DESTDIR)$(PREFIX)/bin $(FAMFS)
	install -d $(DESTDIR)$(PREFIX)/sbin
	$(foreach name,mkfs fsck mount,ln -sf ../bin/famfs $(DESTDIR)$(PREFIX)/sbin/$(name).famfs;)
	install -D -m 644 -t $(DESTDIR)$(unitdir) userspace/famfs/systemd/famfs@.service
	sed -i 's,/usr/bin/famfs,$(PREFIX)/bin/famfs,' $(DESTDIR)$(unitdir)/famfs@.service
	docs=$$(mktemp -d) && $(FAMFS) docs $$docs && cd $$docs && \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 man1/* && \
		install -D -m 644 bash/famfs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/famfs && \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions zsh/_famfs && \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d fish/famfs.fish && \
		rm -r $$docs
	@if [ -e $(KO) ]; then $(MAKE) --no-print-directory install-module; else \
		echo 'famfs.ko is not built, so not installed; for the kernel that runs:'; \
		echo '  make modules install-module KDIR=/lib/modules/$$(uname -r)/build'; fi

# To where modprobe(8) looks, for the kernel that it was built for.
install-module:
	@[ -e $(KO) ] || { echo 'first: make modules'; exit 1; }
	release=$$(modinfo -F vermagic $(KO) | cut -d ' ' -f 1) && \
		install -D -m 644 -t $(DESTDIR)/lib/modules/$$release/updates $(KO) && \
		depmod -b $(DESTDIR)/ $$release

tools: packages
	@export PATH="$$(scripts/host-packages.sh path)" && scripts/host-packages.sh tools

clean:
	@-[ -n '$(VARIANT)' ] || [ ! -e $(KDIR)/Makefile ] || scripts/kmake -s -C $(KDIR) M=$(CURDIR) clean
	rm -rf target userspace/target qemu/target

distclean: clean
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/famfs-rs"
