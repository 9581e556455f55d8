// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a completion meant.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;

use uring_getbuf::Errno;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::slots::Event;

use crate::abi::{
    GETBUF_CHAIN_DONE, GETBUF_CHAIN_FETCH_FAILED, GETBUF_CHAIN_SHORT_FETCH, GETBUF_CHAIN_SHORT_USE,
    GETBUF_CHAIN_USE_FAILED, GETBUF_EVENT_CHAINED, GETBUF_EVENT_FETCHED, GETBUF_EVENT_MORE,
    GETBUF_EVENT_NONE, GETBUF_EVENT_RELEASED, GETBUF_EVENT_RETURNED, GETBUF_EVENT_STALE,
    GETBUF_EVENT_USED, getbuf_event, getbuf_lease,
};
use crate::slots::{Held, getbuf};
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
    // SAFETY: the caller's promise; it begins with its size.
    let Some(size) = (unsafe { event.cast::<u32>().as_ref() }).copied() else {
        return -libc::EINVAL;
    };
    if (size as usize) < size_of::<getbuf_event>() {
        return -libc::EINVAL;
    }
    // SAFETY: at least that large, and the caller's promise. What is in it does not matter.
    let Some(event) = (unsafe { event.cast::<MaybeUninit<getbuf_event>>().as_mut() }) else {
        return -libc::EINVAL;
    };
    match getbuf.slots.complete(user_data, res, flags) {
        Some(told) => getbuf.tell(told, size, event),
        None if is_waste(user_data, getbuf.tag) => {
            event.write(getbuf_event { size, ..NONE });
            GETBUF_EVENT_NONE
        }
        None => -libc::ENOENT,
    }
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

#[inline]
fn res(result: Result<u32, Errno>) -> i32 {
    match result {
        Ok(bytes) => bytes as i32,
        Err(errno) => -errno.raw(),
    }
}

impl getbuf {
    /// Fills the event in, in each case at its place: it is one of the few things that C pays for
    /// and Rust does not.
    #[inline]
    fn tell(&mut self, told: Event, size: u32, event: &mut MaybeUninit<getbuf_event>) -> c_int {
        let mut fill = |kind, lease, data, res, flags, outcome, token| {
            let (lease, reserved) = (getbuf_lease { id: lease }, 0);
            event.write(getbuf_event {
                size,
                kind,
                lease,
                data,
                res,
                flags,
                outcome,
                token,
                reserved,
            });
            kind
        };
        let slot = match told {
            Event::Fetched { lease, .. } | Event::Released { lease } => lease.slot(),
            Event::Used { id, .. } | Event::Returned { id } => id.lease().slot(),
            Event::Chained { id, .. } => id.slot(),
            _ => 0,
        };
        // The slots hold a slot until its last completion is there, so what the event is for is
        // the last that was handed out.
        let Some(place) = self.places.get_mut(usize::from(slot)) else { return -libc::EIO };
        let (id, data) = (place.id, place.data);
        match told {
            Event::Fetched { result, .. } => {
                place.settle();
                fill(GETBUF_EVENT_FETCHED, id, data, res(result), 0, 0, 0)
            }
            Event::Used { id: request, result, more } => {
                let flags = if more { GETBUF_EVENT_MORE } else { 0 };
                fill(GETBUF_EVENT_USED, id, data, res(result), flags, 0, request.token())
            }
            Event::Returned { id: request } => {
                fill(GETBUF_EVENT_RETURNED, id, data, 0, 0, 0, request.token())
            }
            Event::Released { .. } => fill(GETBUF_EVENT_RELEASED, id, data, 0, 0, 0, 0),
            Event::Chained { outcome, .. } => {
                place.put(Held::Nothing);
                let (outcome, res) = match outcome {
                    ChainOutcome::Done(bytes) => (GETBUF_CHAIN_DONE, bytes as i32),
                    ChainOutcome::ShortFetch(bytes) => (GETBUF_CHAIN_SHORT_FETCH, bytes as i32),
                    ChainOutcome::ShortUse(bytes) => (GETBUF_CHAIN_SHORT_USE, bytes as i32),
                    ChainOutcome::FetchFailed(errno) => (GETBUF_CHAIN_FETCH_FAILED, -errno.raw()),
                    ChainOutcome::UseFailed(errno) => (GETBUF_CHAIN_USE_FAILED, -errno.raw()),
                    // There are no others in this version.
                    _ => (GETBUF_CHAIN_USE_FAILED, -libc::EIO),
                };
                fill(GETBUF_EVENT_CHAINED, id, data, res, 0, outcome, 0)
            }
            Event::Stale => fill(GETBUF_EVENT_STALE, 0, ptr::null_mut(), 0, 0, 0, 0),
            _ => fill(GETBUF_EVENT_NONE, 0, ptr::null_mut(), 0, 0, 0, 0),
        }
    }
}
