// SPDX-License-Identifier: GPL-2.0-only

//! A mount: what belongs to a connection between its INIT and its end.

use kernel::{
    fmt, new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    xarray::{
        AllocKind,
        XArray, //
    },
};

use crate::{
    daxdev::{
        default_policy,
        Daxdev, //
    },
    fmap::{
        parse_daxdev,
        wire::DAXDEV_FORGET,
        FmapError,
        Policy, //
    },
    provider::Famfs,
    stats,
    sys::{
        dax::{
            may_raw_io,
            DaxDevice,
            Root, //
        },
        errno::EOPNOTSUPP,
        fuse::DevT,
        inode::{
            Opcode,
            OpenInode, //
        },
    },
};

/// A mount and its file in debugfs, which shows it.
pub(crate) struct Conn {
    // Dropped first: it waits for readers.
    _stats: stats::File,
    mount: Arc<Mount>,
}

impl Conn {
    pub(crate) fn new(dev: DevT) -> Result<KBox<Self>> {
        let mount = Mount::new(dev, default_policy()?)?;
        let stats = stats::show(mount.clone())?;
        Ok(KBox::new(
            Self {
                _stats: stats,
                mount,
            },
            GFP_KERNEL,
        )?)
    }

    pub(crate) fn mount(&self) -> &Mount {
        &self.mount
    }
}

/// A mount.
#[pin_data]
pub(crate) struct Mount {
    dev: DevT,
    /// That of devices for which the server names none.
    policy: Policy,
    /// What the server's paths start from. Not the opener's: he may have put others there.
    root: Root,
    /// The daxdevs by their index. Entries are added, never removed.
    #[pin]
    table: XArray<Arc<Daxdev>>,
    /// Held to add an entry, never across a request to the server.
    #[pin]
    adding: Mutex<()>,
    /// The server offers devices by descriptor: "push", docs/abi.md.
    #[pin]
    pushed: Mutex<bool>,
}

impl Mount {
    fn new(dev: DevT, policy: Policy) -> Result<Arc<Self>> {
        // This is called by the server, or for it by whoever mounts.
        let root = Root::current_for(dev).inspect_err(|_| {
            pr_warn!(
                "{}:{}: refused, the server's root directory is in the mount itself\n",
                dev.major(),
                dev.minor()
            );
        })?;
        Arc::pin_init(
            pin_init!(Self {
                dev,
                policy,
                root,
                table <- XArray::new(AllocKind::Alloc),
                adding <- new_mutex!((), "famfs::Mount::adding"),
                pushed <- new_mutex!(false, "famfs::Mount::pushed"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn dev(&self) -> DevT {
        self.dev
    }

    /// Whether the server is of the generation that pushes.
    pub(crate) fn is_pushed(&self) -> bool {
        *self.pushed.lock()
    }

    /// The daxdev with this index, if it is there.
    pub(crate) fn get(&self, index: u16) -> Option<Arc<Daxdev>> {
        self.table.lock().get(index.into()).map(Into::into)
    }

    /// The daxdev with this index; the server is asked for it if it isn't there.
    pub(crate) fn require(&self, index: u16, inode: &OpenInode<'_, Famfs>) -> Result<Arc<Daxdev>> {
        let refuse = |what: &str, error: Error| {
            self.warn(inode, fmt!("daxdev {index}: {what}"));
            error
        };
        if let Some(daxdev) = self.get(index) {
            return Ok(daxdev);
        }
        if self.is_pushed() {
            let error = FmapError::UnknownDevice(index.into());
            self.warn(inode, fmt!("{error}"));
            return Err(error.into());
        }
        let mut reply = KVec::from_elem(0u8, REPLY_BYTES, GFP_KERNEL)?;
        let n = inode
            .request(Opcode::GetDaxdev, index.into(), None, &mut reply)
            .map_err(|error| refuse("the server doesn't say its name", error))?;
        let answer = parse_daxdev(reply.get(..n).ok_or(EIO)?).map_err(|error| {
            self.warn(inode, fmt!("daxdev {index}: {error}"));
            Error::from(error)
        })?;
        let name = CString::try_from(answer.name)?;
        let refuse = |error: Error| {
            let text = name.to_str().unwrap_or("?");
            let errno = error.to_errno();
            self.warn(
                inode,
                fmt!("daxdev {index}, name {text:?}: {}, {errno}", why(error)),
            );
            error
        };
        let dev = DaxDevice::by_path(&self.root, &name).map_err(refuse)?;
        let shown = CString::try_from(&*name)?;
        self.add(index, dev, shown, answer.policy).map_err(refuse)
    }

    /// Registers the device of the server's descriptor `fd`; success if there is a device already.
    /// With `DAXDEV_FORGET` the memory errors of the one that is there are forgotten instead.
    ///
    /// `EINVAL`: an index above 65535, unknown flags, or another device than the one whose errors
    /// are to be forgotten. `ENOENT`: there is none. `EPERM`: to forget takes CAP_SYS_RAWIO, as
    /// mounting did. Otherwise see [`Daxdev::forget`].
    pub(crate) fn push(&self, fd: i32, flags: u32, index: u64) -> Result {
        let index = u16::try_from(index).map_err(|_| EINVAL)?;
        let forget = flags == DAXDEV_FORGET;
        let policy = Policy::from_wire(if forget { 0 } else { flags })?;
        let dev = DaxDevice::by_fd(u32::try_from(fd).map_err(|_| EBADF)?)?;
        if forget {
            let daxdev = self.get(index).ok_or(ENOENT)?;
            if !daxdev.held().is(&dev) {
                return Err(EINVAL);
            }
            if !may_raw_io() {
                return Err(EPERM);
            }
            return daxdev.forget();
        }
        let name = CString::try_from_fmt(fmt!("fd:{fd}"))?;
        self.add(index, dev, name, policy)?;
        *self.pushed.lock() = true;
        Ok(())
    }

    /// Adds a device, or returns the one that has come first.
    fn add(
        &self,
        index: u16,
        dev: DaxDevice,
        name: CString,
        policy: Option<Policy>,
    ) -> Result<Arc<Daxdev>> {
        let _adding = self.adding.lock();
        if let Some(daxdev) = self.get(index) {
            return Ok(daxdev);
        }
        let daxdev = Daxdev::new(dev, index, name, policy.unwrap_or(self.policy))?;
        let mut table = self.table.lock();
        table.store(index.into(), daxdev.clone(), GFP_KERNEL)?;
        Ok(daxdev)
    }

    /// Calls `f` with every daxdev, in the order of their indices.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Daxdev)) {
        for index in 0..=u16::MAX {
            if let Some(daxdev) = self.get(index) {
                f(&daxdev);
            }
        }
    }

    /// Prints one rate-limited line about a file.
    pub(crate) fn warn(&self, inode: &OpenInode<'_, Famfs>, text: fmt::Arguments<'_>) {
        if let Ok(text) = CString::try_from_fmt(text) {
            self.dev.warn(inode.ino(), &text);
        }
    }
}

/// What a GET_DAXDEV reply may take: more than it should, so that one of the wrong size arrives and
/// can be named.
const REPLY_BYTES: usize = 4096;

/// Why a device can't be had, in words.
fn why(error: Error) -> &'static str {
    match error {
        EINVAL => "not a character device",
        EACCES => "on a mount with nodev, or behind a directory that the caller can't search",
        ENXIO => "no driver is bound to it",
        ENODEV => "not a dax device, or gone",
        ENOENT => "no such file, or not in the dentry cache",
        EBUSY => "in use by another mount or file system, unmount that first",
        _ if error == EOPNOTSUPP() => "not in fsdev mode",
        _ => "can't be had",
    }
}
