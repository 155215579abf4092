// SPDX-License-Identifier: GPL-2.0-only
/*
 * C that Rust can't call directly: inline functions and macros.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/interval_tree_generic.h>
#include <linux/kdev_t.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/set_memory.h>
#include <linux/srcu.h>
#include <linux/xarray.h>

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

/*
 * As drivers/nvdimm/pmem.c does when it has cleared the poison of a page. Only
 * one that @failed itself was taken out of the direct map. Returns whether the
 * caller is being killed: there may be many pages.
 */
bool famfs_mark_good(unsigned long pfn, bool failed)
{
	ClearPageHWPoison(pfn_to_page(pfn));
	if (failed)
		clear_mce_nospec(pfn);
	cond_resched();
	return fatal_signal_pending(current);
}

bool famfs_may_raw_io(void)
{
	return capable(CAP_SYS_RAWIO);
}

/* But for init, and for those that are dying already. */
static unsigned int kill_users(struct mm_struct *mm)
{
	struct task_struct *process, *thread;
	unsigned int killed = 0;

	rcu_read_lock();
	for_each_process(process) {
		if (is_global_init(process) || process->flags & PF_KTHREAD)
			continue;
		for_each_thread(process, thread) {
			struct mm_struct *its = READ_ONCE(thread->mm);

			if (!its)
				continue;
			if (its == mm && !fatal_signal_pending(thread)) {
				send_sig(SIGKILL, thread, 1);
				killed++;
			}
			break;
		}
	}
	rcu_read_unlock();
	return killed;
}

bool famfs_inode_is_freeing(struct inode *inode)
{
	return inode_state_read_once(inode) & I_FREEING;
}

/*
 * Kill each process that maps a page of the range. Returns how many. There may
 * be very many mappings: the RCU sections are short, and other tasks get to run.
 */
unsigned int famfs_kill_mappers(struct address_space *mapping,
				unsigned long first, unsigned long last)
{
	struct mm_struct *mm = NULL;
	unsigned int killed = 0;
	struct rb_node *node;

	i_mmap_lock_read(mapping);
	for (node = rb_first_cached(&mapping->i_mmap); node; node = rb_next(node)) {
		struct vm_area_struct *vma =
			rb_entry(node, struct vm_area_struct, shared.rb);

		cond_resched();
		/* They are in the order of their first pages. */
		if (vma->vm_pgoff > last)
			break;
		if (vma->vm_mm == mm || vma->vm_pgoff + vma_pages(vma) <= first)
			continue;
		mm = vma->vm_mm;
		killed += kill_users(mm);
	}
	i_mmap_unlock_read(mapping);
	return killed;
}

/* Who is in it inserts a folio that fs/dax.c must not take back meanwhile. */
DEFINE_STATIC_SRCU_FAST(famfs_fast);

unsigned long famfs_fast_enter(void)
{
	return (__force unsigned long)srcu_read_lock_fast(&famfs_fast);
}

void famfs_fast_leave(unsigned long section)
{
	srcu_read_unlock_fast(&famfs_fast,
			      (__force struct srcu_ctr __percpu *)section);
}

unsigned long famfs_fast_state(void)
{
	return get_state_synchronize_srcu(&famfs_fast);
}

/*
 * Until all have left who were in when famfs_fast_state() returned @state. A
 * fault may be what waits, and an idle domain is expedited on most kernels.
 */
void famfs_fast_wait(unsigned long state)
{
	if (!poll_state_synchronize_srcu(&famfs_fast, state))
		synchronize_srcu_expedited(&famfs_fast);
}

unsigned int famfs_nofs_enter(void)
{
	return memalloc_nofs_save();
}

void famfs_nofs_leave(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

/*
 * The folio of @order that begins at @pfn, with a reference, if fs/dax.c has
 * prepared it for @index of @mapping. It sets the mapping when all but the index
 * is there; of a page that it has not prepared, or taken back, both are 0.
 */
struct folio *famfs_dax_folio_get(unsigned long pfn,
				  struct address_space *mapping,
				  unsigned long index, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);
	struct folio *folio = page_folio(page);

	if (&folio->page != page ||
	    smp_load_acquire(&folio->mapping) != mapping || /* of dax_insert_entry() */
	    READ_ONCE(folio->index) != index || folio_order(folio) != order)
		return NULL;
	folio_ref_inc(folio);
	return folio;
}

void famfs_folio_put(struct folio *folio)
{
	folio_put(folio);
}

/*
 * Whether fs/dax.c has an entry for a small page between the two. Once it has,
 * it makes none for a huge page that contains it.
 */
bool famfs_has_small_entry(struct address_space *mapping, unsigned long first,
			   unsigned long last)
{
	return xa_find(&mapping->i_pages, &first, last, XA_PRESENT) &&
		xa_get_order(&mapping->i_pages, first) == 0;
}

bool famfs_pmd_is_none(const struct vm_fault *vmf)
{
	return pmd_none(pmdp_get_lockless(vmf->pmd));
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
