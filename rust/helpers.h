/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * C that Rust can't call directly: inline functions and macros.
 */
#ifndef FAMFS_HELPERS_H
#define FAMFS_HELPERS_H

#include <linux/rbtree.h>
#include <linux/types.h>

struct address_space;
struct cred;
struct folio;
struct inode;
struct path;
struct vm_area_struct;
struct vm_fault;

/**
 * struct famfs_rmap_node - a range of device memory in an interval tree
 * @rb: the tree's
 * @start: first byte
 * @last: last byte
 * @subtree_last: the tree's
 */
struct famfs_rmap_node {
	struct rb_node rb;
	u64 start;
	u64 last;
	u64 subtree_last;
};

void famfs_rmap_add(struct famfs_rmap_node *node, struct rb_root_cached *root);
void famfs_rmap_del(struct famfs_rmap_node *node, struct rb_root_cached *root);
struct famfs_rmap_node *famfs_rmap_first(struct rb_root_cached *root, u64 start,
					 u64 last);
struct famfs_rmap_node *famfs_rmap_next(struct famfs_rmap_node *node, u64 start,
					u64 last);

const struct cred *famfs_current_cred(void);
void famfs_current_root(struct path *root);
bool famfs_inode_is_freeing(struct inode *inode);
unsigned int famfs_kill_mappers(struct address_space *mapping,
				unsigned long first, unsigned long last);
bool famfs_mark_good(unsigned long pfn, bool failed);
bool famfs_may_raw_io(void);
unsigned long famfs_fast_enter(void);
void famfs_fast_leave(unsigned long section);
unsigned long famfs_fast_state(void);
void famfs_fast_wait(unsigned long state);
unsigned int famfs_nofs_enter(void);
void famfs_nofs_leave(unsigned int flags);
struct folio *famfs_dax_folio_get(unsigned long pfn,
				  struct address_space *mapping,
				  unsigned long index, unsigned int order);
void famfs_folio_put(struct folio *folio);
bool famfs_has_small_entry(struct address_space *mapping, unsigned long first,
			   unsigned long last);
bool famfs_pmd_is_none(const struct vm_fault *vmf);
void famfs_vma_set_hugepage(struct vm_area_struct *vma);
void famfs_warn_failure(u16 index, u64 offset, u64 len);
void famfs_warn(dev_t dev, u64 ino, const char *text);

#endif /* FAMFS_HELPERS_H */
