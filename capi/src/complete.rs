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
use crate::errors::Outcome;
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
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    // SAFETY: the caller's promise.
    let size = match unsafe { size_of_events(event) } {
        Ok(size) => size,
        Err(errno) => return -errno,
    };
    match getbuf.complete(user_data, res, flags) {
        None => -libc::ENOENT,
        Some(told) => {
            // SAFETY: not null, and the caller's promise.
            unsafe { event.write(getbuf_event { size, ..told }) };
            told.kind
        }
    }
}

/// How large C says that its events are.
///
/// # Safety
///
/// `event` is null or begins with its size.
unsafe fn size_of_events(event: *const getbuf_event) -> Outcome<u32> {
    if event.is_null() {
        return Err(libc::EINVAL);
    }
    // SAFETY: the caller's promise.
    let size = unsafe { *event.cast::<u32>() };
    if (size as usize) < size_of::<getbuf_event>() { Err(libc::EINVAL) } else { Ok(size) }
}

/// Takes count completions at once, as io_uring_peek_batch_cqe() gives them.
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
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    // SAFETY: the caller's promise.
    let size = match unsafe { size_of_events(events) } {
        Ok(size) if !cqes.is_null() => size,
        _ => return -libc::EINVAL,
    };
    // SAFETY: the caller's promise.
    let cqes = unsafe { slice::from_raw_parts(cqes.cast::<*const Cqe>(), count as usize) };
    let (mut event, mut foreign) = (events, 0);
    for cqe in cqes {
        // SAFETY: the caller's promise.
        let Cqe { user_data, res, flags } = unsafe { **cqe };
        let told = getbuf.complete(user_data, res, flags).unwrap_or_else(|| {
            foreign += 1;
            getbuf_event { kind: GETBUF_EVENT_FOREIGN, ..NONE }
        });
        // SAFETY: the caller's promise.
        unsafe { event.write(getbuf_event { size, ..told }) };
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

impl getbuf {
    /// What a completion meant, but for the size of the event. `None`: it is the program's.
    fn complete(&mut self, user_data: u64, res: i32, flags: u32) -> Option<getbuf_event> {
        let Some(event) = self.slots.complete(user_data, res, flags) else {
            return is_waste(user_data, self.tag).then_some(NONE);
        };
        let (lease, data) = self.leases.take(&event);
        let told = getbuf_event { lease, data, ..NONE };
        Some(match event {
            Event::Fetched { result, .. } => {
                getbuf_event { kind: GETBUF_EVENT_FETCHED, res: number(result), ..told }
            }
            Event::Used { id, result, more } => {
                let flags = if more { GETBUF_EVENT_MORE } else { 0 };
                let (res, token) = (number(result), id.token());
                getbuf_event { kind: GETBUF_EVENT_USED, res, flags, token, ..told }
            }
            Event::Returned { id } => {
                getbuf_event { kind: GETBUF_EVENT_RETURNED, token: id.token(), ..told }
            }
            Event::Released { .. } => getbuf_event { kind: GETBUF_EVENT_RELEASED, ..told },
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
                getbuf_event { kind: GETBUF_EVENT_CHAINED, outcome, res, ..told }
            }
            Event::Stale => getbuf_event { kind: GETBUF_EVENT_STALE, ..told },
            _ => told,
        })
    }
}

fn number(result: Result<u32, Errno>) -> i32 {
    match result {
        Ok(bytes) => bytes as i32,
        Err(errno) => -errno.raw(),
    }
}
