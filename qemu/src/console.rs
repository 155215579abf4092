// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks through a guest's console log for what no run may leave there.

use std::fs;
use std::path::PathBuf;

/// A kernel that says one of these has a defect, whatever the tests say, or it has stopped looking for some.
const DEFECTS: [&str; 19] = [
    // Most begin with one of these: KASAN, lockdep, sleeping in atomic context, soft lockups.
    "BUG:",
    "WARNING:",
    // Hung tasks, RCU stalls, locks that lockdep cannot follow.
    "INFO: ",
    // SLUB's: the name of the cache follows.
    "] BUG ",
    "kernel BUG at",
    "Oops:",
    "Kernel panic",
    "general protection fault",
    "KASAN:",
    "UBSAN:",
    "ODEBUG",
    "refcount_t:",
    "list_add ",
    "list_del ",
    "unreferenced object",
    "suspected memory leaks",
    "leak detector disabled",
    // Names that two things want: sysfs's and debugfs's words.
    "duplicate filename",
    "already exists in",
];

/// The log of one run, looked through as it grows.
#[derive(Debug)]
pub struct Console {
    pub path: PathBuf,
    seen: usize,
}

impl Console {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: 0 }
    }

    /// What the kernel reported since the last call. A line that is still being written is left to the next.
    pub fn new_defects(&mut self) -> Vec<String> {
        self.defects(|new| new.iter().rposition(|byte| *byte == b'\n'))
    }

    /// What it reported to the end, when nothing follows.
    pub fn last_defects(&mut self) -> Vec<String> {
        self.defects(|new| new.len().checked_sub(1))
    }

    /// Looks up to `last`, the index of the last byte to be looked at.
    fn defects(&mut self, last: impl Fn(&[u8]) -> Option<usize>) -> Vec<String> {
        let log = fs::read(&self.path).unwrap_or_default();
        let new = log.get(self.seen..).unwrap_or_default();
        let new = &new[..last(new).map_or(0, |last| last + 1)];
        self.seen += new.len();
        defects(&String::from_utf8_lossy(new))
    }
}

fn defects(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| DEFECTS.iter().any(|defect| line.contains(defect)))
        .map(|line| format!("the kernel reported: {line}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_report_is_found() {
        let reports = [
            "WARNING: fs/dax.c:403 at dax_disassociate_entry+0x1/0x2, CPU#0: a/1",
            "BUG: KASAN: slab-use-after-free in famfs_open+0x1/0x2",
            "UBSAN: array-index-out-of-bounds in fs/fuse/dev.c:1:2",
            "WARNING: possible circular locking dependency detected",
            "WARNING: possible recursive locking detected",
            "WARNING: inconsistent lock state",
            "WARNING: suspicious RCU usage",
            "WARNING: bad unlock balance detected!",
            "BUG: sleeping function called from invalid context at mm/slab.h:1",
            "BUG: scheduling while atomic: a/1/0x2",
            "INFO: trying to register non-static key.",
            "INFO: task umount:77 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [a:1]",
            "BUG fuse_inode (Not tainted): Poison overwritten",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
            "kernel BUG at rust/helpers/bug.c:7!",
            "Kernel panic - not syncing: Fatal exception",
            "ODEBUG: free active (active state 0) object: 1 object type: work_struct",
            "refcount_t: underflow; use-after-free.",
            "list_add corruption. prev is NULL.",
            "list_del corruption. prev->next should be 1, but was 2",
            "unreferenced object 0xffff888005a0b000 (size 64):",
            "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "kmemleak: Kernel memory leak detector disabled",
            "sysfs: cannot create duplicate filename '/module/famfs'",
            "debugfs: 'famfs' already exists in 'fuse'",
        ];
        for report in reports {
            let log = format!("[    1.000000] famfs: loaded\n[    2.000000] {report}\n");
            assert_eq!(defects(&log).len(), 1, "{report}");
        }
    }

    #[test]
    fn what_a_sound_kernel_says_is_no_defect() {
        let log = "[    0.000000] rcu: Hierarchical RCU implementation.\n[    0.000000] kasan: KernelAddressSanitizer initialized (generic)\n\
                   [    1.000000] kmemleak: Kernel memory leak detector initialized (mem pool available: 61312)\n\
                   [    2.000000] MCE: Killing init:746 due to hardware memory corruption fault at 7f3ce8e03000\n\
                   [    2.000000] Memory failure: 0x40003: recovery action for dax page: Recovered\n\
                   [    3.000000] famfs: inode 2: extent 0: device 7 is unknown\n";
        assert_eq!(defects(log), Vec::<String>::new());
    }

    #[test]
    fn a_report_is_told_once_and_only_when_its_line_is_whole() {
        let path = std::env::temp_dir().join(format!("famfs-console-{}", std::process::id()));
        let mut console = Console::new(path.clone());
        assert_eq!(console.new_defects().len(), 0);
        fs::write(&path, "WARNING: one\nWARN").unwrap();
        assert_eq!(console.new_defects().len(), 1);
        fs::write(&path, "WARNING: one\nWARNING: two\nWARNING: three").unwrap();
        assert_eq!(console.new_defects(), ["the kernel reported: WARNING: two"]);
        assert_eq!(console.last_defects().len(), 1);
        assert_eq!(console.last_defects().len(), 0);
        fs::remove_file(&path).unwrap();
    }
}
