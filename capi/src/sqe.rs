// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SQEs that C hands in.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::slice;

use io_uring::squeue::Entry;
use static_assertions::{assert_eq_align, assert_eq_size};
use uring_getbuf::slots::DEFAULT_TAG;

use crate::abi::{GETBUF_CHAIN_MAX, io_uring_sqe};
use crate::errors::{Outcome, Told};
use crate::slots::getbuf;

assert_eq_size!(Entry, io_uring_sqe, [u64; 8]);
assert_eq_align!(Entry, io_uring_sqe);

/// `IORING_OP_NOP`, with `IOSQE_CQE_SKIP_SUCCESS`, on no file.
const NOP: u64 = (1 << 6) << 8 | (u32::MAX as u64) << 32;
/// The word of an SQE that is its `user_data`.
const USER_DATA: usize = 4;
/// Below the tag, in the `user_data` of an SQE that an error has made a no-op: a kind that the
/// slots do not have.
const UNUSED: u64 = 15;

/// Fills an SQE with the request that `make` makes. If there is none, the SQE is made harmless, and C
/// is told why.
///
/// # Safety
///
/// `getbuf` is null or live, and used by nobody else now; `sqe` is null or can be written to.
pub(crate) unsafe fn fill(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    make: impl FnOnce(&mut getbuf) -> Outcome<Entry>,
) -> c_int {
    // SAFETY: an array of one. The caller's promise.
    let sqes = unsafe { Sqes::new(&raw const sqe, 1) };
    // SAFETY: the caller's promise.
    sqes.told(unsafe { getbuf.as_mut() }, |getbuf| {
        sqes.check(1)?;
        sqes.fill([make(getbuf)?]);
        Ok(())
    })
}

/// Whether a completion is that of an SQE that was wasted.
#[inline]
pub(crate) fn is_waste(user_data: u64, tag: u8) -> bool {
    user_data >> 52 == u64::from(tag) << 4 | UNUSED
}

/// SQEs for requests that belong together.
#[derive(Clone, Copy)]
pub(crate) struct Sqes<'a>(&'a [Option<NonNull<Entry>>]);

impl<'a> Sqes<'a> {
    /// # Safety
    ///
    /// `sqes` is null or has `count` elements, each of them null or writable.
    pub(crate) unsafe fn new(sqes: *const *mut io_uring_sqe, count: u32) -> Self {
        if sqes.is_null() {
            return Self(&[]);
        }
        // SAFETY: the caller's promise; a null pointer is `None`.
        Self(unsafe { slice::from_raw_parts(sqes.cast(), count as usize) })
    }

    /// Those of one chain; none if they are too many for it.
    ///
    /// # Safety
    ///
    /// What [`new`](Self::new) asks for.
    pub(crate) unsafe fn of_chain(sqes: *const *mut io_uring_sqe, count: u32) -> Self {
        if count > GETBUF_CHAIN_MAX {
            return Self(&[]);
        }
        // SAFETY: the caller's promise.
        unsafe { Self::new(sqes, count) }
    }

    /// `count` of them from `first` on.
    pub(crate) fn part(self, first: usize, count: usize) -> Self {
        Self(&self.0[first..first + count])
    }

    /// Looks that there is one for each of `count` requests.
    pub(crate) fn check(self, count: usize) -> Outcome {
        if self.0.len() != count || self.0.iter().any(Option::is_none) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    /// Fills them.
    pub(crate) fn fill(self, entries: impl IntoIterator<Item = Entry>) {
        for (sqe, entry) in self.0.iter().flatten().zip(entries) {
            // SAFETY: `new` was promised that it is writable.
            unsafe { sqe.write(entry) };
        }
    }

    /// Makes all of them harmless that were taken from the queue and could not be used: they are
    /// submitted whatever is in them.
    pub(crate) fn waste(self, tag: u8) {
        let mut words = [0; 8];
        words[0] = NOP;
        words[USER_DATA] = u64::from(tag) << 56 | UNUSED << 52;
        for sqe in self.0.iter().flatten() {
            // SAFETY: `new` was promised that it is writable; an SQE is 64 bytes of plain data.
            unsafe { sqe.cast::<[u64; 8]>().write(words) };
        }
    }

    /// Does what is to be done with them. If it fails they are made harmless, and C is told why.
    pub(crate) fn told(
        self,
        getbuf: Option<&mut getbuf>,
        with: impl FnOnce(&mut getbuf) -> Outcome,
    ) -> c_int {
        let (tag, done) = match getbuf {
            None => (DEFAULT_TAG, Err(libc::EINVAL)),
            Some(getbuf) => (getbuf.tag, with(getbuf)),
        };
        if done.is_err() {
            self.waste(tag);
        }
        done.told()
    }
}
