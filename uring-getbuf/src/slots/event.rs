// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the slots tell their driver.

use super::chain::ChainOutcome;
use super::ident::{LeaseId, UseId};
use crate::error::{Errno, Result};

/// What a completion meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A fetch is done: the bytes that are in the slot (0 at end of file), or the error.
    Fetched {
        /// The lease.
        lease: LeaseId,
        /// Bytes, or the source's error.
        result: Result<u32, Errno>,
    },
    /// A consumer has its result.
    Used {
        /// The buffer is still in use (`SEND_ZC`): an [`Event::Returned`] will follow.
        more: bool,
        /// The request.
        id: UseId,
        /// Bytes consumed, or the error.
        result: Result<u32, Errno>,
    },
    /// A consumer that already had its result does not use the buffer any more.
    Returned {
        /// The request.
        id: UseId,
    },
    /// The slot is empty: the kernel has no buffer in it.
    Released {
        /// The lease that was released.
        lease: LeaseId,
    },
    /// A chain is done, and its slot is empty.
    Chained {
        /// The chain, as [`Slots::chain`](super::Slots::chain) named it.
        id: LeaseId,
        /// What it did.
        outcome: ChainOutcome,
    },
    /// Ours, and nothing to tell. Mostly the slots have something to send
    /// ([`Slots::next_request`](super::Slots::next_request)).
    Pending,
    /// It carries our tag but answers no request that is outstanding.
    Stale,
    /// A file that was waited for is ready. Only a [`Ring`](crate::ring::Ring) produces it.
    Ready {
        /// The value that the wait was given.
        token: u32,
        /// The `poll(2)` events that are set, or the error.
        result: Result<u32, Errno>,
    },
    /// A completion of somebody else's request. Only a [`Ring`](crate::ring::Ring) produces it.
    Foreign {
        /// The request's `user_data`.
        user_data: u64,
        /// `cqe->res`.
        result: i32,
        /// `cqe->flags`.
        flags: u32,
    },
}

impl Event {
    /// Whether it tells something that a program could have asked for.
    pub(crate) fn is_told(&self) -> bool {
        !matches!(self, Self::Released { .. } | Self::Pending | Self::Stale)
    }
}

/// Counters since the slots were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Fetches and chains that were handed out.
    pub fetches: u64,
    /// Those that a zero-copy engine refused and the copy pool served.
    pub fallbacks: u64,
    /// Completions with our tag that answered nothing.
    pub stale: u64,
}
