// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's leases: step by step, and as chains.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::lease::{Fetched, Installed, Lease};
use uring_getbuf::ring::{Attached, Ring};
use uring_getbuf::slots::{Event, LeaseId};
use uring_getbuf::{Engine, ErrorKind, STREAM, SendFlags};

use super::{Form, Use, Way, half, ring};
use crate::cases::{Sink, Source};
use crate::ground::{Ground, Lane};

/// A request in flight, and what comes after it.
#[derive(Debug)]
struct Flow {
    lane: Lane,
    /// Blocks that are done.
    done: u64,
    /// Bytes of the current block that are done: a pipe may give less than was asked for.
    part: u32,
    fetched: Option<Lease<Fetched>>,
    lease: Option<Lease<Installed>>,
    /// Sinks that have not taken it.
    left: u16,
}

pub(super) struct Leases {
    // In this order they are dropped.
    flows: Vec<Flow>,
    source: Attached,
    sinks: Vec<Attached>,
    ring: Ring,
    ground: Arc<Ground>,
    form: Form,
    by: Use,
    /// The kernel serves all of it while it is submitted.
    at_once: bool,
    /// By slot.
    flow_of: Vec<u16>,
    /// Flows that go on with their next chain.
    ready: Vec<u16>,
    /// Flows that found no slot free.
    starved: Vec<u16>,
}

impl Leases {
    pub(super) fn new(ground: Arc<Ground>, engine: Engine, form: Form, by: Use) -> Result<Self> {
        let lanes = ground.lanes();
        let slots = match (form, by) {
            (Form::Chain, _) => 1,
            // The last lease's slot is being emptied while the next one is fetched.
            (Form::Steps, Use::Write | Use::Send) => 2,
            // And its bytes are on the network.
            (Form::Steps, Use::SendZc) => 4,
        } * lanes.len() as u16;
        let mut ring = ring(engine, slots, ground.point.block, ground.sinks.len() + 1)?;
        let source = ring.attach(&ground.source)?;
        let sinks = ground.sinks.iter().map(|sink| ring.attach(sink));
        let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
        let flow = |lane| Flow { lane, done: 0, part: 0, fetched: None, lease: None, left: 0 };
        Ok(Self {
            flows: lanes.into_iter().map(flow).collect(),
            source,
            sinks,
            flow_of: vec![0; usize::from(slots)],
            ready: Vec::with_capacity(usize::from(slots)),
            starved: Vec::with_capacity(usize::from(slots)),
            // A link of the module's commands runs when the kernel is entered to wait.
            at_once: ground.case.sink == Sink::Null
                && (engine == Engine::Opcode || engine == Engine::Module && form == Form::Steps),
            ring,
            ground,
            form,
            by,
        })
    }

    /// Sends what is queued, and waits for half of it, if there is anything to wait for.
    fn send(&mut self, count: usize) -> Result<()> {
        Ok(self.ring.wait(if self.at_once { 1 } else { half(count) })?)
    }

    fn sink_offset(&self, offset: u64) -> u64 {
        if self.ground.case.sink.is_socket() { STREAM } else { offset }
    }

    fn chains(&mut self, blocks: u64) -> Result<()> {
        let flags = SendFlags::NONE;
        match self.by {
            Use::Write => self.chains_by(blocks, |ring, from, (offset, len), to| {
                ring.chain_write(from, offset, len, to, offset)
            }),
            Use::Send => self.chains_by(blocks, |ring, from, (offset, len), to| {
                ring.chain_send(from, offset, len, to, flags)
            }),
            Use::SendZc => self.chains_by(blocks, |ring, from, (offset, len), to| {
                ring.chain_send_zc(from, offset, len, to, flags)
            }),
        }
    }

    /// Each kind of chain has code of its own.
    #[inline(always)]
    fn chains_by(
        &mut self,
        blocks: u64,
        chain: impl Fn(&mut Ring, &Attached, (u64, u32), &Attached) -> uring_getbuf::Result<LeaseId>,
    ) -> Result<()> {
        let block = self.ground.point.block;
        let mut running = self.flows.len();
        self.flows.iter_mut().for_each(|flow| flow.done = 0);
        self.ready.extend(0..running as u16);
        while running > 0 {
            while let Some(index) = self.ready.pop() {
                let Flow { lane, done, .. } = &self.flows[usize::from(index)];
                let bytes = (lane.offset(*done), block);
                let id = chain(&mut self.ring, &self.source, bytes, &self.sinks[lane.sink])?;
                self.flow_of[usize::from(id.slot())] = index;
            }
            self.send(running)?;
            while let Some(event) = self.ring.next_event() {
                let Event::Chained { id, outcome } = event else { continue };
                ensure!(outcome == ChainOutcome::Done(block), "a chain came to {outcome:?}");
                let index = self.flow_of[usize::from(id.slot())];
                let flow = &mut self.flows[usize::from(index)];
                flow.done += 1;
                if flow.done < blocks {
                    self.ready.push(index);
                } else {
                    running -= 1;
                }
            }
        }
        Ok(())
    }

    fn fetch(&mut self, index: u16) -> Result<()> {
        let flow = &mut self.flows[usize::from(index)];
        let offset = match self.ground.case.source {
            Source::File => flow.lane.offset(flow.done),
            Source::Pipe => STREAM,
        };
        match self.ring.fetch(&self.source, offset, self.ground.point.block - flow.part) {
            Ok(lease) => {
                self.flow_of[usize::from(lease.id().slot())] = index;
                flow.fetched = Some(lease);
            }
            Err(error) if error.kind() == ErrorKind::NoSlot => self.starved.push(index),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn consume(&mut self, index: u16) -> Result<()> {
        let to = self.sink_offset(
            self.flows[usize::from(index)].lane.offset(self.flows[usize::from(index)].done),
        );
        let flow = &mut self.flows[usize::from(index)];
        let lease = flow.fetched.take().context("a fetch that nobody asked for")?;
        let lease = lease.installed().map_err(|error| anyhow!("{error}"))?;
        flow.left = self.ground.point.sinks;
        let sinks = flow.lane.sink..flow.lane.sink + usize::from(flow.left);
        for sink in &self.sinks[sinks] {
            match self.by {
                Use::Write => self.ring.write(&lease, .., sink, to),
                Use::Send => self.ring.send(&lease, .., sink, SendFlags::WAIT_ALL),
                Use::SendZc => self.ring.send_zc(&lease, .., sink, SendFlags::WAIT_ALL),
            }?;
        }
        flow.lease = Some(lease);
        Ok(())
    }

    fn steps(&mut self, blocks: u64) -> Result<()> {
        let mut running = self.flows.len();
        for index in 0..self.flows.len() as u16 {
            self.flows[usize::from(index)].done = 0;
            self.fetch(index)?;
        }
        while running > 0 {
            self.send((running - self.starved.len()).max(1))?;
            while let Some(event) = self.ring.next_event() {
                match event {
                    Event::Fetched { lease, result } => {
                        result?;
                        self.consume(self.flow_of[usize::from(lease.slot())])?;
                    }
                    Event::Used { id, result, .. } => {
                        let taken = result?;
                        let index = self.flow_of[usize::from(id.lease().slot())];
                        let flow = &mut self.flows[usize::from(index)];
                        let lease = flow.lease.as_ref().context("a use of no lease")?;
                        let len = lease.len();
                        ensure!(taken == len, "the sink took {taken} of {len} bytes");
                        flow.left -= 1;
                        if flow.left > 0 {
                            continue;
                        }
                        flow.lease = None;
                        flow.part += len;
                        if flow.part == self.ground.point.block {
                            flow.part = 0;
                            flow.done += 1;
                        }
                        if flow.done < blocks {
                            self.fetch(index)?;
                        } else {
                            running -= 1;
                        }
                    }
                    _ => {}
                }
            }
            for index in std::mem::take(&mut self.starved) {
                self.fetch(index)?;
            }
        }
        Ok(())
    }
}

impl Way for Leases {
    fn run(&mut self, blocks: u64) -> Result<()> {
        if self.form == Form::Chain {
            return self.chains(blocks);
        }
        if blocks == 0 {
            bail!("nothing to do");
        }
        self.steps(blocks)
    }
}
