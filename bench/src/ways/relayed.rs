// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's relays: what `getbuf cp` and `getbuf send` do.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use uring_getbuf::relay::{FanOut, Relay};
use uring_getbuf::{Engine, Ring};

use super::{Way, ring};
use crate::cases::{Axis, Source};
use crate::ground::{Ground, SIZE};

/// Leases that it may hold at once, also where the other ways have one request in flight.
const DEPTH: u16 = 16;

pub(super) struct Relayed {
    ring: Ring,
    ground: Arc<Ground>,
    on_this_thread: bool,
}

impl Relayed {
    pub(super) fn new(ground: Arc<Ground>, engine: Engine, on_this_thread: bool) -> Result<Self> {
        let depth = ground.point.depth.max(DEPTH);
        Ok(Self {
            ring: ring(engine, depth, ground.point.block, ground.sinks.len() + 1)?,
            ground,
            on_this_thread,
        })
    }
}

impl Way for Relayed {
    fn run(&mut self, blocks: u64) -> Result<()> {
        let ground = &*self.ground;
        let mut left = blocks * u64::from(ground.point.depth) * u64::from(ground.point.block);
        while left > 0 {
            // A file ends, and is begun again; a pipe does not.
            let most = if ground.case.source == Source::Pipe { left } else { left.min(SIZE) };
            let moved = if ground.case.axis == Axis::Sinks {
                fan_out(&mut self.ring, ground, most)?
            } else {
                let relay = Relay::new(&ground.source, &ground.sinks[0]).limit(most);
                let relay = relay.on_this_thread(self.on_this_thread);
                relay.run(&mut self.ring)?.bytes
            };
            ensure!(moved == most, "the relay moved {moved} of {most} bytes");
            left -= most;
        }
        Ok(())
    }
}

/// What the slowest sink got.
fn fan_out(ring: &mut Ring, ground: &Ground, bytes: u64) -> Result<u64> {
    let all = ground.sinks.iter().fold(FanOut::new(&ground.source), FanOut::sink);
    let report = all.limit(bytes).run(ring).map_err(|failure| anyhow!("{failure}"))?;
    Ok(report.sinks.iter().map(|sink| sink.bytes).min().unwrap_or(0))
}
