// SPDX-License-Identifier: GPL-2.0-only
/*
 * What can't be had without a machine and a server: a dax device that is bound
 * to a driver, and fs/fuse. The dax core, inodes and files are the real ones.
 *
 * The functions of include/linux/fuse_fmap.h are defined here, which makes the
 * linker take them instead of the kernel's: the provider under test registers
 * here, sends its requests here and installs its maps here.
 */
#include <linux/anon_inodes.h>
#include <linux/cleanup.h>
#include <linux/dax.h>
#include <linux/device.h>
#include <linux/fiemap.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/fuse_fmap.h>
#include <linux/iomap.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>

#include <asm/msr.h>

#include "bus.h"
#include "dax-private.h"
#include "fake.h"

struct famfs_fake_dax {
	struct dev_dax dev_dax;
	struct dax_device *dax_dev;
	void *mem;
	long pages;
	/* Strikes when the memory is looked up next, unless its length is 0. */
	struct {
		u64 offset;
		u64 len;
		int flags;
	} failure;
};

/* What lies behind is there, but is never looked at. */
#define FAKE_DAX_MEM ((u64)SZ_16M)

static struct dax_device_driver fsdev_driver = {
	.drv.name = "famfs_kunit_fsdev",
	.type = DAXDRV_FSDEV_TYPE,
};

static struct dax_device_driver devdax_driver = {
	.drv.name = "famfs_kunit_devdax",
	.type = DAXDRV_DEVICE_TYPE,
};

/* As fsdev_dax does: all that was asked for, or nothing. */
static long fake_direct_access(struct dax_device *dax_dev, pgoff_t pgoff,
			       long nr_pages, enum dax_access_mode mode,
			       void **kaddr, unsigned long *pfn)
{
	struct dev_dax *dev_dax = dax_get_private(dax_dev);
	struct famfs_fake_dax *dax;

	dax = container_of(dev_dax, struct famfs_fake_dax, dev_dax);
	if (dax->failure.len) {
		/* The caller does not expect to sleep, and is waited for. */
		rcu_read_unlock();
		dax_holder_notify_failure(dax_dev, dax->failure.offset,
					  xchg(&dax->failure.len, 0),
					  dax->failure.flags);
		rcu_read_lock();
	}
	if (pgoff >= dax->pages || nr_pages > dax->pages - (long)pgoff)
		return -EFAULT;
	if (kaddr)
		*kaddr = dax->mem + (pgoff << PAGE_SHIFT);
	if (pfn)
		*pfn = vmalloc_to_pfn(dax->mem + (pgoff << PAGE_SHIFT));
	return nr_pages;
}

static int fake_zero_page_range(struct dax_device *dax_dev, pgoff_t pgoff,
				size_t nr_pages)
{
	return -EIO;
}

static const struct dax_operations fake_dax_ops = {
	.direct_access = fake_direct_access,
	.zero_page_range = fake_zero_page_range,
};

static void fake_dax_release(struct device *dev)
{
	struct dev_dax *dev_dax = to_dev_dax(dev);
	struct famfs_fake_dax *dax;

	dax = container_of(dev_dax, struct famfs_fake_dax, dev_dax);
	vfree(dax->mem);
	kfree(dax);
}

struct famfs_fake_dax *famfs_fake_dax_new(u64 bytes, bool fsdev)
{
	struct famfs_fake_dax *dax = kzalloc(sizeof(*dax), GFP_KERNEL);
	struct dax_device *dax_dev;

	if (!dax)
		return NULL;
	device_initialize(&dax->dev_dax.dev);
	dax->dev_dax.dev.release = fake_dax_release;
	dax->dev_dax.dev.driver =
		fsdev ? &fsdev_driver.drv : &devdax_driver.drv;
	dax->pages = bytes >> PAGE_SHIFT;
	dax->mem = vzalloc(min(bytes, FAKE_DAX_MEM));
	dax_dev = alloc_dax(&dax->dev_dax, &fake_dax_ops);
	dax->dax_dev = IS_ERR(dax_dev) ? NULL : dax_dev;
	if (dax->mem && dax->dax_dev)
		return dax;
	famfs_fake_dax_free(dax);
	return NULL;
}

void famfs_fake_dax_free(struct famfs_fake_dax *dax)
{
	kill_dax(dax->dax_dev);
	put_dax(dax->dax_dev);
	dax->dev_dax.dev.driver = NULL;
	put_device(&dax->dev_dax.dev);
}

void famfs_fake_dax_kill(struct famfs_fake_dax *dax)
{
	kill_dax(dax->dax_dev);
}

bool famfs_fake_dax_is_held(struct famfs_fake_dax *dax)
{
	return dax_holder(dax->dax_dev);
}

static struct page *fake_page(struct famfs_fake_dax *dax, u64 offset)
{
	return vmalloc_to_page(dax->mem + offset);
}

/* As mf_dax_kill_procs() does, which finds nothing in a file that isn't mapped. */
void famfs_fake_dax_mark(struct famfs_fake_dax *dax, u64 offset)
{
	SetPageHWPoison(fake_page(dax, offset));
}

bool famfs_fake_dax_is_marked(struct famfs_fake_dax *dax, u64 offset)
{
	return PageHWPoison(fake_page(dax, offset));
}

int famfs_fake_dax_fail(struct famfs_fake_dax *dax, u64 offset, u64 len,
			int flags)
{
	return dax_holder_notify_failure(dax->dax_dev, offset, len, flags);
}

void famfs_fake_dax_fail_on_access(struct famfs_fake_dax *dax, u64 offset,
				   u64 len, int flags)
{
	dax->failure.offset = offset;
	dax->failure.flags = flags;
	dax->failure.len = len;
}

void famfs_fake_dax_lock(struct famfs_fake_dax *dax)
{
	device_lock(&dax->dev_dax.dev);
}

void famfs_fake_dax_unlock(struct famfs_fake_dax *dax)
{
	device_unlock(&dax->dev_dax.dev);
}

static const struct file_operations fake_fops = {
	.owner = THIS_MODULE,
};

struct file *famfs_fake_file_new(void)
{
	struct file *file = anon_inode_create_getfile("[famfs_kunit]",
						      &fake_fops, NULL, O_RDWR,
						      NULL);

	if (IS_ERR(file))
		return NULL;
	file_inode(file)->i_mode = S_IFREG | 0600;
	file->f_mode |= FMODE_PREAD | FMODE_PWRITE;
	return file;
}

/* A descriptor of a character device, with the number of @dax, or 1:3. */
int famfs_fake_fd(struct famfs_fake_dax *dax)
{
	struct file *file = famfs_fake_file_new();
	struct inode *inode;
	int fd;

	if (!file)
		return -ENOMEM;
	inode = file_inode(file);
	inode->i_mode = S_IFCHR | 0600;
	inode->i_rdev = dax ? dax_inode(dax->dax_dev)->i_rdev : MKDEV(1, 3);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		__fput_sync(file);
	else
		fd_install(fd, file);
	return fd;
}

void famfs_fake_close(int fd)
{
	close_fd(fd);
}

static const struct fuse_fmap_ops *fake_ops;

int fuse_fmap_register(const struct fuse_fmap_ops *ops)
{
	return cmpxchg(&fake_ops, NULL, ops) ? -EBUSY : 0;
}

void fuse_fmap_unregister(void)
{
	WARN_ON(!xchg(&fake_ops, NULL));
}

static struct {
	const void *fmap;
	size_t fmap_len;
	const void *daxdev;
	size_t daxdev_len;
	int error;
	u32 fmaps_asked;
	u32 daxdevs_asked;
	u64 last_daxdev;
} server;

/* From now on the server answers so, or with @error if that is not 0. */
void famfs_fake_serve(const void *fmap, size_t fmap_len, const void *daxdev,
		      size_t daxdev_len, int error)
{
	server.fmap = fmap;
	server.fmap_len = fmap_len;
	server.daxdev = daxdev;
	server.daxdev_len = daxdev_len;
	server.error = error;
	server.fmaps_asked = 0;
	server.daxdevs_asked = 0;
}

u32 famfs_fake_fmaps_asked(void)
{
	return server.fmaps_asked;
}

u32 famfs_fake_daxdevs_asked(void)
{
	return server.daxdevs_asked;
}

u64 famfs_fake_last_daxdev(void)
{
	return server.last_daxdev;
}

/*
 * Answers as a server of the push generation if the request has an argument:
 * the size of the buffer, which gets but the header of a map that doesn't fit.
 */
ssize_t fuse_fmap_request(struct inode *inode, u32 opcode, u64 nodeid,
			  const void *in, size_t in_size,
			  void *out, size_t out_size)
{
	const void *reply = server.daxdev;
	size_t len = server.daxdev_len;

	if (opcode == FUSE_GET_FMAP) {
		server.fmaps_asked++;
		reply = server.fmap;
		len = server.fmap_len;
		if (in_size == sizeof(u64) && len > *(const u64 *)in)
			len = min(len, 32);
	} else {
		server.daxdevs_asked++;
		server.last_daxdev = nodeid;
	}
	if (server.error)
		return server.error;
	len = min(len, out_size);
	memcpy(out, reply, len);
	return len;
}

static DEFINE_MUTEX(install_lock);
/* Under install_lock. */
static int install_error;

/* Nothing is installed from now on until the lock is given back. */
void famfs_fake_install_lock(void)
{
	mutex_lock(&install_lock);
	install_error = 0;
}

/* The next one fails with @error if that is not 0. */
void famfs_fake_install_unlock(int error)
{
	install_error = error;
	mutex_unlock(&install_lock);
}

int fuse_fmap_install(struct inode *inode, void *fmap, loff_t size,
		      const struct address_space_operations *aops)
{
	int error;

	scoped_guard(mutex, &install_lock) {
		error = install_error;
		install_error = 0;
	}
	if (error)
		return error;
	guard(spinlock)(&inode->i_lock);

	if (inode->i_private)
		return -EEXIST;
	i_size_write(inode, size);
	inode->i_data.a_ops = aops;
	inode->i_flags |= S_DAX;
	WRITE_ONCE(inode->i_private, fmap);
	return 0;
}

/* The file system that this task's root directory is in. */
dev_t famfs_fake_root_dev(void)
{
	struct path root;
	dev_t dev;

	get_fs_root(current->fs, &root);
	dev = root.mnt->mnt_sb->s_dev;
	path_put(&root);
	return dev;
}

void *famfs_fake_conn_new(dev_t dev)
{
	return fake_ops->conn_init(dev);
}

void famfs_fake_conn_free(void *conn)
{
	fake_ops->conn_free(conn);
}

int famfs_fake_daxdev_open(void *conn, int fd, u32 flags, u64 index)
{
	struct fuse_backing_map map = {
		.fd = fd,
		.flags = flags,
		.padding = index,
	};

	return fake_ops->daxdev_open(conn, &map);
}

int famfs_fake_open(void *conn, struct file *file, u64 nodeid)
{
	return fake_ops->open(conn, file_inode(file), nodeid);
}

void famfs_fake_evict(struct file *file)
{
	struct inode *inode = file_inode(file);
	void *fmap = inode->i_private;

	if (!fmap)
		return;
	dax_break_layout_final(inode);
	fake_ops->evict(NULL, inode, fmap);
	inode->i_private = NULL;
	inode->i_flags &= ~S_DAX;
	inode->i_data.a_ops = &empty_aops;
}

void famfs_fake_file_free(struct file *file)
{
	famfs_fake_evict(file);
	__fput_sync(file);
}

struct inode *famfs_fake_inode(struct file *file)
{
	return file_inode(file);
}

void *famfs_fake_fmap(struct file *file)
{
	return file_inode(file)->i_private;
}

s64 famfs_fake_size(struct file *file)
{
	return i_size_read(file_inode(file));
}

int famfs_fake_users(struct file *file)
{
	return icount_read_once(file_inode(file));
}

ssize_t famfs_fake_rw(struct file *file, loff_t pos, void *buf, size_t len,
		      bool write)
{
	struct kvec kvec = { .iov_base = buf, .iov_len = len };
	struct iov_iter iter;
	struct kiocb iocb;
	ssize_t done;

	init_sync_kiocb(&iocb, file);
	iocb.ki_pos = pos;
	iov_iter_kvec(&iter, write ? ITER_SOURCE : ITER_DEST, &kvec, 1, len);
	done = write ? fake_ops->write_iter(&iocb, &iter) :
		       fake_ops->read_iter(&iocb, &iter);
	if (done >= 0 && iocb.ki_pos != pos + done)
		return -EPROTO;
	return done;
}

typedef int (*begin_t)(struct inode *inode, loff_t pos, loff_t len,
		       unsigned int flags, struct iomap *iomap,
		       struct iomap *srcmap);

/* NOTHING instructions. */
#define NOTHING (IS_ENABLED(CONFIG_X86_KERNEL_IBT) ? 2 : 1)

static __attribute__((naked)) int nothing(struct inode *inode, loff_t pos,
					  loff_t len, unsigned int flags,
					  struct iomap *iomap,
					  struct iomap *srcmap)
{
	asm volatile("ret");
}

static noinline u32 ticks(begin_t begin, struct inode *inode, loff_t pos)
{
	struct iomap iomap = {}, srcmap = {};
	u64 start;

	guard(irqsave)();
	start = rdtsc();
	begin(inode, pos, 1, 0, &iomap, &srcmap);
	return rdtsc() - start;
}

/* Ticks that @begin takes, its return included and the call to it not. */
u32 famfs_fake_cost(void *begin, struct file *file, loff_t pos)
{
	struct inode *inode = file_inode(file);

	return ticks(begin, inode, pos) - ticks(nothing, inode, pos) + NOTHING;
}

/* Number of extents. */
int famfs_fake_fiemap(struct file *file, u64 start, u64 len)
{
	struct fiemap_extent_info info = {};
	int err = fake_ops->fiemap(file_inode(file), &info, start, len);

	return err ?: info.fi_extents_mapped;
}
