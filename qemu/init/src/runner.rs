// SPDX-License-Identifier: MIT OR Apache-2.0
//! Carries the plan out: sets the memory up, then runs the tests, the demo or the shell.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, ensure, Context, Result};

use crate::channel::Channel;
use crate::cmdline::{Memory, Mode, Plan};
use crate::dax::{self, DaxDev};
use crate::scenarios::{self, Skip, Test};
use crate::{bench, demo, kmemleak, shell};

/// What tests get to work with.
pub struct Guest {
    pub devices: Vec<DaxDev>,
    /// Loads and stores to the devices run at the machine's own speed.
    pub fast: bool,
    /// Where random input starts from.
    pub seed: u64,
    /// How long the soak takes.
    pub soak: Duration,
}

pub fn main() -> ExitCode {
    let mut channel = match Channel::open() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("guest init: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match carry_out(&mut channel) {
        Ok(()) => {
            channel.done();
            ExitCode::SUCCESS
        }
        Err(error) => {
            channel.why(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn carry_out(channel: &mut Channel) -> Result<()> {
    let plan = Plan::read()?;
    if plan.debug {
        expect_checkers()?;
    }
    channel.step("set up the dax devices");
    if plan.mode == Mode::Demo {
        return demo::run(channel, &plan);
    }
    let guest = Guest {
        devices: dax::set_up(plan.memory)?,
        fast: plan.memory != Memory::Cxl,
        seed: plan.seed,
        soak: plan.soak,
    };
    match plan.mode {
        Mode::Shell => shell::run(&guest),
        Mode::Bench => bench::run(channel, &guest, &plan.rows),
        _ => run_tests(channel, &plan, &guest),
    }
}

fn run_tests(channel: &mut Channel, plan: &Plan, guest: &Guest) -> Result<()> {
    let tests = scenarios::select(plan)?;
    let search = kmemleak::is_there() && !tests.is_empty();
    channel.line("KTAP version 1");
    channel.line(&format!("1..{}", tests.len() + usize::from(search)));
    if search {
        channel.step("kmemleak: start");
        kmemleak::start_afresh()?;
    }
    for (index, (name, test)) in tests.iter().enumerate() {
        channel.step(name);
        let result = run_one(*test, guest, channel);
        report(channel, index + 1, name, result);
    }
    if search {
        let name = format!("{}.kmemleak", plan.name);
        channel.step(&name);
        let result = kmemleak::expect_nothing_lost();
        report(channel, tests.len() + 1, &name, result);
    }
    Ok(())
}

/// Without them the debug tier would pass for having looked for nothing.
fn expect_checkers() -> Result<()> {
    let symbols = std::fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
    let has = |symbol: &str| symbols.lines().any(|line| line.ends_with(symbol));
    for (checker, is_there) in [
        ("kmemleak", kmemleak::is_there()),
        ("fault injection", scenarios::injects_faults()),
        ("lockdep", Path::new("/proc/lockdep").exists()),
        ("KASAN", has(" kasan_report")),
        ("UBSAN", has(" __ubsan_handle_out_of_bounds")),
    ] {
        ensure!(
            is_there,
            "the kernel has no {checker}: the debug tier needs one made with VARIANT=debug"
        );
    }
    Ok(())
}

fn report(channel: &mut Channel, number: usize, name: &str, result: Result<()>) {
    match result {
        Ok(()) => channel.line(&format!("ok {number} {name}")),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => channel.line(&format!("ok {number} {name} # SKIP {reason}")),
            None => {
                channel.line(&format!("not ok {number} {name}"));
                channel.why(&format!("{error:#}"));
            }
        },
    }
}

/// A panic in a test is that test's failure and nobody else's.
fn run_one(test: Test, guest: &Guest, channel: &mut Channel) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| test(guest, channel))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("panicked: {}", text.unwrap_or("without a message")))
    })
}
