// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a completion meant.

use std::ffi::c_int;
use std::{ptr, slice};

use uring_getbuf::Errno;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::slots::Event;

use crate::abi::{
    GETBUF_CHAIN_DONE, GETBUF_CHAIN_FETCH_FAILED, GETBUF_CHAIN_SHORT_FETCH, GETBUF_CHAIN_SHORT_USE,
    GETBUF_CHAIN_USE_FAILED, GETBUF_EVENT_CHAINED, GETBUF_EVENT_FETCHED, GETBUF_EVENT_FOREIGN,
    GETBUF_EVENT_MORE, GETBUF_EVENT_NONE, GETBUF_EVENT_RELEASED, GETBUF_EVENT_RETURNED,
    GETBUF_EVENT_STALE, GETBUF_EVENT_USED, getbuf_event, getbuf_lease, io_uring_cqe,
};
use crate::slots::getbuf;
use crate::sqe::is_waste;

/// Whether a completion with this user_data is for getbuf_complete(): 1 or 0. -EINVAL: NULL.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_claims(getbuf: *const getbuf, user_data: u64) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    c_int::from(getbuf.slots.claims(user_data) || is_waste(user_data, getbuf.tag))
}

/// Takes cqe->user_data, cqe->res and cqe->flags of a completion, and says in *event what it
/// meant. Give it each completion once. GETBUF_EVENT_*, which is also event->kind.
///
/// -EINVAL: NULL, or an event.size that is smaller than it ever was. -ENOENT: it is not for these
/// slots but for the program.
///
/// # Safety
///
/// `getbuf` is null or live; `event` is null or can be written to, as many bytes as its `size`
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_complete(
    getbuf: *mut getbuf,
    user_data: u64,
    res: i32,
    flags: u32,
    event: *mut getbuf_event,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    if event.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: not null, and the caller's promise; it begins with its size.
    if (unsafe { *event.cast::<u32>() } as usize) < size_of::<getbuf_event>() {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's promise.
    if let Some(kind) = unsafe { complete_plainly(getbuf, user_data, res, event) } {
        return kind;
    }
    // SAFETY: the caller's promise.
    unsafe { complete(getbuf, user_data, res, flags, event) }
}

/// As getbuf_complete(), for count completions at once, as io_uring_peek_batch_cqe() gives them.
/// events has room for as many; events->size is the size of each. Each event is for the completion at
/// its place: what getbuf_complete() would say, or GETBUF_EVENT_FOREIGN where the completion is not for these slots
/// but for the program.
///
/// How many are for the program. -EINVAL: NULL, or an events->size that is smaller than it ever was.
///
/// # Safety
///
/// `getbuf` is null or live; `cqes` is null or has `count` elements that can be read; `events` is
/// null or has `count` elements that can be written to, each as large as the `size` of the first
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_complete_batch(
    getbuf: *mut getbuf,
    cqes: *const *mut io_uring_cqe,
    count: u32,
    events: *mut getbuf_event,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    if cqes.is_null() || events.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: not null, and the caller's promise; it begins with its size.
    let size = unsafe { *events.cast::<u32>() };
    if (size as usize) < size_of::<getbuf_event>() {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's promise.
    let cqes = unsafe { slice::from_raw_parts(cqes.cast::<*const Cqe>(), count as usize) };
    let (mut event, mut foreign) = (events, 0);
    for cqe in cqes {
        // SAFETY: the caller's promise.
        let Cqe { user_data, res, flags } = unsafe { **cqe };
        // SAFETY: the caller's promise.
        unsafe { (*event).size = size };
        // SAFETY: the caller's promise.
        if unsafe { complete_plainly(getbuf, user_data, res, event) }.is_none() {
            // SAFETY: the caller's promise.
            let kind = unsafe { complete(getbuf, user_data, res, flags, event) };
            if kind < 0 {
                // SAFETY: the caller's promise.
                unsafe { event.write(getbuf_event { size, kind: GETBUF_EVENT_FOREIGN, ..NONE }) };
                foreign += 1;
            }
        }
        event = event.wrapping_byte_add(size as usize);
    }
    foreign
}

/// `struct io_uring_cqe` of `linux/io_uring.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cqe {
    user_data: u64,
    res: i32,
    flags: u32,
}

const NONE: getbuf_event = getbuf_event {
    size: 0,
    kind: GETBUF_EVENT_NONE,
    lease: getbuf_lease { id: 0 },
    data: ptr::null_mut(),
    res: 0,
    flags: 0,
    outcome: 0,
    token: 0,
    reserved: 0,
};

/// What has gone as asked; `None`: it has not, and nothing has happened.
///
/// # Safety
///
/// `event` can be written to and knows its size.
#[inline(always)]
unsafe fn complete_plainly(
    getbuf: &getbuf,
    user_data: u64,
    res: i32,
    event: *mut getbuf_event,
) -> Option<c_int> {
    let tell = |event| match event {
        Event::Fetched { result: Ok(bytes), .. } => (GETBUF_EVENT_FETCHED, bytes, 0),
        Event::Used { id, result: Ok(bytes), .. } => (GETBUF_EVENT_USED, bytes, id.token()),
        Event::Chained { outcome, .. } => (GETBUF_EVENT_CHAINED, outcome.moved(), 0),
        _ => (GETBUF_EVENT_RELEASED, 0, 0),
    };
    let told = getbuf.slots.values().complete_plainly(user_data, res, tell);
    let ((kind, bytes, token), value, data) = told?;
    // SAFETY: the caller's promise.
    let event = unsafe { &mut *event };
    event.kind = kind;
    event.lease = getbuf_lease { id: value };
    event.data = data;
    event.res = bytes as i32;
    (event.flags, event.outcome) = (0, GETBUF_CHAIN_DONE);
    (event.token, event.reserved) = (token, 0);
    Some(kind)
}

/// What has not gone as asked.
///
/// # Safety
///
/// `event` can be written to and knows its size.
#[inline(never)]
unsafe fn complete(
    getbuf: &getbuf,
    user_data: u64,
    res: i32,
    flags: u32,
    event: *mut getbuf_event,
) -> c_int {
    let (told, value, data) = match getbuf.slots.values().complete(user_data, res, flags) {
        Some(told) => told,
        None if is_waste(user_data, getbuf.tag) => (Event::Pending, 0, ptr::null_mut()),
        None => return -libc::ENOENT,
    };
    let (kind, res, flags, outcome, token) = match told {
        Event::Fetched { result, .. } => (GETBUF_EVENT_FETCHED, number(result), 0, 0, 0),
        Event::Used { id, result, more } => {
            let flags = if more { GETBUF_EVENT_MORE } else { 0 };
            (GETBUF_EVENT_USED, number(result), flags, 0, id.token())
        }
        Event::Returned { id } => (GETBUF_EVENT_RETURNED, 0, 0, 0, id.token()),
        Event::Released { .. } => (GETBUF_EVENT_RELEASED, 0, 0, 0, 0),
        Event::Chained { outcome, .. } => {
            let (outcome, res) = match outcome {
                ChainOutcome::Done(bytes) => (GETBUF_CHAIN_DONE, bytes as i32),
                ChainOutcome::ShortFetch(bytes) => (GETBUF_CHAIN_SHORT_FETCH, bytes as i32),
                ChainOutcome::ShortUse(bytes) => (GETBUF_CHAIN_SHORT_USE, bytes as i32),
                ChainOutcome::FetchFailed(errno) => (GETBUF_CHAIN_FETCH_FAILED, -errno.raw()),
                ChainOutcome::UseFailed(errno) => (GETBUF_CHAIN_USE_FAILED, -errno.raw()),
                // There are no others in this version.
                _ => (GETBUF_CHAIN_USE_FAILED, -libc::EIO),
            };
            (GETBUF_EVENT_CHAINED, res, 0, outcome, 0)
        }
        Event::Stale => (GETBUF_EVENT_STALE, 0, 0, 0, 0),
        _ => (GETBUF_EVENT_NONE, 0, 0, 0, 0),
    };
    let lease = getbuf_lease { id: value };
    // SAFETY: the caller's promise.
    let size = unsafe { (*event).size };
    let filled = getbuf_event { size, kind, lease, data, res, flags, outcome, token, reserved: 0 };
    // SAFETY: the caller's promise.
    unsafe { event.write(filled) };
    kind
}

fn number(result: Result<u32, Errno>) -> i32 {
    match result {
        Ok(bytes) => bytes as i32,
        Err(errno) => -errno.raw(),
    }
}
