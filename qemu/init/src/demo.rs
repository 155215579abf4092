// SPDX-License-Identifier: MIT OR Apache-2.0
use anyhow::Result;

use crate::channel::Channel;
use crate::cmdline::Plan;

pub fn run(_channel: &mut Channel, _plan: &Plan) -> Result<()> {
    Ok(())
}
