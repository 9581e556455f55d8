// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests that have been prepared and not pushed yet.

use std::fmt;
use std::{array, mem};

use io_uring::squeue::{Entry, Flags, SubmissionQueue};

use super::event::Event;
use super::ident::{LeaseId, UseId};
use super::table::{Core, MOST_LINKED, Unsent};
use crate::request::Sqe;

/// A request of the slots that has not been pushed yet.
///
/// Dropping it takes the request back: its slot is as if the request had been cancelled.
#[must_use = "a prepared request does nothing until it is pushed; dropping it takes it back"]
pub struct Prepared<'a> {
    core: &'a Core,
    request: Sqe,
    /// Taken back, it is still to be sent.
    again: bool,
}

impl<'a> Prepared<'a> {
    #[inline]
    pub(super) fn new(core: &'a Core, request: Sqe) -> Self {
        Self { core, request, again: false }
    }

    /// Attaches 16 bits of the caller's to the request; [`UseId::token`] gives them back.
    #[inline]
    pub fn token(mut self, token: u16) -> Self {
        self.request.user_data = self.id().with_token(token).user_data();
        self
    }

    /// Adds flags, for example to link the request to the next one.
    pub fn flags(mut self, flags: Flags) -> Self {
        self.request = self.request.flags(flags);
        self
    }

    /// Names the request.
    #[must_use]
    #[inline]
    pub fn id(&self) -> UseId {
        UseId::of(self.request.user_data)
    }

    /// The raw request, for a caller that has another way to push it. It counts as pushed: if it
    /// never is, its slot is not free again before the slots are gone.
    #[must_use]
    #[inline]
    pub fn into_entry(self) -> Entry {
        let entry = self.request.entry();
        mem::forget(self);
        entry
    }

    /// Pushes the request; gives it back if the queue is full.
    ///
    /// # Safety
    ///
    /// The queue must be that of the ring whose table holds these slots, its pool registered and
    /// the files that the request names valid until it has completed; and its completions, and no
    /// others in their place, must be given to [`Slots::complete`](super::Slots::complete), once
    /// each. The slots must not be dropped while requests of theirs are in flight.
    ///
    /// # Errors
    ///
    /// The request itself, if the queue is full.
    #[inline]
    pub unsafe fn push(self, queue: &mut SubmissionQueue<'_>) -> Result<UseId, Self> {
        // SAFETY: the caller's promise.
        if !unsafe { push(queue, &[self.request.entry()]) } {
            return Err(self);
        }
        let id = self.id();
        mem::forget(self);
        Ok(id)
    }
}

impl Drop for Prepared<'_> {
    #[inline]
    fn drop(&mut self) {
        self.core.retract(self.id(), self.again);
    }
}

impl fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.request).finish()
    }
}

/// The linked requests of a [`Chain`](super::chain::Chain) that have not been pushed yet. Dropping
/// them takes them back.
#[must_use = "a prepared chain does nothing until it is pushed; dropping it takes it back"]
pub struct PreparedChain<'a> {
    core: &'a Core,
    id: LeaseId,
    /// Taken back, it is still to be sent.
    again: bool,
}

impl<'a> PreparedChain<'a> {
    #[inline]
    pub(super) fn new(core: &'a Core, id: LeaseId) -> Self {
        Self { core, id, again: false }
    }

    /// How many requests it has.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a chain has at least two requests")]
    #[inline]
    pub fn len(&self) -> usize {
        self.core.linked(self.id, <[_]>::len)
    }

    /// The raw requests, in their order, for a caller that has another way to push them. They must
    /// be submitted together, and count as pushed: if they never are, their slot is not free again
    /// before the slots are gone.
    #[inline]
    pub fn into_entries(self) -> impl Iterator<Item = Entry> + use<> {
        let some = |entries: &[Entry]| array::from_fn(|place| entries.get(place).cloned());
        let entries: [_; MOST_LINKED] = self.core.linked(self.id, some);
        mem::forget(self);
        entries.into_iter().flatten()
    }

    /// Has the raw requests taken, all at once, in their order; see
    /// [`into_entries`](Self::into_entries).
    #[inline]
    pub fn with_entries<T>(self, take: impl FnOnce(&[Entry]) -> T) -> T {
        let taken = self.core.linked(self.id, take);
        mem::forget(self);
        taken
    }

    /// Pushes all the requests, or none.
    ///
    /// # Safety
    ///
    /// What [`Prepared::push`] asks for, of each of them.
    ///
    /// # Errors
    ///
    /// The chain itself, if the queue has no room for all of it.
    #[inline]
    pub unsafe fn push(self, queue: &mut SubmissionQueue<'_>) -> Result<(), Self> {
        // SAFETY: the caller's promise.
        if !self.core.linked(self.id, |entries| unsafe { push(queue, entries) }) {
            return Err(self);
        }
        mem::forget(self);
        Ok(())
    }
}

impl Drop for PreparedChain<'_> {
    #[inline]
    fn drop(&mut self) {
        self.core.retract_chain(self.id, self.again);
    }
}

impl fmt::Debug for PreparedChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PreparedChain").field(&self.id).finish()
    }
}

/// Pushes requests of slots, all or none; whether there was room.
///
/// # Safety
///
/// What [`Prepared::push`] asks for.
#[inline]
unsafe fn push(queue: &mut SubmissionQueue<'_>, entries: &[Entry]) -> bool {
    // SAFETY: what the requests name is valid until they complete: the pool and the ranges belong to
    // the slots, which outlive them, and the rest is this function's contract.
    unsafe { queue.push_multiple(entries) }.is_ok()
}

/// A slot that is emptied by an update of the ring's table, because the kernel has no request that
/// releases (the RFC's has not). Dropping it puts it back among what has to be done.
#[must_use = "the slot is not emptied yet"]
pub struct Clear<'a> {
    core: &'a Core,
    index: u16,
    /// The name that its release would have; `None`: it is no slot, but an entry that a provider's
    /// buffer has left.
    name: Option<UseId>,
}

impl<'a> Clear<'a> {
    pub(super) fn vacated(core: &'a Core, index: u16) -> Self {
        Self { core, index, name: None }
    }

    /// The index in the ring's table that has to be updated with a null vector.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Says that the update was made.
    pub fn done(self) -> Event {
        let event = match self.name {
            Some(name) => self.core.complete(name.user_data(), 0, 0),
            None => {
                self.core.entry_emptied(self.index, true);
                None
            }
        };
        mem::forget(self);
        event.unwrap_or(Event::Pending)
    }
}

impl Drop for Clear<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.name {
            Some(name) => self.core.retract(name, true),
            None => self.core.entry_emptied(self.index, false),
        }
    }
}

impl fmt::Debug for Clear<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clear").field(&self.index).finish()
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

impl<'a> Outgoing<'a> {
    pub(super) fn of(core: &'a Core, unsent: Unsent) -> Self {
        let again = true;
        match unsent {
            Unsent::Request(request) => Self::Request(Prepared { core, request, again }),
            Unsent::Chain(id) => Self::Chain(PreparedChain { core, id, again }),
            Unsent::Update(index, name) => Self::Clear(Clear { core, index, name: Some(name) }),
            Unsent::Vacated(index) => Self::Clear(Clear::vacated(core, index)),
        }
    }

    /// Pushes it.
    ///
    /// # Safety
    ///
    /// What [`Prepared::push`] asks for, of each request.
    ///
    /// # Errors
    ///
    /// Itself, if the queue is full or it is a [`Clear`]. Dropping it puts it back among what has
    /// to be sent.
    #[inline]
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
