// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring itself: what goes into its queues, what comes out, and how it ends.
//!
//! It is one file, although a long one, because these share the reasons why pushing requests is sound.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, Submitter, cqueue, opcode as ops};
use static_assertions::assert_not_impl_any;

use super::copy_out::Looker;
use super::files::{Attached, Files, RingId};
use super::within::Limits;
use crate::engine::{Engine, Traits};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::probe::Support;
use crate::request::{Sqe, Target};
use crate::slots::lease::{Lease, State};
use crate::slots::{
    Event, LeaseId, MOST_LINKED, Outgoing, Slots, Stats, driver_request, driver_user_data,
};

/// Requests of the driver itself.
pub(super) const POLL: u8 = 0;
pub(super) const CANCEL: u8 = 1;
/// One that is waited for.
pub(super) const ASK: u8 = 2;
pub(super) const TIMEOUT: u8 = 3;
/// The cancellation of what names a place, which is named by it as well.
pub(super) const CANCEL_FILE: u8 = 4;

/// How long a ring waits for what it has cancelled: when it is dropped, for requests that name its
/// memory by address.
const DRAIN: Duration = Duration::from_secs(1);

/// The largest token of a wait for readiness. Those above are for waits of the ring's own.
pub const MAX_TOKEN: u32 = OWN_TOKENS - 1;

/// From here on tokens are for waits of the ring's own.
pub(crate) const OWN_TOKENS: u32 = 0xfffe_0000;

/// An io_uring with slots for leases. See the [module](super).
///
/// It belongs to the thread that made it, and so do its leases and attached files.
pub struct Ring {
    pub(super) uring: IoUring,
    pub(super) slots: Slots,
    pub(super) files: Rc<Files>,
    /// By slot: the places of the files that its fetch or chain names.
    pub(super) names: Box<[Names]>,
    /// Events that came while something else was waited for.
    pub(super) kept: VecDeque<Event>,
    /// Events whose completions had to be taken out of the kernel's queue before anybody asked for them.
    pub(super) taken: VecDeque<Event>,
    /// Leases of a relay that has failed, which `SEND_ZC` requests still use: nobody is there to
    /// be told that they do not any more.
    pub(super) muted: Vec<LeaseId>,
    /// Room for requests that are pushed together.
    pub(super) batch: Vec<Entry>,
    /// Counts the requests of the ring's own that it waits for; the result of the last one.
    pub(super) asked: u32,
    pub(super) answered: Option<i32>,
    /// Cancellations of files that are under way.
    pub(super) cancelling: usize,
    /// For looks at what the kernel has lent.
    pub(super) looker: Option<Looker>,
    pub(super) limits: Limits,
    pub(super) support: Support,
    /// The engine's device, if it has one.
    pub(super) device: Option<Attached>,
    /// How many places its table of registered buffers has.
    pub(super) places: u16,
    /// The process that made it.
    pub(super) process: u32,
}

/// The places of the files that a fetch or a chain names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Names {
    source: Option<u16>,
    sink: Option<u16>,
}

assert_not_impl_any!(Ring: Send, Sync);
assert_not_impl_any!(Attached: Send, Sync, Clone);

impl Ring {
    /// What the kernel offers.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// The engine that serves a fetch unless its source cannot lend its memory; see
    /// [`Lease::origin`] for the one that did.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.slots.engine()
    }

    /// How many leases there can be at once.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// How many slots are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.slots.free()
    }

    /// Most bytes that one lease holds.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.slots.max_fetch()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.slots.stats()
    }

    /// What leases of its engine are like.
    pub(crate) fn traits(&self) -> Traits {
        self.slots.traits()
    }

    /// The interface for registrations, for what else the program does with the ring. What is queued is
    /// shown to the kernel first: it goes with whatever submits.
    ///
    /// # Safety
    ///
    /// The places of the attached files ([`Attached::index`]) and those of the slots in the table of
    /// registered buffers must keep what is in them, or become empty: what is put in another file's
    /// place is written to in its stead, and what is put in a slot is shown as a lease. Emptying them
    /// makes requests fail, and nothing else.
    ///
    /// A program without `unsafe` cannot put one file under the writes to another:
    ///
    /// ```compile_fail,E0133
    /// # fn swap(ring: &mut uring_getbuf::Ring, sink: &uring_getbuf::ring::Attached, source: i32) {
    /// let _ = ring.submitter().register_files_update(sink.index(), &[source]);
    /// # }
    /// ```
    #[must_use]
    pub unsafe fn submitter(&mut self) -> Submitter<'_> {
        self.uring.submitter()
    }

    /// Has the kernel count completions in an eventfd, for another event loop.
    ///
    /// # Errors
    ///
    /// [`Ring`](ErrorKind::Ring) if the kernel refuses, as where the ring has one.
    pub fn register_eventfd(&mut self, eventfd: &impl AsFd) -> Result<()> {
        let eventfd = eventfd.as_fd().as_raw_fd();
        let registered = self.uring.submitter().register_eventfd(eventfd);
        registered.map_err(|error| Error::io(ErrorKind::Ring, &error, "registering an eventfd"))
    }

    /// Attaches a file: the kernel holds its own reference, and requests find it without a lookup.
    ///
    /// It takes no file descriptor. The module engine takes one for a moment to bind a source; where
    /// none is left, the source's fetches go through the pool.
    ///
    /// # Errors
    ///
    /// [`NoFile`](ErrorKind::NoFile) if every place is taken, [`Ring`](ErrorKind::Ring) if the
    /// kernel refuses the file.
    pub fn attach(&mut self, file: &impl AsFd) -> Result<Attached> {
        self.sweep();
        let fd = file.as_fd().as_raw_fd();
        let mut place = match self.files.take() {
            Ok(place) => place,
            // What still names a place may be done as soon as it is sent, such as a cancellation.
            Err(_) => {
                self.submit()?;
                self.take_completions();
                self.sweep();
                self.files.take()?
            }
        };
        self.register(place.index(), fd)?;
        let device = self.device.as_ref().map(Target::from);
        if let Some(bind) = device.and_then(|device| self.engine().attach(device, fd))
            && let Some(bound) = self.ask_for_file(bind)?
            // There may be fewer places than two for each file.
            && let Ok(bound_place) = self.files.take()
        {
            self.register(bound_place.index(), bound.as_raw_fd())?;
            place.set_bound(&bound_place);
        }
        Ok(place)
    }
}

/// What goes into its queues.
impl Ring {
    pub(crate) fn id(&self) -> RingId {
        RingId::of(&self.files)
    }

    /// Looks that this is the ring that something was made with.
    pub(crate) fn check_id(&self, id: &RingId) -> Result<()> {
        if id.is_of(&self.files) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongRing, "it was made with another ring"))
    }

    pub(super) fn check<S: State>(&self, lease: &Lease<S>) -> Result<()> {
        if self.slots.owns(lease) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongRing, "the lease belongs to another ring"))
    }

    /// Says which files a fetch or a chain names, which has been pushed.
    pub(super) fn name(&mut self, id: LeaseId, source: u16, sink: Option<u16>) {
        self.files.begin(source);
        if let Some(sink) = sink {
            self.files.begin(sink);
        }
        self.names[usize::from(id.slot())] = Names { source: Some(source), sink };
    }

    /// Pushes requests for which [there is room](Self::make_room); they become visible together.
    ///
    /// What they name stays valid until they have completed: they are the slots' own, on attached files;
    /// or they name no memory; or they name memory that the caller keeps.
    pub(super) fn queue(&mut self, requests: &[Entry]) {
        push(&mut self.uring, requests);
    }

    /// Pushes a request of the driver, which names no memory or such as the caller keeps.
    pub(super) fn push_own(&mut self, entry: Entry, kind: u8, value: u64) -> Result<()> {
        self.make_room(1)?;
        self.queue(&[entry.user_data(driver_user_data(self.slots.tag(), kind, value))]);
        Ok(())
    }

    pub(crate) fn queue_capacity(&self) -> usize {
        self.uring.params().sq_entries() as usize
    }

    fn has_room(&mut self, count: usize) -> bool {
        let queue = self.uring.submission();
        queue.capacity() - queue.len() >= count
    }

    /// Whether the kernel has taken everything that was pushed, and does not wait to be entered either.
    pub(super) fn is_idle(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
    }

    /// Makes sure that the submission queue takes `count` more.
    pub(super) fn make_room(&mut self, count: usize) -> Result<()> {
        if self.has_room(count) { Ok(()) } else { self.drain_queue(count) }
    }

    #[cold]
    fn drain_queue(&mut self, count: usize) -> Result<()> {
        if count > self.queue_capacity() {
            return Err(queue_full());
        }
        loop {
            self.enter(0)?;
            if self.has_room(count) {
                return Ok(());
            }
            if !self.uring.params().is_setup_sqpoll() {
                return Err(queue_full());
            }
            let waited = self.uring.submitter().squeue_wait();
            waited.map_err(|error| Error::io(ErrorKind::Ring, &error, "io_uring_enter"))?;
        }
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

    /// Queues what the slots need sent, and lets go of files that nothing names any more.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.sweep();
        while self.slots.has_requests() {
            self.make_room(MOST_LINKED)?;
            let (limit, entry) = match self.slots.next_request() {
                None => continue,
                Some(Outgoing::Clear(clear)) => {
                    match set_buffer(&self.uring.submitter(), clear.index(), (ptr::null_mut(), 0)) {
                        // Somebody has unregistered the whole table: then the slot is empty.
                        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
                            return Err(Error::io(ErrorKind::Ring, &error, "emptying a slot"));
                        }
                        _ => clear.done(),
                    };
                    continue;
                }
                // The files of what is sent once more are still counted.
                Some(Outgoing::Chain(chain)) => {
                    chain.with_entries(|entries| push(&mut self.uring, entries));
                    continue;
                }
                Some(Outgoing::Request(request)) => {
                    (self.limits.of(request.id()), request.into_entry())
                }
            };
            match limit {
                Some(limit) => self.push_limited(entry, limit),
                None => self.queue(&[entry]),
            }
        }
        Ok(())
    }

    /// Lets go of files that nothing names any more.
    pub(crate) fn sweep(&mut self) {
        while let Some(index) = self.files.next_vacant() {
            // It fails where somebody has unregistered the whole table: then it is empty already.
            let _ = self.register(u32::from(index), -1);
        }
    }

    /// Puts a descriptor into a place of the table of files; -1 empties it.
    fn register(&self, index: u32, fd: RawFd) -> Result<()> {
        match self.uring.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(ErrorKind::Ring, &error, "attaching or detaching a file")),
        }
    }
}

/// Pushes requests to a ring; see [`Ring::queue`] for what holds of them.
pub(super) fn push(uring: &mut IoUring, requests: &[Entry]) {
    // SAFETY: the pool and the ranges of the slots live as long as requests need them, see `drain`, and
    // are registered with this ring. Attached files stay so until the requests that name them have
    // completed. Every completion is given to the slots by `complete`. What else requests name is the
    // caller's to keep.
    let pushed = unsafe { uring.submission().push_multiple(requests) };
    debug_assert!(pushed.is_ok(), "there is room");
}

/// Puts memory into a place of the table of registered buffers; none empties it.
///
/// It is memory of a pool, of a region or of a provider. The kernel pins its pages, so it may even be
/// unmapped while it is registered.
pub(super) fn set_buffer(
    submitter: &Submitter<'_>,
    index: u16,
    (base, len): (*mut u8, usize),
) -> io::Result<()> {
    let vector = libc::iovec { iov_base: base.cast(), iov_len: len };
    // SAFETY: the kernel looks the memory up as it pins it, and fails where there is none. What is there
    // is meant to be read from and written into through leases, as every caller has been promised by who
    // gave it the memory.
    unsafe { submitter.register_buffers_update(index.into(), &[vector], None) }.map(drop)
}

/// What is asked of the kernel, and waited for.
impl Ring {
    /// Sends a request of an engine's whose result is a new descriptor. `None`: it has failed.
    fn ask_for_file(&mut self, request: Sqe) -> Result<Option<OwnedFd>> {
        let result = self.ask(request)?;
        // SAFETY: the engine's device has just made this descriptor for us.
        Ok((result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) }))
    }

    /// Sends a request of the ring's own and waits for its result. What else completes is kept for
    /// `next_event`. What the request names must stay valid also after an error: it may still be
    /// there.
    pub(super) fn ask(&mut self, request: Sqe) -> Result<i32> {
        self.asked = self.asked.wrapping_add(1);
        self.answered = None;
        self.push_own(request.entry(), ASK, u64::from(self.asked))?;
        loop {
            while let Some(event) = self.next_completion() {
                self.keep(event);
            }
            // It may have been among completions that had to be taken early.
            if let Some(result) = self.answered.take() {
                return Ok(result);
            }
            self.enter(1)?;
        }
    }

    /// Waits until no cancellation of a file is under way, which keeps it attached. They wait for
    /// nothing; but who submits them may do so a little later (`SQPOLL`). Not for long: a completion
    /// can be lost (`EBADR`).
    pub(crate) fn end_cancellations(&mut self) -> Result<()> {
        let deadline = Instant::now() + DRAIN;
        while self.cancelling > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.enter_for(1, left)?;
            self.take_completions();
        }
        Ok(())
    }

    /// Submits everything, and waits until so many completions are there that have not been taken.
    pub(crate) fn enter(&mut self, count: usize) -> Result<()> {
        let mut count = count;
        while let Err(error) = self.uring.submit_and_wait(count) {
            count = count.saturating_sub(self.not_entered(&error)?);
        }
        Ok(())
    }

    /// Submits everything, and waits until so many completions are there, but no longer than this.
    pub(crate) fn enter_for(&mut self, count: usize, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut count = count;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let time = Timespec::from(left);
            let args = SubmitArgs::new().timespec(&time);
            match self.uring.submitter().submit_with_args(count, &args) {
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
        let before = self.taken.len();
        while let Some(event) = self.take_completion() {
            self.taken.push_back(event);
        }
        self.taken.len() - before
    }
}

/// What comes out.
impl Ring {
    /// Leaves an event for [`next_event`](Self::next_event).
    pub(crate) fn keep(&mut self, event: Event) {
        if event.is_told() {
            self.kept.push_back(event);
        }
    }

    /// Has nothing more told of a lease that is over but for what the network still holds of it.
    pub(crate) fn mute(&mut self, lease: LeaseId) {
        if self.slots.uses(lease) > 0 {
            self.muted.push(lease);
        }
    }

    /// Whether nobody is to be told what becomes of a use of this lease.
    fn is_muted(&mut self, lease: LeaseId) -> bool {
        let Some(place) = self.muted.iter().position(|other| *other == lease) else { return false };
        if self.slots.uses(lease) == 0 {
            self.muted.swap_remove(place);
        }
        true
    }

    /// The next completion, and what it meant; those that had to be taken early come first.
    pub(crate) fn next_completion(&mut self) -> Option<Event> {
        self.taken.pop_front().or_else(|| self.take_completion())
    }

    /// The next completion that the kernel has left, and what it meant.
    fn take_completion(&mut self) -> Option<Event> {
        let completion = self.uring.completion().next()?;
        Some(self.complete(&completion))
    }

    /// What a completion meant; counts off the files that it names.
    fn complete(&mut self, completion: &cqueue::Entry) -> Event {
        let (user_data, result) = (completion.user_data(), completion.result());
        let Some(event) = self.slots.complete(user_data, result, completion.flags()) else {
            return self.complete_own(user_data, result, completion.flags());
        };
        match event {
            Event::Fetched { lease: id, .. } | Event::Chained { id, .. } => {
                let Names { source, sink } =
                    std::mem::take(&mut self.names[usize::from(id.slot())]);
                for place in source.into_iter().chain(sink) {
                    self.files.done(place);
                }
            }
            Event::Used { id, more: false, .. } => self.files.done(id.token()),
            Event::Returned { id } => {
                self.files.done(id.token());
                if self.is_muted(id.lease()) {
                    return Event::Pending;
                }
            }
            _ => {}
        }
        event
    }

    fn complete_own(&mut self, user_data: u64, result: i32, flags: u32) -> Event {
        match driver_request(self.slots.tag(), user_data) {
            Some((POLL, value)) => {
                self.files.done((value >> 32) as u16);
                Event::Ready { token: value as u32, result: Errno::check(result) }
            }
            Some((CANCEL_FILE, value)) => {
                self.files.done(value as u16);
                self.cancelling -= 1;
                Event::Pending
            }
            Some((ASK, value)) => {
                if value == u64::from(self.asked) {
                    self.answered = Some(result);
                }
                Event::Pending
            }
            Some(_) => Event::Pending,
            None => Event::Foreign { user_data, result, flags },
        }
    }
}

#[cold]
fn queue_full() -> Error {
    Error::new(ErrorKind::QueueFull, "the submission queue is full and the kernel takes nothing")
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uring.as_fd()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots)
            .field("files", &self.files)
            .field("events", &self.kept.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A process that was forked off has a copy of a ring that is still the other one's.
        if std::process::id() == self.process {
            self.drain();
            self.unpin();
        }
    }
}

/// How it ends.
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
            let sent =
                self.push_own(all.clone(), CANCEL, 0).and_then(|()| self.enter_for(2, DRAIN / 50));
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
    fn unpin(&mut self) {
        // Not by taking the table away, for which some kernels wait until all requests have ended.
        for index in 0..self.places {
            // Somebody has unregistered the whole table: then it is empty.
            if set_buffer(&self.uring.submitter(), index, (ptr::null_mut(), 0)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::chain::ChainOutcome;
    use crate::slots::consume::STREAM;

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
