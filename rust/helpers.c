// SPDX-License-Identifier: GPL-2.0-only
/*
 * C that Rust can't call directly: inline functions and macros.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cred.h>
#include <linux/fs_struct.h>
#include <linux/interval_tree_generic.h>
#include <linux/kdev_t.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <linux/set_memory.h>

#include "helpers.h"

#define RMAP_START(node) ((node)->start)
#define RMAP_LAST(node) ((node)->last)

INTERVAL_TREE_DEFINE(struct famfs_rmap_node, rb, u64, subtree_last,
		     RMAP_START, RMAP_LAST, static, famfs_rmap)

void famfs_rmap_add(struct famfs_rmap_node *node, struct rb_root_cached *root)
{
	famfs_rmap_insert(node, root);
}

void famfs_rmap_del(struct famfs_rmap_node *node, struct rb_root_cached *root)
{
	famfs_rmap_remove(node, root);
}

struct famfs_rmap_node *famfs_rmap_first(struct rb_root_cached *root, u64 start,
					 u64 last)
{
	return famfs_rmap_iter_first(root, start, last);
}

struct famfs_rmap_node *famfs_rmap_next(struct famfs_rmap_node *node, u64 start,
					u64 last)
{
	return famfs_rmap_iter_next(node, start, last);
}

const struct cred *famfs_current_cred(void)
{
	return current_cred();
}

void famfs_current_root(struct path *root)
{
	get_fs_root(current->fs, root);
}

/* As drivers/nvdimm/pmem.c does when it has cleared the poison of a page. */
void famfs_mark_good(unsigned long pfn)
{
	ClearPageHWPoison(pfn_to_page(pfn));
	clear_mce_nospec(pfn);
	cond_resched();
}

void famfs_vma_set_hugepage(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_HUGEPAGE);
}

void famfs_warn_failure(u16 index, u64 offset, u64 len)
{
	pr_warn_ratelimited("daxdev %u: memory failure at %#llx, %#llx bytes\n",
			    index, offset, len);
}

void famfs_warn(dev_t dev, u64 ino, const char *text)
{
	pr_warn_ratelimited("%u:%u: inode %llu: %s\n", MAJOR(dev), MINOR(dev),
			    ino, text);
}
