// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several requests of a kind at once: what they have in common is looked at once.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::slice;

use io_uring::squeue::Entry;
use uring_getbuf::chain::Chain;
use uring_getbuf::consume::Consumer;

use crate::abi::{
    GETBUF_CHAIN_MAX, GETBUF_STREAM, getbuf_chain, getbuf_file, getbuf_lease, io_uring_sqe,
};
use crate::errors::Outcome;
use crate::fetch::{self, plain, plain_pair, refuse_all, slots};
use crate::slots::getbuf;
use crate::sqe::Sqes;

/// How far it is from the block at `offset` to the one behind it.
#[inline(always)]
fn step(offset: u64, len: u32) -> u64 {
    if offset == GETBUF_STREAM { 0 } else { len.into() }
}

/// Fills count SQEs with as many fetches, each as getbuf_fetch() has it: the first at offset, each
/// of the others where the one before it ends. The leases are in leases, which has room for count
/// of them. 0; or an error, and then none is fetched.
///
/// Errors as getbuf_fetch(); -ENOBUFS: fewer than count slots are free. Where NULL is among the
/// SQEs: -EINVAL.
///
/// # Safety
///
/// `getbuf` is null or live; `sqes` is null or has `count` elements, each null or writable;
/// `leases` is null or has room for `count`; `source` is null or can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_fetch_batch(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    source: *const getbuf_file,
    offset: u64,
    len: u32,
    data: *mut c_void,
    leases: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let requests = unsafe { Sqes::any(sqes, count) };
    // SAFETY: the caller's promise.
    let sqes = match unsafe { room(getbuf, requests, count, 1, leases) } {
        Ok(sqes) => sqes,
        // SAFETY: the caller's promise.
        Err(errno) => return unsafe { refuse_all(getbuf, requests, errno) },
    };
    let (mut at, step, mut done) = (offset, step(offset, len), 0);
    // SAFETY: the caller's promise.
    if let (Some(slots), Some(file)) = (unsafe { slots(getbuf) }, unsafe { plain(source) }) {
        let mut lease = leases;
        let started = |value| {
            // SAFETY: there is room for as many as there are SQEs.
            unsafe { (*lease).id = value };
            lease = lease.wrapping_add(1);
        };
        let first = (file, at, len);
        // SAFETY: the caller's promise.
        let count = unsafe { slots.fetches_plainly(sqes, first, step, data, started) };
        at = at.wrapping_add(step.wrapping_mul(count));
        done = count as usize;
    }
    // What is not usual.
    for sqe in &sqes[done..] {
        let (sqe, lease) = (sqe.as_ptr().cast(), leases.wrapping_add(done));
        // SAFETY: the caller's promise.
        let refused = unsafe { fetch::fetch(getbuf, sqe, source, at, len, data, lease) };
        if refused != 0 {
            // SAFETY: the caller's promise.
            return unsafe { refuse_all(getbuf, requests.behind(done), -refused) };
        }
        at = at.wrapping_add(step);
        done += 1;
    }
    0
}

/// Fills count SQEs, consecutive ones of one submission, with as many chains as they are enough for,
/// each as getbuf_chain() has it: the first as *what says, each of the others behind the one before
/// it, in the source and in the sink. Their names are in leases, which has room for all of them. 0;
/// or an error, and then none is started.
///
/// Errors as getbuf_chain(); -EINVAL where count is not a multiple of getbuf_chain_len(), or NULL is
/// among the SQEs; -ENOBUFS: fewer slots are free than there are chains.
///
/// # Safety
///
/// As `getbuf_chain()`, and `leases` is null or has room for one for each chain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_chain_batch(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    what: *const getbuf_chain,
    leases: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let requests = unsafe { Sqes::any(sqes, count) };
    // SAFETY: the caller's promise.
    let of_one = unsafe { fetch::getbuf_chain_len(getbuf, what) };
    let room = match u32::try_from(of_one) {
        // SAFETY: the caller's promise.
        Ok(of_one) => unsafe { room(getbuf, requests, count, of_one, leases) },
        Err(_) => Err(-of_one),
    };
    let sqes = match room {
        Ok(sqes) => sqes,
        // SAFETY: the caller's promise.
        Err(errno) => return unsafe { refuse_all(getbuf, requests, errno) },
    };
    // SAFETY: `getbuf_chain_len` has found that it can be read, and its sizes sensible.
    let first = match unsafe { fetch::described(what, |what| Ok(*what)) } {
        Ok(first) => first,
        // SAFETY: the caller's promise.
        Err(errno) => return unsafe { refuse_all(getbuf, requests, errno) },
    };
    let getbuf_chain { source, sink, len, data, .. } = first;
    let (mut at, mut to, of_one) = (first.offset, first.sink_offset, of_one as usize);
    let (steps, mut done) = ((step(at, len), step(to, len)), 0);
    // SAFETY: the caller's promise.
    let (slots, files) = (unsafe { slots(getbuf) }, unsafe { plain_pair(source, sink) });
    if let (Some(slots), Some((source, sink)), true) = (slots, files, first.is_plain()) {
        let wanted = |count: u64| {
            let offset = to.wrapping_add(steps.1 * count);
            let consumer = Consumer::Write { sink, offset };
            Chain::new(source, at.wrapping_add(steps.0 * count), len, consumer)
        };
        let mut lease = leases;
        let started = |value| {
            // SAFETY: there is room for one for each chain.
            unsafe { (*lease).id = value };
            lease = lease.wrapping_add(1);
        };
        let chains = (sqes, of_one);
        // SAFETY: the caller's promise.
        let count = unsafe { slots.chains_plainly(chains, (source, len), wanted, data, started) };
        (at, to) = (at.wrapping_add(steps.0 * count), to.wrapping_add(steps.1 * count));
        done = count as usize;
    }
    // What is not usual.
    for some in sqes[done * of_one..].chunks_exact(of_one) {
        let one = getbuf_chain { offset: at, sink_offset: to, size: CHAIN, ..first };
        let (some, lease) = (some.as_ptr().cast(), leases.wrapping_add(done));
        // SAFETY: the caller's promise.
        let refused = unsafe { fetch::chain(getbuf, some, of_one as u32, &raw const one, lease) };
        if refused != 0 {
            // SAFETY: the caller's promise.
            return unsafe { refuse_all(getbuf, requests.behind(done * of_one), -refused) };
        }
        (at, to) = (at.wrapping_add(steps.0), to.wrapping_add(steps.1));
        done += 1;
    }
    0
}

const CHAIN: u32 = size_of::<getbuf_chain>() as u32;
const _: () = assert!(GETBUF_CHAIN_MAX > 0);

/// The SQEs, if there is one for each request, and a slot and room for a lease for each `of_one` of them.
///
/// # Safety
///
/// `getbuf` is null or live.
unsafe fn room<'a>(
    getbuf: *const getbuf,
    sqes: Sqes<'a>,
    count: u32,
    of_one: u32,
    leases: *const getbuf_lease,
) -> Outcome<&'a [NonNull<Entry>]> {
    // SAFETY: the caller's promise.
    let getbuf = unsafe { getbuf.as_ref() }.ok_or(libc::EINVAL)?;
    let sqes = sqes.all(count as usize)?;
    if leases.is_null() || count == 0 || !count.is_multiple_of(of_one) {
        return Err(libc::EINVAL);
    }
    if ((count / of_one) as usize) > getbuf.slots.free() { Err(libc::ENOBUFS) } else { Ok(sqes) }
}

/// Fills count SQEs with as many writes, each of the same bytes of one of count leases and as
/// getbuf_write() has it: that of the first lease to offset of sink, each of the others where the one
/// before it ends (GETBUF_STREAM: where the sink stands). 0, or the error of the first that could not
/// be made; its SQE is made a no-op, and the others are.
///
/// Errors as getbuf_write(). Where NULL is among the SQEs or count is 0: -EINVAL, and none is made.
///
/// # Safety
///
/// `getbuf` is null or live; `sqes` is null or has `count` elements, each null or writable; `leases`
/// is null or has `count` elements; `sink` is null or can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_write_batch(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    leases: *const getbuf_lease,
    start: u32,
    len: u32,
    sink: *const getbuf_file,
    offset: u64,
) -> c_int {
    // SAFETY: the caller's promise.
    let requests = unsafe { Sqes::any(sqes, count) };
    let sqes = match requests.all(count as usize) {
        Ok(sqes) if !leases.is_null() && count != 0 => sqes,
        // SAFETY: the caller's promise.
        _ => return unsafe { refuse_all(getbuf, requests, libc::EINVAL) },
    };
    // SAFETY: the caller's promise.
    let leases = unsafe { slice::from_raw_parts(leases, count as usize) };
    // SAFETY: the caller's promise.
    let usual = (unsafe { slots(getbuf) }).zip(unsafe { plain(sink) });
    let (step, mut done, mut first) = (step(offset, len), 0, 0);
    while done < leases.len() {
        let at = offset.wrapping_add(step.wrapping_mul(done as u64));
        if let Some((slots, file)) = usual {
            let some = (&sqes[done..], leases[done..].iter().map(|lease| lease.id));
            // SAFETY: `plain` has read it.
            let token = unsafe { (*sink).token };
            // SAFETY: the caller's promise.
            let count =
                unsafe { slots.writes_plainly(some, (start, len), (file, at), step, token) };
            if count > 0 {
                done += count;
                continue;
            }
        }
        // What is not usual.
        let (sqe, lease) = (sqes[done].as_ptr().cast(), leases[done]);
        // SAFETY: the caller's promise.
        let refused = unsafe { fetch::write(getbuf, sqe, lease, start, len, sink, at) };
        first = if first == 0 { refused } else { first };
        done += 1;
    }
    first
}

/// getbuf_release() for count leases. 0, or the error of the first that could not be released; the
/// others are.
///
/// # Safety
///
/// `getbuf` is null or live; `leases` is null or has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_release_batch(
    getbuf: *mut getbuf,
    leases: *const getbuf_lease,
    count: u32,
) -> c_int {
    // SAFETY: the caller's promise.
    let (Some(slots), false) = (unsafe { slots(getbuf) }, leases.is_null()) else {
        return -libc::EINVAL;
    };
    let mut first = 0;
    // SAFETY: the caller's promise.
    for lease in unsafe { slice::from_raw_parts(leases, count as usize) } {
        if let Err(miss) = slots.release(lease.id)
            && first == 0
        {
            first = -crate::errors::missed(miss);
        }
    }
    first
}
