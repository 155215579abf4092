// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks through a guest's console log for what no run may leave there.

/// A kernel that says one of these has a defect, whatever the tests say.
const DEFECTS: [&str; 11] = [
    "BUG:",
    "WARNING:",
    "Oops:",
    "KASAN:",
    "UBSAN:",
    "kernel BUG at",
    "Kernel panic",
    "general protection fault",
    "rcu: INFO:",
    "unreferenced object",
    "INFO: task",
];

/// The lines that name a defect.
pub fn defects(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| DEFECTS.iter().any(|defect| line.contains(defect)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_defects_and_nothing_else() {
        let log = "[ 1.0] famfs: loaded\n[ 2.0] WARNING: CPU: 0 PID: 1 at fs/dax.c:403\n[ 3.0] Memory failure: 0x1: recovered\n\
                   [ 4.0] rcu: INFO: rcu_sched self-detected stall\n[ 5.0] rcu: Hierarchical RCU\n";
        let found = defects(log);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("dax.c:403") && found[1].contains("stall"));
    }
}
