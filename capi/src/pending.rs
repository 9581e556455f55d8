// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the slots themselves need sent.

use std::ffi::c_int;

use uring_getbuf::slots::Outgoing;

use crate::abi::{GETBUF_CHAIN_MAX, io_uring_sqe};
use crate::errors::{Outcome, Told};
use crate::slots::getbuf;
use crate::sqe::Sqes;

/// How many SQEs getbuf_next() takes now: 0 if the slots need nothing sent. Ask before every
/// submission, until it is 0: it is how slots are emptied, and how a fetch that a file refused is
/// sent again.
///
/// On a kernel that can empty a slot only by io_uring_register(2), this makes that call, and
/// returns its error if there is one.
///
/// -EINVAL: NULL.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_pending(getbuf: *mut getbuf) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    if getbuf.outgoing.is_empty() && getbuf.slots.has_requests() {
        getbuf.take_outgoing().told()
    } else {
        getbuf.outgoing.len() as c_int
    }
}

impl getbuf {
    /// Takes a chain, or as many single requests as a chain may have.
    fn take_outgoing(&mut self) -> Outcome<c_int> {
        while self.outgoing.len() < GETBUF_CHAIN_MAX as usize {
            match self.slots.next_request() {
                None => break,
                Some(Outgoing::Request(request)) => {
                    self.outgoing.push(request.into_entry());
                    self.announced += 1;
                }
                // It is asked for again.
                Some(Outgoing::Chain(_)) if self.announced > 0 => break,
                Some(Outgoing::Chain(chain)) => {
                    self.outgoing.extend(chain.into_entries());
                    self.announced = 1;
                    break;
                }
                Some(Outgoing::Clear(clear)) => {
                    match self.ring.clear(u32::from(clear.index()), 1) {
                        // Somebody has unregistered the whole table: then the slot is empty.
                        Ok(()) | Err(libc::ENXIO) => clear.done(),
                        Err(_) if self.announced > 0 => break,
                        Err(errno) => return Err(errno),
                    };
                }
            }
        }
        Ok(self.outgoing.len() as c_int)
    }
}

/// Fills count SQEs, consecutive ones of one submission, with what getbuf_pending() announced. 0.
///
/// -EINVAL: NULL, or a count that is not what it announced. -ENOENT: nothing is pending.
///
/// # Safety
///
/// `getbuf` is null or live; `sqes` is null or has `count` elements, each null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_next(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    let sqes = unsafe { Sqes::of_chain(sqes, count) };
    // SAFETY: the caller's promise.
    sqes.told(unsafe { getbuf.as_mut() }, |getbuf| {
        if getbuf.outgoing.is_empty() {
            return Err(libc::ENOENT);
        }
        sqes.check(getbuf.outgoing.len())?;
        sqes.fill(getbuf.outgoing.drain(..));
        getbuf.announced = 0;
        Ok(())
    })
}
