// SPDX-License-Identifier: MIT OR Apache-2.0
//! Examples for --help and the man pages, one text for each verb.

pub const DOCTOR: &str = "\
Examples:
  famfs doctor                  look at this machine
  famfs doctor /dev/dax0.0      and at this device alone
  famfs doctor --json | jq -r '.items[] | select(.state == \"missing\") | .run // .do'";

pub const MKFS: &str = "\
Examples:
  mkfs.famfs /dev/dax0.0                              on one device
  mkfs.famfs --set-daxmode /dev/dax0.0 /dev/dax1.0    on two, switched to fsdev mode
  mkfs.famfs --loglen 256m /dev/dax0.0                for half a million files
  mkfs.famfs --kill --force /dev/dax0.0               away with it";

pub const MOUNT: &str = "\
Examples:
  famfs mount /dev/dax0.0 /mnt/famfs
  famfs mount --failure range --noexec /dev/dax0.0 /mnt/famfs
  famfs mount --rw --follow 0.1 /dev/dax0.0 /mnt/famfs    on a client that writes to files
  mount -t famfs -o ro,failure=range /dev/dax0.0 /mnt/famfs
  umount /mnt/famfs";

pub const SERVER: &str = "\
Examples:
  famfs server handover /mnt/famfs    after an update of famfs";

pub const FSCK: &str = "\
Examples:
  famfs fsck --human /mnt/famfs     while it is mounted
  fsck.famfs /dev/dax0.0            while it is not
  famfs fsck --json /dev/dax0.0 | jq '.errors[]'";

pub const DUMP: &str = "\
Examples:
  famfs dump /mnt/famfs
  famfs dump --json /dev/dax0.0 | jq '.log.entries[] | select(.crc_ok | not)'";

pub const MKDIR: &str = "\
Examples:
  famfs mkdir --parents /mnt/famfs/a/b/c
  famfs mkdir --mode 0750 --gid 100 /mnt/famfs/shared";

pub const CREAT: &str = "\
Examples:
  famfs creat --size 2g /mnt/famfs/buffer
  famfs creat --size 2g --nstrips 4 --chunk 2m /mnt/famfs/striped
  famfs creat --randomize --seed 7 --size 64m /mnt/famfs/pattern
  famfs creat --multi /mnt/famfs/a,1g --multi /mnt/famfs/b,512m,7";

pub const CP: &str = "\
Examples:
  famfs cp data.parquet /mnt/famfs/
  famfs cp --recursive --compare datasets /mnt/famfs/
  famfs cp --mode 0755 --threads 4 bin/* /mnt/famfs/bin";

pub const VERIFY: &str = "\
Examples:
  famfs verify --seed 7 /mnt/famfs/pattern
  famfs verify --multi /mnt/famfs/a,1 --multi /mnt/famfs/b,2";

pub const CHKREAD: &str = "\
Examples:
  famfs chkread /mnt/famfs/data.parquet
  famfs chkread --json --threads 2 /mnt/famfs/*";

pub const FLUSH: &str = "\
Examples:
  famfs flush /mnt/famfs/buffer    before another host, whose caches are not coherent, reads it";

pub const GETMAP: &str = "\
Examples:
  famfs getmap /mnt/famfs/data.parquet
  famfs getmap --json /mnt/famfs/data.parquet | jq '.extents[].offset'";

pub const LS: &str = "\
Examples:
  famfs ls --human /mnt/famfs
  famfs ls --recursive --map /mnt/famfs
  famfs ls --recursive --json /mnt/famfs | jq 'map(.size) | add'";

pub const DF: &str = "\
Examples:
  famfs df --human
  famfs df --json /mnt/famfs | jq '[.daxdevs[].free] | add'";

pub const CHECK: &str = "\
Examples:
  famfs check /mnt/famfs";

pub const FMAP: &str = "\
Examples:
  famfs fmap decode reply.bin
  famfs fmap decode --device-size 16g reply.bin";

pub const STATUS: &str = "\
Examples:
  famfs status                  of all mounts
  famfs status --json /mnt/famfs | jq '.kernel.failures'";

pub const LOGPLAY: &str = "\
Examples:
  famfs logplay /mnt/famfs    on a client: now rather than within --follow seconds";

pub const CLEAR_ERROR: &str = "\
Examples:
  famfs clear-error /mnt/famfs    when the memory was replaced or written anew";
