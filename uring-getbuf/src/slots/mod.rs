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
//!      free ---------------> fetching ------------------> ready ---------------> emptying
//!        ^                      |                                                   |
//!        |                      | error, or nothing there (end of file)             |
//!        +----------------------+<--------------------------------------------------+
//!                                      release done, every use done
//! ```
//!
//! A slot is free again only when no [`Lease`] names it, the kernel holds no
//! buffer in it, and every request that named it has had its last completion. Whatever happens in
//! between - a lease dropped before its fetch is done, a request that was never pushed, a release
//! while consumers run - ends there; see `Slot::settle` in `slot.rs`, the only way back to the free list.
//!
//! # Sharing a ring
//!
//! Every request of the slots carries a `user_data` whose top byte is the *tag* (0xB5 unless the
//! builder was told otherwise). Pointers and small numbers have 0 there, so other requests on the
//! same ring are told apart by [`Slots::claims`].

mod complete;
mod event;
mod ident;
mod prepared;
mod provided;
mod slot;
mod table;
mod uses;
mod values;

use std::rc::Rc;
use std::{io, mem};

use io_uring::squeue::Entry;

use crate::chain::Chain;
use crate::engine::{Engine, Lender, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Fetched, Installed, Lease, State};
use crate::opcode::{Sqe, Target};
use crate::pool::Pool;
use crate::probe::{Features, Support};
use crate::provider::{Provider, Region};

pub use event::{Event, Stats};
pub use ident::{LeaseId, UseId};
pub use prepared::{Clear, Outgoing, Prepared, PreparedChain};

pub(crate) use ident::{driver_request, driver_user_data, fetch_user_data};
pub(crate) use slot::Slot;
pub(crate) use table::{Core, Driver};
use table::{Lending, Table};
#[doc(hidden)]
pub use values::{Found, Miss, Values};

/// Most slots that a table can have (`IORING_MAX_REG_BUFFERS`).
pub const MAX_SLOTS: u16 = 1 << 14;

/// The tag of requests where the builder was given none.
pub const DEFAULT_TAG: u8 = 0xb5;

/// The slot table of one ring. See the [module](self).
#[derive(Debug)]
pub struct Slots {
    table: Table,
}

/// Makes [`Slots`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    lending: Option<(Lending, u16)>,
    replace: bool,
    pool: Option<(Pool, u16)>,
    regions: Option<(u16, u16)>,
    features: Features,
    tag: u8,
}

impl Builder {
    /// A pool for the copy engine, registered at `index` of the ring's table.
    pub fn pool(mut self, pool: Pool, index: u16) -> Self {
        self.pool = Some((pool, index));
        self
    }

    /// `count` slots from `first` of the ring's table for leases of kernel memory through the
    /// requests with these opcodes. Without `PUT_BUF` slots are emptied by updates of the table,
    /// see [`Outgoing::Clear`].
    pub fn opcode(self, get_buf: u8, put_buf: Option<u8>, first: u16, count: u16) -> Self {
        self.lending(Lender::Opcode { get_buf, put_buf }, first, count)
    }

    /// The same through `/dev/getbuf`, which `device` names.
    pub fn module(self, device: impl Into<Target>, first: u16, count: u16) -> Self {
        self.lending(Lender::Module { device: device.into() }, first, count)
    }

    /// Does not empty a slot of kernel memory when its lease is released: the next fetch into it
    /// replaces what is there (`IORING_GET_BUF_REPLACE`), which saves a request for each lease.
    /// The price: what the last leases held stays pinned, and its file busy, until slots are used
    /// again, [trimmed](Slots::trim), or the ring is closed.
    pub fn replace(mut self, yes: bool) -> Self {
        self.replace = yes;
        self
    }

    /// Whether the fetch of a [`Chain`] hands its buffer to the consumer, which saves the request that
    /// releases ([`GetBuf::linked`](crate::opcode::GetBuf::linked)). Only with
    /// [`opcode`](Self::opcode), and not with [`replace`](Self::replace). Default: where the kernel can.
    pub fn hand_over(mut self, yes: bool) -> Self {
        self.features.linked_fetch = yes;
        self
    }

    fn lending(mut self, lender: Lender, first: u16, count: u16) -> Self {
        self.lending = Some((Lending::new(lender, first), count));
        self
    }

    /// `count` entries of the ring's table, from `first` on, for memory of [providers](crate::provider).
    pub fn regions(mut self, first: u16, count: u16) -> Self {
        self.regions = Some((first, count));
        self
    }

    /// The top byte of every `user_data`. It must differ from that of all other requests on the
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
    /// can have, or a pool with fewer blocks than there are slots.
    pub fn build(self) -> Result<Slots> {
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        let blocks = self.pool.as_ref().map(|(pool, _)| pool.blocks());
        let count = match (self.lending, blocks) {
            (None, None) => {
                return invalid("slots need a pool or an engine that lends memory".into());
            }
            (None, Some(blocks)) => blocks,
            (Some((_, count)), Some(blocks)) if blocks < count => {
                return invalid(format!(
                    "a pool of {blocks} blocks cannot stand in for {count} slots"
                ));
            }
            (Some((_, count)), _) => count,
        };
        if count == 0 || count > MAX_SLOTS {
            return invalid(format!("{count} slots: there can be 1 to {MAX_SLOTS}"));
        }
        let lending = self
            .lending
            .map(|(lending, _)| lending.ending(self.replace, self.features.linked_fetch));
        let table = Table::new(count, lending, self.pool, self.regions, self.features, self.tag);
        Ok(Slots { table })
    }
}

impl Slots {
    /// Starts with what the running kernel can do.
    pub fn builder(support: &Support) -> Builder {
        Builder {
            lending: None,
            replace: false,
            pool: None,
            regions: None,
            features: support.features(),
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
    /// more than a block of the pool where the pool may have to serve it.
    #[inline(always)]
    pub fn fetch(
        &self,
        source: impl Into<Source>,
        offset: u64,
        len: u32,
    ) -> Result<(Lease<Fetched>, Prepared<'_>)> {
        let (held, slot, request) = self.table.fetch(source.into(), offset, len)?;
        Ok((Lease::new(held), slot.prepare(request)))
    }

    /// As [`fetch`](Self::fetch), and pushes the request. The driver is given `note` back when the
    /// fetch has ended.
    #[inline(always)]
    pub(crate) fn start_fetch(
        &self,
        source: impl Fn() -> Source,
        bytes: (u64, u32),
        note: u32,
        push: impl FnOnce(Sqe),
    ) -> Result<Lease<Fetched>> {
        Ok(Lease::new(self.table.start_fetch(source, bytes, note, push)?))
    }

    /// As [`fetch`](Self::fetch), for a driver that has made sure that it can push the request. It
    /// is given `note` back when the fetch has ended.
    #[inline(always)]
    pub(crate) fn fetch_entry(
        &self,
        source: Source,
        offset: u64,
        len: u32,
        note: u32,
    ) -> Result<(Lease<Fetched>, Sqe)> {
        let (held, slot, request) = self.table.fetch(source, offset, len)?;
        slot.note.set(note);
        Ok((Lease::new(held), request))
    }

    /// Reserves a slot and prepares a whole [`Chain`]: fetch, consume and release as linked
    /// requests with one completion.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Self::fetch); [`Unavailable`](ErrorKind::Unavailable) if the kernel does not
    /// have the consumer.
    #[inline(always)]
    pub fn chain(&self, chain: Chain) -> Result<(LeaseId, PreparedChain<'_>)> {
        let chain = self.table.chain(chain, 0)?;
        Ok((chain.slot.id(), PreparedChain::new(chain, false)))
    }

    /// How many requests a [`Chain`] from this source will be: what [`PreparedChain::len`] says of
    /// it, without a chain.
    #[inline]
    #[must_use]
    pub fn chain_len(&self, source: impl Into<Source>) -> usize {
        self.table.chain_len_from(source.into())
    }

    /// Whether a completion with this `user_data` is for [`complete`](Self::complete).
    #[inline]
    #[must_use]
    pub fn claims(&self, user_data: u64) -> bool {
        self.table.claims(user_data)
    }

    /// Takes a completion and says what it meant; `None` if it is not ours.
    ///
    /// `result` and `flags` are `cqe->res` and `cqe->flags`.
    #[inline(always)]
    pub fn complete(&self, user_data: u64, result: i32, flags: u32) -> Option<Event> {
        self.complete_for(user_data, result, flags, &())
    }

    /// The same for a driver of its own.
    #[inline(always)]
    pub(crate) fn complete_for(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        self.table.complete(user_data, result, flags, driver)
    }

    /// The same for what was awaited and has gone as asked. `None`: nothing has happened, and it is for
    /// [`complete_for`](Self::complete_for).
    #[inline(always)]
    pub(crate) fn complete_as_asked(&self, user_data: u64, result: i32) -> Option<Event> {
        self.table.named(user_data)?.as_asked(user_data, result)
    }

    /// Reserves a slot and pushes a whole chain. `push` is given two or three requests.
    #[inline(always)]
    pub(crate) fn start_chain(
        &self,
        chain: Chain,
        note: u32,
        push: impl FnOnce(&[Entry]),
    ) -> Result<LeaseId> {
        let chain = self.table.chain(chain, note)?;
        chain.requests(push);
        Ok(chain.slot.id())
    }

    /// Has the driver told when fetches and chains end whose notes `counts` counts, and uses with this
    /// token; the sum.
    pub(crate) fn watch(&self, counts: impl Fn(u32) -> u32, token: u16) -> u32 {
        self.table.watch(counts, token)
    }

    /// The next request that the slots themselves need sent: the release of a lease that was let
    /// go, or a fetch that has to go through the pool after all. Push them before every submit.
    #[inline(always)]
    pub fn next_request(&self) -> Option<Outgoing<'_>> {
        self.table.next_request()
    }

    /// Whether [`next_request`](Self::next_request) has something.
    #[inline]
    #[must_use]
    pub fn has_requests(&self) -> bool {
        self.table.has_requests()
    }

    /// Has what replaced slots still hold released; see [`Builder::replace`].
    pub fn trim(&self) {
        self.table.trim();
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
        register: impl FnOnce(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<()> {
        let provided = self.table.provided()?;
        let entry = provided.take_entry()?;
        match register(entry, region.base(), region.len()) {
            Ok(()) => provided.add_region(region, entry),
            Err(error) => {
                provided.return_entry(entry);
                return Err(provided::refused(&error, region.len()));
            }
        }
        Ok(())
    }

    /// The next entry of the ring's table that a released lease of a provider has left, and that can
    /// serve another one when it is emptied. [`next_request`](Self::next_request) tells of them,
    /// too.
    pub fn next_vacated(&self) -> Option<Clear<'_>> {
        self.table.next_vacated()
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
        let slot = self.table.provide(provider, (offset, len), nowait, register)?;
        Ok(slot.map(Lease::provided))
    }

    /// The same slots for the C library, which has values instead of leases.
    #[doc(hidden)]
    #[inline(always)]
    pub fn values(&self) -> Values<'_> {
        Values(&self.table)
    }

    /// How many slots there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// How many of them are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.table.free()
    }

    /// The engine that serves a fetch unless its source cannot lend its memory.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.table.engine()
    }

    /// Most bytes that one fetch may ask for.
    #[must_use]
    pub fn max_fetch(&self) -> u32 {
        self.table.max_fetch()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.table.stats()
    }

    /// Whether the lease comes from these slots.
    #[inline(always)]
    pub(crate) fn owns<S: State>(&self, lease: &Lease<S>) -> bool {
        lease.is_of(self.table.core())
    }

    /// Keeps the pool for ever: for a ring that goes while requests may still read it.
    pub(crate) fn leak(&self) {
        mem::forget(Rc::clone(self.table.core()));
    }

    /// Requests that have not had their last completion. While there are any, the slots must not
    /// be dropped.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.table.in_flight()
    }

    /// Whether a slot is on its way to be emptied, or to be filled once more.
    pub(crate) fn is_emptying(&self) -> bool {
        self.table.is_emptying()
    }

    /// Has a fetch that is being cancelled not repeated through the pool.
    pub(crate) fn cancel_fallback(&self, lease: &Lease<Fetched>) {
        self.table.slot(lease.id().slot()).cancel_fallback();
    }

    /// How many requests use a lease that somebody may have let go.
    pub(crate) fn uses(&self, lease: LeaseId) -> u32 {
        let slot = self.table.slot(lease.slot());
        if slot.is_over(lease) { 0 } else { slot.uses() }
    }

    /// Whether the kernel lends, or is asked to lend, what the slot of a lease is to hold.
    pub(crate) fn is_lent(&self, lease: LeaseId) -> bool {
        self.table.slot(lease.slot()).engine().lends()
    }

    pub(crate) fn tag(&self) -> u8 {
        self.table.tag()
    }
}
