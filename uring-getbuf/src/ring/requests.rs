// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be queued on a ring: fetches, consumers, chains, waits, cancellations.

use std::ops::{Range, RangeBounds};

use io_uring::opcode as ops;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fixed};

use super::drive::{CANCEL, CANCEL_FILE, MAX_TOKEN, POLL, Ring, push};
use super::files::Attached;
use crate::engine::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::slots::chain::Chain;
use crate::slots::consume::{Consumer, SendFlags};
use crate::slots::lease::{Fetched, Installed, Lease};
use crate::slots::{LeaseId, MOST_LINKED, UseId, driver_user_data};

/// `poll(2)` events that are always reported.
const POLL_ALWAYS: u32 = (libc::POLLERR | libc::POLLHUP) as u32;

/// A consumer, on a file of the ring's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Write { offset: u64 },
    Send,
    SendZc,
}

fn check_token(token: u32) -> Result<u32> {
    if token <= MAX_TOKEN {
        return Ok(token);
    }
    let what = format!("a wait with the token {token}: the largest one is {MAX_TOKEN}");
    Err(Error::new(ErrorKind::InvalidInput, what))
}

impl Ring {
    /// Queues the fetch of `len` bytes at `offset` of `source` ([`STREAM`](crate::STREAM): where
    /// it stands).
    ///
    /// # Errors
    ///
    /// [`NoSlot`](ErrorKind::NoSlot), [`InvalidInput`](ErrorKind::InvalidInput),
    /// [`WrongRing`](ErrorKind::WrongRing), and the errors of [`submit`](Self::submit), which it
    /// calls where the submission queue is full.
    pub fn fetch(&mut self, source: &Attached, offset: u64, len: u32) -> Result<Lease<Fetched>> {
        self.fetch_from(source, source.source(), offset, len)
    }

    /// Queues a fetch into the pool, whatever the engine. It is for a sink that cannot take the
    /// kernel's memory: a file whose driver only knows `write(2)` from a buffer of the program
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
        self.fetch_from(source, source.copied(), offset, len)
    }

    /// Queues a write of a range of the lease to `offset` of `sink` ([`STREAM`](crate::STREAM):
    /// where it stands).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    pub fn write(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        offset: u64,
    ) -> Result<UseId> {
        self.consume(
            lease,
            lease.range(range)?,
            sink,
            Consumer::Write { sink: sink.into(), offset },
        )
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
        self.queue(&[entry]);
        self.files.begin(place);
        Ok(id)
    }

    /// Queues a send; see [`Lease::send`].
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    pub fn send(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(lease, lease.range(range)?, sink, Consumer::Send { sink: sink.into(), flags })
    }

    /// Queues a zero-copy send; see [`Lease::send_zc`].
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), and [`Unavailable`](ErrorKind::Unavailable).
    pub fn send_zc(
        &mut self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(
            lease,
            lease.range(range)?,
            sink,
            Consumer::SendZc { sink: sink.into(), flags },
        )
    }

    /// Lets a lease be released with the next submission, as its drop does.
    pub fn release(&mut self, lease: Lease<Installed>) {
        drop(lease.release());
    }

    /// Queues a [`Chain`] that ends in a write to `sink_offset` of `sink`.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
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

    /// Queues a wait until a file can be read from. [`Event::Ready`](crate::slots::Event::Ready)
    /// gives `token` back.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), [`InvalidInput`](ErrorKind::InvalidInput) for a token
    /// above [`MAX_TOKEN`], and those of [`submit`](Self::submit).
    pub fn poll_readable(&mut self, file: &Attached, token: u32) -> Result<()> {
        self.poll(file, libc::POLLIN as u32, check_token(token)?)
    }

    /// Queues a wait until a file can be written to. [`Event::Ready`](crate::slots::Event::Ready)
    /// gives `token` back.
    ///
    /// # Errors
    ///
    /// Those of [`poll_readable`](Self::poll_readable).
    pub fn poll_writable(&mut self, file: &Attached, token: u32) -> Result<()> {
        self.poll(file, libc::POLLOUT as u32, check_token(token)?)
    }

    /// Queues the cancellation of every request that names a file. Each of them completes, with
    /// `ECANCELED` if it was not done yet.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`submit`](Self::submit).
    pub fn cancel(&mut self, file: &Attached) -> Result<()> {
        let place = file.place_in(&self.files)?;
        let cancel = CancelBuilder::fd(Fixed(u32::from(place))).all();
        let cancel = ops::AsyncCancel2::new(cancel).build();
        self.push_own(cancel, CANCEL_FILE, u64::from(place))?;
        // Until it is done, the place is given to no other file, whose requests it would cancel.
        self.files.begin(place);
        self.cancelling += 1;
        Ok(())
    }

    /// Queues the cancellation of one fetch. It completes, with `ECANCELED` if it was not done yet.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`submit`](Self::submit).
    pub fn cancel_fetch(&mut self, lease: &Lease<Fetched>) -> Result<()> {
        self.check(lease)?;
        lease.cancel();
        // What is still to be sent is sent before it.
        self.flush()?;
        self.cancel_request(lease.id().fetch(self.slots.tag()))
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

    /// Queues any other request. Its completion is an
    /// [`Event::Foreign`](crate::slots::Event::Foreign).
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
        self.queue(std::slice::from_ref(entry));
        Ok(())
    }
}

/// What the crate's own movers queue.
impl Ring {
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

    /// Queues a fetch, in one of the ways that its source can be named.
    fn fetch_from(
        &mut self,
        file: &Attached,
        source: Source,
        offset: u64,
        len: u32,
    ) -> Result<Lease<Fetched>> {
        let place = file.place_in(&self.files)?;
        self.make_room(1)?;
        let (lease, request) = self.slots.fetch(source, offset, len)?;
        let entry = request.into_entry();
        self.queue(&[entry]);
        self.name(lease.id(), place, None);
        Ok(lease)
    }

    /// Queues a chain between these two.
    fn chain(&mut self, source: &Attached, sink: &Attached, chain: Chain) -> Result<LeaseId> {
        let (from, to) = (source.place_in(&self.files)?, sink.place_in(&self.files)?);
        self.make_room(MOST_LINKED)?;
        let Self { uring, slots, .. } = self;
        let (id, chain) = slots.chain(chain)?;
        chain.with_entries(|entries| push(uring, entries));
        self.name(id, from, Some(to));
        Ok(id)
    }

    /// Queues a consumer. `range` has been checked; `consumer` names `sink`.
    fn consume(
        &mut self,
        lease: &Lease<Installed>,
        range: Range<u32>,
        sink: &Attached,
        consumer: Consumer,
    ) -> Result<UseId> {
        self.check(lease)?;
        let place = sink.place_in(&self.files)?;
        self.make_room(1)?;
        let request = lease.request(range, consumer, place)?;
        self.queue(&[request.entry()]);
        self.files.begin(place);
        Ok(UseId::of(request.user_data))
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
        let (target, all) = (sink.into(), SendFlags::WAIT_ALL);
        let mut requests = std::mem::take(&mut self.batch);
        let mut failed = None;
        for (index, (lease, range, consumer)) in uses.enumerate() {
            let consumer = match consumer {
                Use::Write { offset } => Consumer::Write { sink: target, offset },
                Use::Send => Consumer::Send { sink: target, flags: all },
                Use::SendZc => Consumer::SendZc { sink: target, flags: all },
            };
            let linked = if index + 1 < count { Flags::IO_LINK } else { Flags::empty() };
            match lease.request(range, consumer, place) {
                Ok(request) => {
                    self.files.begin(place);
                    queued(UseId::of(request.user_data));
                    requests.push(request.flags(linked).entry());
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.queue(&requests);
        requests.clear();
        self.batch = requests;
        failed.map_or(Ok(()), Err)
    }

    pub(crate) fn poll(&mut self, file: &Attached, events: u32, token: u32) -> Result<()> {
        let place = file.place_in(&self.files)?;
        let entry = ops::PollAdd::new(Fixed(u32::from(place)), events | POLL_ALWAYS).build();
        self.push_own(entry, POLL, u64::from(place) << 32 | u64::from(token))?;
        self.files.begin(place);
        Ok(())
    }

    /// Queues the cancellation of a wait for readiness.
    pub(crate) fn cancel_poll(&mut self, file: &Attached, token: u32) -> Result<()> {
        let value = u64::from(file.place_in(&self.files)?) << 32 | u64::from(token);
        self.cancel_request(driver_user_data(self.slots.tag(), POLL, value))
    }

    fn cancel_request(&mut self, user_data: u64) -> Result<()> {
        self.push_own(ops::AsyncCancel::new(user_data).build(), CANCEL, 0)
    }
}
