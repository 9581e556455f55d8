// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table: the slots of a ring, which of them are free, and which have something to send.
//!
//! It is one file, although a long one, because every part of it reads and writes the same private cells.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use io_uring::cqueue;
use io_uring::squeue::{Entry, Flags};

use super::chain::Chain;
use super::consume::{Consumer, MAX_RANGES};
use super::event::{Event, Stats};
use super::ident::{Kind, LeaseId, UseId, is_claimed};
use super::machine::{By, Effect, Input, Link, Progress, State, Told, next};
use crate::engine::provided::{Lent, Provided};
use crate::engine::{Ending, Fetch, Look, Origin, Refusal, Release, Room, Source, Traits};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::probe::Features;
use crate::provider::Provider;
use crate::request::{Piece, Sqe, Target, writev, writev_fixed};

/// End of a list of slots.
const NIL: u16 = u16::MAX;

/// Most requests of a chain.
pub(crate) const MOST_LINKED: usize = 3;

/// What a fetch or a chain does, for when its requests are made, or made again.
#[derive(Clone, Copy)]
struct Job {
    source: Source,
    offset: u64,
    /// Of a chain.
    consumer: Option<Consumer>,
}

/// One slot. Plain cells: it is never shared between threads.
struct Slot {
    state: Cell<State>,
    /// Which engine serves it.
    by: Cell<By>,
    /// Which of its lives this is.
    life: Cell<u16>,
    /// The next one in the list that it is in: of free slots, or of those with something to send.
    next: Cell<u16>,
    job: Cell<Job>,
    /// Of a chain whose requests were not all as asked.
    progress: Cell<Progress>,
    /// Which of the uses' sequence numbers are in flight, and which is tried next.
    in_use: [Cell<u64>; 4],
    sequence: Cell<u8>,
    /// For the one vectored write that may be in flight.
    ranges: Cell<[libc::iovec; MAX_RANGES]>,
    ranging: Cell<bool>,
}

impl Slot {
    fn new(next: u16) -> Self {
        let nothing = Job { source: Target::Fd(-1).into(), offset: 0, consumer: None };
        let no_range = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            state: Cell::new(State::Free),
            by: Cell::new(0),
            life: Cell::new(0),
            next: Cell::new(next),
            job: Cell::new(nothing),
            progress: Cell::default(),
            in_use: Default::default(),
            sequence: Cell::new(0),
            ranges: Cell::new([no_range; MAX_RANGES]),
            ranging: Cell::new(false),
        }
    }

    #[inline]
    fn sequence_bit(&self, sequence: u8) -> (&Cell<u64>, u64) {
        (&self.in_use[usize::from(sequence >> 6)], 1 << (sequence & 63))
    }

    /// A number that no use in flight has.
    #[inline]
    fn begin_use(&self) -> Option<u8> {
        let mut free = self.sequence.get();
        if self.is_in_use(free) {
            free = (0..=u8::MAX).find(|sequence| !self.is_in_use(*sequence))?;
        }
        let (word, bit) = self.sequence_bit(free);
        word.set(word.get() | bit);
        self.sequence.set(free.wrapping_add(1));
        Some(free)
    }

    #[inline]
    fn is_in_use(&self, sequence: u8) -> bool {
        let (word, bit) = self.sequence_bit(sequence);
        word.get() & bit != 0
    }

    #[inline]
    fn end_use(&self, sequence: u8) {
        let (word, bit) = self.sequence_bit(sequence);
        word.set(word.get() & !bit);
    }
}

/// The slots of one ring, and who serves them. Leases keep it.
pub(crate) struct Core {
    /// In the order in which a fetch asks them, with their traits, which never change.
    rooms: Box<[(Box<dyn Room>, Traits)]>,
    /// What is known of providers, and the place of their room.
    provided: Option<(Rc<Provided>, By)>,
    slots: Box<[Slot]>,
    /// The first of the free slots, and how many there are.
    first_free: Cell<u16>,
    free: Cell<u16>,
    /// First and last of the slots that have something to send.
    outbox: Cell<(u16, u16)>,
    max_fetch: u32,
    features: Features,
    tag: u8,
    fetches: Cell<u64>,
    fallbacks: Cell<u64>,
    stale: Cell<u64>,
}

/// Something that waits to be sent.
pub(super) enum Unsent {
    Request(Sqe),
    Chain(LeaseId),
    /// A slot that an update of the ring's table empties: its index there, and the name that a request
    /// would have.
    Update(u16, UseId),
    /// An entry of the ring's table that a provider's buffer has left.
    Vacated(u16),
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("slots", &self.slots.len())
            .field("free", &self.free.get())
            .field("rooms", &self.rooms)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// `rooms`: who serves fetches, in the order in which they are asked.
    pub(super) fn new(
        count: u16,
        mut rooms: Vec<Box<dyn Room>>,
        provided: Option<Provided>,
        max_fetch: u32,
        features: Features,
        tag: u8,
    ) -> Rc<Self> {
        let provided = provided.map(|provided| {
            let provided = Rc::new(provided);
            rooms.push(Box::new(Rc::clone(&provided)));
            (provided, (rooms.len() - 1) as By)
        });
        let after = |index| if index + 1 < count { index + 1 } else { NIL };
        Rc::new(Self {
            rooms: rooms.into_iter().map(with_traits).collect(),
            provided,
            slots: (0..count).map(|index| Slot::new(after(index))).collect(),
            first_free: Cell::new(0),
            free: Cell::new(count),
            outbox: Cell::new((NIL, NIL)),
            max_fetch,
            features,
            tag,
            fetches: Cell::new(0),
            fallbacks: Cell::new(0),
            stale: Cell::new(0),
        })
    }

    #[inline]
    fn slot(&self, id: LeaseId) -> &Slot {
        &self.slots[usize::from(id.slot())]
    }

    #[inline]
    fn id(&self, index: u16) -> LeaseId {
        LeaseId::new(index, self.slots[usize::from(index)].life.get())
    }

    #[inline]
    fn room(&self, by: By) -> &dyn Room {
        &*self.rooms[usize::from(by)].0
    }

    #[inline]
    fn traits_of(&self, by: By) -> Traits {
        self.rooms[usize::from(by)].1
    }

    #[inline]
    fn name(&self, id: LeaseId, kind: Kind, sequence: u8) -> u64 {
        id.request(self.tag, kind, sequence, 0)
    }
}

/// What can be asked of it.
impl Core {
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.get().into()
    }

    pub(super) fn max_fetch(&self) -> u32 {
        self.max_fetch
    }

    pub(super) fn tag(&self) -> u8 {
        self.tag
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            fetches: self.fetches.get(),
            fallbacks: self.fallbacks.get(),
            stale: self.stale.get(),
        }
    }

    /// Who serves a fetch at first.
    pub(super) fn first(&self) -> &dyn Room {
        self.room(0)
    }

    #[inline]
    pub(super) fn claims(&self, user_data: u64) -> bool {
        is_claimed(self.tag, user_data)
    }

    /// Requests that the kernel may have.
    pub(super) fn in_flight(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.state.get().in_flight())).sum()
    }

    /// Whether a slot gets on by itself, once something is sent or has completed.
    pub(super) fn is_emptying(&self) -> bool {
        self.slots.iter().any(|slot| slot.state.get().is_on_its_way())
    }

    #[inline]
    pub(super) fn has_requests(&self) -> bool {
        let vacated = self.provided.as_ref().is_some_and(|(provided, _)| provided.has_vacated());
        self.outbox.get().0 != NIL || vacated
    }

    pub(super) fn origin(&self, id: LeaseId) -> Origin {
        self.room(self.slot(id).by.get()).origin()
    }

    pub(super) fn is_lent(&self, id: LeaseId) -> bool {
        self.traits_of(self.slot(id).by.get()).lent
    }

    /// How many requests use a lease that somebody may have let go.
    pub(super) fn uses(&self, id: LeaseId) -> u32 {
        if self.is_over(id) { 0 } else { self.slot(id).state.get().uses() }
    }

    /// Whether a lease that was let go has left its slot.
    pub(super) fn is_over(&self, id: LeaseId) -> bool {
        self.id(id.slot()) != id || self.slot(id).state.get() == State::Free
    }

    /// What the fetch of a lease that is held came to; `None` while it runs.
    #[inline]
    pub(super) fn fetched(&self, id: LeaseId) -> Option<Result<u32, Errno>> {
        match self.slot(id).state.get() {
            State::Full { len, .. } => Some(Ok(len)),
            State::Void { error, .. } => Some(error.map_or(Ok(0), Err)),
            _ => None,
        }
    }

    pub(super) fn provided(&self) -> Result<&Rc<Provided>> {
        self.provided.as_ref().map(|(provided, _)| provided).ok_or_else(|| {
            let what = "the ring was built without room for a provider's memory";
            Error::new(ErrorKind::NoRegion, what)
        })
    }
}

/// How a slot is filled.
impl Core {
    /// Reserves a slot, and makes the request that fills it.
    #[inline]
    pub(super) fn fetch(&self, source: Source, offset: u64, len: u32) -> Result<(LeaseId, Sqe)> {
        let index = self.next_free(len)?;
        let what = Fetch { source, offset, len, linked: false };
        let by = self.ask(0, &what).ok_or_else(unserved)?;
        let state = State::Fetching { asked: len, held: true, waits: false, cancelled: false };
        let id = self.take(index, by, Job { source, offset, consumer: None }, state);
        let request = self.room(by).fetch(index, &what);
        Ok((id, request.user_data(self.name(id, Kind::Fetch, 0))))
    }

    /// Reserves a slot for a chain.
    #[inline]
    pub(super) fn chain(&self, chain: Chain) -> Result<LeaseId> {
        let Chain { source, offset, len, consumer } = chain;
        if consumer.is_zero_copy() {
            self.features.need_send_zc()?;
        }
        let index = self.next_free(len)?;
        let what = Fetch { source, offset, len, linked: false };
        let by = self.ask(0, &what).ok_or_else(unserved)?;
        let state = State::Chained { asked: len, waits: false, strayed: false };
        let consumer = Some(consumer.waiting_for_all());
        Ok(self.take(index, by, Job { source, offset, consumer }, state))
    }

    /// How many requests a chain will have.
    pub(super) fn chain_len(&self, chain: &Chain) -> usize {
        let Chain { source, offset, len, .. } = *chain;
        let what = Fetch { source, offset, len, linked: false };
        let ending = self.ask(0, &what).map(|by| self.traits_of(by).ending);
        if ending == Some(Ending::Released) { 3 } else { 2 }
    }

    /// Asks a provider. `None`: it has nothing there.
    pub(super) fn provide(
        &self,
        provider: &Rc<dyn Provider>,
        (offset, len): (u64, u32),
        nowait: bool,
        register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Option<LeaseId>> {
        let provided = self.provided()?;
        if len == 0 || offset > i64::MAX as u64 {
            let what = format!("a fetch of {len} bytes at {offset} of a provider");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        self.next_free(1)?;
        let Some(lent) = provided.ask(provider, (offset, len), nowait, register)? else {
            return Ok(None);
        };
        // The provider may have fetched, too.
        match self.next_free(1) {
            Ok(index) => Ok(Some(self.put(index, provided, lent))),
            Err(error) => {
                provided.give_back(lent);
                Err(error)
            }
        }
    }

    fn put(&self, index: u16, provided: &Provided, lent: Lent) -> LeaseId {
        let by = self.provided.as_ref().map_or(0, |(_, by)| *by);
        let job = self.slots[usize::from(index)].job.get();
        let id = self.take(index, by, job, State::Full { len: lent.len(), uses: 0 });
        provided.put(index, lent);
        id
    }

    /// The first engine from this one on that serves a fetch.
    #[inline]
    fn ask(&self, from: By, what: &Fetch) -> Option<By> {
        let mut rooms = (from..).zip(self.rooms.iter().skip(from.into()));
        rooms.find(|(_, (room, _))| room.serves(what)).map(|(by, _)| by)
    }

    /// The slot that is taken next, for so many bytes.
    #[inline]
    fn next_free(&self, len: u32) -> Result<u16> {
        let most = self.max_fetch;
        if len == 0 || len > most {
            let what = format!("a fetch of {len} bytes: it can ask for 1 to {most} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        match self.first_free.get() {
            NIL => Err(all_taken(self.capacity())),
            index => Ok(index),
        }
    }

    /// Takes it, for a new life.
    #[inline]
    fn take(&self, index: u16, by: By, job: Job, state: State) -> LeaseId {
        let slot = &self.slots[usize::from(index)];
        debug_assert_eq!((self.first_free.get(), slot.state.get()), (index, State::Free));
        self.first_free.set(slot.next.get());
        self.free.set(self.free.get() - 1);
        self.fetches.set(self.fetches.get() + 1);
        slot.life.set(slot.life.get().wrapping_add(1));
        slot.job.set(job);
        slot.by.set(by);
        slot.state.set(state);
        if by > 0 && !matches!(state, State::Full { .. }) {
            self.fallbacks.set(self.fallbacks.get() + 1);
        }
        self.id(index)
    }

    /// Has the linked requests of a chain taken, in their order.
    ///
    /// Hard links make sure that the slot is emptied in every case, or that the buffer goes to the
    /// consumer in every case; it is exactly what was fetched. Where neither is at stake they are soft:
    /// a fetch that fails or comes back short must not be followed by a consumer of what an earlier
    /// lease left in the block or in the slot.
    #[inline]
    pub(super) fn linked<T>(&self, id: LeaseId, take: impl FnOnce(&[Entry]) -> T) -> T {
        let slot = self.slot(id);
        let Job { source, offset, consumer } = slot.job.get();
        let (State::Chained { asked: len, .. }, Some(consumer)) = (slot.state.get(), consumer)
        else {
            // A completion that was made up has ended it.
            return take(&[]);
        };
        let (by, index) = (slot.by.get(), id.slot());
        let (room, traits) = (self.room(by), self.traits_of(by));
        let (linked, released) =
            (traits.ending == Ending::HandedOver, traits.ending == Ending::Released);
        let link = if linked || released { Flags::IO_HARDLINK } else { Flags::IO_LINK };
        let name = |kind| self.name(id, kind, by);

        let fetch = room.fetch(index, &Fetch { source, offset, len, linked });
        let fetch = fetch.flags(link | Flags::SKIP_SUCCESS).user_data(name(Kind::ChainFetch));
        let request = self.request(traits, room.piece(index, 0, len), consumer);
        let flags = match consumer.is_zero_copy() {
            _ if !released => Flags::empty(),
            // The kernel refuses to skip the completions of SEND_ZC.
            true => link,
            false => link | Flags::SKIP_SUCCESS,
        };
        let consume = request.flags(flags).user_data(name(Kind::ChainUse));
        if !released {
            return take(&[fetch.entry(), consume.entry()]);
        }
        match room.release(index) {
            Release::Request(release) => {
                let release = release.user_data(name(Kind::ChainRelease));
                take(&[fetch.entry(), consume.entry(), release.entry()])
            }
            Release::Update(_) => {
                unreachable!("an engine whose chains release has a request for it")
            }
        }
    }
}

/// How it is used.
impl Core {
    /// A consumer's request, of bytes of a slot.
    #[inline]
    fn request(&self, traits: Traits, piece: Piece, consumer: Consumer) -> Sqe {
        // A kernel that lends memory is newer than 7.2, and its sends take registered buffers.
        consumer.request(piece, self.features.fixed_send || traits.lent)
    }

    /// Begins a use of a lease.
    #[inline]
    pub(super) fn consume(
        &self,
        id: LeaseId,
        (start, len): (u32, u32),
        consumer: Consumer,
        token: u16,
    ) -> Result<Sqe> {
        if consumer.is_zero_copy() {
            self.features.need_send_zc()?;
        }
        let by = self.slot(id).by.get();
        let piece = self.room(by).piece(id.slot(), start, len);
        let request = self.request(self.traits_of(by), piece, consumer);
        let name = self.begin_use(id, Kind::Use)?;
        Ok(request.user_data(name.with_token(token).user_data()))
    }

    /// Begins a vectored write of ranges of a lease, each from its start, so many bytes.
    pub(super) fn writev(
        &self,
        id: LeaseId,
        ranges: impl ExactSizeIterator<Item = (u32, u32)>,
        sink: Target,
        offset: u64,
    ) -> Result<Sqe> {
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        let (slot, count) = (self.slot(id), ranges.len());
        if count == 0 || count > MAX_RANGES {
            return invalid(format!(
                "a vectored write of {count} ranges: it takes 1 to {MAX_RANGES}"
            ));
        }
        if slot.ranging.get() {
            let what =
                "a lease takes one vectored write at a time: let the other one complete first";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let room = self.room(slot.by.get());
        let mut vector = slot.ranges.get();
        let mut table = None;
        for (place, (start, len)) in vector.iter_mut().zip(ranges) {
            let piece = room.piece(id.slot(), start, len);
            if piece.len != len || table.is_some_and(|table| table != piece.index) {
                return invalid(
                    "a vectored write of a provider's memory: each range must lie in one piece, \
                     and all of them in one region"
                        .into(),
                );
            }
            table = Some(piece.index);
            let iov_base = std::ptr::with_exposed_provenance_mut(piece.addr as usize);
            *place = libc::iovec { iov_base, iov_len: len as usize };
        }
        let name = self.begin_use(id, Kind::UseRanges)?;
        slot.ranges.set(vector);
        slot.ranging.set(true);
        // The array is where it is as long as the table is, and the mark keeps it unchanged until the
        // request has completed.
        let ranges = (slot.ranges.as_ptr().cast_const().cast(), count as u32);
        let request = if self.features.writev_fixed || room.traits().lent {
            writev_fixed(ranges, table.unwrap_or(0), sink, offset)
        } else {
            writev(ranges, sink, offset)
        };
        Ok(request.user_data(name.user_data()))
    }

    #[inline]
    fn begin_use(&self, id: LeaseId, kind: Kind) -> Result<UseId> {
        let sequence = self.slot(id).begin_use().ok_or_else(|| {
            let what =
                "256 requests use the lease, and it can name no more: let one complete first";
            Error::new(ErrorKind::Busy, what)
        })?;
        self.step(id, Input::Use);
        Ok(UseId::of(self.name(id, kind, sequence)))
    }

    /// Bytes of a lease that is held, as requests of a driver's name them.
    pub(super) fn piece(&self, id: LeaseId, start: u32, len: u32) -> Piece {
        self.room(self.slot(id).by.get()).piece(id.slot(), start, len)
    }

    /// What a look of up to `len` bytes from `offset` on sees of a lease that is held.
    pub(super) fn look_range(&self, id: LeaseId, offset: u32, len: usize) -> Result<Range<u32>> {
        let there = self.fetched(id).and_then(Result::ok).unwrap_or(0);
        let Some(left) = there.checked_sub(offset) else {
            let what = format!("a look at byte {offset} of a lease of {there} bytes");
            return Err(Error::new(ErrorKind::OutOfRange, what));
        };
        Ok(offset..offset + u32::try_from(len).unwrap_or(u32::MAX).min(left))
    }

    /// Copies bytes of a lease that is held, which has them, if that takes no request.
    pub(super) fn look(&self, id: LeaseId, start: u32, into: &mut [u8]) -> Look {
        self.room(self.slot(id).by.get()).look(id.slot(), start, into)
    }

    /// The command that copies bytes of a lease to an address.
    pub(super) fn look_command(&self, id: LeaseId, start: u32, len: u32, to: u64) -> Option<Sqe> {
        let room = self.room(self.slot(id).by.get());
        room.look_command(id.slot(), start, len, to)
    }

    /// Nobody holds a lease any more.
    #[inline]
    pub(super) fn let_go(&self, id: LeaseId) {
        self.step(id, Input::LetGo);
    }

    /// Has a fetch that is being cancelled not repeated by another engine.
    pub(super) fn cancel(&self, id: LeaseId) {
        self.step(id, Input::Cancel);
    }
}

/// What happens to it.
impl Core {
    /// Takes a slot to its next state, and does what that asks for.
    // As for `next`.
    #[inline(always)]
    fn step(&self, id: LeaseId, input: Input) -> Told {
        let slot = self.slot(id);
        self.step_by(slot, id.slot(), self.traits_of(slot.by.get()), input)
    }

    /// Does the same for who has found the slot, and the traits of the engine that serves it.
    #[inline(always)]
    fn step_by(&self, slot: &Slot, index: u16, traits: Traits, input: Input) -> Told {
        let before = slot.state.get();
        let (after, effect, told) = next(before, input, traits);
        slot.state.set(after);
        match effect {
            Effect::None => {}
            Effect::Queue => self.enqueue(index),
            Effect::Ask(by) => {
                slot.by.set(by);
                self.fallbacks.set(self.fallbacks.get() + 1);
                self.enqueue(index);
            }
            Effect::Free => self.put_free(slot, index),
            // The provider comes last: it may let other leases go.
            Effect::GiveBack => {
                self.put_free(slot, index);
                if let Some((provided, _)) = &self.provided {
                    provided.put_back(index);
                }
            }
        }
        told
    }

    #[inline]
    fn put_free(&self, slot: &Slot, index: u16) {
        slot.next.set(self.first_free.replace(index));
        self.free.set(self.free.get() + 1);
    }

    /// Says what a completion meant. `None`: it is not ours.
    #[inline]
    pub(super) fn complete(&self, user_data: u64, result: i32, flags: u32) -> Option<Event> {
        if !self.claims(user_data) {
            return None;
        }
        let event = self.completed(UseId::of(user_data), result, flags);
        Some(event.unwrap_or_else(|| self.stray(flags)))
    }

    /// A completion that answers nothing. The kernel sends a notification for a `SEND_ZC` that
    /// never ran, because a request before it in its link failed, and does not announce it
    /// (`IORING_CQE_F_MORE`) in the first completion, if it posts that at all. Nothing has used
    /// the buffer then, so nobody waits for it.
    fn stray(&self, flags: u32) -> Event {
        if cqueue::notif(flags) {
            return Event::Pending;
        }
        self.stale.set(self.stale.get() + 1);
        Event::Stale
    }

    #[inline]
    fn completed(&self, name: UseId, result: i32, flags: u32) -> Option<Event> {
        let (id, kind, index) = (name.lease(), name.kind()?, name.lease().slot());
        let slot = self.slots.get(usize::from(index))?;
        if LeaseId::new(index, slot.life.get()) != id {
            return None;
        }
        let traits = self.traits_of(slot.by.get());
        let (more, notification) = (cqueue::more(flags), cqueue::notif(flags));
        let told = match kind {
            Kind::Fetch => {
                let next = if result < 0 { self.next_by(slot, result) } else { None };
                self.step_by(slot, index, traits, Input::Fetched { result, next })
            }
            Kind::Use | Kind::UseRanges if !slot.is_in_use(name.sequence()) => return None,
            Kind::Use | Kind::UseRanges if more => {
                return Some(Event::Used { id: name, result: Errno::check(result), more });
            }
            Kind::Use | Kind::UseRanges => {
                self.end_use(slot, kind, name);
                self.step_by(slot, index, traits, Input::Used)
            }
            Kind::Release => self.step_by(slot, index, traits, Input::Released(result)),
            Kind::ChainFetch => self.link(slot, name, traits, Link::Fetched(result))?,
            Kind::ChainUse => {
                self.link(slot, name, traits, Link::Used { result, more, notification })?
            }
            Kind::ChainRelease => self.link(slot, name, traits, Link::Released(result))?,
        };
        Some(match told {
            Told::Fetched(result) => Event::Fetched { lease: id, result },
            Told::Used if notification => Event::Returned { id: name },
            Told::Used => Event::Used { id: name, result: Errno::check(result), more },
            Told::Released => Event::Released { lease: id },
            Told::Chained(outcome) => Event::Chained { id, outcome },
            Told::Pending => Event::Pending,
            Told::Stale => return None,
        })
    }

    /// A completion of a chain's request. `None`: it answers nothing.
    // As for `next`.
    #[inline(always)]
    fn link(&self, slot: &Slot, name: UseId, traits: Traits, link: Link) -> Option<Told> {
        let State::Chained { asked, waits: false, strayed } = slot.state.get() else {
            return None;
        };
        // A chain's names tell which engine's attempt they belong to.
        if name.sequence() != slot.by.get() {
            return None;
        }
        let progress = if strayed { slot.progress.get() } else { Progress::default() };
        let (progress, is_last) = progress.and(link, traits.ending, asked)?;
        let index = name.lease().slot();
        if !is_last {
            slot.progress.set(progress);
            return Some(self.step_by(slot, index, traits, Input::Strayed));
        }
        let refused = progress.fetched().filter(|result| *result < 0);
        let next = refused.and_then(|result| self.next_by(slot, result));
        Some(self.step_by(slot, index, traits, Input::Chained { progress, next }))
    }

    fn end_use(&self, slot: &Slot, kind: Kind, name: UseId) {
        slot.end_use(name.sequence());
        if kind == Kind::UseRanges {
            slot.ranging.set(false);
        }
    }

    /// Who serves a fetch that its engine has answered like this, if that refuses the file.
    #[cold]
    fn next_by(&self, slot: &Slot, result: i32) -> Option<By> {
        let errno = Errno::check(result).err()?;
        let (by, Job { source, offset, .. }) = (slot.by.get(), slot.job.get());
        match self.room(by).classify(errno, offset) {
            Refusal::Failed => None,
            Refusal::NotThisFile | Refusal::Limit => {
                self.ask(by + 1, &Fetch { source, offset, len: 1, linked: false })
            }
        }
    }

    /// A request was never sent. `again`: it is still to be.
    pub(super) fn retract(&self, name: UseId, again: bool) {
        let (id, kind) = (name.lease(), name.kind());
        // Completions that were made up may have ended it, and given its slot to another one.
        let slot = self.slot(id);
        if self.id(id.slot()) != id {
            return;
        }
        let input = match kind {
            _ if again => Input::Unsent,
            Some(Kind::Use | Kind::UseRanges) if !slot.is_in_use(name.sequence()) => return,
            Some(kind @ (Kind::Use | Kind::UseRanges)) => {
                self.end_use(slot, kind, name);
                Input::Used
            }
            _ => Input::Fetched { result: -Errno::CANCELED.raw(), next: None },
        };
        self.step(id, input);
    }

    /// A chain was never sent. `again`: it is still to be.
    pub(super) fn retract_chain(&self, id: LeaseId, again: bool) {
        if self.id(id.slot()) == id {
            self.step(id, if again { Input::Unsent } else { Input::Withdrawn });
        }
    }
}

/// What it needs sent.
impl Core {
    fn enqueue(&self, index: u16) {
        self.slots[usize::from(index)].next.set(NIL);
        match self.outbox.get() {
            (NIL, _) => self.outbox.set((index, index)),
            (first, last) => {
                self.slots[usize::from(last)].next.set(index);
                self.outbox.set((first, index));
            }
        }
    }

    /// The next of what waits to be sent. It counts as sent.
    #[inline]
    pub(super) fn next_unsent(&self) -> Option<Unsent> {
        let (index, last) = self.outbox.get();
        if index == NIL {
            return self.next_vacated().map(Unsent::Vacated);
        }
        let (slot, id) = (&self.slots[usize::from(index)], self.id(index));
        self.outbox.set(if index == last { (NIL, NIL) } else { (slot.next.get(), last) });
        self.step(id, Input::Sent);
        Some(match slot.state.get() {
            State::Fetching { asked: len, .. } => {
                let Job { source, offset, .. } = slot.job.get();
                let fetch = self
                    .room(slot.by.get())
                    .fetch(index, &Fetch { source, offset, len, linked: false });
                Unsent::Request(fetch.user_data(self.name(id, Kind::Fetch, 0)))
            }
            State::Chained { .. } => Unsent::Chain(id),
            _ => {
                let name = self.name(id, Kind::Release, 0);
                match self.room(slot.by.get()).release(index) {
                    Release::Request(release) => Unsent::Request(release.user_data(name)),
                    Release::Update(index) => Unsent::Update(index, UseId::of(name)),
                }
            }
        })
    }

    /// The next entry of the ring's table that a provider's buffer has left.
    pub(super) fn next_vacated(&self) -> Option<u16> {
        self.provided.as_ref()?.0.next_vacated()
    }

    /// Such an entry was emptied, or not.
    pub(super) fn entry_emptied(&self, entry: u16, yes: bool) {
        if let Some((provided, _)) = &self.provided {
            if yes { provided.emptied(entry) } else { provided.vacate(entry) }
        }
    }
}

fn with_traits(room: Box<dyn Room>) -> (Box<dyn Room>, Traits) {
    let traits = room.traits();
    (room, traits)
}

#[cold]
fn unserved() -> Error {
    let what = "no engine of these slots serves this source: give them a pool";
    Error::new(ErrorKind::Unavailable, what)
}

#[cold]
fn all_taken(slots: usize) -> Error {
    let what = format!("all {slots} slots are taken: release a lease, or let requests complete");
    Error::new(ErrorKind::NoSlot, what)
}
