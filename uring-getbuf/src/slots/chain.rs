// SPDX-License-Identifier: MIT OR Apache-2.0
//! The chain: fetch, consume and release as linked requests, one `io_uring_enter`, one completion.
//!
//! | what happens | outcome | the sink got |
//! |---|---|---|
//! | all as asked | [`Done`](ChainOutcome::Done) | everything |
//! | the source had fewer bytes (0: end of file) | [`ShortFetch`](ChainOutcome::ShortFetch) | nothing |
//! | the source failed | [`FetchFailed`](ChainOutcome::FetchFailed) | nothing |
//! | the sink took fewer bytes | [`ShortUse`](ChainOutcome::ShortUse) | the first so many bytes |
//! | the sink failed | [`UseFailed`](ChainOutcome::UseFailed) | nothing |
//!
//! In each case the slot comes back: it is free when the outcome is there, or, on a kernel that has no
//! request which releases, as soon as it has been emptied. With the project's patches the fetch hands its
//! buffer to the consumer, past the slot, and a chain is two requests; where a kernel lends otherwise, a
//! third one empties the slot.
//!
//! A chain cannot be taken apart: what it did not move is asked for again, by a chain of the right length
//! or step by step. So a chain is for sources with offsets: what a short fetch took out of a pipe or a
//! socket is lost.

use super::consume::Consumer;
use crate::engine::Source;
use crate::error::Errno;

/// What a chain is to do. Handed to [`Slots::chain`](crate::slots::Slots::chain) or
/// [`Ring::chain_write`](crate::ring::Ring::chain_write).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Chain {
    pub(crate) source: Source,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) consumer: Consumer,
}

impl Chain {
    /// Moves `len` bytes at `offset` of `source` to `consumer`.
    pub fn new(source: impl Into<Source>, offset: u64, len: u32, consumer: Consumer) -> Self {
        Self { source: source.into(), offset, len, consumer }
    }
}

/// What a chain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainOutcome {
    /// Every byte was fetched and consumed; so many.
    Done(u32),
    /// The source had only so many bytes; 0 is end of file. Nothing was consumed.
    ShortFetch(u32),
    /// The sink took only so many of the bytes.
    ShortUse(u32),
    /// The fetch failed. Nothing was consumed.
    FetchFailed(Errno),
    /// The consumer failed.
    UseFailed(Errno),
}

impl ChainOutcome {
    /// The bytes that reached the sink.
    #[must_use]
    pub const fn moved(self) -> u32 {
        match self {
            Self::Done(bytes) | Self::ShortUse(bytes) => bytes,
            Self::ShortFetch(_) | Self::FetchFailed(_) | Self::UseFailed(_) => 0,
        }
    }
}
