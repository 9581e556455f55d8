// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests with a limit on how long they may wait.

use std::fmt;
use std::ops::RangeBounds;
use std::time::Duration;

use io_uring::opcode::LinkTimeout;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Timespec;

use super::drive::{Ring, TIMEOUT};
use super::files::Attached;
use crate::error::Result;
use crate::slots::consume::{Consumer, SendFlags};
use crate::slots::lease::{Fetched, Installed, Lease};
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

/// The limits of requests that the kernel may not have seen yet. Empty until there is one.
#[derive(Debug, Default)]
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
        let limits = &mut self.limits;
        if limits.times.is_empty() {
            limits.times = vec![Timespec::new(); entries].into();
        }
        let time = &mut limits.times[limits.next];
        *time = Timespec::from(limit);
        let entry = LinkTimeout::new(time).build();
        limits.next = (limits.next + 1) % entries;
        entry.user_data(driver_user_data(self.slots.tag(), TIMEOUT, 0))
    }

    /// Pushes a request of the slots and its limit. There is room for both, and they become visible
    /// together.
    pub(super) fn push_limited(&mut self, entry: Entry, limit: Duration) {
        let timeout = self.timeout(limit);
        self.queue(&[entry.flags(Flags::IO_LINK), timeout]);
    }
}

impl Limits {
    fn fetch(&mut self, slots: usize, lease: LeaseId, limit: Duration) {
        if self.fetches.is_empty() {
            self.fetches = vec![None; slots].into();
        }
        self.fetches[usize::from(lease.slot())] = Some((lease, limit));
    }

    /// The limit of a request that the slots send once more.
    pub(super) fn of(&self, request: UseId) -> Option<Duration> {
        let timed = self.fetches.get(usize::from(request.lease().slot())).copied().flatten();
        let (lease, limit) = timed.filter(|_| request.is_fetch())?;
        (lease == request.lease()).then_some(limit)
    }
}

impl Within<'_> {
    /// Queues a fetch; see [`Ring::fetch`].
    ///
    /// # Errors
    ///
    /// Those of [`Ring::fetch`].
    pub fn fetch(self, source: &Attached, offset: u64, len: u32) -> Result<Lease<Fetched>> {
        let Self { ring, limit } = self;
        let place = source.place_in(&ring.files)?;
        ring.make_room(2)?;
        let (lease, request) = ring.slots.fetch(source.source(), offset, len)?;
        let entry = request.into_entry();
        ring.limits.fetch(ring.slots.capacity(), lease.id(), limit);
        ring.push_limited(entry, limit);
        ring.name(lease.id(), place, None);
        Ok(lease)
    }

    /// Queues a write; see [`Ring::write`].
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

    /// Queues a send; see [`Ring::send`].
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

    /// Queues a zero-copy send; see [`Ring::send_zc`]. The limit is that of the result, not that of the notification.
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
        let request = lease.request(lease.range(range)?, consumer, place)?;
        ring.push_limited(request.entry(), limit);
        ring.files.begin(place);
        Ok(UseId::of(request.user_data))
    }
}

impl fmt::Debug for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Within").field("limit", &self.limit).finish_non_exhaustive()
    }
}
