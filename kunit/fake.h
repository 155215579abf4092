/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A dax device bound to a driver, and fs/fuse: see fake.c.
 */
#ifndef FAMFS_KUNIT_FAKE_H
#define FAMFS_KUNIT_FAKE_H

#include <linux/types.h>

struct famfs_fake_dax;
struct file;
struct inode;

struct famfs_fake_dax *famfs_fake_dax_new(u64 bytes, bool fsdev);
void famfs_fake_dax_free(struct famfs_fake_dax *dax);
void famfs_fake_dax_kill(struct famfs_fake_dax *dax);
void famfs_fake_dax_mark(struct famfs_fake_dax *dax, u64 offset);
bool famfs_fake_dax_is_marked(struct famfs_fake_dax *dax, u64 offset);
bool famfs_fake_dax_is_held(struct famfs_fake_dax *dax);
int famfs_fake_dax_fail(struct famfs_fake_dax *dax, u64 offset, u64 len,
			int flags);
void famfs_fake_dax_fail_on_access(struct famfs_fake_dax *dax, u64 offset,
				   u64 len, int flags);
void famfs_fake_dax_lock(struct famfs_fake_dax *dax);
void famfs_fake_dax_unlock(struct famfs_fake_dax *dax);

int famfs_fake_fd(struct famfs_fake_dax *dax);
void famfs_fake_close(int fd);

dev_t famfs_fake_root_dev(void);
void *famfs_fake_conn_new(dev_t dev);
void famfs_fake_conn_free(void *conn);
int famfs_fake_daxdev_open(void *conn, int fd, u32 flags, u64 index);

struct file *famfs_fake_file_new(void);
void famfs_fake_file_free(struct file *file);
int famfs_fake_open(void *conn, struct file *file, u64 nodeid);
void famfs_fake_evict(struct file *file);
struct inode *famfs_fake_inode(struct file *file);
void *famfs_fake_fmap(struct file *file);
s64 famfs_fake_size(struct file *file);
int famfs_fake_users(struct file *file);
ssize_t famfs_fake_rw(struct file *file, loff_t pos, void *buf, size_t len,
		      bool write);
u32 famfs_fake_cost(void *begin, struct file *file, loff_t pos);
int famfs_fake_fiemap(struct file *file, u64 start, u64 len);

void famfs_fake_install_lock(void);
void famfs_fake_install_unlock(int error);

void famfs_fake_serve(const void *fmap, size_t fmap_len, const void *daxdev,
		      size_t daxdev_len, int error);
u32 famfs_fake_fmaps_asked(void);
u32 famfs_fake_daxdevs_asked(void);
u64 famfs_fake_last_daxdev(void);

#endif /* FAMFS_KUNIT_FAKE_H */
