// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot table: which slot is in which state, what has to be sent, what a completion means.
//!
//! It makes no system call and holds no ring. It *hands out* requests ([`Prepared`]) and *is told*
//! completions ([`Slots::complete`]), so that the safe [`Ring`](crate::ring::Ring), a foreign event
//! loop and the C library all drive the same code.
//!
//! # The life of a slot
//!
//! ```text
//!                fetch()             completion, n bytes          lease let go
//!      free ---------------> fetching ------------------> full ----------------> emptying
//!        ^                      |                                                   |
//!        |                      | error, or nothing there (end of file)             |
//!        +----------------------+<--------------------------------------------------+
//!                                      release done, every use done
//! ```
//!
//! A slot is free again only when no [`Lease`] names it, the kernel holds no buffer in it, and every
//! request that named it has had its last completion. Whatever happens in between ends there: a lease
//! dropped before its fetch is done, a request that was never pushed, a release while consumers run.
//! `machine.rs` has the whole life, and the one function that makes each of its steps.
//!
//! # Sharing a ring
//!
//! Every request of the slots carries a `user_data` whose top byte is the *tag* (0xB5 unless the
//! builder was told otherwise). Pointers and small numbers have 0 there, so other requests on the
//! same ring are told apart by [`Slots::claims`].

pub mod chain;
pub mod consume;
mod event;
mod ident;
pub mod lease;
mod machine;
mod plan;
mod prepared;
mod table;

use std::io;
use std::mem;
use std::rc::Rc;

use chain::Chain;
use lease::{Fetched, Installed, Lease, State};
use table::Core;

use crate::engine::copy::{Copying, Pool};
use crate::engine::provided::Provided;
use crate::engine::{Engine, Found, Room, Source, Traits};
use crate::error::{Error, ErrorKind, Result};
use crate::probe::{Features, Support};
use crate::provider::{Provider, Region};
use crate::request::Target;

pub use event::{Event, Stats};
pub use ident::{LeaseId, UseId};
pub use plan::Plan;
pub use prepared::{Clear, Outgoing, Prepared, PreparedChain};

pub(crate) use ident::{driver_request, driver_user_data};
pub(crate) use table::MOST_LINKED;

/// Most slots that a table can have (`IORING_MAX_REG_BUFFERS`).
pub const MAX_SLOTS: u16 = 1 << 14;

/// The tag of requests where the builder was given none.
pub const DEFAULT_TAG: u8 = 0xb5;

/// The slot table of one ring. See the [module](self).
#[derive(Debug)]
pub struct Slots {
    core: Rc<Core>,
}

/// An engine that has slots of its own in the ring's table.
#[derive(Debug)]
struct Lending {
    engine: Engine,
    found: Found,
    device: Option<Target>,
    first: u16,
    count: u16,
}

/// Makes [`Slots`]. A [`Plan`] makes them, too, and divides the ring's table.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    lending: Option<Lending>,
    hand_over: bool,
    pool: Option<(Pool, u16)>,
    regions: Option<(u16, u16)>,
    features: Features,
    tag: u8,
}

impl Builder {
    /// Gives the copy engine a pool, registered at `index` of the ring's table.
    pub fn pool(mut self, pool: Pool, index: u16) -> Self {
        self.pool = Some((pool, index));
        self
    }

    /// Reserves `count` slots from `first` of the ring's table for leases of kernel memory, through
    /// the requests with these opcodes. Without `PUT_BUF` slots are emptied by updates of the table,
    /// see [`Outgoing::Clear`].
    pub fn opcode(self, get_buf: u8, put_buf: Option<u8>, first: u16, count: u16) -> Self {
        let found = Found { opcodes: Some((get_buf, put_buf)), links: self.features.linked_fetch };
        self.lending(Engine::Opcode, found, None, first, count)
    }

    /// Reserves `count` slots from `first` of the ring's table for leases of kernel memory, through
    /// `/dev/getbuf`, which `device` names.
    pub fn module(self, device: impl Into<Target>, first: u16, count: u16) -> Self {
        let device = Some(device.into());
        self.lending(Engine::Module, Found::default(), device, first, count)
    }

    /// Whether the fetch of a [`Chain`] hands its buffer to the consumer, which saves the request that
    /// releases ([`GetBuf::linked`](crate::request::GetBuf::linked)). Only with
    /// [`opcode`](Self::opcode). Default: where the kernel can.
    pub fn hand_over(mut self, yes: bool) -> Self {
        self.hand_over = yes;
        self
    }

    fn lending(
        mut self,
        engine: Engine,
        found: Found,
        device: Option<Target>,
        first: u16,
        count: u16,
    ) -> Self {
        self.lending = Some(Lending { engine, found, device, first, count });
        self
    }

    /// Reserves `count` entries of the ring's table, from `first` on, for memory of
    /// [providers](crate::provider).
    pub fn regions(mut self, first: u16, count: u16) -> Self {
        self.regions = Some((first, count));
        self
    }

    /// Sets the top byte of every `user_data`. It must differ from that of all other requests on the
    /// ring. Default [`DEFAULT_TAG`].
    pub fn tag(mut self, tag: u8) -> Self {
        self.tag = tag;
        self
    }

    /// Makes the slots.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput): neither pool nor lender, more slots than a table
    /// can have, places beyond the end of a table, or a pool with fewer blocks than there are slots.
    pub fn build(self) -> Result<Slots> {
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        let blocks = self.pool.as_ref().map(|(pool, _)| pool.blocks());
        let count = match (&self.lending, blocks) {
            (None, None) => {
                return invalid("slots need a pool or an engine that lends memory".into());
            }
            (Some(Lending { count, .. }), Some(blocks)) if blocks < *count => {
                return invalid(format!(
                    "a pool of {blocks} blocks cannot stand in for {count} slots"
                ));
            }
            (Some(Lending { count, .. }), _) => *count,
            (None, Some(blocks)) => blocks,
        };
        if count == 0 || count > MAX_SLOTS {
            return invalid(format!("{count} slots: there can be 1 to {MAX_SLOTS}"));
        }
        let places = self.lending.iter().map(|lending| (lending.first, count));
        for (first, count) in places.chain(self.regions) {
            if first.checked_add(count).is_none() {
                return invalid(format!(
                    "{count} places from {first} of the ring's table: it has at most {}",
                    u16::MAX
                ));
            }
        }
        let mut rooms: Vec<Box<dyn Room>> = Vec::new();
        if let Some(Lending { engine, found, device, first, .. }) = self.lending {
            let found = Found { links: self.hand_over && found.opcodes.is_some(), ..found };
            rooms.extend(engine.room(found, device, first));
        }
        let mut max_fetch = i32::MAX as u32;
        if let Some((pool, index)) = self.pool {
            max_fetch = pool.block_size();
            rooms.push(Box::new(Copying { pool, index }));
        }
        let provided = self.regions.map(|(first, regions)| Provided::new(count, first, regions));
        let core = Core::new(count, rooms, provided, max_fetch, self.features, self.tag);
        Ok(Slots { core })
    }
}

impl Slots {
    /// Starts with what the running kernel can do.
    pub fn builder(support: &Support) -> Builder {
        let features = support.features();
        Builder {
            lending: None,
            hand_over: features.linked_fetch,
            pool: None,
            regions: None,
            features,
            tag: DEFAULT_TAG,
        }
    }

    /// Reserves a slot and prepares the fetch of `len` bytes at `offset` of `source`
    /// ([`STREAM`](crate::STREAM): where a stream stands) into it.
    ///
    /// `source` must stay what it is until the fetch has completed.
    ///
    /// # Errors
    ///
    /// [`NoSlot`](ErrorKind::NoSlot); [`InvalidInput`](ErrorKind::InvalidInput) if `len` is 0, or
    /// more than a block of the pool where the pool may have to serve it;
    /// [`Unavailable`](ErrorKind::Unavailable) if the source cannot lend its memory and there is no
    /// pool.
    #[inline]
    pub fn fetch(
        &self,
        source: impl Into<Source>,
        offset: u64,
        len: u32,
    ) -> Result<(Lease<Fetched>, Prepared<'_>)> {
        let (id, request) = self.core.fetch(source.into(), offset, len)?;
        Ok((Lease::fetched(&self.core, id), Prepared::new(&self.core, request)))
    }

    /// Reserves a slot and prepares a whole [`Chain`]: fetch, consume and release as linked
    /// requests with one completion.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch); [`Unavailable`](ErrorKind::Unavailable) if the kernel does
    /// not have the consumer.
    #[inline]
    pub fn chain(&self, chain: Chain) -> Result<(LeaseId, PreparedChain<'_>)> {
        let id = self.core.chain(chain)?;
        Ok((id, PreparedChain::new(&self.core, id)))
    }

    /// How many requests a [`Chain`] will be: what [`PreparedChain::len`] says of it, without a slot.
    #[must_use]
    pub fn chain_len(&self, chain: &Chain) -> usize {
        self.core.chain_len(chain)
    }

    /// Whether a completion with this `user_data` is for [`complete`](Self::complete).
    #[must_use]
    #[inline]
    pub fn claims(&self, user_data: u64) -> bool {
        self.core.claims(user_data)
    }

    /// Takes a completion and says what it meant; `None` if it is not ours.
    ///
    /// `result` and `flags` are `cqe->res` and `cqe->flags`. Whoever [pushes](Prepared::push) requests
    /// promises to give their completions here, once each, and none that the kernel has not posted. A
    /// completion that was made up can make a lease look installed, or a slot free, before it is; it
    /// never makes this crate touch memory that is not its own.
    #[inline]
    pub fn complete(&self, user_data: u64, result: i32, flags: u32) -> Option<Event> {
        self.core.complete(user_data, result, flags)
    }

    /// The next request that the slots themselves need sent: the release of a lease that was let
    /// go, or a fetch that has to go through the pool after all. Push them before every submit.
    #[inline]
    pub fn next_request(&self) -> Option<Outgoing<'_>> {
        self.core.next_unsent().map(|unsent| Outgoing::of(&self.core, unsent))
    }

    /// Whether [`next_request`](Self::next_request) has something.
    #[must_use]
    #[inline]
    pub fn has_requests(&self) -> bool {
        self.core.has_requests()
    }

    /// Makes a region known. `register` registers the memory that it is given (base and length in
    /// bytes) under this index of the ring's table.
    ///
    /// # Errors
    ///
    /// [`NoRegion`](ErrorKind::NoRegion), [`MemoryLimit`](ErrorKind::MemoryLimit) where `register`
    /// fails for want of memory, and [`Ring`](ErrorKind::Ring) where it fails otherwise.
    pub fn add_region(
        &self,
        region: &Region,
        register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<()> {
        self.core.provided()?.add_region(region, register)
    }

    /// The next entry of the ring's table that a released lease of a provider has left, and that can
    /// serve another one when it is emptied. [`next_request`](Self::next_request) tells of them,
    /// too.
    pub fn next_vacated(&self) -> Option<Clear<'_>> {
        self.core.next_vacated().map(|entry| Clear::vacated(&self.core, entry))
    }

    /// Asks a [provider](Provider) for up to `len` bytes at `offset`. The lease can be used at once;
    /// `None`: the provider has nothing there. `nowait`: it must not wait.
    ///
    /// `register` is called for memory that is in no region: it registers that (base and length in
    /// bytes) under this index of the ring's table. The entry is emptied later, see
    /// [`Outgoing::Clear`].
    ///
    /// # Errors
    ///
    /// [`NoSlot`](ErrorKind::NoSlot), [`NoRegion`](ErrorKind::NoRegion),
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `len` is 0, [`Source`](ErrorKind::Source) with
    /// the provider's own error, [`Provider`](ErrorKind::Provider) if its answer contradicts
    /// itself, and those of [`add_region`](Self::add_region).
    pub fn fetch_provided(
        &self,
        provider: &Rc<dyn Provider>,
        offset: u64,
        len: u32,
        nowait: bool,
        register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Option<Lease<Installed>>> {
        let id = self.core.provide(provider, (offset, len), nowait, register)?;
        Ok(id.map(|id| Lease::filled(&self.core, id)))
    }

    /// How many slots there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.core.capacity()
    }

    /// How many of them are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.core.free()
    }

    /// The engine that serves a fetch unless its source cannot lend its memory.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.core.first().origin().engine().unwrap_or(Engine::Copy)
    }

    /// What leases of that engine are like.
    pub(crate) fn traits(&self) -> Traits {
        self.core.first().traits()
    }

    /// Most bytes that one fetch may ask for.
    #[must_use]
    pub fn max_fetch(&self) -> u32 {
        self.core.max_fetch()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Whether the lease comes from these slots.
    #[must_use]
    #[inline]
    pub fn owns<S: State>(&self, lease: &Lease<S>) -> bool {
        lease.is_of(&self.core)
    }

    /// Requests that have not had their last completion. While there are any, the slots must not
    /// be dropped.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.core.in_flight()
    }

    /// Keeps the pool for ever: for a ring that goes while requests may still read it.
    pub(crate) fn leak(&self) {
        mem::forget(Rc::clone(&self.core));
    }

    /// Whether a slot is on its way to be emptied, or to be filled once more.
    pub(crate) fn is_emptying(&self) -> bool {
        self.core.is_emptying()
    }

    /// How many requests use a lease that somebody may have let go.
    pub(crate) fn uses(&self, lease: LeaseId) -> u32 {
        self.core.uses(lease)
    }

    /// Whether the kernel lends, or is asked to lend, what the slot of a lease is to hold.
    pub(crate) fn is_lent(&self, lease: LeaseId) -> bool {
        self.core.is_lent(lease)
    }

    pub(crate) fn tag(&self) -> u8 {
        self.core.tag()
    }
}

#[cfg(test)]
mod tests;
