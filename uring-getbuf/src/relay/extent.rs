// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which bytes of a source come next, and where it ends.

use std::os::fd::BorrowedFd;

use super::control::source_failed;
use super::ends::{MAX_OFFSET, Position, SECTOR, SourceKind};
use crate::error::{Errno, Result};
use crate::slots::consume::STREAM;

/// Bytes of a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Counted from where the move began.
    pub(super) position: u64,
    /// Where they are in the source; [`STREAM`]: where it stands.
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Span {
    /// What is left after its first bytes.
    pub(super) fn after(self, done: u32) -> Self {
        let offset = if self.offset == STREAM { STREAM } else { self.offset + u64::from(done) };
        Self { position: self.position + u64::from(done), offset, len: self.len - done }
    }
}

/// A source, cut into spans in the order of its bytes.
#[derive(Debug)]
pub(super) struct Extent<'a> {
    pub(super) source: SourceKind,
    begin: u64,
    /// Where the source stands, if it is read there, and how many bytes were taken from there.
    standing: Option<(Position<'a>, u64)>,
    block_size: u32,
    /// Position of the next span.
    next: u64,
    /// Where the source says that it ends. Beyond it one span at a time asks for more.
    told: Option<u64>,
    /// Where it ends: there a fetch has got nothing, or it is not to go on.
    end: u64,
    /// How many bytes there will be, as far as is known.
    pub(super) total: Option<u64>,
}

impl<'a> Extent<'a> {
    /// Up to `limit` bytes from `begin` on. Where the source stands, `seen` of them were read before.
    pub(super) fn new(
        file: BorrowedFd<'a>,
        source: SourceKind,
        (begin, seen): (u64, u64),
        limit: u64,
        block_size: u32,
    ) -> Self {
        let standing = source.seekable.then(|| Position::of(file, begin)).flatten();
        let (at, end) = match begin {
            STREAM => (rustix::fs::tell(file).unwrap_or(0).saturating_sub(seen), limit),
            // No file is longer.
            begin => (begin, limit.min(MAX_OFFSET - begin)),
        };
        let told = source.size.map(|size| size.saturating_sub(at).min(end));
        let total = told.or((limit != u64::MAX).then_some(limit));
        let standing = standing.map(|position| (position, 0));
        Self { source, begin, standing, block_size, next: 0, told, end, total }
    }

    /// Whether the next span is asked for before those in front of it are there.
    pub(super) fn is_ahead(&self) -> bool {
        self.source.ahead && self.told.is_none_or(|told| self.next < told)
    }

    /// Whether there is no other span.
    pub(super) fn is_over(&self) -> bool {
        self.next >= self.end
    }

    /// The next span. `alone`: nothing that was asked for before is on its way.
    pub(super) fn next(&mut self, alone: bool) -> Result<Option<Span>> {
        let ahead = self.is_ahead();
        if self.is_over() || !(ahead || alone) {
            return Ok(None);
        }
        // A direct fetch finds the end by itself, within a sector.
        let end = match self.told {
            Some(told) if ahead && !self.source.direct => told.min(self.end),
            _ => self.end,
        };
        let len = (end - self.next).min(self.block_size.into()) as u32;
        let mut span = Span { position: self.next, offset: STREAM, len };
        match &mut self.standing {
            None if self.source.seekable => span.offset = self.begin + self.next,
            Some((position, taken)) if ahead => match position.take(len) {
                Ok(Some(place)) => {
                    (span.offset, span.len) = place;
                    *taken += u64::from(span.len);
                }
                Ok(None) => {
                    self.end = self.next;
                    return Ok(None);
                }
                Err(errno) => return Err(source_failed(Errno::new(errno.raw_os_error()))),
            },
            _ => {}
        }
        if ahead {
            self.next += u64::from(span.len);
        }
        Ok(Some(span))
    }

    /// How many bytes a fetch of a span asks for: a direct read must ask for whole sectors.
    pub(super) fn asked(&self, span: Span) -> u32 {
        if self.source.direct { span.len.next_multiple_of(SECTOR) } else { span.len }
    }

    /// Whether a span is read where a file stands, which no engine lends.
    pub(super) fn is_standing(&self, span: Span) -> bool {
        self.standing.is_some() && span.offset == STREAM
    }

    /// So many bytes of a span are there. The rest of it, if it is to be asked for again.
    pub(super) fn came(&mut self, span: Span, there: u32) -> Option<Span> {
        let after = span.position + u64::from(there);
        let ahead = after <= self.next;
        self.next = self.next.max(after);
        if there == span.len {
            return None;
        }
        // A direct read ends within a sector only where the file does, and cannot begin there.
        if self.source.direct && !after.is_multiple_of(SECTOR.into()) {
            self.ends(after);
            return None;
        }
        ahead.then(|| span.after(there))
    }

    /// Whether a span begins before the end, as far as that is known.
    pub(super) fn is_before_end(&self, span: Span) -> bool {
        span.position < self.end
    }

    /// There is nothing from here on.
    pub(super) fn ends(&mut self, position: u64) {
        self.end = self.end.min(position);
    }

    /// How far it has come without a gap, if nothing before `next` is missing.
    pub(super) fn reached(&self) -> u64 {
        self.next.min(self.end)
    }

    /// So many bytes were moved. What else was taken of a file's position is there for the next
    /// reader.
    pub(super) fn give_back(&mut self, moved: u64) {
        if let Some((position, taken)) = &mut self.standing {
            position.give_back_last(taken.saturating_sub(moved));
        }
    }
}
