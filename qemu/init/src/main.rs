// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests' only program of ours: PID 1, the test runner it starts, and the small processes that tests send into
//! faults. One static binary, so that the image needs nothing else to run a test.

mod bench;
mod channel;
mod cmdline;
mod dax;
mod demo;
mod fmap;
mod hostile;
mod kmemleak;
mod module;
mod pid1;
mod probe;
mod raw;
mod runner;
mod scenarios;
mod server;
mod shell;
mod stopping;
mod sys;
mod tool;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if std::process::id() == 1 {
        return pid1::main();
    }
    match args.next().as_deref() {
        Some("run") => runner::main(),
        Some("probe") => probe::child_main(),
        Some("serve") => stopping::child_main(args),
        Some("without-rawio") => tool::exec_without_rawio(args),
        Some("offered") => match scenarios::is_offered() {
            Ok(offered) => ExitCode::from(u8::from(!offered)),
            Err(_) => ExitCode::from(2),
        },
        other => {
            eprintln!(
                "guest init: unknown role {other:?}; it is started by the kernel or by itself"
            );
            ExitCode::from(2)
        }
    }
}
