// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names that travel through the kernel: what a `user_data` of the slots says.
//!
//! From the top: tag 8, kind 4, sequence 8, token 16, generation 14, slot 14 bits.

use std::fmt;

const SLOT: u64 = (1 << GENERATION_SHIFT) - 1;
const GENERATION_SHIFT: u32 = 14;
/// Slot and generation.
const LEASE: u64 = (1 << TOKEN_SHIFT) - 1;
const TOKEN: u64 = 0xffff << TOKEN_SHIFT;
const TOKEN_SHIFT: u32 = 28;
const SEQUENCE_SHIFT: u32 = 44;
const KIND_SHIFT: u32 = 52;
const TAG_SHIFT: u32 = 56;

/// From here on kinds belong to whoever drives the slots.
const DRIVER_KINDS: u8 = 8;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Fetch,
    /// A use that borrows the slot's array of ranges.
    UseRanges,
    Use,
    Release,
    ChainFetch,
    ChainUse,
    ChainRelease,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Fetch,
        Self::UseRanges,
        Self::Use,
        Self::Release,
        Self::ChainFetch,
        Self::ChainUse,
        Self::ChainRelease,
    ];
}

/// Whether a `user_data` is that of a request of the slots with this tag.
#[inline]
pub(super) const fn is_claimed(tag: u8, user_data: u64) -> bool {
    is_tagged(tag, user_data) && kind_of(user_data) < DRIVER_KINDS
}

#[inline]
const fn is_tagged(tag: u8, user_data: u64) -> bool {
    user_data >> TAG_SHIFT == tag as u64
}

#[inline]
const fn kind_of(user_data: u64) -> u8 {
    (user_data >> KIND_SHIFT) as u8 & 15
}

/// Makes the `user_data` of a driver's own request, which the slots do not claim.
pub(crate) const fn driver_user_data(tag: u8, kind: u8, value: u64) -> u64 {
    (tag as u64) << TAG_SHIFT | ((DRIVER_KINDS + kind) as u64) << KIND_SHIFT | value
}

/// The kind and the value of a driver's own request, if it is one.
pub(crate) const fn driver_request(tag: u8, user_data: u64) -> Option<(u8, u64)> {
    if is_tagged(tag, user_data) && kind_of(user_data) >= DRIVER_KINDS {
        Some((kind_of(user_data) - DRIVER_KINDS, user_data & ((1 << KIND_SHIFT) - 1)))
    } else {
        None
    }
}

/// Names a lease without holding it: a slot, and which of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(u32);

impl LeaseId {
    /// The life after this one has the next number; they come round after 2^14.
    #[inline]
    pub(super) const fn new(slot: u16, life: u16) -> Self {
        Self((life as u32) << GENERATION_SHIFT & LEASE as u32 | slot as u32)
    }

    /// The slot, counted from 0. It is not the index in the ring's table of registered buffers.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u16 {
        (self.0 & SLOT as u32) as u16
    }

    const fn generation(self) -> u16 {
        (self.0 >> GENERATION_SHIFT) as u16
    }

    /// The name of a request of this lease.
    #[inline]
    pub(super) const fn request(self, tag: u8, kind: Kind, sequence: u8, token: u16) -> u64 {
        (tag as u64) << TAG_SHIFT
            | (kind as u64) << KIND_SHIFT
            | (sequence as u64) << SEQUENCE_SHIFT
            | (token as u64) << TOKEN_SHIFT
            | self.0 as u64
    }

    /// The `user_data` of its fetch.
    pub(crate) const fn fetch(self, tag: u8) -> u64 {
        self.request(tag, Kind::Fetch, 0, 0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseId")
            .field("slot", &self.slot())
            .field("generation", &self.generation())
            .finish()
    }
}

/// Names one request that consumes a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UseId(u64);

impl UseId {
    #[inline]
    pub(crate) const fn of(user_data: u64) -> Self {
        Self(user_data)
    }

    /// Whether it is the fetch itself.
    #[inline]
    pub(crate) const fn is_fetch(self) -> bool {
        kind_of(self.0) == Kind::Fetch as u8
    }

    /// What the request itself carries.
    #[inline]
    pub(crate) const fn user_data(self) -> u64 {
        self.0
    }

    /// The lease that is used.
    #[must_use]
    #[inline]
    pub const fn lease(self) -> LeaseId {
        LeaseId((self.0 & LEASE) as u32)
    }

    #[inline]
    pub(super) fn kind(self) -> Option<Kind> {
        Kind::ALL.get(usize::from(kind_of(self.0))).copied()
    }

    /// Which of the lease's uses, or which engine's attempt at a chain.
    #[inline]
    pub(super) const fn sequence(self) -> u8 {
        (self.0 >> SEQUENCE_SHIFT) as u8
    }

    /// What [`Prepared::token`](super::Prepared::token) gave to the request, 0 if nothing did.
    #[must_use]
    #[inline]
    pub const fn token(self) -> u16 {
        (self.0 >> TOKEN_SHIFT) as u16
    }

    #[inline]
    pub(super) const fn with_token(self, token: u16) -> Self {
        Self(self.0 & !TOKEN | (token as u64) << TOKEN_SHIFT)
    }
}
