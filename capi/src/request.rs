// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests: each of these functions fills one SQE that the caller took from its ring.

use std::ffi::{c_int, c_void};
use std::slice;

use io_uring::squeue::Entry;

use crate::abi::{
    GETBUF_RANGES_MAX, GETBUF_SEND, GETBUF_SEND_ZC, GETBUF_WRITE, getbuf_file, getbuf_lease,
    getbuf_range, io_uring_sqe,
};
use crate::errors::{Outcome, Told, number};
use crate::slots::getbuf;
use crate::sqe::fill;

impl getbuf {
    /// Reserves a slot; the request that fetches into it, and the lease.
    pub(crate) fn fetch(
        &mut self,
        source: &getbuf_file,
        offset: u64,
        len: u32,
        data: *mut c_void,
    ) -> Outcome<(Entry, getbuf_lease)> {
        let (lease, request) = self.slots.fetch(source.source()?, offset, len).map_err(number)?;
        let entry = request.into_entry();
        Ok((entry, self.leases.fetched(lease, data)))
    }

    /// The request of a consumer of bytes of a lease.
    pub(crate) fn consume(
        &self,
        lease: getbuf_lease,
        range: getbuf_range,
        sink: &getbuf_file,
        how: u32,
        offset: u64,
        send_flags: c_int,
    ) -> Outcome<Entry> {
        let lease = self.leases.installed(lease)?;
        let consumer = sink.consumer(how, offset, send_flags)?;
        let end = range.start.checked_add(range.len).ok_or(libc::ERANGE)?;
        let request = lease.consume(range.start..end, consumer).map_err(number)?;
        Ok(request.token(sink.token).into_entry())
    }
}

/// Reserves a slot and fills sqe with the fetch of up to len bytes at offset of source
/// (GETBUF_STREAM: where a stream stands) into it. 0, and the lease in *lease. data comes back in
/// every event of the lease.
///
/// As soon as the completion has been given to getbuf_complete(), which answers
/// GETBUF_EVENT_FETCHED with more than 0 bytes, the lease can be used. It holds its slot until
/// getbuf_release().
///
/// -EINVAL: NULL, an unknown flag, a len of 0 or of more than getbuf_stats.max_fetch. -EBADF: a
/// negative descriptor. -ENOBUFS: every slot is taken; release a lease, or let requests complete.
///
/// # Safety
///
/// `getbuf` is null or live; the others are null or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_fetch(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    source: *const getbuf_file,
    offset: u64,
    len: u32,
    data: *mut c_void,
    lease: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let source = unsafe { source.as_ref() };
    // SAFETY: the caller's promise.
    let lease = unsafe { lease.as_mut() };
    let make = |getbuf: &mut getbuf| {
        let (source, lease) = source.zip(lease).ok_or(libc::EINVAL)?;
        let (entry, value) = getbuf.fetch(source, offset, len, data)?;
        *lease = value;
        Ok(entry)
    };
    // SAFETY: the caller's promise.
    unsafe { fill(getbuf, sqe, make) }
}

/// Fills sqe with a write of len bytes from start of the lease to offset of sink (GETBUF_STREAM:
/// where it stands). GETBUF_EVENT_USED tells what it wrote. The lease may be released at once: its
/// bytes stay until the write is done. Flags such as IOSQE_IO_LINK may be added to sqe afterwards;
/// user_data may not be changed. A flag by which the kernel begins with the write later (IOSQE_ASYNC,
/// IOSQE_IO_DRAIN, IOSQE_IO_LINK of the request before it) has the lease wait: released before
/// GETBUF_EVENT_USED, it may be gone then, and the write fails with -EFAULT.
///
/// -EINVAL: NULL, an unknown flag, a lease that is zero or a chain. -EXDEV: a lease of other slots.
/// -ENOENT: the lease is over. -EBUSY: its fetch is not done, or 256 requests use it. -ERANGE: the
/// bytes are none, or not all in the lease. -EBADF: a negative descriptor.
///
/// # Safety
///
/// `getbuf` is null or live; the others are null or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_write(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    start: u32,
    len: u32,
    sink: *const getbuf_file,
    offset: u64,
) -> c_int {
    let range = getbuf_range { start, len };
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, range, sink, GETBUF_WRITE, offset, 0) }
}

/// Fills sqe with a send of len bytes from start of the lease to a socket, as getbuf_write() does
/// with a write. flags: MSG_MORE, MSG_WAITALL, MSG_DONTWAIT or 0; MSG_NOSIGNAL is always set. Without
/// MSG_WAITALL a socket takes what it has room for.
///
/// Errors are those of getbuf_write(), and -EINVAL for other flags.
///
/// # Safety
///
/// `getbuf` is null or live; the others are null or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_send(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    start: u32,
    len: u32,
    sink: *const getbuf_file,
    flags: c_int,
) -> c_int {
    let range = getbuf_range { start, len };
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, range, sink, GETBUF_SEND, 0, flags) }
}

/// Fills sqe with a send of len bytes from start of the lease to a socket, without a copy into it.
/// flags are those of getbuf_send(). Where GETBUF_EVENT_USED says GETBUF_EVENT_MORE, a
/// GETBUF_EVENT_RETURNED follows when the network does not need the bytes any more.
///
/// Errors are those of getbuf_send(), and -EOPNOTSUPP before Linux 6.0.
///
/// # Safety
///
/// `getbuf` is null or live; the others are null or what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_send_zc(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    start: u32,
    len: u32,
    sink: *const getbuf_file,
    flags: c_int,
) -> c_int {
    let range = getbuf_range { start, len };
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, range, sink, GETBUF_SEND_ZC, 0, flags) }
}

/// # Safety
///
/// What `getbuf_write` asks for.
#[expect(clippy::too_many_arguments, reason = "what the C functions have in common")]
unsafe fn consume(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    range: getbuf_range,
    sink: *const getbuf_file,
    how: u32,
    offset: u64,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let sink = unsafe { sink.as_ref() };
    let make = |getbuf: &mut getbuf| {
        getbuf.consume(lease, range, sink.ok_or(libc::EINVAL)?, how, offset, flags)
    };
    // SAFETY: the caller's promise.
    unsafe { fill(getbuf, sqe, make) }
}

/// Fills sqe with a write of up to GETBUF_RANGES_MAX ranges of the lease, one behind the other, to
/// offset of sink, as getbuf_write() does with one. A lease takes one at a time. ranges is not needed
/// after the call.
///
/// Errors are those of getbuf_write(), -EINVAL for no or too many ranges, and -EBUSY while another is
/// in flight.
///
/// # Safety
///
/// `getbuf` is null or live; the others are null or what their types say; `ranges` is null or has
/// `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_writev(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    ranges: *const getbuf_range,
    count: u32,
    sink: *const getbuf_file,
    offset: u64,
) -> c_int {
    let make = |getbuf: &mut getbuf| {
        let lease = getbuf.leases.installed(lease)?;
        // SAFETY: the caller's promise.
        let sink = unsafe { sink.as_ref() }.ok_or(libc::EINVAL)?;
        if ranges.is_null() || count == 0 || count > GETBUF_RANGES_MAX {
            return Err(libc::EINVAL);
        }
        // SAFETY: the caller's promise.
        let ranges = unsafe { slice::from_raw_parts(ranges, count as usize) };
        let mut some = [const { 0..0 }; GETBUF_RANGES_MAX as usize];
        for (place, range) in some.iter_mut().zip(ranges) {
            *place = range.start..range.start.checked_add(range.len).ok_or(libc::ERANGE)?;
        }
        let request = lease.writev(&some[..ranges.len()], sink.target()?, offset);
        Ok(request.map_err(number)?.token(sink.token).into_entry())
    };
    // SAFETY: the caller's promise.
    unsafe { fill(getbuf, sqe, make) }
}

/// Lets the slot of a lease be emptied, also while requests use it or its fetch is not done. The
/// value is stale from now on. Where the kernel has to be asked, getbuf_pending() says so.
///
/// Returns 0. -EINVAL: NULL, or a lease that is zero or a chain. -EXDEV: a lease of other slots.
/// -ENOENT: the lease is over.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_release(getbuf: *mut getbuf, lease: getbuf_lease) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    getbuf.leases.release(lease).told()
}
