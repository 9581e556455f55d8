// SPDX-License-Identifier: MIT OR Apache-2.0
//! File to file: a chain for each block, as many in flight as there are slots, in any order. Blocks
//! that the page cache has can be moved [at once](super::at_once) instead.

use std::os::fd::BorrowedFd;

use super::at_once::AtOnce;
use super::{Direct, Ends, Flow, MAX_OFFSET, Relay, Source, cancelled as was_cancelled};
use crate::chain::ChainOutcome;
use crate::engine::Engine;
use crate::error::{Errno, Result};
use crate::ring::Ring;
use crate::slots::{Event, LeaseId};

/// A range of the source, counted from where the relay began.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    len: u32,
    /// It goes through the pool, because it has to or because nobody lent it.
    pooled: bool,
}

struct Blocks {
    /// What each slot is moving.
    running: Box<[Option<(LeaseId, Block)>]>,
    in_flight: usize,
    /// Where the next new block starts.
    next: u64,
    /// Where the source says that it ends. Beyond it one block at a time asks for more.
    told: Option<u64>,
    /// Where it ends: there a fetch has got nothing, or it is not to go on.
    end: u64,
    /// Blocks to do again, whole or in part.
    again: Vec<Block>,
    /// Blocks that are no whole sectors of a sink with `O_DIRECT`.
    odd: Vec<Block>,
    /// A block for which the sink has no offset.
    beyond: Option<Block>,
    /// Whether the ring's engine lends.
    lends: bool,
}

pub(super) fn run(
    relay: &mut Relay<'_>,
    ring: &mut Ring,
    files: &Ends,
    source: Source,
    sink: BorrowedFd<'_>,
    direct: Direct<'_>,
    flow: &mut Flow,
) -> Result<()> {
    let mut blocks = Blocks {
        running: vec![None; ring.capacity()].into(),
        in_flight: 0,
        next: 0,
        told: relay.told(source),
        end: relay.most(),
        again: Vec::with_capacity(2 * relay.depth),
        odd: Vec::new(),
        beyond: None,
        lends: ring.engine() != Engine::Copy,
    };
    let at_once = if relay.on_this_thread && !blocks.lends {
        AtOnce::new(relay.source, sink, relay.block_size)
    } else {
        AtOnce::never(relay.source, sink)
    };
    let done = blocks.run(relay, ring, files, source, at_once, direct, flow);
    if done.is_err() || flow.error.is_some() {
        flow.right = Some(blocks.right());
    }
    done
}

impl Blocks {
    #[expect(clippy::too_many_arguments, reason = "each is another end of what is moved")]
    fn run(
        &mut self,
        relay: &mut Relay<'_>,
        ring: &mut Ring,
        files: &Ends,
        source: Source,
        mut at_once: AtOnce<'_>,
        mut direct: Direct<'_>,
        flow: &mut Flow,
    ) -> Result<()> {
        let mut cancelled = false;
        loop {
            if ring.free() == 0 {
                // Slots of chains that are over may still have to be emptied.
                ring.flush()?;
            }
            let mut moved_at_once = 0;
            while flow.error.is_none()
                && self.in_flight + moved_at_once < relay.depth
                && ring.free() > 0
            {
                let Some(block) = self.take(relay) else { break };
                let (from, to) =
                    (relay.source_offset + block.start, relay.sink_offset + block.start);
                if let Some(outcome) = at_once.moves(from, to, block.len) {
                    moved_at_once += 1;
                    self.told(block, outcome, &direct, flow);
                    continue;
                }
                self.start(relay, ring, files, block, flow.copies)?;
            }
            if self.in_flight == 0 && moved_at_once > 0 {
                relay.report_progress(flow, self.told);
                if relay.is_cancelled() && flow.error.is_none() {
                    flow.fail(was_cancelled());
                }
                continue;
            }
            if self.in_flight == 0 {
                if flow.error.is_some() {
                    return Ok(());
                }
                if !self.odd.is_empty() {
                    direct.clear();
                    self.again.append(&mut self.odd);
                    continue;
                }
                let Some(block) = self.beyond.take() else { return Ok(()) };
                let offset = relay.source_offset + block.start;
                match relay.fetch_one(ring, source, &files.source, offset, block.len)? {
                    Some(_) => {
                        self.again.push(block);
                        flow.sink_failed(Errno::FBIG);
                    }
                    None => self.end = self.end.min(block.start),
                }
                continue;
            }
            if flow.error.is_some() && !cancelled {
                files.cancel(ring)?;
                cancelled = true;
            }
            // Half of them: the others keep both files busy meanwhile, and a system call serves many.
            relay.wait(ring, self.in_flight.div_ceil(2), flow)?;
            self.take_events(ring, &direct, flow);
            relay.report_progress(flow, self.told);
        }
    }

    fn take_events(&mut self, ring: &mut Ring, direct: &Direct<'_>, flow: &mut Flow) {
        let mut refused = ring.stats().fallbacks;
        while let Some(event) = ring.next_completion() {
            match event {
                Event::Chained { id, outcome } => match self.running[usize::from(id.slot())] {
                    Some((chain, block)) if chain == id => {
                        self.running[usize::from(id.slot())] = None;
                        self.in_flight -= 1;
                        self.told(block, outcome, direct, flow);
                    }
                    _ => ring.keep(event),
                },
                event => ring.keep(event),
            }
            if self.lends && refused != ring.stats().fallbacks {
                refused = ring.stats().fallbacks;
                for (id, block) in self.running.iter_mut().flatten() {
                    block.pooled |= !ring.is_lent(*id);
                }
            }
        }
    }

    /// The next block to move.
    fn take(&mut self, relay: &Relay<'_>) -> Option<Block> {
        loop {
            let mut block = match self.again.pop() {
                Some(block) if block.start >= self.end => continue,
                Some(block) => block,
                None => self.new_block(relay.block_size)?,
            };
            let room = MAX_OFFSET - relay.sink_offset;
            match room.saturating_sub(block.start) {
                0 => self.beyond = Some(block),
                room if room < block.len.into() => {
                    self.rest(block, room as u32);
                    block.len = room as u32;
                    return Some(block);
                }
                _ => return Some(block),
            }
        }
    }

    fn new_block(&mut self, block_size: u32) -> Option<Block> {
        let end = match self.told {
            Some(told) if self.next < told => told.min(self.end),
            Some(_) if self.in_flight > 0 || !self.odd.is_empty() => return None,
            _ => self.end,
        };
        let left = end.saturating_sub(self.next);
        if left == 0 || self.beyond.is_some() {
            return None;
        }
        let len = left.min(u64::from(block_size)) as u32;
        let block = Block { start: self.next, len, pooled: false };
        self.next += u64::from(len);
        Some(block)
    }

    fn start(
        &mut self,
        relay: &Relay<'_>,
        ring: &mut Ring,
        files: &Ends,
        mut block: Block,
        copies: bool,
    ) -> Result<()> {
        let from = relay.source_offset + block.start;
        let to = relay.sink_offset + block.start;
        let source = if copies { files.source.copied() } else { files.source.source() };
        let source = (&files.source, source);
        let id = ring.chain_write_from(source, from, block.len, &files.sink, to)?;
        block.pooled = !self.lends || !ring.is_lent(id);
        self.running[usize::from(id.slot())] = Some((id, block));
        self.in_flight += 1;
        Ok(())
    }

    fn told(&mut self, block: Block, outcome: ChainOutcome, direct: &Direct<'_>, flow: &mut Flow) {
        let moved = u64::from(outcome.moved());
        flow.moved += moved;
        if block.pooled || !self.lends {
            flow.copied += moved;
        }
        match outcome {
            ChainOutcome::Done(_) => {}
            ChainOutcome::ShortFetch(0) => self.end = self.end.min(block.start),
            // What came is moved by a chain of its length, and what did not is asked for again.
            ChainOutcome::ShortFetch(len) => {
                self.rest(block, len);
                self.again.push(Block { len, ..block });
            }
            ChainOutcome::ShortUse(len @ 1..) => self.rest(block, len),
            ChainOutcome::UseFailed(Errno::INVAL) if direct.is_set() => self.odd.push(block),
            outcome => {
                self.again.push(block);
                match outcome {
                    ChainOutcome::FetchFailed(Errno::INTR)
                    | ChainOutcome::UseFailed(Errno::INTR) => {}
                    // The sink cannot take the kernel's memory.
                    ChainOutcome::UseFailed(Errno::FAULT) if !block.pooled => flow.copies = true,
                    ChainOutcome::FetchFailed(errno) => flow.source_failed(errno),
                    ChainOutcome::UseFailed(errno) => flow.sink_failed(errno),
                    _ => flow.sink_is_full(),
                }
            }
        }
    }

    /// What is left of a block after its first bytes has to be done again.
    fn rest(&mut self, block: Block, done: u32) {
        let (start, len) = (block.start + u64::from(done), block.len - done);
        self.again.push(Block { start, len, ..block });
    }

    /// How many of the first bytes are moved, without a gap.
    fn right(&self) -> u64 {
        let running = self.running.iter().flatten().map(|(_, block)| block);
        let left = running.chain(&self.again).chain(&self.odd).chain(&self.beyond);
        let left = left.map(|block| block.start);
        left.chain([self.next, self.end]).min().unwrap_or(0)
    }
}
