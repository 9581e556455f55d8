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
//! # use uring_getbuf::{lease::{Fetched, Lease}, request::Target};
//! fn early(lease: Lease<Fetched>) {
//!     let _ = lease.write(.., Target::Fd(1), 0);
//! }
//! ```
//!
//! nor after its release:
//!
//! ```compile_fail,E0382
//! # use uring_getbuf::{lease::{Installed, Lease}, request::Target};
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
//! # use uring_getbuf::{lease::{Installed, Lease}, request::Target};
//! fn right(lease: Lease<Installed>) {
//!     let _ = lease.write(.., Target::Fd(1), 0);
//!     let _ = lease.release();
//! }
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};
use std::rc::Rc;

use static_assertions::assert_not_impl_any;

use super::consume::{Consumer, SendFlags};
use super::ident::LeaseId;
use super::prepared::Prepared;
use super::table::Core;
use crate::engine::{Look, Origin};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::request::{Piece, Sqe, Target};

mod sealed {
    use std::fmt;
    use std::rc::Rc;

    use super::{Core, LeaseId};

    /// What a lease in a state owns.
    pub trait Sealed {
        type Place: Place;
    }

    /// Where a lease is, or was.
    pub trait Place: fmt::Debug {
        fn id(&self) -> LeaseId;
        fn is_of(&self, core: *const ()) -> bool;
    }

    /// A slot that is held; its drop is what releases.
    pub struct Claim(Past);

    impl Claim {
        #[inline]
        pub(crate) fn new(core: &Rc<Core>, id: LeaseId) -> Self {
            Self(Past { core: Rc::clone(core), id })
        }

        #[inline]
        pub(super) fn core(&self) -> &Core {
            &self.0.core
        }

        #[inline]
        pub(super) fn release(self) -> Past {
            self.0.clone()
        }
    }

    impl Drop for Claim {
        #[inline]
        fn drop(&mut self) {
            self.core().let_go(self.id());
        }
    }

    impl Place for Claim {
        #[inline]
        fn id(&self) -> LeaseId {
            self.0.id
        }

        #[inline]
        fn is_of(&self, core: *const ()) -> bool {
            self.0.is_of(core)
        }
    }

    impl fmt::Debug for Claim {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    /// A slot that was let go, and which of its lives that was.
    #[derive(Clone)]
    pub struct Past {
        core: Rc<Core>,
        id: LeaseId,
    }

    impl Past {
        #[inline]
        pub(super) fn is_over(&self) -> bool {
            self.core.is_over(self.id)
        }
    }

    impl Place for Past {
        #[inline]
        fn id(&self) -> LeaseId {
            self.id
        }

        #[inline]
        fn is_of(&self, core: *const ()) -> bool {
            Rc::as_ptr(&self.core).cast() == core
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
    #[must_use]
    #[inline]
    pub fn id(&self) -> LeaseId {
        self.place.id()
    }

    #[inline]
    pub(crate) fn is_of(&self, core: &Rc<Core>) -> bool {
        self.place.is_of(Rc::as_ptr(core).cast())
    }
}

impl Lease<Fetched> {
    #[inline]
    pub(super) fn fetched(core: &Rc<Core>, id: LeaseId) -> Self {
        Self { place: Claim::new(core, id), state: PhantomData }
    }

    /// The installed lease, once the completion of the fetch has been given to
    /// [`Slots::complete`](super::Slots::complete).
    ///
    /// A fetch of fewer bytes than were asked for is a success; see [`Lease::len`].
    ///
    /// # Errors
    ///
    /// See [`NotInstalled`].
    #[inline]
    pub fn installed(self) -> Result<Lease<Installed>, NotInstalled> {
        match self.result() {
            Some(Ok(1..)) => Ok(Lease { place: self.place, state: PhantomData }),
            Some(Ok(0)) => Err(NotInstalled::EndOfFile),
            Some(Err(errno)) => Err(NotInstalled::Failed(errno)),
            None => Err(NotInstalled::Pending(self)),
        }
    }

    /// Whether the fetch is still running.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.result().is_none()
    }

    #[inline]
    fn result(&self) -> Option<Result<u32, Errno>> {
        self.place.core().fetched(self.id())
    }

    /// Has the fetch, which is about to be cancelled, not repeated by another engine.
    pub(crate) fn cancel(&self) {
        self.place.core().cancel(self.id());
    }
}

impl Lease<Installed> {
    /// One that has been filled.
    pub(super) fn filled(core: &Rc<Core>, id: LeaseId) -> Self {
        Self { place: Claim::new(core, id), state: PhantomData }
    }

    /// How many bytes there are. Never 0; fewer than were asked for at the end of a file, or
    /// where the source had no more at hand.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an installed lease is never empty")]
    #[inline]
    pub fn len(&self) -> u32 {
        self.place.core().fetched(self.id()).and_then(Result::ok).unwrap_or(0)
    }

    /// Who fetched it, and so what its memory is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.place.core().origin(self.id())
    }

    /// How many requests use it now.
    #[must_use]
    pub fn uses(&self) -> u32 {
        self.place.core().uses(self.id())
    }

    /// Prepares a `WRITE_FIXED` of `range` to `offset` of `sink`
    /// ([`STREAM`](crate::STREAM): where it stands).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange).
    #[inline]
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
    #[inline]
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
    #[inline]
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
    /// Those of the consumer's own method: [`write`](Self::write), [`send`](Self::send) or
    /// [`send_zc`](Self::send_zc).
    #[inline]
    pub fn consume(
        &self,
        range: impl RangeBounds<u32>,
        consumer: Consumer,
    ) -> Result<Prepared<'_>> {
        let request = self.request(self.range(range)?, consumer, 0)?;
        Ok(Prepared::new(self.place.core(), request))
    }

    /// The request of a consumer, which counts as sent. `range` comes from
    /// [`range`](Self::range).
    #[inline]
    pub(crate) fn request(&self, range: Range<u32>, consumer: Consumer, token: u16) -> Result<Sqe> {
        let (start, len) = (range.start, range.end - range.start);
        self.place.core().consume(self.id(), (start, len), consumer, token)
    }

    /// Prepares a vectored write of up to [`MAX_RANGES`](super::consume::MAX_RANGES) ranges, one
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
        let core = self.place.core();
        Ok(Prepared::new(core, core.writev(self.id(), ranges, sink.into(), offset)?))
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
        let core = self.place.core();
        let range = core.look_range(self.id(), offset, into.len())?;
        let mut done = 0;
        while done < range.len() {
            match core.look(self.id(), range.start + done as u32, &mut into[done..range.len()]) {
                Look::Copied(bytes) => done += bytes,
                Look::Pipe | Look::Command { .. } => {
                    let what = "a look at memory of the kernel's takes a request: Ring::copy_out \
                                sends it";
                    return Err(Error::new(ErrorKind::Unavailable, what));
                }
            }
        }
        Ok(range.len())
    }

    /// What a look of up to `len` bytes from `offset` on sees.
    pub(crate) fn look_range(&self, offset: u32, len: usize) -> Result<Range<u32>> {
        self.place.core().look_range(self.id(), offset, len)
    }

    /// Copies bytes from `start` on, which are there, if that takes no request.
    pub(crate) fn look(&self, start: u32, into: &mut [u8]) -> Look {
        self.place.core().look(self.id(), start, into)
    }

    /// The command of the engine that copies bytes to an address.
    pub(crate) fn look_command(&self, start: u32, len: u32, to: u64) -> Option<Sqe> {
        self.place.core().look_command(self.id(), start, len, to)
    }

    /// Where bytes of it are, for a request that does not count as a use.
    pub(crate) fn piece(&self, start: u32, len: u32) -> Piece {
        self.place.core().piece(self.id(), start, len)
    }

    /// Lets the slot be emptied, also while requests use the lease: what they use stays until the
    /// last of them is done. Sent with the next submission.
    #[inline]
    pub fn release(self) -> Lease<Released> {
        Lease { place: self.place.release(), state: PhantomData }
    }

    /// A range of the lease, in bytes, after a check that it is one.
    #[inline]
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
    #[inline]
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
