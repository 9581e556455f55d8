// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be asked of a lease.

use std::ffi::{c_int, c_void};
use std::slice;

use uring_getbuf::lease::{Installed, Lease};

use crate::abi::getbuf_lease;
use crate::errors::{Outcome, Told, number};
use crate::probe::origin_number;
use crate::slots::getbuf;

/// # Safety
///
/// `getbuf` is null or live.
unsafe fn ask(
    getbuf: *const getbuf,
    lease: getbuf_lease,
    answer: impl FnOnce(&Lease<Installed>) -> Outcome<c_int>,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    getbuf.leases.installed(lease).and_then(answer).told()
}

/// Whether the fetch of a lease is done: 1, or 0 while it runs. A lease whose fetch failed or found
/// nothing is over.
///
/// -EINVAL: NULL, or a lease that is zero or a chain. -EXDEV: a lease of other slots. -ENOENT: the
/// lease is over.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_installed(getbuf: *const getbuf, lease: getbuf_lease) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    getbuf.leases.is_installed(lease).told()
}

/// How many bytes a lease has: 1 or more, fewer than were asked for at the end of a file.
///
/// Errors are those of getbuf_installed(), and -EBUSY while its fetch is not done.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_len(getbuf: *const getbuf, lease: getbuf_lease) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ask(getbuf, lease, |lease| Ok(lease.len() as c_int)) }
}

/// The engine that fetched a lease, GETBUF_ENGINE_*: GETBUF_ENGINE_COPY on every ring where the
/// source could not lend its memory.
///
/// Errors are those of getbuf_len().
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_engine(getbuf: *const getbuf, lease: getbuf_lease) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ask(getbuf, lease, |lease| Ok(origin_number(lease.origin()) as c_int)) }
}

/// How many requests use a lease now.
///
/// Errors are those of getbuf_len().
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_uses(getbuf: *const getbuf, lease: getbuf_lease) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ask(getbuf, lease, |lease| Ok(lease.uses() as c_int)) }
}

/// Copies up to len bytes from start of the lease to to, for a look at them. How many bytes that
/// were, fewer where the lease ends sooner.
///
/// Errors are those of getbuf_len(), -EINVAL: to is NULL, -ERANGE: len is 0 or start is not in the lease,
/// -EOPNOTSUPP: the lease is the kernel's own memory, which takes a request: getbuf_write() them to a
/// pipe and read that, or fetch them with GETBUF_FILE_COPIED.
///
/// # Safety
///
/// `getbuf` is null or live; `to` is null or has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_copy_out(
    getbuf: *const getbuf,
    lease: getbuf_lease,
    start: u32,
    to: *mut c_void,
    len: u32,
) -> c_int {
    let copy = |lease: &Lease<Installed>| {
        if to.is_null() {
            return Err(libc::EINVAL);
        }
        let len = len.min(lease.len().saturating_sub(start));
        if len == 0 {
            return Err(libc::ERANGE);
        }
        // SAFETY: the caller's promise. What is there does not matter.
        let to = unsafe { slice::from_raw_parts_mut(to.cast::<u8>(), len as usize) };
        lease.copy_out(start, to).map_err(number)?;
        Ok(len as c_int)
    };
    // SAFETY: the caller's promise.
    unsafe { ask(getbuf, lease, copy) }
}
