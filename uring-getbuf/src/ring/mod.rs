// SPDX-License-Identifier: MIT OR Apache-2.0
//! The safe driver: owns the io_uring, the slots and the attached files.
//!
//! Every request is *queued* by a method and sent by [`submit`](Ring::submit) or
//! [`wait`](Ring::wait); what came of it is told by [`next_event`](Ring::next_event). The methods
//! whose names begin with `wait_`, and [`write_all`](Ring::write_all) and
//! [`send_all`](Ring::send_all), do all of that for one request and block.
//!
//! # In another event loop
//!
//! The ring is an [`AsFd`]: its descriptor polls readable when there is something to do. Then call
//! [`submit`](Ring::submit), which never blocks, and take events until there are none. See
//! [`Setup::DeferTaskrun`] for what that takes with older kernels.
//!
//! # Together with other requests
//!
//! [`push`](Ring::push) queues any other request; its completion is an
//! [`Event::Foreign`].
//!
//! # What happens when
//!
//! | | |
//! |---|---|
//! | a lease is dropped | its slot is emptied with the next submission, also while requests use it |
//! | a lease is forgotten | its slot is lost until the ring is dropped |
//! | an attached file is dropped | it is detached when its last request has completed |
//! | the ring is dropped | its requests are cancelled; leases that are left name nothing |
//! | a source has nothing yet, a sink is full | the request waits in the kernel, without a thread, until it can go on, is cancelled, or its [time](Ring::within) is over |
//! | a request is cancelled | it completes with `ECANCELED`; its slot comes back as ever |
//! | somebody unregisters the ring's buffers | requests fail with `EFAULT`; nothing else |

mod builder;
mod copy_out;
mod drive;
mod files;
mod provide;
mod queues;
mod within;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::ops::{Range, RangeBounds};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fixed};
use io_uring::{Submitter, opcode as ops};
use static_assertions::assert_not_impl_any;

use crate::chain::{Chain, ChainOutcome};
use crate::consume::{Consumer, SendFlags};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::opcode::Target;
use crate::probe::Support;
use crate::slots::{Event, LeaseId, Slots, Stats, UseId, fetch_user_data};

pub use builder::{Builder, Setup};
pub(crate) use drive::Use;
use drive::{CANCEL_FILE, queue_full};
pub use files::Attached;
use files::Files;
use queues::Queues;
use within::Limits;
pub use within::Within;

/// An io_uring with slots for leases. See the [module](self).
///
/// It belongs to the thread that made it, and so do its leases and attached files.
pub struct Ring {
    uring: Queues,
    slots: Slots,
    files: Rc<Files>,
    /// Events that came while something else was waited for.
    events: VecDeque<Event>,
    /// Events that had to be taken out of the kernel's queue before anybody asked for them.
    early: VecDeque<Event>,
    /// Leases of a relay that has failed, which `SEND_ZC` requests still use: nobody is there to
    /// be told that they do not any more.
    muted: RefCell<Vec<LeaseId>>,
    /// Counts the requests of the ring's own that it waits for; the result of the last one.
    asked: u32,
    answered: Cell<Option<i32>>,
    /// Cancellations of files that are under way.
    cancelling: Cell<u32>,
    /// For looks at what the kernel has lent.
    looker: Option<copy_out::Looker>,
    /// Made by the first request that has one.
    limits: Option<Limits>,
    support: Support,
    /// `/dev/getbuf`, with the module engine.
    device: Option<Attached>,
    /// How many entries its table of buffers has.
    buffers: u32,
    /// The process that made it.
    process: u32,
}

/// The largest token of a wait for readiness. Those above are for waits of the ring's own.
pub const MAX_TOKEN: u32 = OWN_TOKENS - 1;

/// From here on tokens are for waits of the ring's own.
pub(crate) const OWN_TOKENS: u32 = 0xfffe_0000;

fn check_token(token: u32) -> Result<u32> {
    if token <= MAX_TOKEN {
        return Ok(token);
    }
    let what = format!("a wait with the token {token}: the largest one is {MAX_TOKEN}");
    Err(Error::new(ErrorKind::InvalidInput, what))
}

assert_not_impl_any!(Ring: Send, Sync);
assert_not_impl_any!(Attached: Send, Sync, Clone);

impl Ring {
    /// A ring with 32 slots of 128 KiB and the engine that costs least.
    ///
    /// # Errors
    ///
    /// See [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a ring with other numbers.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What the kernel offers.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// The engine that serves a fetch unless its source cannot lend its memory; see
    /// [`Lease::engine`] for the one that did.
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

    /// The interface for registrations, for what else the program does with the ring.
    ///
    /// Taking away the ring's buffers or files makes requests fail; it does not put data where it
    /// does not belong.
    /// What is queued is shown to the kernel first: it goes with whatever submits.
    #[must_use]
    pub fn submitter(&mut self) -> Submitter<'_> {
        self.uring.show();
        self.uring.uring().submitter()
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
        if let Some(device) = self.device.as_ref().map(Target::from)
            && let Some(bound) = self.bind(device, fd)?
        {
            // There may be fewer places than two for each file.
            if let Ok(bound_place) = self.files.take() {
                self.register(bound_place.index(), bound.as_raw_fd())?;
                place.set_bound(bound_place);
            }
        }
        Ok(place)
    }

    /// Queues the fetch of `len` bytes at `offset` of `source` ([`STREAM`](crate::STREAM): where
    /// it stands).
    ///
    /// # Errors
    ///
    /// [`NoSlot`](ErrorKind::NoSlot), [`InvalidInput`](ErrorKind::InvalidInput),
    /// [`WrongRing`](ErrorKind::WrongRing), and the errors of [`submit`](Self::submit), which it
    /// calls where the submission queue is full.
    #[inline(always)]
    pub fn fetch(&mut self, source: &Attached, offset: u64, len: u32) -> Result<Lease<Fetched>> {
        self.fetch_from(source, |place| source.source_in(place), offset, len)
    }

    /// As [`fetch`](Self::fetch), but into the pool with every engine. For a sink that cannot take
    /// the kernel's memory: a file whose driver only knows `write(2)` from a buffer of the program
    /// (many character devices, files of procfs) answers `EFAULT` to a lease of it.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
    pub fn fetch_copied(
        &mut self,
        source: &Attached,
        offset: u64,
        len: u32,
    ) -> Result<Lease<Fetched>> {
        self.fetch_from(source, |_| source.copied(), offset, len)
    }

    /// Queues a write of a range of the lease to `offset` of `sink` ([`STREAM`](crate::STREAM):
    /// where it stands).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    #[inline(always)]
    pub fn write(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        offset: u64,
    ) -> Result<UseId> {
        self.write_range(lease, lease.range(range)?, sink, offset)
    }

    /// Queues a vectored write; see [`Lease::writev`].
    ///
    /// # Errors
    ///
    /// Those of [`Lease::writev`], [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    pub fn writev(
        &mut self,
        lease: &Lease<Installed>,
        ranges: &[Range<u32>],
        sink: &Attached,
        offset: u64,
    ) -> Result<UseId> {
        self.check(lease)?;
        let place = sink.place_in(&self.files)?;
        self.make_room(1)?;
        let request = lease.writev(ranges, sink, offset)?.token(place);
        let id = request.id();
        let entry = request.into_entry();
        self.push_entries(&[entry]);
        Ok(id)
    }

    /// Queues a send; see [`Lease::send`].
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    #[inline(always)]
    pub fn send(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.send_range(lease, lease.range(range)?, sink, flags)
    }

    /// Queues a zero-copy send; see [`Lease::send_zc`].
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), and [`Unavailable`](ErrorKind::Unavailable).
    #[inline(always)]
    pub fn send_zc(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.send_zc_range(lease, lease.range(range)?, sink, flags)
    }

    /// Lets a lease be released with the next submission. The same as dropping it.
    pub fn release(&mut self, lease: Lease<Installed>) {
        drop(lease.release());
    }

    /// Has what replaced slots still hold released with the next submission; see
    /// [`Builder::replace`].
    pub fn trim(&mut self) {
        self.slots.trim();
    }

    /// Queues a [`Chain`] that ends in a write to `sink_offset` of `sink`.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
    #[inline]
    pub fn chain_write(
        &mut self,
        source: &Attached,
        offset: u64,
        len: u32,
        sink: &Attached,
        sink_offset: u64,
    ) -> Result<LeaseId> {
        let consumer = Consumer::Write { sink: sink.into(), offset: sink_offset };
        self.chain(source, sink, Chain::new(source.source(), offset, len, consumer))
    }

    /// Queues a [`Chain`] that ends in a send. It sends everything or fails.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
    #[inline]
    pub fn chain_send(
        &mut self,
        source: &Attached,
        offset: u64,
        len: u32,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<LeaseId> {
        let consumer = Consumer::Send { sink: sink.into(), flags };
        self.chain(source, sink, Chain::new(source.source(), offset, len, consumer))
    }

    /// Queues a [`Chain`] that ends in a zero-copy send.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch), and [`Unavailable`](ErrorKind::Unavailable).
    #[inline]
    pub fn chain_send_zc(
        &mut self,
        source: &Attached,
        offset: u64,
        len: u32,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<LeaseId> {
        let consumer = Consumer::SendZc { sink: sink.into(), flags };
        self.chain(source, sink, Chain::new(source.source(), offset, len, consumer))
    }

    /// Queues a wait until a file can be read from. [`Event::Ready`] gives `token` back.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), [`InvalidInput`](ErrorKind::InvalidInput) for a token
    /// above [`MAX_TOKEN`], and those of [`submit`](Self::submit).
    pub fn poll_readable(&mut self, file: &Attached, token: u32) -> Result<()> {
        self.poll(file, libc::POLLIN as u32, check_token(token)?)
    }

    /// Queues a wait until a file can be written to. [`Event::Ready`] gives `token` back.
    ///
    /// # Errors
    ///
    /// As [`poll_readable`](Self::poll_readable).
    pub fn poll_writable(&mut self, file: &Attached, token: u32) -> Result<()> {
        self.poll(file, libc::POLLOUT as u32, check_token(token)?)
    }

    /// Queues the cancellation of every request that names a file. Each of them completes, with
    /// `ECANCELED` if it was not done yet.
    ///
    /// # Errors
    ///
    /// As [`poll_readable`](Self::poll_readable).
    pub fn cancel(&mut self, file: &Attached) -> Result<()> {
        let place = file.place_in(&self.files)?;
        let cancel = CancelBuilder::fd(Fixed(u32::from(place))).all();
        let cancel = ops::AsyncCancel2::new(cancel).build();
        self.push_own(&cancel, CANCEL_FILE, u64::from(place))?;
        // Until it is done, the place is given to no other file, whose requests it would cancel.
        self.files.begin(place);
        self.cancelling.set(self.cancelling.get() + 1);
        Ok(())
    }

    /// Queues the cancellation of one fetch. It completes, with `ECANCELED` if it was not done yet.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`submit`](Self::submit).
    pub fn cancel_fetch(&mut self, lease: &Lease<Fetched>) -> Result<()> {
        self.check(lease)?;
        self.slots.cancel_fallback(lease);
        // What is still to be sent is sent before it.
        self.flush()?;
        self.cancel_request(fetch_user_data(self.slots.tag(), lease.id()))
    }

    /// Queues the cancellation of one consumer. It completes, with `ECANCELED` if it was not done
    /// yet. Of a `SEND_ZC` that has its result nothing can be cancelled.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit).
    pub fn cancel_use(&mut self, request: UseId) -> Result<()> {
        self.cancel_request(request.user_data())
    }

    /// Queues any other request. Its completion is an [`Event::Foreign`].
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the top byte of its `user_data` is the tag of
    /// this ring's own requests ([`DEFAULT_TAG`](crate::slots::DEFAULT_TAG)), and the errors of
    /// [`submit`](Self::submit).
    ///
    /// # Safety
    ///
    /// What the request names must be valid until it has completed.
    pub unsafe fn push(&mut self, entry: &Entry) -> Result<()> {
        let tag = self.slots.tag();
        if (entry.get_user_data() >> 56) as u8 == tag {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("user_data with the top byte {tag:#x} is for the ring's own requests"),
            ));
        }
        self.make_room(1)?;
        // SAFETY: the caller's promise.
        self.uring.submission(|queue| unsafe { queue.push(entry) }).map_err(|_| queue_full())
    }

    /// Sends what is queued, and lets the kernel process completions that are due. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Ring`](ErrorKind::Ring) if the kernel refuses.
    pub fn submit(&mut self) -> Result<()> {
        self.flush()?;
        if self.uring.is_idle() { Ok(()) } else { self.enter(0) }
    }

    /// Sends what is queued, and waits until at least `count` completions are there. Events that
    /// have not been taken yet count. It waits for ever if fewer requests are in flight.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn wait(&mut self, count: usize) -> Result<()> {
        self.flush()?;
        self.enter(self.missing(count))?;
        self.see_completions();
        Ok(())
    }

    /// Sends what is queued, and waits for a completion if none is there then.
    ///
    /// It costs less than [`wait`](Self::wait) where requests are served while they are sent, as from
    /// the page cache to a file that takes everything at once: the kernel makes no preparations to
    /// wait. Where nothing is there it costs a second system call.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_or_wait(&mut self) -> Result<()> {
        self.flush()?;
        if self.uring.has_news() {
            self.enter(0)?;
        }
        if !self.see_completions() {
            self.enter(1)?;
            self.see_completions();
        }
        Ok(())
    }

    /// As [`wait`](Self::wait), but no longer than `timeout`. Whether completions are there is told
    /// by [`next_event`](Self::next_event).
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn wait_timeout(&mut self, count: usize, timeout: Duration) -> Result<()> {
        self.flush()?;
        self.enter_for(self.missing(count), timeout)?;
        self.see_completions();
        Ok(())
    }

    /// How many completions the kernel has to bring until `count` are there.
    fn missing(&self, count: usize) -> usize {
        count.saturating_sub(self.events.len() + self.early.len())
    }

    /// The next event that is there. Makes no system call.
    // As the `next` of an iterator: the event need not go through memory then.
    #[inline(always)]
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(completion) = self.uring.next_ready() {
            return self.complete(&completion);
        }
        if !self.has_more() {
            return None;
        }
        let mut event = None;
        self.next_unseen(&mut event);
        event
    }

    // What is returned through memory stays there, also where this was not called.
    #[cold]
    fn next_unseen(&mut self, event: &mut Option<Event>) {
        *event = match self.uring.next_ready() {
            Some(completion) => self.complete(&completion),
            None => self.events.pop_front().or_else(|| self.early.pop_front()),
        };
    }

    #[inline(never)]
    fn has_more(&mut self) -> bool {
        self.see_completions()
    }

    /// Has the completions that are there told next, unless events come before them. Whether there is
    /// one or the other.
    #[inline(always)]
    fn see_completions(&mut self) -> bool {
        self.events.len() | self.early.len() != 0 || self.uring.see()
    }

    /// Waits until a fetch is done, whatever came of it: [`Lease::installed`] tells.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`submit`](Self::submit). The fetch goes
    /// on then, and can be waited for again.
    pub fn wait_fetched(&mut self, lease: &Lease<Fetched>) -> Result<()> {
        self.check(lease)?;
        let id = lease.id();
        let is_told = |event: &Event| matches!(event, Event::Fetched { lease, .. } if *lease == id);
        while lease.is_pending() {
            self.wait_event(is_told)?;
        }
        // Told here, it is not told again: events that nobody takes would pile up.
        self.forget(is_told);
        Ok(())
    }

    /// Waits for a fetch, and gives the lease in its next state. `None`: end of file.
    ///
    /// On an error the lease is dropped, and its slot comes back; with
    /// [`wait_fetched`](Self::wait_fetched) it is kept.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), [`Source`](ErrorKind::Source) if the source failed,
    /// and those of [`submit`](Self::submit).
    pub fn wait_installed(&mut self, lease: Lease<Fetched>) -> Result<Option<Lease<Installed>>> {
        let mut lease = lease;
        loop {
            self.wait_fetched(&lease)?;
            lease = match lease.installed() {
                Ok(lease) => return Ok(Some(lease)),
                Err(NotInstalled::EndOfFile) => return Ok(None),
                Err(NotInstalled::Failed(errno)) => {
                    return Err(Error::os(ErrorKind::Source, errno, "fetching from the source"));
                }
                Err(NotInstalled::Pending(lease)) => lease,
            };
        }
    }

    /// Waits for the result of a consumer: the bytes it took. It is there once.
    /// [`Event::Returned`], which follows that of a `SEND_ZC`, stays for
    /// [`next_event`](Self::next_event).
    ///
    /// # Errors
    ///
    /// [`Sink`](ErrorKind::Sink) if the consumer failed, and those of [`submit`](Self::submit).
    pub fn wait_used(&mut self, request: UseId) -> Result<u32> {
        let event =
            self.wait_event(|event| matches!(event, Event::Used { id, .. } if *id == request))?;
        match event {
            Event::Used { result, .. } => {
                result.map_err(|errno| Error::os(ErrorKind::Sink, errno, "writing to the sink"))
            }
            _ => unreachable!("it was asked for"),
        }
    }

    /// Waits for a chain.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit). What the chain itself met is in its outcome.
    pub fn wait_chain(&mut self, chain: LeaseId) -> Result<ChainOutcome> {
        let event =
            self.wait_event(|event| matches!(event, Event::Chained { id, .. } if *id == chain))?;
        match event {
            Event::Chained { outcome, .. } => Ok(outcome),
            _ => unreachable!("it was asked for"),
        }
    }

    /// Writes the whole lease to `offset` of `sink` and waits for it, however many writes it
    /// takes.
    ///
    /// # Errors
    ///
    /// [`Sink`](ErrorKind::Sink), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    pub fn write_all(
        &mut self,
        lease: &Lease<Installed>,
        sink: &Attached,
        offset: u64,
    ) -> Result<()> {
        let stream = offset == crate::STREAM;
        self.use_all(
            lease,
            |ring, lease, done| {
                let offset = if stream { offset } else { offset + u64::from(done) };
                ring.write(lease, done.., sink, offset)
            },
            sink,
        )
    }

    /// Sends the whole lease and waits for it, however many sends it takes.
    ///
    /// # Errors
    ///
    /// As [`write_all`](Self::write_all).
    pub fn send_all(&mut self, lease: &Lease<Installed>, sink: &Attached) -> Result<()> {
        let flags = SendFlags::WAIT_ALL;
        self.use_all(lease, |ring, lease, done| ring.send(lease, done.., sink, flags), sink)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uring.uring().as_fd()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.uring().as_raw_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots)
            .field("files", &self.files)
            .field("events", &self.events.len())
            .finish_non_exhaustive()
    }
}
