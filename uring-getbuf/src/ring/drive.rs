// SPDX-License-Identifier: MIT OR Apache-2.0
//! Driving a ring: what goes into its queues, what comes out, and how it ends.

use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags, SubmissionQueue};
use io_uring::types::{CancelBuilder, Fixed, Timespec};
use io_uring::{cqueue, opcode as ops};

use super::files::Names;
use super::queues::Room;
use super::{Attached, Ring};
use crate::chain::Chain;
use crate::consume::{Consumer, SendFlags};
use crate::engine::Source;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::lease::{Fetched, Installed, Lease, State};
use crate::opcode::{Sqe, Target, module_bind};
use crate::slots::{Driver, Event, LeaseId, Outgoing, UseId, driver_request, driver_user_data};

/// Requests of the driver itself.
const POLL: u8 = 0;
pub(super) const CANCEL: u8 = 1;
const BIND: u8 = 2;
pub(super) const LOOK: u8 = 3;
pub(super) const TIMEOUT: u8 = 4;
/// The cancellation of what names a place, which is named by it as well.
pub(super) const CANCEL_FILE: u8 = 5;

/// `poll(2)` events that are always reported.
const POLL_ALWAYS: u32 = (libc::POLLERR | libc::POLLHUP) as u32;

/// A consumer, on a file of the ring's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Write { offset: u64 },
    Send,
    SendZc,
}

/// Most requests of a chain.
const MOST_LINKED: usize = 3;

/// How long a ring waits for what it has cancelled: when it is dropped, for requests that name its
/// memory by address.
const DRAIN: Duration = Duration::from_secs(1);

impl Ring {
    #[inline(always)]
    pub(super) fn check<S: State>(&self, lease: &Lease<S>) -> Result<()> {
        if self.slots.owns(lease) { Ok(()) } else { Err(elsewhere()) }
    }

    #[inline(always)]
    pub(super) fn write_range(
        &mut self,
        lease: &Lease<Installed>,
        range: Range<u32>,
        sink: &Attached,
        offset: u64,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::Write { sink: sink.into(), offset })
    }

    #[inline(always)]
    pub(super) fn send_range(
        &mut self,
        lease: &Lease<Installed>,
        range: Range<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::Send { sink: sink.into(), flags })
    }

    #[inline(always)]
    pub(super) fn send_zc_range(
        &mut self,
        lease: &Lease<Installed>,
        range: Range<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::SendZc { sink: sink.into(), flags })
    }

    /// Queues a consumer. `range` has been checked; `consumer` names `sink`.
    #[inline(always)]
    fn consume(
        &mut self,
        lease: &Lease<Installed>,
        range: Range<u32>,
        sink: &Attached,
        consumer: Consumer,
    ) -> Result<UseId> {
        self.check(lease)?;
        let place = sink.place_in(&self.files)?;
        let room = match self.uring.room::<1>() {
            Some(room) => room,
            None => {
                self.make_room(1)?;
                self.uring.room().ok_or_else(queue_full)?
            }
        };
        let entry = lease.consume_entry(range, consumer, place)?;
        push(room, &[entry.entry()]);
        Ok(UseId::of(entry.user_data))
    }

    /// Queues a chain that ends in a write, for a source that can be named in several ways.
    pub(crate) fn chain_write_from(
        &mut self,
        (source, named): (&Attached, Source),
        offset: u64,
        len: u32,
        sink: &Attached,
        sink_offset: u64,
    ) -> Result<LeaseId> {
        let consumer = Consumer::Write { sink: sink.into(), offset: sink_offset };
        self.chain(source, sink, Chain::new(named, offset, len, consumer))
    }

    /// Queues a chain between these two.
    #[inline(always)]
    pub(super) fn chain(
        &mut self,
        source: &Attached,
        sink: &Attached,
        chain: Chain,
    ) -> Result<LeaseId> {
        let (from, to) = (source.place_in(&self.files)?, sink.place_in(&self.files)?);
        let note = Names::chain(from, to).note();
        let room = match self.uring.room::<MOST_LINKED>() {
            Some(room) => room,
            None => {
                self.make_room(MOST_LINKED)?;
                self.uring.room().ok_or_else(queue_full)?
            }
        };
        self.slots.start_chain(chain, note, |entries| push(room, entries))
    }

    /// Queues the fetch of a file that is attached, in one of the ways that a source can be named.
    #[inline(always)]
    pub(super) fn fetch_from(
        &mut self,
        file: &Attached,
        source: impl Fn(u16) -> Source,
        offset: u64,
        len: u32,
    ) -> Result<Lease<Fetched>> {
        let place = file.place_in(&self.files)?;
        let note = Names::one(place).note();
        let room = match self.uring.room::<1>() {
            Some(room) => room,
            None => {
                self.make_room(1)?;
                self.uring.room().ok_or_else(queue_full)?
            }
        };
        let push = |request: Sqe| push(room, &[request.entry()]);
        self.slots.start_fetch(|| source(place), (offset, len), note, push)
    }

    /// Queues consumers of ranges of leases of this ring, linked: one
    /// that does not take everything counts as failed, and cancels those behind it.
    ///
    /// A link ends where a submission does, and with `SQPOLL` the kernel submits what it sees: so
    /// there must be room for all of them, and they become visible together.
    pub(crate) fn use_in_order<'a>(
        &mut self,
        sink: &Attached,
        uses: impl ExactSizeIterator<Item = (&'a Lease<Installed>, Range<u32>, Use)>,
        mut queued: impl FnMut(UseId),
    ) -> Result<()> {
        let place = sink.place_in(&self.files)?;
        let count = uses.len();
        self.make_room(count)?;
        for (index, (lease, range, consumer)) in uses.enumerate() {
            debug_assert!(self.slots.owns(lease), "the lease belongs to another ring");
            let all = SendFlags::WAIT_ALL;
            let target = sink.into();
            let consumer = match consumer {
                Use::Write { offset } => Consumer::Write { sink: target, offset },
                Use::Send => Consumer::Send { sink: target, flags: all },
                Use::SendZc => Consumer::SendZc { sink: target, flags: all },
            };
            let linked = if index + 1 < count { Flags::IO_LINK } else { Flags::empty() };
            let entry = lease.consume_entry(lease.range(range)?, consumer, place)?.flags(linked);
            let id = UseId::of(entry.user_data);
            self.push_entries(&[entry.entry()]);
            queued(id);
        }
        Ok(())
    }

    /// Leaves an event for [`next_event`](Self::next_event).
    pub(crate) fn keep(&mut self, event: Event) {
        if event.is_told() {
            self.uring.hold();
            self.events.push_back(event);
        }
    }

    /// Has nothing more told of a lease that is over but for what the network still holds of it.
    pub(crate) fn mute(&mut self, lease: LeaseId) {
        if self.slots.uses(lease) > 0 {
            self.muted.get_mut().push(lease);
        }
    }

    /// Whether nobody is to be told what becomes of a use of this lease.
    fn is_muted(&self, lease: LeaseId) -> bool {
        let mut muted = self.muted.borrow_mut();
        let Some(place) = muted.iter().position(|other| *other == lease) else { return false };
        if self.slots.uses(lease) == 0 {
            muted.swap_remove(place);
        }
        true
    }

    pub(super) fn use_all(
        &mut self,
        lease: &Lease<Installed>,
        mut queue: impl FnMut(&mut Self, &Lease<Installed>, u32) -> Result<UseId>,
        sink: &Attached,
    ) -> Result<()> {
        let mut done = 0;
        while done < lease.len() {
            let request = queue(self, lease, done)?;
            match self.wait_used(request) {
                Ok(0) => {
                    let what = "writing to the sink: it takes nothing more";
                    return Err(Error::new(ErrorKind::Sink, what));
                }
                Ok(bytes) => done += bytes,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => {
                        self.poll(sink, libc::POLLOUT as u32, u32::MAX)?;
                        let ready =
                            |event: &Event| matches!(event, Event::Ready { token: u32::MAX, .. });
                        self.wait_event(ready)?;
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    pub(crate) fn poll(&mut self, file: &Attached, events: u32, token: u32) -> Result<()> {
        let place = file.place_in(&self.files)?;
        let entry = ops::PollAdd::new(Fixed(u32::from(place)), events | POLL_ALWAYS).build();
        self.push_own(&entry, POLL, u64::from(place) << 32 | u64::from(token))?;
        self.files.begin(place);
        Ok(())
    }

    /// Queues the cancellation of a wait for readiness.
    pub(crate) fn cancel_poll(&mut self, file: &Attached, token: u32) -> Result<()> {
        let value = u64::from(file.place_in(&self.files)?) << 32 | u64::from(token);
        self.cancel_request(driver_user_data(self.slots.tag(), POLL, value))
    }

    pub(super) fn cancel_request(&mut self, user_data: u64) -> Result<()> {
        self.push_own(&ops::AsyncCancel::new(user_data).build(), CANCEL, 0)
    }

    /// Queues a request of the driver. What it names stays valid until it has completed.
    pub(super) fn push_own(&mut self, entry: &Entry, kind: u8, value: u64) -> Result<()> {
        self.make_room(1)?;
        let entry = entry.clone().user_data(driver_user_data(self.slots.tag(), kind, value));
        // SAFETY: polls and cancellations name no memory, and `ask` has its caller see to it.
        self.uring.submission(|queue| unsafe { queue.push(&entry) }).map_err(|_| queue_full())
    }

    /// Queues requests of the ring's own slots, for which there is room.
    pub(super) fn push_entries(&mut self, entries: &[Entry]) {
        self.uring.submission(|queue| push_to(queue, entries));
    }

    /// Makes sure that the submission queue takes `count` more.
    #[cold]
    pub(crate) fn make_room(&mut self, count: usize) -> Result<()> {
        if self.uring.has_room(count) { Ok(()) } else { self.drain_queue(count) }
    }

    /// Whether the slots have something to send.
    pub(crate) fn has_requests(&self) -> bool {
        self.slots.has_requests()
    }

    /// Whether the kernel lends, or is asked to lend, what a chain moves.
    pub(crate) fn is_lent(&self, chain: LeaseId) -> bool {
        self.slots.is_lent(chain)
    }

    /// If no slot is free, sees to it that those are which only have to be emptied.
    pub(crate) fn empty_slots(&mut self) -> Result<()> {
        while self.slots.free() == 0 && self.slots.is_emptying() {
            self.flush()?;
            if self.slots.free() == 0 {
                self.enter(1)?;
            }
            while let Some(event) = self.next_completion() {
                self.keep(event);
            }
        }
        Ok(())
    }

    pub(crate) fn queue_capacity(&self) -> usize {
        self.uring.uring().params().sq_entries() as usize
    }

    #[cold]
    fn drain_queue(&mut self, count: usize) -> Result<()> {
        if count > self.queue_capacity() {
            return Err(queue_full());
        }
        loop {
            self.enter(0)?;
            if self.uring.has_room(count) {
                return Ok(());
            }
            if !self.uring.uring().params().is_setup_sqpoll() {
                return Err(queue_full());
            }
            let waited = self.uring.submitter().squeue_wait();
            waited.map_err(|error| Error::io(ErrorKind::Ring, &error, "io_uring_enter"))?;
        }
    }

    /// Queues what the slots need sent, and lets go of files that nothing names any more.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.files.any_vacant() || self.slots.has_requests() {
            return self.flush_all();
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<()> {
        self.sweep();
        while self.slots.has_requests() {
            self.make_room(MOST_LINKED)?;
            if let Some((entry, limit)) = self.push_next()? {
                self.push_limited(entry, limit);
            }
        }
        Ok(())
    }

    /// Queues the next of what the slots need sent, unless it has a limit.
    fn push_next(&mut self) -> Result<Option<(Entry, Duration)>> {
        let outgoing = match self.slots.next_request() {
            None => return Ok(None),
            Some(Outgoing::Clear(clear)) => {
                self.clear(u32::from(clear.index()))?;
                clear.done();
                return Ok(None);
            }
            Some(Outgoing::Request(request)) => match self.limit_of(request.id()) {
                Some(limit) => return Ok(Some((request.into_entry(), limit))),
                None => Outgoing::Request(request),
            },
            Some(outgoing) => outgoing,
        };
        // SAFETY: as in `push`. The files are those of the first attempt, and still counted.
        match self.uring.submission(|queue| unsafe { outgoing.push(queue) }) {
            Ok(()) => Ok(None),
            Err(_) => Err(queue_full()),
        }
    }

    /// Empties a slot by an update of the table.
    fn clear(&self, index: u32) -> Result<()> {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: a null vector names no memory.
        match unsafe { self.uring.submitter().register_buffers_update(index, &[none], None) } {
            // Somebody has unregistered the whole table: then the slot is empty.
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
                Err(Error::io(ErrorKind::Ring, &error, "emptying a slot"))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no cancellation of a file is under way, which keeps it attached. They wait for
    /// nothing; but who submits them may do so a little later (`SQPOLL`). Not for long: a completion
    /// can be lost (`EBADR`).
    pub(crate) fn end_cancellations(&mut self) -> Result<()> {
        if self.cancelling.get() == 0 {
            return Ok(());
        }
        let deadline = Instant::now() + DRAIN;
        while self.cancelling.get() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.enter_for(1, left)?;
            self.take_completions();
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn sweep(&mut self) {
        if self.files.any_vacant() {
            self.unregister_vacant();
        }
    }

    #[cold]
    fn unregister_vacant(&mut self) {
        let names = |place| self.slots.watch(|note| Names::of(note).count(place), place);
        while let Some(index) = self.files.next_vacant(names) {
            // It fails where somebody has unregistered the whole table: then it is empty already.
            let _ = self.register(u32::from(index), -1);
        }
    }

    /// Asks the module for a descriptor that is bound to a file. `None`: the file cannot lend its
    /// memory, or not to this process; then it is read.
    pub(super) fn bind(&mut self, device: Target, fd: RawFd) -> Result<Option<OwnedFd>> {
        let result = self.ask(&module_bind(device, fd), BIND)?;
        if result < 0 {
            return Ok(None);
        }
        // SAFETY: the module has just made this descriptor for us.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(result) }))
    }

    /// Sends a request of the ring's own and waits for its result. What else completes is kept for
    /// `next_event`. What the request names must stay valid also after an error: it may still be
    /// there.
    pub(super) fn ask(&mut self, entry: &Entry, kind: u8) -> Result<i32> {
        self.asked = self.asked.wrapping_add(1);
        self.answered.set(None);
        self.push_own(entry, kind, u64::from(self.asked))?;
        loop {
            while let Some(event) = self.next_completion() {
                self.keep(event);
                if let Some(result) = self.answered.take() {
                    return Ok(result);
                }
            }
            self.enter(1)?;
            // It may have been among completions that had to be taken early.
            if let Some(result) = self.answered.take() {
                return Ok(result);
            }
        }
    }

    /// Puts a descriptor into a place of the table; -1 empties it.
    pub(super) fn register(&self, index: u32, fd: RawFd) -> Result<()> {
        match self.uring.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(ErrorKind::Ring, &error, "attaching or detaching a file")),
        }
    }

    /// Submits everything, and waits until so many completions are there that have not been taken.
    pub(crate) fn enter(&mut self, count: usize) -> Result<()> {
        match self.uring.enter(count) {
            Ok(_) => Ok(()),
            Err(error) => self.enter_again(count, &error),
        }
    }

    #[cold]
    fn enter_again(&mut self, count: usize, error: &io::Error) -> Result<()> {
        let mut count = count.saturating_sub(self.not_entered(error)?);
        while let Err(error) = self.uring.enter(count) {
            count = count.saturating_sub(self.not_entered(&error)?);
        }
        Ok(())
    }

    /// The same, but waits no longer than this.
    pub(crate) fn enter_for(&mut self, count: usize, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut count = count;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.uring.enter_for(count, &Timespec::from(left)) {
                Err(error) if error.raw_os_error() != Some(libc::ETIME) => {
                    count = count.saturating_sub(self.not_entered(&error)?);
                }
                _ => return Ok(()),
            }
        }
    }

    /// What to do when the kernel refuses: try again, with so many completions fewer to wait for.
    #[cold]
    fn not_entered(&mut self, error: &io::Error) -> Result<usize> {
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(0),
            // Completions wait for room in their queue, or the kernel is short of memory for
            // requests: take completions, then try again.
            Some(libc::EBUSY | libc::EAGAIN) => match self.take_completions() {
                0 => Err(Error::io(ErrorKind::Ring, error, "io_uring_enter")),
                taken => Ok(taken),
            },
            Some(libc::EBADR) => {
                let what = "the kernel had no memory for completions that their queue had no \
                            room for, and what they told is lost: take events sooner, or build \
                            the ring with more entries";
                Err(Error::io(ErrorKind::Ring, error, what))
            }
            _ => Err(Error::io(ErrorKind::Ring, error, "io_uring_enter")),
        }
    }

    /// Makes room in the kernel's queue of completions: `next_completion` gives them later. How
    /// many there were.
    pub(super) fn take_completions(&mut self) -> usize {
        self.uring.hold();
        let before = self.early.len();
        while let Some(event) = self.take_completion() {
            self.early.push_back(event);
        }
        self.early.len() - before
    }

    /// Drops an event that is kept for `next_event`, if it is there.
    pub(super) fn forget(&mut self, wanted: impl Fn(&Event) -> bool) {
        if let Some(place) = self.events.iter().position(wanted) {
            self.events.remove(place);
        }
    }

    /// Waits for an event. Others that come first are kept for `next_event`, unless they tell
    /// nothing that a program could have asked for.
    pub(super) fn wait_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        if let Some(place) = self.events.iter().position(&wanted)
            && let Some(event) = self.events.remove(place)
        {
            return Ok(event);
        }
        loop {
            while let Some(event) = self.next_completion() {
                if wanted(&event) {
                    return Ok(event);
                }
                self.keep(event);
            }
            self.flush()?;
            self.enter(1)?;
        }
    }

    pub(crate) fn next_completion(&mut self) -> Option<Event> {
        if !self.early.is_empty() {
            return self.early.pop_front();
        }
        self.take_completion()
    }

    /// The next completion that the kernel has left, and what it meant.
    #[inline]
    fn take_completion(&mut self) -> Option<Event> {
        let completion = self.uring.next_completion()?;
        self.complete(&completion)
    }

    /// What a completion meant.
    #[inline(always)]
    pub(super) fn complete(&self, completion: &cqueue::Entry) -> Option<Event> {
        let (user_data, result) = (completion.user_data(), completion.result());
        if let Some(event) = self.slots.complete_as_asked(user_data, result) {
            return Some(event);
        }
        let mut event = None;
        self.complete_otherwise(user_data, result, completion.flags(), &mut event);
        event
    }

    // What is returned through memory stays there, also where this was not called.
    #[cold]
    fn complete_otherwise(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        event: &mut Option<Event>,
    ) {
        *event = self.slots.complete_for(user_data, result, flags, self);
    }
}

/// What the slots cannot know of a completion.
impl Driver for Ring {
    fn noted(&self, note: u32) {
        self.files.ended(Names::of(note));
    }

    fn used(&self, token: u16) {
        self.files.ended(Names::one(token));
    }

    #[inline]
    fn returned(&self, id: UseId) -> Event {
        if self.is_muted(id.lease()) { Event::Pending } else { Event::Returned { id } }
    }

    #[cold]
    fn other(&self, user_data: u64, result: i32, flags: u32) -> Option<Event> {
        Some(match driver_request(self.slots.tag(), user_data) {
            Some((POLL, value)) => {
                self.files.done((value >> 32) as u16);
                Event::Ready { token: value as u32, result: Errno::check(result) }
            }
            Some((CANCEL_FILE, value)) => {
                self.files.done(value as u16);
                self.cancelling.set(self.cancelling.get() - 1);
                Event::Pending
            }
            Some((BIND | LOOK, value)) => {
                if value == u64::from(self.asked) {
                    self.answered.set(Some(result));
                }
                Event::Pending
            }
            Some(_) => Event::Pending,
            None => Event::Foreign { user_data, result, flags },
        })
    }
}

#[cold]
fn elsewhere() -> Error {
    Error::new(ErrorKind::WrongRing, "the lease belongs to another ring")
}

/// Queues requests of the ring's own slots.
#[inline(always)]
fn push<const COUNT: usize>(room: Room<'_, COUNT>, entries: &[Entry]) {
    push_to(room.queue(entries.len()), entries);
}

/// Queues requests of the ring's own slots, for which there is room.
#[inline(always)]
fn push_to(queue: &mut SubmissionQueue<'_>, entries: &[Entry]) {
    // SAFETY: the requests are of the slots of the ring that the queue belongs to (`Ring` has no
    // other way here), whose pool is registered with it; their files are attached and stay so until
    // they have completed; `next_event` gives every completion to the slots, and `Drop` keeps them as
    // long as requests need them.
    let pushed = unsafe { queue.push_multiple(entries) }.is_ok();
    debug_assert!(pushed, "there is room");
}

#[cold]
pub(super) fn queue_full() -> Error {
    Error::new(ErrorKind::QueueFull, "the submission queue is full and the kernel takes nothing")
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
        self.unpin();
    }
}

impl Ring {
    /// Ends what is in flight, or sees to it that the memory stays which requests may still name.
    fn drain(&mut self) {
        if self.slots.in_flight() == 0 {
            return;
        }
        // Requests on registered memory use its pinned pages, whatever becomes of the mapping. But
        // some name memory by address: cancel them all, wait a little, and rather leak the memory
        // than free it under one that is left.
        let all = ops::AsyncCancel2::new(CancelBuilder::any().all()).build();
        let deadline = Instant::now() + DRAIN;
        while self.slots.in_flight() > 0 && Instant::now() < deadline {
            // Again and again: a link may have gone on meanwhile to a request that was not there
            // to be cancelled. Two completions: the cancellation's own, and one that it brought.
            let sent = self.push_own(&all, CANCEL, 0).and_then(|()| self.enter_for(2, DRAIN / 50));
            while self.next_completion().is_some() {}
            if sent.is_err() {
                break;
            }
        }
        if self.slots.in_flight() > 0 {
            self.slots.leak();
        }
    }

    /// Empties the table of buffers. The kernel closes a ring later than its descriptor, and what it
    /// has pinned would count against the next ring until then.
    fn unpin(&self) {
        // A process that was forked off has a copy of a ring that is still the other one's.
        if std::process::id() != self.process {
            return;
        }
        const NOTHING: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let nothing = [NOTHING; 64];
        let mut first = 0;
        while first < self.buffers {
            let some = &nothing[..nothing.len().min((self.buffers - first) as usize)];
            // Not by taking the table away, for which some kernels wait until all requests have ended.
            // SAFETY: null vectors name no memory. Requests in flight keep what they use.
            let emptied =
                unsafe { self.uring.submitter().register_buffers_update(first, some, None) };
            // Somebody has unregistered the whole table: then it is empty.
            if emptied.is_err() {
                return;
            }
            first += some.len() as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ChainOutcome;
    use crate::consume::STREAM;
    use crate::engine::Engine;

    /// The kernel refuses an enter (`EBUSY`, `EAGAIN`) only where it is short of memory, which takes a
    /// kernel that can be made so; what is done about it can be tried all the same.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no kernel")]
    fn completions_that_are_taken_early_are_not_lost() {
        let builder = Ring::builder().engine(Engine::Copy).slots(2).block_size(4096);
        let mut ring = builder.build().expect("a small ring");
        let zero = ring.attach(&std::fs::File::open("/dev/zero").expect("a device")).expect("room");
        let null = std::fs::File::create("/dev/null").expect("a device");
        let null = ring.attach(&null).expect("room");
        let chain = |ring: &mut Ring| ring.chain_write(&zero, STREAM, 4096, &null, STREAM);
        let (one, two) = (chain(&mut ring).expect("a slot"), chain(&mut ring).expect("a slot"));
        ring.enter(2).expect("both complete");
        assert_eq!((ring.take_completions(), ring.take_completions()), (2, 0));
        assert_eq!(ring.free(), 2);
        // They count as there: this would wait for ever.
        ring.wait(2).expect("nothing to wait for");
        assert_eq!(ring.wait_chain(two).expect("it is over"), ChainOutcome::Done(4096));
        let done = Event::Chained { id: one, outcome: ChainOutcome::Done(4096) };
        assert_eq!((ring.next_event(), ring.next_event()), (Some(done), None));
    }
}
