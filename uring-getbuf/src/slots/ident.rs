// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names that travel through the kernel: what a `user_data` of ours says.

use std::fmt;

/// `user_data`, from the top: tag 8, kind 4, sequence 8, token 16, generation 14, slot 14 bits.
pub(super) mod user_data {
    pub(in crate::slots) const SLOT: u64 = (1 << GENERATION_SHIFT) - 1;
    pub(in crate::slots) const GENERATION_SHIFT: u32 = 14;
    /// Slot and generation.
    pub(in crate::slots) const LEASE: u64 = (1 << TOKEN_SHIFT) - 1;
    /// What all requests of a lease have in common: tag, slot, generation, and kinds of ours.
    pub(in crate::slots) const NAME: u64 = 0x1ff << (TAG_SHIFT - 1) | LEASE;
    pub(in crate::slots) const TOKEN: u64 = 0xffff << TOKEN_SHIFT;
    pub(in crate::slots) const TOKEN_SHIFT: u32 = 28;
    pub(in crate::slots) const SEQUENCE_SHIFT: u32 = 44;
    pub(in crate::slots) const KIND_SHIFT: u32 = 52;
    pub(in crate::slots) const TAG_SHIFT: u32 = 56;
}

/// What a request of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Fetch,
    /// A use that borrows the slot's array of ranges.
    UseRanges,
    /// Even, see [`next_use`].
    Use,
    Release,
    ChainFetch,
    ChainUse,
    ChainRelease,
}

impl Kind {
    #[inline]
    pub(super) const fn of(user_data: u64) -> Option<Self> {
        Some(match user_data >> user_data::KIND_SHIFT & 15 {
            0 => Self::Fetch,
            1 => Self::UseRanges,
            2 => Self::Use,
            3 => Self::Release,
            4 => Self::ChainFetch,
            5 => Self::ChainUse,
            6 => Self::ChainRelease,
            _ => return None,
        })
    }
}

/// The upper half of the name of a [`Use`](Kind::Use) with the next sequence number.
#[inline(always)]
pub(super) const fn next_use(upper: u32) -> u32 {
    const ONE: u32 = 1 << (user_data::SEQUENCE_SHIFT - 32);
    const CARRY: u32 = 1 << (user_data::KIND_SHIFT - 32);
    (upper + ONE) & !CARRY
}

/// That of the first one.
pub(super) const FIRST_USE: u32 = (Kind::Use as u32) << (user_data::KIND_SHIFT - 32);

/// From here on kinds belong to whoever drives the slots.
pub(super) const DRIVER_KINDS: u8 = 8;

/// Makes the `user_data` of a driver's own request, which [`Slots::claims`] refuses.
pub(crate) const fn driver_user_data(tag: u8, kind: u8, value: u64) -> u64 {
    (tag as u64) << user_data::TAG_SHIFT
        | ((DRIVER_KINDS + kind) as u64) << user_data::KIND_SHIFT
        | value
}

/// The kind and the value of a driver's own request, if it is one.
pub(crate) const fn driver_request(tag: u8, user_data: u64) -> Option<(u8, u64)> {
    let kind = (user_data >> user_data::KIND_SHIFT) as u8 & 15;
    if (user_data >> user_data::TAG_SHIFT) as u8 == tag && kind >= DRIVER_KINDS {
        Some((kind - DRIVER_KINDS, user_data & ((1 << user_data::KIND_SHIFT) - 1)))
    } else {
        None
    }
}

/// The `user_data` of a lease's fetch.
pub(crate) const fn fetch_user_data(tag: u8, lease: LeaseId) -> u64 {
    (tag as u64) << user_data::TAG_SHIFT | (Kind::Fetch as u64) << user_data::KIND_SHIFT | lease.0
}

/// Names a lease without holding it: a slot, and which of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
// A word, so that a result with it travels in registers.
pub struct LeaseId(u64);

impl LeaseId {
    /// The slot, counted from 0. It is not the index in the ring's table of registered buffers.
    #[inline]
    #[must_use]
    pub const fn slot(self) -> u16 {
        (self.0 & user_data::SLOT) as u16
    }

    pub(super) const fn generation(self) -> u16 {
        (self.0 >> user_data::GENERATION_SHIFT) as u16
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
    pub(crate) const fn is_fetch(self) -> bool {
        matches!(Kind::of(self.0), Some(Kind::Fetch))
    }

    /// What the request itself carries.
    pub(crate) const fn user_data(self) -> u64 {
        self.0
    }

    /// The lease that is used.
    #[inline]
    #[must_use]
    pub const fn lease(self) -> LeaseId {
        LeaseId(self.0 & user_data::LEASE)
    }

    /// The same as one of another kind.
    pub(super) const fn with(self, kind: Kind) -> u64 {
        self.0 & !(15 << user_data::KIND_SHIFT) | (kind as u64) << user_data::KIND_SHIFT
    }

    #[inline]
    pub(super) const fn kind(self) -> Option<Kind> {
        Kind::of(self.0)
    }

    /// Which of the lease's uses.
    #[inline]
    pub(super) const fn sequence(self) -> u8 {
        (self.0 >> user_data::SEQUENCE_SHIFT) as u8
    }

    /// What [`Prepared::token`](super::Prepared::token) gave to the request, 0 if nothing did.
    #[inline]
    #[must_use]
    pub const fn token(self) -> u16 {
        (self.0 >> user_data::TOKEN_SHIFT) as u16
    }
}
