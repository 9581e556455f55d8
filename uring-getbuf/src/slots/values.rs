// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases as values, for whom types can promise nothing: the C library.
//!
//! What a [`Lease`](crate::Lease) promises by being owned is looked up here in the slot that the
//! value names. A value has the number of its slot in its lowest 14 bits, then 24 bits that tell
//! tables apart, and above them a count of the slot's lives. It is compared as a whole.
//!
//! What is named `..._plainly` is the usual case in straight code, and does nothing at all where it
//! is another one: the function without that word handles, or explains, every case.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::{fmt, io};

use io_uring::squeue::Entry;

use super::event::Event;
use super::ident::user_data;
use super::slot::{Slot, state};
use super::table::{CHAIN, FETCH, Lending, ReadyChain, Table};
use crate::chain::Chain;
use crate::consume::{Consumer, Piece};
use crate::engine::{Ending, Engine, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::opcode::{Sqe, Target};
use crate::provider::Provider;

const SLOT: u64 = (1 << SERIAL_SHIFT) - 1;
const SERIAL_SHIFT: u32 = 14;
/// One more life.
const LIFE: u64 = 1 << 38;

/// Why a value names no lease that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It is zero, or that of a chain.
    Invalid,
    /// It comes from other slots.
    WrongSlots,
    /// The lease is over.
    Over,
    /// Its fetch is not done.
    Pending,
}

/// Slots whose leases are values.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a>(pub(super) &'a Table);

impl<'a> Values<'a> {
    /// Gives the table its number, 1 to 2^24 - 1.
    pub fn number(self, serial: u32) {
        for slot in &self.0.slots {
            slot.value.set(u64::from(serial) << SERIAL_SHIFT | u64::from(slot.index));
        }
    }

    /// As [`Slots::fetch`](super::Slots::fetch). The value.
    ///
    /// # Errors
    ///
    /// Those of `Slots::fetch`.
    pub fn fetch(
        self,
        sqe: &mut MaybeUninit<Entry>,
        (source, offset, len): (Source, u64, u32),
        data: *mut c_void,
    ) -> Result<u64> {
        let (_, slot, request) = self.0.fetch(source, offset, len)?;
        sqe.write(request.entry());
        Ok(slot.begin_value(data))
    }

    /// The same where nothing is to be said of the source but which file it is.
    #[inline(always)]
    pub fn fetch_plainly(
        self,
        sqe: &mut MaybeUninit<Entry>,
        (source, offset, len): (Target, u64, u32),
        data: *mut c_void,
    ) -> Option<u64> {
        // Each case has its own straight code.
        match self.lends(source)? {
            None => self.fetch_by(None, sqe, (source.into(), offset, len), data),
            lending => self.fetch_by(lending, sqe, (source.into(), offset, len), data),
        }
    }

    /// The same for many fetches, each of them `step` behind the one before it. How many of them were
    /// started; `started` is given the value of each.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    #[inline]
    pub unsafe fn fetches_plainly(
        self,
        sqes: &[NonNull<Entry>],
        (source, offset, len): (Target, u64, u32),
        step: u64,
        data: *mut c_void,
        mut started: impl FnMut(u64),
    ) -> u64 {
        let (mut count, mut at) = (0, offset);
        let mut fetch = |lending, sqe: NonNull<Entry>| {
            // SAFETY: the caller's promise.
            let sqe = unsafe { sqe.cast().as_mut() };
            let value = self.fetch_by(lending, sqe, (source.into(), at, len), data)?;
            started(value);
            count += 1;
            at = at.wrapping_add(step);
            Some(())
        };
        let mut sqes = sqes.iter().copied();
        match self.lends(source) {
            None => None,
            Some(None) => sqes.try_for_each(|sqe| fetch(None, sqe)),
            Some(lending) => sqes.try_for_each(|sqe| fetch(lending, sqe)),
        };
        count
    }

    #[inline(always)]
    fn fetch_by(
        self,
        lending: Option<&Lending>,
        sqe: &mut MaybeUninit<Entry>,
        (source, offset, len): (Source, u64, u32),
        data: *mut c_void,
    ) -> Option<u64> {
        let slot = self.next(len)?;
        self.0.take(slot, len);
        slot.begin_state(FETCH, lending);
        if lending.is_some() {
            slot.source.set((source, offset));
        }
        sqe.write(self.0.fetch_request(slot, lending, (source, offset, len)).entry());
        Some(slot.begin_value(data))
    }

    /// As [`Slots::chain`](super::Slots::chain). The value; `None` where `sqes` are not as many as
    /// the chain has requests.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    ///
    /// # Errors
    ///
    /// Those of `Slots::chain`.
    pub unsafe fn chain(
        self,
        sqes: &[Option<NonNull<Entry>>],
        chain: Chain,
        data: *mut c_void,
    ) -> Result<Option<u64>> {
        let len = self.0.chain_len_from(chain.source);
        if sqes.len() != len || !sqes.iter().all(Option::is_some) {
            return Ok(None);
        }
        let chain = self.0.chain(chain, 0)?;
        chain.requests(|entries| {
            for (sqe, entry) in sqes.iter().flatten().zip(entries) {
                // SAFETY: the caller's promise.
                unsafe { sqe.write(entry.clone()) };
            }
        });
        Ok(Some(chain.slot.begin_value(data)))
    }

    /// The same where nothing is to be said of the source but which file it is. `wanted` gives the
    /// chain once it is clear that it will be, and `data` comes last.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    #[inline(always)]
    pub unsafe fn chain_plainly(
        self,
        sqes: &[Option<NonNull<Entry>>],
        (source, len): (Target, u32),
        wanted: impl Fn() -> Chain,
        data: impl Fn() -> *mut c_void,
    ) -> Option<u64> {
        let some = |sqe: &Option<NonNull<Entry>>| *sqe;
        // Each case has its own straight code.
        match self.lends(source)? {
            // SAFETY: the caller's promise.
            None => unsafe { self.chain_by(None, (sqes, some), len, wanted, data) },
            // SAFETY: the caller's promise.
            lending => unsafe { self.chain_by(lending, (sqes, some), len, wanted, data) },
        }
    }

    /// The same for chains of `of_one` requests, one behind the other. How many of them were
    /// started; `started` is given the value of each.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    pub unsafe fn chains_plainly(
        self,
        (sqes, of_one): (&[NonNull<Entry>], usize),
        (source, len): (Target, u32),
        wanted: impl Fn(u64) -> Chain,
        data: *mut c_void,
        mut started: impl FnMut(u64),
    ) -> u64 {
        let mut count = 0;
        let some = |sqe: &NonNull<_>| Some(*sqe);
        match self.lends(source) {
            None => {}
            Some(None) => {
                for sqes in sqes.chunks_exact(of_one) {
                    let wanted = || wanted(count);
                    // SAFETY: the caller's promise.
                    let value = unsafe { self.chain_by(None, (sqes, some), len, wanted, || data) };
                    let Some(value) = value else { break };
                    started(value);
                    count += 1;
                }
            }
            // SAFETY: the caller's promise.
            Some(Some(by)) => unsafe {
                count = self.chains_lent(by, sqes.chunks_exact(of_one), wanted, data, started);
            },
        }
        count
    }

    /// The same for a lender, in code of its own.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    #[inline(never)]
    unsafe fn chains_lent<'q>(
        self,
        lending: &'a Lending,
        mut sqes: impl Iterator<Item = &'q [NonNull<Entry>]>,
        wanted: impl Fn(u64) -> Chain,
        data: *mut c_void,
        mut started: impl FnMut(u64),
    ) -> u64 {
        let mut one = |sqes: &[NonNull<Entry>], count| {
            let (some, wanted) = (|sqe: &NonNull<_>| Some(*sqe), || wanted(count));
            let (by, len) = (Some(lending), wanted().len);
            // SAFETY: the caller's promise.
            let value = unsafe { self.chain_by(by, (sqes, some), len, wanted, || data) };
            value.inspect(|value| started(*value)).is_some()
        };
        let Some(first) = sqes.next().filter(|sqes| one(sqes, 0)) else { return 0 };
        let mut count = 1;
        if let ([fetch, consume], Ending::HandedOver) = (first, lending.ending) {
            let common = [fetch, consume].map(|sqe| {
                // SAFETY: `chain_by` has written it.
                Sqe::from(unsafe { sqe.read() })
            });
            // SAFETY: the caller's promise.
            let rest = unsafe { self.chains_alike(lending, (sqes, common), wanted, data, started) };
            return count + rest;
        }
        for sqes in sqes {
            if !one(sqes, count) {
                break;
            }
            count += 1;
        }
        count
    }

    /// The rest of them, from the second on, where only addresses, offsets and names differ from those
    /// of the first. How many there were.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    #[inline(always)]
    unsafe fn chains_alike<'q>(
        self,
        lending: &Lending,
        (sqes, [fetch, consume]): (impl Iterator<Item = &'q [NonNull<Entry>]>, [Sqe; 2]),
        wanted: impl Fn(u64) -> Chain,
        data: *mut c_void,
        mut started: impl FnMut(u64),
    ) -> u64 {
        let kinds = [fetch, consume].map(|sqe| sqe.user_data & !user_data::LEASE);
        let mut count = 0;
        for sqes in sqes {
            let chain = wanted(count + 1);
            let ([to_fetch, to_consume], Consumer::Write { offset, .. }, Some(slot)) =
                (sqes, chain.consumer, self.next(chain.len))
            else {
                break;
            };
            self.begin(slot, Some(lending), &chain);
            let (lease, base, buffer) = (slot.lease_bits(), slot.base.get(), slot.buffer.get());
            let request = fetch.with(base, buffer, chain.offset).user_data(lease | kinds[0]);
            // SAFETY: the caller's promise.
            unsafe { to_fetch.write(request.entry()) };
            let name = lease | kinds[1];
            slot.expect(name);
            let request = consume.with(base, buffer, offset).user_data(name);
            // SAFETY: the caller's promise.
            unsafe { to_consume.write(request.entry()) };
            started(slot.begin_value(data));
            count += 1;
        }
        count
    }

    /// # Safety
    ///
    /// `sqes` can be written to.
    #[inline(always)]
    unsafe fn chain_by<T>(
        self,
        lending: Option<&'a Lending>,
        (sqes, some): (&[T], impl Fn(&T) -> Option<NonNull<Entry>>),
        len: u32,
        wanted: impl Fn() -> Chain,
        data: impl Fn() -> *mut c_void,
    ) -> Option<u64> {
        let slot = self.next(len)?;
        // What is wanted is looked at anew for each request, which takes fewer registers.
        let chain = || ReadyChain { slot, lending, chain: wanted() };
        match sqes {
            [fetch, consume] if !lending.is_some_and(Lending::chain_releases) => {
                let (fetch, consume) = (some(fetch)?, some(consume)?);
                self.begin(slot, lending, &wanted());
                // SAFETY: the caller's promise.
                unsafe { fetch.write(chain().fetch(lending).entry()) };
                // SAFETY: the caller's promise.
                unsafe { consume.write(chain().consume(lending).entry()) };
            }
            [fetch, consume, release] => {
                let (fetch, consume, release) = (some(fetch)?, some(consume)?, some(release)?);
                let by = lending.filter(|by| by.chain_releases())?;
                self.begin(slot, lending, &wanted());
                // SAFETY: the caller's promise.
                unsafe { fetch.write(chain().fetch(lending).entry()) };
                // SAFETY: the caller's promise.
                unsafe { consume.write(chain().consume(lending).entry()) };
                let last = chain().release(by).expect("it ends with a release");
                // SAFETY: the caller's promise.
                unsafe { release.write(last.entry()) };
            }
            _ => return None,
        }
        Some(slot.begin_value(data()))
    }

    /// Who lends it what is in the file; `None`: somebody else serves it.
    #[inline(always)]
    fn lends(self, source: Target) -> Option<Option<&'a Lending>> {
        match &self.0.lending {
            None => Some(None),
            Some(by) => Source::from(source).lent_by(by.lender).map(|_| Some(by)),
        }
    }

    /// The slot that is taken next.
    #[inline(always)]
    fn next(self, len: u32) -> Option<&'a Slot> {
        let slot = self.0.slots.get(usize::from(self.0.free.get()))?;
        if len.wrapping_sub(1) >= self.0.max_fetch() { None } else { Some(slot) }
    }

    #[inline(always)]
    fn begin(self, slot: &Slot, lending: Option<&Lending>, chain: &Chain) {
        self.0.take(slot, chain.len);
        slot.begin_state(CHAIN, lending);
        if lending.is_some() {
            slot.keep(chain);
        }
    }

    /// As [`Slots::fetch_provided`](super::Slots::fetch_provided). The value, and how many bytes
    /// there are.
    ///
    /// # Errors
    ///
    /// Those of `Slots::fetch_provided`.
    pub fn fetch_provided(
        self,
        provider: &Rc<dyn Provider>,
        bytes: (u64, u32),
        nowait: bool,
        data: *mut c_void,
        register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Option<(u64, u32)>> {
        let slot = self.0.provide(provider, bytes, nowait, register)?;
        Ok(slot.map(|slot| (slot.begin_value(data), slot.len())))
    }

    #[inline(always)]
    fn slot(self, value: u64) -> Option<&'a Slot> {
        let slot = self.0.slots.get((value & SLOT) as usize)?;
        if slot.value.get() == value { Some(slot) } else { None }
    }

    #[cold]
    fn miss(self, value: u64) -> Miss {
        let serial = |value: u64| (value % LIFE) >> SERIAL_SHIFT;
        match self.slot(value) {
            _ if serial(value) == 0 => Miss::Invalid,
            _ if serial(value) != serial(self.0.slot(0).value.get()) => Miss::WrongSlots,
            Some(slot) if slot.is(state::CHAINED) => Miss::Invalid,
            Some(slot) if slot.is(state::HELD) => Miss::Pending,
            _ => Miss::Over,
        }
    }

    /// Whether the fetch of a lease is done.
    ///
    /// # Errors
    ///
    /// The value names none.
    pub fn is_installed(self, value: u64) -> Result<bool, Miss> {
        match self.installed(value) {
            Ok(_) => Ok(true),
            Err(Miss::Pending) => Ok(false),
            Err(miss) => Err(miss),
        }
    }

    /// Finds a lease whose fetch is done.
    ///
    /// # Errors
    ///
    /// The value names none.
    #[inline(always)]
    pub fn installed(self, value: u64) -> Result<Found<'a>, Miss> {
        let of = state::HELD | state::FETCHING | state::EMPTY;
        match self.slot(value) {
            Some(slot) if slot.state.get() & of == state::HELD => Ok(Found(slot)),
            _ => Err(self.miss(value)),
        }
    }

    /// As [`Lease::release`](crate::Lease::release).
    ///
    /// # Errors
    ///
    /// The value names none.
    #[inline(always)]
    pub fn release(self, value: u64) -> Result<(), Miss> {
        match self.slot(value) {
            Some(slot) if slot.state.get() == state::HELD => {
                slot.vacate(0);
                Ok(())
            }
            Some(slot) if slot.is(state::HELD) => {
                slot.let_go();
                Ok(())
            }
            _ => Err(self.miss(value)),
        }
    }

    /// As [`Found::consume`] with a write, of a lease whose fetch is done and which nothing uses.
    #[inline(always)]
    pub fn write_plainly(
        self,
        value: u64,
        sqe: &mut MaybeUninit<Entry>,
        (start, len): (u32, u32),
        (sink, offset): (Target, u64),
        token: u16,
    ) -> Option<()> {
        let slot = self.slot(value)?;
        if slot.state.get() & !state::LENT != state::HELD || Found(slot).lacks(start, len) {
            return None;
        }
        let request = slot.use_bytes(start, len, Consumer::Write { sink, offset }, token).ok()?;
        sqe.write(request.entry());
        Some(())
    }

    /// The same for as many leases as there are SQEs, `step` bytes apart in the sink. How many it could
    /// do so for, from the first on.
    ///
    /// # Safety
    ///
    /// `sqes` can be written to.
    pub unsafe fn writes_plainly(
        self,
        (sqes, leases): (&[NonNull<Entry>], impl Iterator<Item = u64>),
        (start, len): (u32, u32),
        (sink, mut offset): (Target, u64),
        step: u64,
        token: u16,
    ) -> usize {
        // What they have in common is put together once.
        let common = Piece { addr: 0, len, index: 0 }.write(sink, 0);
        let mut count = 0;
        for (sqe, value) in sqes.iter().zip(leases) {
            let Some(slot) = self.slot(value) else { break };
            if slot.state.get() & !state::LENT != state::HELD || Found(slot).lacks(start, len) {
                break;
            }
            let piece = slot.bytes(start, len);
            let request = common.with(piece.addr, piece.index, offset);
            let request = request.user_data(slot.begin_only_use(token));
            // SAFETY: the caller's promise.
            unsafe { sqe.write(request.entry()) };
            offset = offset.wrapping_add(step);
            count += 1;
        }
        count
    }

    /// Releases every lease that there is.
    pub fn release_all(self) {
        for slot in self.0.slots.iter().filter(|slot| slot.is(state::HELD)) {
            slot.let_go();
        }
    }

    /// As [`Slots::complete`](super::Slots::complete), and the value and the data of what it is for.
    #[must_use]
    pub fn complete(
        self,
        user_data: u64,
        result: i32,
        flags: u32,
    ) -> Option<(Event, u64, *mut c_void)> {
        let event = self.0.complete(user_data, result, flags, &())?;
        let slot = match event {
            Event::Fetched { lease, .. } | Event::Released { lease } => lease.slot(),
            Event::Used { id, .. } | Event::Returned { id } => id.lease().slot(),
            Event::Chained { id, .. } => id.slot(),
            _ => return Some((event, 0, ptr::null_mut())),
        };
        let slot = self.0.slot(slot);
        // There is no lease of nothing.
        if let Event::Fetched { result: Ok(0) | Err(_), .. } = event
            && slot.is(state::HELD)
        {
            slot.let_go();
        }
        Some((event, slot.value.get(), slot.data.get()))
    }

    /// The same for what has gone as asked, and ends nothing else. `tell` says what that was.
    #[inline(always)]
    pub fn complete_plainly<T>(
        self,
        user_data: u64,
        result: i32,
        tell: impl Fn(Event) -> T,
    ) -> Option<(T, u64, *mut c_void)> {
        let slot = self.0.named(user_data)?;
        let told = slot.as_asked(user_data, result).map(tell)?;
        Some((told, slot.value.get(), slot.data.get()))
    }
}

impl Slot {
    /// The next value of a slot that has just been taken.
    #[inline(always)]
    fn begin_value(&self, data: *mut c_void) -> u64 {
        let value = self.value.get().wrapping_add(LIFE);
        self.value.set(value);
        self.data.set(data);
        value
    }

    #[inline(always)]
    fn begin_state(&self, ties: u32, lending: Option<&Lending>) {
        match lending {
            // Nothing is ever left, and bytes are nowhere else, without a lender.
            None => self.state.set(ties),
            Some(by) => {
                self.state.set(ties | self.state.get() & state::LEFT | state::LENT);
                self.base.set(0);
                self.buffer.set(by.first + self.index);
            }
        }
    }
}

/// A lease that has been found.
pub struct Found<'a>(&'a Slot);

impl Found<'_> {
    /// As [`Lease::len`](crate::Lease::len).
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u32 {
        self.0.len()
    }

    /// As [`Lease::engine`](crate::Lease::engine).
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.0.engine()
    }

    /// As [`Lease::uses`](crate::Lease::uses).
    #[must_use]
    pub fn uses(&self) -> u32 {
        self.0.uses()
    }

    /// As [`Lease::copy_out`](crate::Lease::copy_out).
    ///
    /// # Errors
    ///
    /// Those of `Lease::copy_out`.
    pub fn copy_out(&self, offset: u32, into: &mut [u8]) -> Result<usize> {
        self.0.look(offset, into)
    }

    /// As [`Lease::consume`](crate::Lease::consume). `token` comes back with the request.
    ///
    /// # Errors
    ///
    /// Those of `Lease::consume`.
    pub fn consume(
        &self,
        sqe: &mut MaybeUninit<Entry>,
        (start, len): (u32, u32),
        consumer: Consumer,
        token: u16,
    ) -> Result<()> {
        self.check(start, len)?;
        sqe.write(self.0.use_bytes(start, len, consumer, token)?.entry());
        Ok(())
    }

    /// As [`Lease::writev`](crate::Lease::writev).
    ///
    /// # Errors
    ///
    /// Those of `Lease::writev`.
    pub fn writev(
        &self,
        sqe: &mut MaybeUninit<Entry>,
        ranges: impl ExactSizeIterator<Item = (u32, u32)> + Clone,
        (sink, offset): (Target, u64),
        token: u16,
    ) -> Result<()> {
        for (start, len) in ranges.clone() {
            self.check(start, len)?;
        }
        let request = self.0.use_ranges(ranges, sink, offset)?;
        sqe.write(self.0.prepare(request).token(token).into_entry());
        Ok(())
    }

    fn check(&self, start: u32, len: u32) -> Result<()> {
        if self.lacks(start, len) {
            let what = "a range must not be empty, and must lie in its lease";
            return Err(Error::new(ErrorKind::OutOfRange, what));
        }
        Ok(())
    }

    #[inline(always)]
    fn lacks(&self, start: u32, len: u32) -> bool {
        len == 0 || u64::from(start) + u64::from(len) > u64::from(self.0.len())
    }
}

impl fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Found").field(&self.0.id()).finish()
    }
}
