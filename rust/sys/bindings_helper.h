/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bindgen is shown for sys/bindings_generated.rs.
 */
#include <linux/dax.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/fuse_fmap.h>
#include <linux/huge_mm.h>
#include <linux/iomap.h>
#include <linux/mount.h>
#include <linux/namei.h>

#include "../helpers.h"

/* Macros that bindgen can't evaluate. */
const unsigned int RUST_CONST_HELPER_LOOKUP_FOLLOW = LOOKUP_FOLLOW;
const unsigned int RUST_CONST_HELPER_LOOKUP_CACHED = LOOKUP_CACHED;
const unsigned long RUST_CONST_HELPER_SB_I_NODEV = SB_I_NODEV;
const unsigned int RUST_CONST_HELPER_MINORBITS = MINORBITS;
const unsigned int RUST_CONST_HELPER_PMD_ORDER = PMD_ORDER;

const unsigned long RUST_CONST_HELPER_VM_RAND_READ = VM_RAND_READ;
const unsigned long RUST_CONST_HELPER_VM_UFFD_WP = VM_UFFD_WP;

/* That of kernel::bindings is VM_MAYEXEC. */
const unsigned long RUST_CONST_HELPER_VM_MAYSHARE = VM_MAYSHARE;
