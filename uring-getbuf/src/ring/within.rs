// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests with a limit on how long they may wait.

use std::fmt;
use std::ops::RangeBounds;
use std::time::Duration;

use io_uring::opcode::LinkTimeout;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Timespec;

use super::drive::TIMEOUT;
use super::files::Names;
use super::{Attached, Ring};
use crate::consume::{Consumer, SendFlags};
use crate::error::Result;
use crate::lease::{Fetched, Installed, Lease};
use crate::slots::{LeaseId, UseId, driver_user_data};

/// Queues requests that are cancelled when they take too long. Made by [`Ring::within`].
///
/// Such a request completes with `ECANCELED` if the time is over before it is done, as after a
/// cancellation; a fetch has taken nothing from its source then, and a consumer that has moved some
/// bytes says how many. A file that a worker thread waits for is waited for beyond the limit.
#[must_use = "it does nothing by itself"]
pub struct Within<'r> {
    ring: &'r mut Ring,
    limit: Duration,
}

/// The limits of requests that the kernel may not have seen yet.
#[derive(Default)]
pub(super) struct Limits {
    /// As many as the submission queue has entries, so that one is written to again only when the
    /// kernel has taken the request that names it.
    times: Box<[Timespec]>,
    next: usize,
    /// The last timed fetch into each slot, which a lender may refuse: then it is timed again.
    fetches: Box<[Option<(LeaseId, Duration)>]>,
}

impl Ring {
    /// For requests that may take this long, counted from when they are submitted.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use uring_getbuf::{Ring, STREAM};
    ///
    /// let mut ring = Ring::new()?;
    /// let peer = std::net::TcpStream::connect("host.example:9000")?;
    /// let peer = ring.attach(&peer)?;
    /// let fetched = ring.within(Duration::from_secs(5)).fetch(&peer, STREAM, 4096)?;
    /// match ring.wait_installed(fetched) {
    ///     Ok(lease) => println!("{lease:?}"),
    ///     Err(error) => println!("nothing for five seconds, or {error}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn within(&mut self, limit: Duration) -> Within<'_> {
        Within { ring: self, limit }
    }

    /// What a request that is linked to it has as its limit.
    fn timeout(&mut self, limit: Duration) -> Entry {
        let entries = self.queue_capacity();
        let limits = self.limits.get_or_insert_default();
        if limits.times.is_empty() {
            limits.times = vec![Timespec::new(); entries].into();
        }
        let time = &mut limits.times[limits.next];
        *time = Timespec::from(limit);
        let entry = LinkTimeout::new(time).build();
        limits.next = (limits.next + 1) % entries;
        entry.user_data(driver_user_data(self.slots.tag(), TIMEOUT, 0))
    }

    fn limit_fetch(&mut self, lease: LeaseId, limit: Duration) {
        let slots = self.capacity();
        let fetches = &mut self.limits.get_or_insert_default().fetches;
        if fetches.is_empty() {
            *fetches = vec![None; slots].into();
        }
        fetches[usize::from(lease.slot())] = Some((lease, limit));
    }

    /// The limit of a request that the slots send once more.
    pub(super) fn limit_of(&self, request: UseId) -> Option<Duration> {
        let limits = self.limits.as_ref().filter(|_| request.is_fetch())?;
        let (lease, limit) = (*limits.fetches.get(usize::from(request.lease().slot()))?)?;
        (lease == request.lease()).then_some(limit)
    }

    /// Pushes a request of the slots that has been counted, and its limit. There is room for both,
    /// and they become visible together.
    pub(super) fn push_limited(&mut self, entry: Entry, limit: Duration) {
        let timeout = self.timeout(limit);
        self.push_entries(&[entry.flags(Flags::IO_LINK), timeout]);
    }
}

impl Within<'_> {
    /// As [`Ring::fetch`].
    ///
    /// # Errors
    ///
    /// Those of [`Ring::fetch`].
    pub fn fetch(self, source: &Attached, offset: u64, len: u32) -> Result<Lease<Fetched>> {
        let Self { ring, limit } = self;
        let place = source.place_in(&ring.files)?;
        ring.make_room(2)?;
        let note = Names::one(place).note();
        let (lease, entry) = ring.slots.fetch_entry(source.source(), offset, len, note)?;
        ring.limit_fetch(lease.id(), limit);
        ring.push_limited(entry.entry(), limit);
        Ok(lease)
    }

    /// As [`Ring::write`].
    ///
    /// # Errors
    ///
    /// Those of [`Ring::write`].
    pub fn write(
        self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        offset: u64,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::Write { sink: sink.into(), offset })
    }

    /// As [`Ring::send`].
    ///
    /// # Errors
    ///
    /// Those of [`Ring::send`].
    pub fn send(
        self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::Send { sink: sink.into(), flags })
    }

    /// As [`Ring::send_zc`]. The limit is that of the result, not that of the notification.
    ///
    /// # Errors
    ///
    /// Those of [`Ring::send_zc`].
    pub fn send_zc(
        self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        flags: SendFlags,
    ) -> Result<UseId> {
        self.consume(lease, range, sink, Consumer::SendZc { sink: sink.into(), flags })
    }

    fn consume(
        self,
        lease: &Lease<Installed>,
        range: impl RangeBounds<u32>,
        sink: &Attached,
        consumer: Consumer,
    ) -> Result<UseId> {
        let Self { ring, limit } = self;
        ring.check(lease)?;
        let place = sink.place_in(&ring.files)?;
        ring.make_room(2)?;
        let entry = lease.consume_entry(lease.range(range)?, consumer, place)?;
        let id = UseId::of(entry.user_data);
        ring.push_limited(entry.entry(), limit);
        Ok(id)
    }
}

impl fmt::Debug for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Within").field("limit", &self.limit).finish_non_exhaustive()
    }
}
