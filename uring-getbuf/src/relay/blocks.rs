// SPDX-License-Identifier: MIT OR Apache-2.0
//! File to file: a chain for each block, as many in flight as there are slots, in any order. Blocks
//! that the page cache has can be moved [at once](super::at_once) instead.

use std::os::fd::BorrowedFd;

use super::at_once::AtOnce;
use super::{Ends, Flow, Relay, Source, cancelled as was_cancelled};
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
    /// Read into the pool, whatever the engine.
    copied: bool,
}

struct Blocks {
    /// What each slot is moving.
    running: Box<[Option<(LeaseId, Block)>]>,
    in_flight: usize,
    /// Where the next new block starts.
    next: u64,
    /// Where the source ends, as far as is known.
    end: u64,
    /// Blocks to do again, whole or in part.
    again: Vec<Block>,
}

pub(super) fn run(
    relay: &mut Relay<'_>,
    ring: &mut Ring,
    files: &Ends,
    source: Source,
    sink: BorrowedFd<'_>,
    flow: &mut Flow,
) -> Result<()> {
    let end = relay.end(source.size);
    // Where the source said that it ends.
    let mut told = end;
    let mut blocks = Blocks {
        running: vec![None; ring.capacity()].into(),
        in_flight: 0,
        next: 0,
        end,
        again: Vec::with_capacity(2 * relay.depth),
    };
    let mut at_once = if relay.on_this_thread && flow.engine == Engine::Copy {
        AtOnce::new(relay.source, sink, relay.block_size)
    } else {
        AtOnce::never(relay.source, sink)
    };
    let mut cancelled = false;
    loop {
        if ring.free() == 0 {
            // Slots of chains that are over may still have to be emptied.
            ring.flush()?;
        }
        let mut moved_at_once = 0;
        while flow.error.is_none()
            && blocks.in_flight + moved_at_once < relay.depth
            && ring.free() > 0
        {
            let Some(mut block) = blocks.take(relay.block_size) else { break };
            let (from, to) = (relay.source_offset + block.start, relay.sink_offset + block.start);
            if let Some(outcome) = at_once.moves(from, to, block.len) {
                moved_at_once += 1;
                blocks.told(block, outcome, flow);
                continue;
            }
            block.copied = flow.copied;
            blocks.start(relay, ring, files, block)?;
        }
        if blocks.in_flight == 0 && moved_at_once > 0 {
            relay.report_progress(flow, blocks.end);
            if relay.is_cancelled() && flow.error.is_none() {
                flow.fail(was_cancelled());
            }
            continue;
        }
        if blocks.in_flight == 0 {
            // A file that has grown meanwhile has more.
            if flow.error.is_some() || source.size.is_none() || blocks.end != told {
                return Ok(());
            }
            told = relay.end(Some(Source::of(relay.source)?.size.unwrap_or(0)));
            if told <= blocks.end {
                return Ok(());
            }
            blocks.end = told;
            continue;
        }
        if flow.error.is_some() && !cancelled {
            files.cancel(ring)?;
            cancelled = true;
        }
        // Half of them: the others keep both files busy meanwhile, and a system call serves many.
        relay.wait(ring, blocks.in_flight.div_ceil(2), flow)?;
        while let Some(event) = ring.next_completion() {
            match event {
                Event::Chained { id, outcome } => match blocks.running[usize::from(id.slot())] {
                    Some((chain, block)) if chain == id => blocks.done(id, block, outcome, flow),
                    _ => ring.keep(event),
                },
                event => ring.keep(event),
            }
        }
        relay.report_progress(flow, blocks.end);
    }
}

impl Blocks {
    /// The next block to move.
    fn take(&mut self, block_size: u32) -> Option<Block> {
        while let Some(block) = self.again.pop() {
            if block.start < self.end {
                return Some(block);
            }
        }
        let left = self.end.saturating_sub(self.next);
        if left == 0 {
            return None;
        }
        let len = left.min(u64::from(block_size)) as u32;
        let block = Block { start: self.next, len, copied: false };
        self.next += u64::from(len);
        Some(block)
    }

    fn start(
        &mut self,
        relay: &Relay<'_>,
        ring: &mut Ring,
        files: &Ends,
        block: Block,
    ) -> Result<()> {
        let from = relay.source_offset + block.start;
        let to = relay.sink_offset + block.start;
        let source = if block.copied { files.source.copied() } else { files.source.source() };
        let source = (&files.source, source);
        let id = ring.chain_write_from(source, from, block.len, &files.sink, to)?;
        self.running[usize::from(id.slot())] = Some((id, block));
        self.in_flight += 1;
        Ok(())
    }

    fn done(&mut self, id: LeaseId, block: Block, outcome: ChainOutcome, flow: &mut Flow) {
        self.running[usize::from(id.slot())] = None;
        self.in_flight -= 1;
        self.told(block, outcome, flow);
    }

    fn told(&mut self, block: Block, outcome: ChainOutcome, flow: &mut Flow) {
        flow.moved += u64::from(outcome.moved());
        match outcome {
            ChainOutcome::Done(_) => {}
            ChainOutcome::ShortFetch(0) => self.end = self.end.min(block.start),
            ChainOutcome::ShortUse(0) => flow.sink_is_full(),
            // What came is moved by a chain of its length, and what did not is asked for again.
            ChainOutcome::ShortFetch(len) => {
                self.rest(block, len);
                self.again.push(Block { len, ..block });
            }
            ChainOutcome::ShortUse(len) => self.rest(block, len),
            ChainOutcome::FetchFailed(Errno::INTR) | ChainOutcome::UseFailed(Errno::INTR) => {
                self.again.push(block);
            }
            // The sink cannot take the kernel's memory.
            ChainOutcome::UseFailed(Errno::FAULT)
                if flow.engine != Engine::Copy && !block.copied =>
            {
                flow.copied = true;
                self.again.push(block);
            }
            ChainOutcome::FetchFailed(errno) => flow.source_failed(errno),
            ChainOutcome::UseFailed(errno) => flow.sink_failed(errno),
        }
    }

    /// What is left of a block after its first bytes has to be done again.
    fn rest(&mut self, block: Block, done: u32) {
        let (start, len) = (block.start + u64::from(done), block.len - done);
        self.again.push(Block { start, len, ..block });
    }
}
