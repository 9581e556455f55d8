// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SQEs that C hands in.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;

use io_uring::squeue::Entry;
use static_assertions::{assert_eq_align, assert_eq_size};

use crate::abi::io_uring_sqe;
use crate::errors::Outcome;

assert_eq_size!(Entry, io_uring_sqe, [u64; 8]);
assert_eq_align!(Entry, io_uring_sqe);

/// `IORING_OP_NOP`, with `IOSQE_CQE_SKIP_SUCCESS`, on no file.
const NOP: u64 = (1 << 6) << 8 | (u32::MAX as u64) << 32;
/// The word of an SQE that is its `user_data`.
const USER_DATA: usize = 4;
/// Below the tag, in the `user_data` of an SQE that an error has made a no-op: a kind that the
/// slots do not have.
const UNUSED: u64 = 15;

/// The SQE as a request to be filled in; `None`: it is null.
///
/// # Safety
///
/// `sqe` is null or can be written to.
#[inline(always)]
pub(crate) unsafe fn entry<'a>(sqe: *mut io_uring_sqe) -> Option<&'a mut MaybeUninit<Entry>> {
    // SAFETY: the caller's promise; both are 64 bytes with the same alignment.
    unsafe { sqe.cast::<MaybeUninit<Entry>>().as_mut() }
}

/// Makes an SQE harmless that was taken from the queue and could not be used: it is submitted
/// whatever is in it.
///
/// # Safety
///
/// `sqe` is null or can be written to.
#[cold]
pub(crate) unsafe fn waste(sqe: *mut io_uring_sqe, tag: u8) {
    if sqe.is_null() {
        return;
    }
    let mut words = [0; 8];
    words[0] = NOP;
    words[USER_DATA] = u64::from(tag) << 56 | UNUSED << 52;
    // SAFETY: the caller's promise; `io_uring_sqe` is 64 bytes of plain data.
    unsafe { *sqe.cast::<[u64; 8]>() = words };
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
    #[inline(always)]
    pub(crate) unsafe fn new(sqes: *const *mut io_uring_sqe, count: u32) -> Self {
        if count > crate::abi::GETBUF_CHAIN_MAX {
            return Self(&[]);
        }
        // SAFETY: the caller's promise.
        unsafe { Self::any(sqes, count) }
    }

    /// However many there are.
    ///
    /// # Safety
    ///
    /// As [`new`](Self::new).
    #[inline(always)]
    pub(crate) unsafe fn any(sqes: *const *mut io_uring_sqe, count: u32) -> Self {
        if sqes.is_null() {
            return Self(&[]);
        }
        // SAFETY: the caller's promise; a null pointer is `None`.
        Self(unsafe { slice::from_raw_parts(sqes.cast(), count as usize) })
    }

    pub(crate) fn entries(&self) -> &'a [Option<NonNull<Entry>>] {
        self.0
    }

    /// Those behind `count` of them.
    pub(crate) fn behind(&self, count: usize) -> Self {
        Self(self.0.get(count..).unwrap_or_default())
    }

    /// That there is one for each of `count` requests.
    pub(crate) fn check(&self, count: usize) -> Outcome {
        self.all(count).map(drop)
    }

    /// All of them, if there is one for each of `count` requests.
    #[inline]
    pub(crate) fn all(&self, count: usize) -> Outcome<&'a [NonNull<Entry>]> {
        // Without a branch for each.
        let null = self.0.iter().fold(false, |null, sqe| null | sqe.is_none());
        if self.0.len() != count || null {
            return Err(libc::EINVAL);
        }
        // SAFETY: none is null, and what is not null is the same in both.
        Ok(unsafe { slice::from_raw_parts(self.0.as_ptr().cast(), count) })
    }

    /// Fills them.
    #[inline]
    pub(crate) fn fill(&self, entries: &[Entry]) {
        for (sqe, entry) in self.0.iter().flatten().zip(entries) {
            // SAFETY: `new` was promised that it is writable.
            unsafe { sqe.write(entry.clone()) };
        }
    }

    /// Makes all of them harmless.
    pub(crate) fn waste(&self, tag: u8) {
        for sqe in self.0.iter().flatten() {
            // SAFETY: `new` was promised that it is writable.
            unsafe { waste(sqe.as_ptr().cast(), tag) };
        }
    }
}
