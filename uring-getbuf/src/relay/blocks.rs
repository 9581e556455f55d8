// SPDX-License-Identifier: MIT OR Apache-2.0
//! File to file: a chain for each block, as many in flight as there are slots, in any order. Blocks
//! that the page cache has can be moved [at once](super::at_once) instead.

use super::at_once::AtOnce;
use super::control::{Control, Tally, sink_failed, sink_is_full, source_failed};
use super::ends::{Direct, MAX_OFFSET};
use super::extent::{Extent, Span};
use super::inspect::Single;
use crate::error::{Errno, Error, Result};
use crate::ring::{Attached, Ring};
use crate::slots::chain::ChainOutcome;
use crate::slots::{Event, LeaseId};

/// A span that a chain moves.
#[derive(Clone, Copy, Debug)]
struct Block {
    span: Span,
    /// It goes through the pool, because it has to or because nobody lent it.
    pooled: bool,
}

/// Two files, and what is moved between them.
pub(super) struct Blocks<'r, 'a> {
    ring: &'r mut Ring,
    control: &'r mut Control<'a>,
    extent: Extent<'r>,
    source: &'r Attached,
    sink: &'r Attached,
    /// Where in the sink to begin.
    begin: u64,
    direct: Direct<'r>,
    at_once: AtOnce<'r>,
    depth: usize,
    /// What each slot is moving.
    running: Box<[Option<(LeaseId, Block)>]>,
    in_flight: usize,
    /// Blocks to do again, whole or in part.
    again: Vec<Block>,
    /// Blocks that are no whole sectors of a sink with `O_DIRECT`.
    odd: Vec<Block>,
    /// A block for which the sink has no offset.
    beyond: Option<Block>,
    /// Whether the ring's engine lends.
    lends: bool,
    /// The sink cannot take the kernel's memory.
    copies: bool,
    tally: Tally,
    /// The first error. Nothing new is begun then; what is in flight is brought to its end.
    error: Option<Error>,
}

impl<'r, 'a> Blocks<'r, 'a> {
    pub(super) fn new(
        ring: &'r mut Ring,
        control: &'r mut Control<'a>,
        extent: Extent<'r>,
        (source, sink): (&'r Attached, &'r Attached),
        (begin, direct): (u64, Direct<'r>),
        at_once: AtOnce<'r>,
        depth: usize,
    ) -> Self {
        Self {
            running: vec![None; ring.capacity()].into(),
            in_flight: 0,
            again: Vec::with_capacity(2 * depth),
            odd: Vec::new(),
            beyond: None,
            lends: ring.traits().lent,
            copies: false,
            tally: Tally::default(),
            error: None,
            ring,
            control,
            extent,
            source,
            sink,
            begin,
            direct,
            at_once,
            depth,
        }
    }

    /// Moves until the source ends. What was moved is in the tally, also after an error.
    pub(super) fn run(mut self, tally: &mut Tally) -> Result<()> {
        let done = self.move_all();
        *tally = Tally { right: self.tally.taken, ..self.tally };
        if done.is_err() || self.error.is_some() {
            tally.right = self.right();
        }
        done.and(self.error.map_or(Ok(()), Err))
    }

    fn move_all(&mut self) -> Result<()> {
        let mut cancelled = false;
        loop {
            let moved_at_once = self.start_all()?;
            if self.in_flight == 0 && moved_at_once > 0 {
                self.tell();
                continue;
            }
            if self.in_flight == 0 {
                if self.error.is_some() || !self.go_on_alone()? {
                    return Ok(());
                }
                continue;
            }
            if self.error.is_some() && !cancelled {
                self.ring.cancel(self.source)?;
                self.ring.cancel(self.sink)?;
                cancelled = true;
            }
            // Half of them: the others keep both files busy meanwhile, and a system call serves many.
            self.control.wait(self.ring, self.in_flight.div_ceil(2), None)?;
            self.take_events();
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.control.tell(self.tally.taken, self.extent.total);
        if let Err(error) = self.control.check() {
            self.error.get_or_insert(error);
        }
    }

    /// Starts as many blocks as there may be. How many were moved at once.
    fn start_all(&mut self) -> Result<usize> {
        if self.ring.free() == 0 {
            // Slots of chains that are over may still have to be emptied.
            self.ring.flush()?;
        }
        let mut moved = 0;
        while self.error.is_none()
            && self.in_flight + moved < self.depth
            && self.ring.free() > 0
            && let Some(block) = self.next()?
        {
            let to = self.begin + block.span.position;
            if let Some(outcome) = self.at_once.moves(block.span.offset, to, block.span.len) {
                moved += 1;
                self.told(block, outcome);
            } else {
                self.start(block, to)?;
            }
        }
        Ok(moved)
    }

    /// What can only be done with nothing in flight. Whether there is more to do.
    fn go_on_alone(&mut self) -> Result<bool> {
        if !self.odd.is_empty() {
            self.direct.clear();
            self.again.append(&mut self.odd);
            return Ok(true);
        }
        let Some(block) = self.beyond.take() else { return Ok(false) };
        let (ring, control) = (&mut *self.ring, &*self.control);
        let mut single = Single { ring, control, source: self.extent.source, file: self.source };
        match single.fetch(block.span.offset, block.span.len)? {
            Some(_) => {
                self.again.push(block);
                self.error = Some(sink_failed(Errno::FBIG));
            }
            None => self.extent.ends(block.span.position),
        }
        Ok(true)
    }

    fn take_events(&mut self) {
        let mut refused = self.ring.stats().fallbacks;
        while let Some(event) = self.ring.next_completion() {
            match event {
                Event::Chained { id, outcome } => match self.running[usize::from(id.slot())] {
                    Some((chain, block)) if chain == id => {
                        self.running[usize::from(id.slot())] = None;
                        self.in_flight -= 1;
                        self.told(block, outcome);
                    }
                    _ => self.ring.keep(event),
                },
                event => self.ring.keep(event),
            }
            if self.lends && refused != self.ring.stats().fallbacks {
                refused = self.ring.stats().fallbacks;
                for (id, block) in self.running.iter_mut().flatten() {
                    block.pooled |= !self.ring.is_lent(*id);
                }
            }
        }
    }

    /// The next block to move.
    fn next(&mut self) -> Result<Option<Block>> {
        let room = MAX_OFFSET - self.begin;
        loop {
            let mut block = match self.again.pop() {
                Some(block) if self.extent.is_before_end(block.span) => block,
                Some(_) => continue,
                None if self.beyond.is_some() => return Ok(None),
                None => match self.extent.next(self.in_flight == 0 && self.odd.is_empty())? {
                    Some(span) => {
                        // Where the source ends is known when nothing comes of a block.
                        self.extent.came(span, span.len);
                        Block { span, pooled: false }
                    }
                    None => return Ok(None),
                },
            };
            match room.saturating_sub(block.span.position) {
                0 => self.beyond = Some(block),
                room if room < block.span.len.into() => {
                    self.rest(block, room as u32);
                    block.span.len = room as u32;
                    return Ok(Some(block));
                }
                _ => return Ok(Some(block)),
            }
        }
    }

    fn start(&mut self, mut block: Block, to: u64) -> Result<()> {
        let source = if self.copies { self.source.copied() } else { self.source.source() };
        let (source, span) = ((self.source, source), block.span);
        let id = self.ring.chain_write_from(source, span.offset, span.len, self.sink, to)?;
        block.pooled = !self.lends || !self.ring.is_lent(id);
        self.running[usize::from(id.slot())] = Some((id, block));
        self.in_flight += 1;
        Ok(())
    }

    fn told(&mut self, block: Block, outcome: ChainOutcome) {
        let moved = u64::from(outcome.moved());
        self.tally.taken += moved;
        if block.pooled || !self.lends {
            self.tally.copied += moved;
        }
        match outcome {
            ChainOutcome::Done(_) => {}
            ChainOutcome::ShortFetch(0) => self.extent.ends(block.span.position),
            // What came is moved by a chain of its length, and what did not is asked for again.
            ChainOutcome::ShortFetch(len) => {
                self.rest(block, len);
                self.again.push(Block { span: Span { len, ..block.span }, ..block });
            }
            ChainOutcome::ShortUse(len @ 1..) => self.rest(block, len),
            ChainOutcome::UseFailed(Errno::INVAL) if self.direct.is_set() => self.odd.push(block),
            outcome => {
                self.again.push(block);
                let error = match outcome {
                    ChainOutcome::FetchFailed(Errno::INTR)
                    | ChainOutcome::UseFailed(Errno::INTR) => return,
                    // The sink cannot take the kernel's memory.
                    ChainOutcome::UseFailed(Errno::FAULT) if !block.pooled => {
                        self.copies = true;
                        return;
                    }
                    ChainOutcome::FetchFailed(errno) => source_failed(errno),
                    ChainOutcome::UseFailed(errno) => sink_failed(errno),
                    _ => sink_is_full(),
                };
                self.error.get_or_insert(error);
            }
        }
    }

    /// What is left of a block after its first bytes has to be done again.
    fn rest(&mut self, block: Block, done: u32) {
        self.again.push(Block { span: block.span.after(done), ..block });
    }

    /// How many of the first bytes are moved, without a gap.
    fn right(&self) -> u64 {
        let running = self.running.iter().flatten().map(|(_, block)| block);
        let left = running.chain(&self.again).chain(&self.odd).chain(&self.beyond);
        let left = left.map(|block| block.span.position);
        left.chain([self.extent.reached()]).min().unwrap_or(0)
    }
}
