// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests that have been prepared and not pushed yet.

use std::fmt;
use std::mem::{self, ManuallyDrop};

use io_uring::squeue::{Entry, Flags, SubmissionQueue};

use super::event::Event;
use super::ident::{UseId, user_data};
use super::slot::Slot;
use super::table::{Core, ReadyChain};
use crate::opcode::Sqe;

/// A request of the slots that has not been pushed yet.
///
/// Dropping it takes the request back: its slot is as if the request had been cancelled.
#[must_use = "a prepared request does nothing until it is pushed; dropping it takes it back"]
pub struct Prepared<'a> {
    sqe: Sqe,
    slot: &'a Slot,
    /// Taken back, it is still to be sent.
    requeue: bool,
}

impl<'a> Prepared<'a> {
    #[inline(always)]
    pub(super) fn new(sqe: Sqe, slot: &'a Slot, requeue: bool) -> Self {
        Self { sqe, slot, requeue }
    }

    /// Attaches 16 bits of the caller's to the request; [`UseId::token`] gives them back.
    #[inline]
    pub fn token(mut self, token: u16) -> Self {
        let before = self.sqe.user_data;
        let after = before & !user_data::TOKEN | u64::from(token) << user_data::TOKEN_SHIFT;
        self.sqe.user_data = after;
        self.slot.rename(before, after);
        self
    }

    /// Adds flags, for example to link the request to the next one.
    #[inline]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.sqe = self.sqe.flags(flags);
        self
    }

    /// Names the request.
    #[inline]
    #[must_use]
    pub fn id(&self) -> UseId {
        UseId::of(self.sqe.user_data)
    }

    /// The raw request, for a caller that has another way to push it. It counts as pushed: if it
    /// never is, its slot is not free again before the slots are gone.
    #[inline(always)]
    #[must_use]
    pub fn into_entry(self) -> Entry {
        let entry = self.sqe.entry();
        mem::forget(self);
        entry
    }

    /// Pushes the request; gives it back if the queue is full.
    ///
    /// # Safety
    ///
    /// The queue must be that of the ring whose table holds these slots, its pool registered and
    /// the files that the request names valid until it has completed; and its completions must be
    /// given to [`Slots::complete`](super::Slots::complete), once each. The slots must not be dropped while requests of
    /// theirs are in flight.
    ///
    /// # Errors
    ///
    /// The request itself, if the queue is full.
    #[inline(always)]
    pub unsafe fn push(self, queue: &mut SubmissionQueue<'_>) -> Result<UseId, Self> {
        // SAFETY: what the request names is valid until it completes: the pool and the ranges
        // belong to the slots, the rest is this function's contract.
        match unsafe { queue.push(&self.sqe.entry()) } {
            Ok(()) => {
                let id = self.id();
                mem::forget(self);
                Ok(id)
            }
            Err(_) => Err(self),
        }
    }
}

impl Drop for Prepared<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.retract(self.sqe.user_data, self.requeue);
    }
}

impl fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.sqe.entry()).finish()
    }
}

/// The linked requests of a [`Chain`](crate::chain::Chain) that have not been pushed yet. Dropping
/// them takes them back.
#[must_use = "a prepared chain does nothing until it is pushed; dropping it takes it back"]
pub struct PreparedChain<'a> {
    chain: ReadyChain<'a>,
    /// Taken back, it is still to be sent.
    requeue: bool,
}

impl<'a> PreparedChain<'a> {
    #[inline(always)]
    pub(super) fn new(chain: ReadyChain<'a>, requeue: bool) -> Self {
        Self { chain, requeue }
    }

    /// How many requests it has.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a chain has at least two requests")]
    pub fn len(&self) -> usize {
        self.chain.len()
    }

    /// The raw requests, in their order, for a caller that has another way to push them. They must
    /// be submitted together, and count as pushed: if they never are, their slot is not free again
    /// before the slots are gone. `for_each` costs less than a loop.
    #[inline]
    pub fn into_entries(self) -> impl Iterator<Item = Entry> {
        Entries { chain: ManuallyDrop::new(self), next: 0 }
    }

    /// The same, all of them at once.
    #[inline]
    pub fn with_entries<T>(self, take: impl FnOnce(&[Entry]) -> T) -> T {
        ManuallyDrop::new(self).chain.requests(take)
    }

    /// Pushes all the requests, or none.
    ///
    /// # Safety
    ///
    /// As [`Prepared::push`].
    ///
    /// # Errors
    ///
    /// The chain itself, if the queue has no room for all of it.
    #[inline]
    pub unsafe fn push(self, queue: &mut SubmissionQueue<'_>) -> Result<(), Self> {
        // SAFETY: as in `Prepared::push`.
        match self.chain.requests(|entries| unsafe { queue.push_multiple(entries) }) {
            Ok(()) => {
                mem::forget(self);
                Ok(())
            }
            Err(_) => Err(self),
        }
    }
}

struct Entries<'a> {
    chain: ManuallyDrop<PreparedChain<'a>>,
    next: usize,
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    #[inline]
    fn next(&mut self) -> Option<Entry> {
        let entry = self.chain.chain.request(self.next)?.entry();
        self.next += 1;
        Some(entry)
    }

    /// All in one go: each kind of chain has straight code then.
    #[inline]
    fn fold<B, F: FnMut(B, Entry) -> B>(self, init: B, take: F) -> B {
        let first = self.next;
        self.chain.chain.requests(|entries| entries[first..].iter().cloned().fold(init, take))
    }
}

impl Drop for PreparedChain<'_> {
    #[inline]
    fn drop(&mut self) {
        self.chain.slot.retract_chain(self.requeue);
    }
}

impl fmt::Debug for PreparedChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PreparedChain").field(&self.chain.slot.index).finish()
    }
}

/// A slot that is emptied by an update of the ring's table, because the kernel has no request that
/// releases (the RFC's has not). Dropping it puts it back among what has to be done.
#[must_use = "the slot is not emptied yet"]
#[derive(Debug)]
pub struct Clear<'a> {
    index: u16,
    of: Cleared<'a>,
}

/// What is there.
enum Cleared<'a> {
    /// A lease's buffer; the `user_data` that its release would have.
    Slot(&'a Slot, u64),
    /// A provider's memory, in no slot.
    Entry(&'a Core),
}

impl fmt::Debug for Cleared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slot(..) => "Slot",
            Self::Entry(_) => "Entry",
        })
    }
}

impl<'a> Clear<'a> {
    pub(super) fn new(slot: &'a Slot, index: u16, user_data: u64) -> Self {
        Self { index, of: Cleared::Slot(slot, user_data) }
    }

    pub(super) fn entry(core: &'a Core, index: u16) -> Self {
        Self { index, of: Cleared::Entry(core) }
    }

    /// The index in the ring's table that has to be updated with a null vector.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Says that the update was made.
    pub fn done(self) -> Event {
        let event = match self.of {
            Cleared::Slot(slot, user_data) => {
                let event = slot.told(user_data, 0, 0, &());
                event.expect("the slots know their own names")
            }
            Cleared::Entry(core) => {
                core.entry_cleared(self.index);
                Event::Pending
            }
        };
        mem::forget(self);
        event
    }
}

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        match self.of {
            Cleared::Slot(slot, user_data) => slot.retract(user_data, true),
            Cleared::Entry(core) => core.entry_not_cleared(self.index),
        }
    }
}

/// What the slots need sent.
#[derive(Debug)]
#[must_use]
pub enum Outgoing<'a> {
    /// One request.
    Request(Prepared<'a>),
    /// The requests of a chain.
    Chain(PreparedChain<'a>),
    /// No request, but an update of the ring's table.
    Clear(Clear<'a>),
}

impl Outgoing<'_> {
    /// Pushes it.
    ///
    /// # Safety
    ///
    /// As [`Prepared::push`].
    ///
    /// # Errors
    ///
    /// Itself, if the queue is full or it is a [`Clear`]. Dropping it puts it back among what has
    /// to be sent.
    pub unsafe fn push(self, queue: &mut SubmissionQueue<'_>) -> Result<(), Self> {
        match self {
            // SAFETY: the caller's promise.
            Self::Request(request) => match unsafe { request.push(queue) } {
                Ok(_) => Ok(()),
                Err(request) => Err(Self::Request(request)),
            },
            // SAFETY: the caller's promise.
            Self::Chain(chain) => unsafe { chain.push(queue) }.map_err(Self::Chain),
            Self::Clear(clear) => Err(Self::Clear(clear)),
        }
    }
}
