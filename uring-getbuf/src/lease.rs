// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lease: one slot, owned, in a state that is a type.
//!
//! ```text
//!   Slots::fetch            installed()              release()
//!  --------------> Lease<Fetched> -----> Lease<Installed> -----> Lease<Released>
//! ```
//!
//! A transition takes the lease and gives it back in its new state, or in its old one beside the
//! reason why not. In whatever state it is dropped, its slot is emptied with the next submission.
//!
//! A lease cannot be used before it is installed:
//!
//! ```compile_fail,E0599
//! # use uring_getbuf::{lease::{Fetched, Lease}, opcode::Target};
//! fn early(lease: Lease<Fetched>) {
//!     let _ = lease.write(.., Target::Fd(1), 0);
//! }
//! ```
//!
//! nor after its release:
//!
//! ```compile_fail,E0382
//! # use uring_getbuf::{lease::{Installed, Lease}, opcode::Target};
//! fn late(lease: Lease<Installed>) {
//!     let _ = lease.release();
//!     let _ = lease.write(.., Target::Fd(1), 0);
//! }
//! ```
//!
//! nor released twice:
//!
//! ```compile_fail,E0382
//! # use uring_getbuf::lease::{Installed, Lease};
//! fn twice(lease: Lease<Installed>) {
//!     let _ = lease.release();
//!     let _ = lease.release();
//! }
//! ```
//!
//! nor sent to another thread, because it shares the slot table with its ring:
//!
//! ```compile_fail,E0277
//! # use uring_getbuf::lease::{Installed, Lease};
//! fn elsewhere(lease: Lease<Installed>) {
//!     std::thread::spawn(move || drop(lease));
//! }
//! ```
//!
//! This is how it is meant:
//!
//! ```
//! # use uring_getbuf::{lease::{Installed, Lease}, opcode::Target};
//! fn right(lease: Lease<Installed>) {
//!     let _ = lease.write(.., Target::Fd(1), 0);
//!     let _ = lease.release();
//! }
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::os::fd::RawFd;
use std::rc::Rc;

use io_uring::squeue::Entry;
use static_assertions::{assert_eq_size, assert_not_impl_any};

use crate::consume::{self, Consumer, SendFlags};
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::opcode::{Sqe, Target};
use crate::slots::{Core, LeaseId, Prepared, Slot};

mod sealed {
    use std::fmt;
    use std::rc::Rc;

    use crate::slots::{LeaseId, Slot};

    /// What a lease in a state owns.
    pub trait Sealed {
        type Place: Place;
    }

    /// Where a lease is, or was.
    pub trait Place: fmt::Debug {
        fn id(&self) -> LeaseId;
        /// Tells one table from another.
        fn table(&self) -> *const ();
    }

    /// A slot that is held; its drop is what releases.
    pub struct Claim(Rc<Slot>);

    impl Claim {
        #[inline(always)]
        pub(super) fn new(slot: Rc<Slot>) -> Self {
            Self(slot)
        }

        #[inline(always)]
        pub(super) fn slot(&self) -> &Slot {
            &self.0
        }

        #[inline]
        pub(super) fn release(self) -> Past {
            Past { slot: Rc::clone(&self.0), id: self.id() }
        }
    }

    impl Place for Claim {
        #[inline(always)]
        fn id(&self) -> LeaseId {
            self.0.id()
        }

        #[inline(always)]
        fn table(&self) -> *const () {
            Rc::as_ptr(self.0.core()).cast()
        }
    }

    impl Drop for Claim {
        #[inline(always)]
        fn drop(&mut self) {
            self.0.let_go();
        }
    }

    impl fmt::Debug for Claim {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.id().fmt(f)
        }
    }

    /// A slot that was let go, and which of its lives that was.
    pub struct Past {
        slot: Rc<Slot>,
        id: LeaseId,
    }

    impl Past {
        pub(super) fn is_over(&self) -> bool {
            self.slot.is_over(self.id)
        }
    }

    impl Place for Past {
        fn id(&self) -> LeaseId {
            self.id
        }

        fn table(&self) -> *const () {
            Rc::as_ptr(self.slot.core()).cast()
        }
    }

    impl fmt::Debug for Past {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.id.fmt(f)
        }
    }
}

use sealed::{Claim, Past, Place};

/// A state of a [`Lease`].
pub trait State: sealed::Sealed {
    /// Its name.
    const NAME: &'static str;
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident: $place:ident)+) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl sealed::Sealed for $name {
            type Place = $place;
        }

        impl State for $name {
            const NAME: &'static str = stringify!($name);
        })+
    };
}

states! {
    /// The request has been handed out. Nothing is known of the slot's content.
    Fetched: Claim
    /// The bytes are in the slot.
    Installed: Claim
    /// The slot is being emptied.
    Released: Past
}

/// One slot of a ring's table, owned. See the [module](self).
///
/// A lease is not a snapshot: on an engine that does not copy, what is written to the file later
/// may show through, as with `sendfile(2)`.
#[must_use = "dropping a lease releases it"]
pub struct Lease<S: State> {
    place: S::Place,
    state: PhantomData<S>,
}

assert_not_impl_any!(Lease<Fetched>: Send, Sync, Clone);
assert_not_impl_any!(Lease<Installed>: Send, Sync, Clone);
assert_not_impl_any!(Lease<Released>: Send, Sync, Clone);
// One word, so that a lease travels in a register.
assert_eq_size!(Option<Lease<Installed>>, usize);

/// Why a [`Lease<Fetched>`] did not become a [`Lease<Installed>`].
#[derive(Debug, thiserror::Error)]
pub enum NotInstalled {
    /// The fetch has not completed. The lease is given back.
    #[error("the fetch has not completed yet")]
    Pending(Lease<Fetched>),
    /// There is nothing at this offset. The slot is free.
    #[error("end of file")]
    EndOfFile,
    /// The source failed. The slot is free.
    #[error("{0}")]
    Failed(Errno),
}

impl<S: State> Lease<S> {
    /// Names the lease.
    #[inline]
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.place.id()
    }

    #[inline(always)]
    pub(crate) fn is_of(&self, core: &Rc<Core>) -> bool {
        self.place.table() == Rc::as_ptr(core).cast()
    }
}

impl Lease<Fetched> {
    #[inline(always)]
    pub(crate) fn new(slot: Rc<Slot>) -> Self {
        Self { place: Claim::new(slot), state: PhantomData }
    }

    /// The installed lease, once the completion of the fetch has been given to
    /// [`Slots::complete`](crate::slots::Slots::complete).
    ///
    /// A fetch of fewer bytes than were asked for is a success; see [`Lease::len`].
    ///
    /// # Errors
    ///
    /// See [`NotInstalled`].
    #[inline(always)]
    pub fn installed(self) -> Result<Lease<Installed>, NotInstalled> {
        if self.place.slot().is_filled() {
            Ok(Lease { place: self.place, state: PhantomData })
        } else {
            Err(self.not_installed())
        }
    }

    #[cold]
    fn not_installed(self) -> NotInstalled {
        match self.place.slot().fetch_result() {
            None => NotInstalled::Pending(self),
            Some(Ok(_)) => NotInstalled::EndOfFile,
            Some(Err(errno)) => NotInstalled::Failed(errno),
        }
    }

    /// Whether the fetch is still running.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.place.slot().fetch_result().is_none()
    }
}

impl Lease<Installed> {
    /// One that a provider has filled.
    pub(crate) fn provided(slot: Rc<Slot>) -> Self {
        Self { place: Claim::new(slot), state: PhantomData }
    }

    /// How many bytes there are. Never 0; fewer than were asked for at the end of a file, or
    /// where the source had no more at hand.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an installed lease is never empty")]
    pub fn len(&self) -> u32 {
        self.place.slot().len()
    }

    /// The engine that fetched it.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.place.slot().engine()
    }

    /// How many requests use it now.
    #[must_use]
    pub fn uses(&self) -> u32 {
        self.place.slot().uses()
    }

    /// Prepares a `WRITE_FIXED` of `range` to `offset` of `sink`
    /// ([`STREAM`](crate::STREAM): where it stands).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange).
    #[inline(always)]
    pub fn write(
        &self,
        range: impl RangeBounds<u32>,
        sink: impl Into<Target>,
        offset: u64,
    ) -> Result<Prepared<'_>> {
        self.consume(range, Consumer::Write { sink: sink.into(), offset })
    }

    /// Prepares a `SEND`. A socket takes what it has room for, unless
    /// [`SendFlags::WAIT_ALL`] is given.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange).
    #[inline(always)]
    pub fn send(
        &self,
        range: impl RangeBounds<u32>,
        sink: impl Into<Target>,
        flags: SendFlags,
    ) -> Result<Prepared<'_>> {
        self.consume(range, Consumer::Send { sink: sink.into(), flags })
    }

    /// Prepares a `SEND_ZC` (Linux 6.0). It has two completions; the lease is in use until the
    /// second, when the network does not need the bytes any more.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange), [`Unavailable`](ErrorKind::Unavailable).
    #[inline(always)]
    pub fn send_zc(
        &self,
        range: impl RangeBounds<u32>,
        sink: impl Into<Target>,
        flags: SendFlags,
    ) -> Result<Prepared<'_>> {
        self.consume(range, Consumer::SendZc { sink: sink.into(), flags })
    }

    /// Prepares any [`Consumer`].
    ///
    /// # Errors
    ///
    /// As the consumer's own method.
    #[inline(always)]
    pub fn consume(
        &self,
        range: impl RangeBounds<u32>,
        consumer: Consumer,
    ) -> Result<Prepared<'_>> {
        let entry = self.consume_entry(self.range(range)?, consumer, 0)?;
        Ok(self.place.slot().prepare(entry))
    }

    /// The request of a consumer, which counts as sent. `range` comes from
    /// [`range`](Self::range).
    #[inline(always)]
    pub(crate) fn consume_entry(
        &self,
        range: Range<u32>,
        consumer: Consumer,
        token: u16,
    ) -> Result<Sqe> {
        let len = range.end - range.start;
        self.place.slot().use_bytes(range.start, len, consumer, token)
    }

    /// Prepares a vectored write of up to [`MAX_RANGES`](crate::consume::MAX_RANGES) ranges, one
    /// behind the other, to `offset` of `sink`. A lease takes one at a time.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange); [`InvalidInput`](ErrorKind::InvalidInput) for no or
    /// too many ranges; [`Busy`](ErrorKind::Busy) while another one is in flight.
    pub fn writev(
        &self,
        ranges: &[Range<u32>],
        sink: impl Into<Target>,
        offset: u64,
    ) -> Result<Prepared<'_>> {
        for range in ranges {
            self.range(range.clone())?;
        }
        let ranges = ranges.iter().map(|range| (range.start, range.end - range.start));
        let slot = self.place.slot();
        Ok(slot.prepare(slot.use_ranges(ranges, sink.into(), offset)?))
    }

    /// Copies bytes of the lease, from `offset` on, into memory, for a look at them. How many that
    /// were: as many as `into` has room for, fewer where the lease ends sooner. It makes no
    /// request, and so can look only at what is in the program's memory.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange) if the lease ends before `offset`;
    /// [`Unavailable`](ErrorKind::Unavailable) if it is the kernel's own memory, which
    /// [`Ring::copy_out`](crate::Ring::copy_out) can look at.
    pub fn copy_out(&self, offset: u32, into: &mut [u8]) -> Result<usize> {
        self.place.slot().look(offset, into)
    }

    /// What a look of up to `len` bytes from `offset` on sees.
    pub(crate) fn look_range(&self, offset: u32, len: usize) -> Result<Range<u32>> {
        self.place.slot().look_range(offset, len)
    }

    /// Whether it is memory of the kernel's.
    pub(crate) fn is_lent(&self) -> bool {
        self.engine().lends()
    }

    /// The index in the ring's table.
    pub(crate) fn table_index(&self) -> u16 {
        self.place.slot().piece(0, 1).index
    }

    /// A write of bytes of it that does not count as a use.
    pub(crate) fn look_entry(&self, start: u32, len: u32, to: RawFd) -> Entry {
        self.place.slot().piece(start, len).write(Target::Fd(to), consume::STREAM).entry()
    }

    /// Lets the slot be emptied, also while requests use the lease: what they use stays until the
    /// last of them is done. Sent with the next submission.
    #[inline]
    pub fn release(self) -> Lease<Released> {
        Lease { place: self.place.release(), state: PhantomData }
    }

    /// A range of the lease, in bytes, after a check that it is one.
    #[inline(always)]
    pub(crate) fn range(&self, range: impl RangeBounds<u32>) -> Result<Range<u32>> {
        let len = self.len();
        if let (Bound::Unbounded, Bound::Unbounded) = (range.start_bound(), range.end_bound()) {
            return Ok(0..len);
        }
        let start = match range.start_bound() {
            Bound::Included(&start) => Some(start),
            Bound::Excluded(&start) => start.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.checked_add(1),
            Bound::Excluded(&end) => Some(end),
            Bound::Unbounded => Some(len),
        };
        match (start, end) {
            (Some(start), Some(end)) if start < end && end <= len => Ok(start..end),
            _ => Err(outside(range.start_bound(), range.end_bound(), len)),
        }
    }
}

#[cold]
fn outside(start: Bound<&u32>, end: Bound<&u32>, len: u32) -> Error {
    Error::new(
        ErrorKind::OutOfRange,
        format!(
            "bytes {start:?} to {end:?} of a lease of {len} bytes: a range must not be empty and must lie in it"
        ),
    )
}

impl Lease<Released> {
    /// Whether the slot is empty, every use has ended, and the slot can serve somebody else.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.place.is_over()
    }
}

impl<S: State> fmt::Debug for Lease<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("state", &format_args!("{}", S::NAME))
            .field("id", &self.place.id())
            .finish_non_exhaustive()
    }
}
