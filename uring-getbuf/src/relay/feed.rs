// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of a source, in the order of its bytes, for sinks that take them in this order.

use std::collections::VecDeque;

use super::control::source_failed;
use super::extent::{Extent, Span};
use crate::engine::Origin;
use crate::error::{Errno, Error, Result};
use crate::ring::{Attached, Ring};
use crate::slots::consume::STREAM;
use crate::slots::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::slots::{Event, LeaseId};

/// The token of waits until the source can be read from.
pub(super) const SOURCE_READY: u32 = u32::MAX - 1;

/// One end's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// It answered `EAGAIN`.
    Shut,
    /// A wait until it is ready is in flight.
    Waiting,
}

/// A span on its way.
struct Piece {
    span: Span,
    stage: Stage,
}

enum Stage {
    /// To be fetched.
    Due,
    Fetching(Lease<Fetched>),
    /// The span is what there is. A direct fetch may have brought more.
    Ready(Lease<Installed>),
}

/// A source that is fetched ahead of what its sinks take.
pub(super) struct Feed<'a> {
    pub(super) extent: Extent<'a>,
    file: Attached,
    /// Most leases to hold.
    depth: usize,
    /// Everything goes through the pool.
    pub(super) copies: bool,
    /// In the order of their positions. What comes first is ready,
    pieces: VecDeque<Piece>,
    /// so many of them.
    ready: usize,
    /// The number of the first of them, counted from the source's begin.
    first: u64,
    /// Which lease of ours each slot holds.
    ours: Box<[Option<LeaseId>]>,
    /// Fetches in flight, also of leases that were dropped.
    fetches: usize,
    gate: Gate,
    /// Why nothing comes after the pieces.
    failed: Option<Errno>,
    /// Bytes that were fetched, and those of them that were read into the pool.
    pub(super) fetched: u64,
    pub(super) copied: u64,
}

impl<'a> Feed<'a> {
    pub(super) fn new(ring: &Ring, file: Attached, extent: Extent<'a>, depth: usize) -> Self {
        Self {
            extent,
            file,
            depth,
            copies: false,
            pieces: VecDeque::with_capacity(depth + 1),
            ready: 0,
            first: 0,
            ours: vec![None; ring.capacity()].into(),
            fetches: 0,
            gate: Gate::Open,
            failed: None,
            fetched: 0,
            copied: 0,
        }
    }

    /// Puts what an inspector has seen of a stream at the begin.
    pub(super) fn begin_with(&mut self, leases: Vec<Lease<Installed>>) -> Result<()> {
        for lease in leases {
            let Some(mut span) = self.extent.next(true)? else { return Ok(()) };
            span.len = span.len.min(lease.len());
            self.ours[usize::from(lease.id().slot())] = Some(lease.id());
            self.pieces.push_back(Piece { span, stage: Stage::Due });
            self.install(self.pieces.len() - 1, lease);
        }
        Ok(())
    }

    /// The number of the piece after those that are ready.
    pub(super) fn last(&self) -> u64 {
        self.first + self.ready as u64
    }

    /// A piece that is ready.
    pub(super) fn piece(&self, number: u64) -> Option<(Span, &Lease<Installed>)> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        match self.pieces.get(index) {
            Some(Piece { span, stage: Stage::Ready(lease) }) if index < self.ready => {
                Some((*span, lease))
            }
            _ => None,
        }
    }

    /// Whether everything is ready or gone.
    pub(super) fn is_complete(&self) -> bool {
        self.extent.is_over() && self.ready == self.pieces.len()
    }

    /// Why the source ends where it does, if everything is ready that is before the error.
    pub(super) fn error(&self) -> Option<Error> {
        self.failed.filter(|_| self.is_complete()).map(source_failed)
    }

    pub(super) fn is_ours(&self, lease: LeaseId) -> bool {
        self.ours[usize::from(lease.slot())] == Some(lease)
    }

    /// Lets go of the pieces before this one.
    pub(super) fn retire(&mut self, before: u64) {
        while self.first < before && self.ready > 0 {
            self.pieces.pop_front();
            self.ready -= 1;
            self.first += 1;
        }
    }

    /// Looks at the fetches, in order.
    pub(super) fn settle(&mut self) {
        let mut index = self.ready;
        while let Some(piece) = self.pieces.get_mut(index) {
            let stage = std::mem::replace(&mut piece.stage, Stage::Due);
            match stage {
                Stage::Fetching(lease) => match lease.installed() {
                    Ok(lease) => self.install(index, lease),
                    Err(NotInstalled::Pending(lease)) => piece.stage = Stage::Fetching(lease),
                    Err(NotInstalled::EndOfFile) => self.cut(index, None),
                    Err(NotInstalled::Failed(Errno::INTR)) => {}
                    Err(NotInstalled::Failed(Errno::AGAIN)) if !self.extent.source.seekable => {
                        self.gate = Gate::Shut;
                    }
                    Err(NotInstalled::Failed(errno)) => self.cut(index, Some(errno)),
                },
                stage => piece.stage = stage,
            }
            index += 1;
        }
        while matches!(self.pieces.get(self.ready), Some(Piece { stage: Stage::Ready(_), .. })) {
            self.ready += 1;
        }
    }

    /// Nothing comes from this piece on. What is before it is taken all the same.
    fn cut(&mut self, index: usize, failed: Option<Errno>) {
        self.extent.ends(self.pieces[index].span.position);
        self.pieces.truncate(index);
        self.failed = failed;
    }

    fn install(&mut self, index: usize, lease: Lease<Installed>) {
        let piece = &mut self.pieces[index];
        let span = piece.span;
        piece.span.len = lease.len().min(span.len);
        let there = piece.span.len;
        self.fetched += u64::from(there);
        if lease.origin() == Origin::Copy {
            self.copied += u64::from(there);
        }
        piece.stage = Stage::Ready(lease);
        match self.extent.came(span, there) {
            // It comes before what was fetched behind this piece.
            Some(span) => self.pieces.insert(index + 1, Piece { span, stage: Stage::Due }),
            None if self.extent.is_over() && there < span.len => {
                self.pieces.truncate(index + 1);
                self.failed = None;
            }
            None => {}
        }
    }

    /// Starts fetches: as many as there may be leases where the source has offsets, else one.
    pub(super) fn fetch(&mut self, ring: &mut Ring) -> Result<()> {
        match self.gate {
            Gate::Open => {}
            Gate::Waiting => return Ok(()),
            Gate::Shut => {
                self.gate = Gate::Waiting;
                return ring.poll(&self.file, libc::POLLIN as u32, SOURCE_READY);
            }
        }
        if ring.free() == 0 {
            // Slots of leases that are over may still have to be emptied.
            ring.flush()?;
        }
        for index in self.ready..self.pieces.len() {
            if matches!(self.pieces[index].stage, Stage::Due) && ring.free() > 0 {
                self.begin(ring, index)?;
            }
        }
        while self.pieces.len() < self.depth && ring.free() > 0 {
            let Some(span) = self.extent.next(self.ready == self.pieces.len())? else { break };
            self.pieces.push_back(Piece { span, stage: Stage::Due });
            self.begin(ring, self.pieces.len() - 1)?;
        }
        Ok(())
    }

    fn begin(&mut self, ring: &mut Ring, index: usize) -> Result<()> {
        let span = self.pieces[index].span;
        let asked = self.extent.asked(span);
        let lease = if self.copies || self.extent.is_standing(span) {
            ring.fetch_copied(&self.file, span.offset, asked)?
        } else {
            ring.fetch(&self.file, span.offset, asked)?
        };
        self.ours[usize::from(lease.id().slot())] = Some(lease.id());
        self.fetches += 1;
        self.pieces[index].stage = Stage::Fetching(lease);
        Ok(())
    }

    /// A sink cannot take the kernel's memory: what it has not taken of a piece, which is the first
    /// one, is read into the pool. False if the piece is there already, or cannot be fetched twice.
    pub(super) fn fetch_again_copied(&mut self, number: u64, done: u32) -> bool {
        let Some(piece) = self.pieces.front_mut() else { return false };
        let is_lent = matches!(&piece.stage, Stage::Ready(lease) if lease.origin() != Origin::Copy);
        if number != self.first || piece.span.offset == STREAM || !is_lent {
            return false;
        }
        piece.span = piece.span.after(done);
        piece.stage = Stage::Due;
        self.fetched -= u64::from(piece.span.len);
        self.ready = 0;
        self.copies = true;
        true
    }

    /// Whether an event was the feed's own.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Fetched { lease, .. } if self.is_ours(*lease) => self.fetches -= 1,
            Event::Ready { token: SOURCE_READY, .. } => self.gate = Gate::Open,
            _ => return false,
        }
        true
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.fetches == 0 && self.gate != Gate::Waiting
    }

    /// Cancels what is in flight.
    pub(super) fn cancel(&self, ring: &mut Ring) -> Result<()> {
        ring.cancel(&self.file)
    }

    /// Drops the leases, and has nothing told of what the network still holds of them: it may do so
    /// for as long as the peer leaves it there.
    pub(super) fn end(&mut self, ring: &mut Ring) {
        self.pieces.clear();
        self.ready = 0;
        for lease in self.ours.iter().flatten() {
            ring.mute(*lease);
        }
    }
}
