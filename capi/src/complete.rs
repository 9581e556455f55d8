// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a completion meant.

use std::ffi::c_int;

use uring_getbuf::Errno;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::lease::NotInstalled;
use uring_getbuf::slots::{Event, LeaseId};

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
    let told = match getbuf.slots.complete(user_data, res, flags) {
        Some(told) => getbuf.translate(told),
        None if is_waste(user_data, getbuf.tag) => NONE,
        None => return -libc::ENOENT,
    };
    // SAFETY: at least that large, and the caller's promise.
    unsafe { *event = getbuf_event { size, ..told } };
    told.kind
}

const NONE: getbuf_event = getbuf_event {
    size: 0,
    kind: GETBUF_EVENT_NONE,
    lease: getbuf_lease { id: 0 },
    data: std::ptr::null_mut(),
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
    #[inline]
    fn translate(&mut self, event: Event) -> getbuf_event {
        match event {
            Event::Fetched { lease, result } => {
                self.settle(lease);
                self.event(GETBUF_EVENT_FETCHED, lease, res(result))
            }
            Event::Used { id, result, more } => getbuf_event {
                flags: if more { GETBUF_EVENT_MORE } else { 0 },
                token: id.token(),
                ..self.event(GETBUF_EVENT_USED, id.lease(), res(result))
            },
            Event::Returned { id } => getbuf_event {
                token: id.token(),
                ..self.event(GETBUF_EVENT_RETURNED, id.lease(), 0)
            },
            Event::Released { lease } => self.event(GETBUF_EVENT_RELEASED, lease, 0),
            Event::Chained { id, outcome } => {
                self.replace(id.slot(), Held::Nothing);
                let (outcome, res) = match outcome {
                    ChainOutcome::Done(bytes) => (GETBUF_CHAIN_DONE, bytes as i32),
                    ChainOutcome::ShortFetch(bytes) => (GETBUF_CHAIN_SHORT_FETCH, bytes as i32),
                    ChainOutcome::ShortUse(bytes) => (GETBUF_CHAIN_SHORT_USE, bytes as i32),
                    ChainOutcome::FetchFailed(errno) => (GETBUF_CHAIN_FETCH_FAILED, -errno.raw()),
                    ChainOutcome::UseFailed(errno) => (GETBUF_CHAIN_USE_FAILED, -errno.raw()),
                    // There are no others in this version.
                    _ => (GETBUF_CHAIN_USE_FAILED, -libc::EIO),
                };
                getbuf_event { outcome, ..self.event(GETBUF_EVENT_CHAINED, id, res) }
            }
            Event::Stale => getbuf_event { kind: GETBUF_EVENT_STALE, ..NONE },
            _ => NONE,
        }
    }

    #[inline]
    fn event(&self, kind: c_int, lease: LeaseId, res: i32) -> getbuf_event {
        let (lease, data) = self.named(lease);
        getbuf_event { kind, lease, data, res, ..NONE }
    }

    /// A fetch is done: its lease, if C has not released it, is installed or over.
    #[inline]
    fn settle(&mut self, lease: LeaseId) {
        let slot = lease.slot();
        let held = match self.replace(slot, Held::Nothing) {
            Held::Fetched(lease) => match lease.installed() {
                Ok(lease) => Held::Installed(lease),
                Err(NotInstalled::Pending(lease)) => Held::Fetched(lease),
                Err(NotInstalled::EndOfFile | NotInstalled::Failed(_)) => return,
            },
            held => held,
        };
        self.replace(slot, held);
    }
}
