// SPDX-License-Identifier: GPL-2.0-only

//! debugfs: one file for each mount, `famfs/MAJOR:MINOR`, with its daxdevs and the maps that are
//! cached.

use kernel::{
    debugfs,
    fmt,
    prelude::*,
    str::CString,
    sync::Arc, //
};

use crate::{
    daxdev::Daxdev,
    file::FileMap,
    mount::Mount,
    sys::{
        debugfs::Root,
        inode::FileHead, //
    },
};

/// A mount's file, there as long as this value; dropping it waits for readers.
pub(crate) type File = Pin<KBox<debugfs::File<View>>>;

/// What the file shows.
pub(crate) struct View(Arc<Mount>);

/// Makes the file of `mount`.
pub(crate) fn show(mount: Arc<Mount>) -> Result<File> {
    let dir = Root::get().ok_or(ENODEV)?;
    let name = CString::try_from_fmt(fmt!("{}:{}", mount.dev().major(), mount.dev().minor()))?;
    KBox::pin_init(dir.read_only_file(&name, View(mount)), GFP_KERNEL)
}

impl debugfs::Writer for View {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&self.0, f)
    }
}

/// Lines of fields: `daxdev` for each device, and under it `poison` for each range of it that
/// failed and `fmap` for each cached map of which it is the first device.
pub(crate) fn write(mount: &Mount, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut result = Ok(());
    mount.for_each(|daxdev| {
        result = result.and_then(|()| write_daxdev(f, daxdev));
    });
    result
}

fn write_daxdev(f: &mut fmt::Formatter<'_>, daxdev: &Daxdev) -> fmt::Result {
    let state = daxdev.state();
    writeln!(
        f,
        "daxdev index={} name={:?} state={} policy={}",
        state.index(),
        daxdev.name().to_str().unwrap_or("?"),
        state.health(),
        state.policy().name(),
    )?;
    let mut result = Ok(());
    state.for_each_poison(|poison| {
        let len = poison.end.wrapping_sub(poison.start);
        result =
            result.and_then(|()| writeln!(f, "poison offset={:#x} len={len:#x}", poison.start));
    });
    state.rmap().for_each(|ino, file| {
        let first = file.devices().iter().next();
        if first.is_some_and(|(_, first)| first.state().index() == state.index()) {
            result = result.and_then(|()| write_fmap(f, ino, file));
        }
    });
    result
}

fn write_fmap(f: &mut fmt::Formatter<'_>, ino: u64, file: &FileMap) -> fmt::Result {
    let layout = file.layout();
    writeln!(
        f,
        "fmap ino={ino} size={} kind={} extents={} daxdevs={} bytes={} suspect={}",
        layout.file_size(),
        layout.kind(),
        layout.nextents(),
        file.devices().iter().count(),
        size_of::<FileMap>().saturating_add(file.words_len().saturating_mul(8)),
        u8::from(file.is_suspect()),
    )
}
