// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several requests of a kind at once.

use std::ffi::{c_int, c_void};
use std::slice;

use crate::abi::{
    GETBUF_STREAM, GETBUF_WRITE, getbuf_chain, getbuf_file, getbuf_lease, getbuf_range,
    io_uring_sqe,
};
use crate::chain;
use crate::errors::{Outcome, Told};
use crate::slots::getbuf;
use crate::sqe::Sqes;

/// Where the next block is: behind this one, unless it is where a stream stands.
fn behind(offset: u64, len: u32) -> u64 {
    if offset == GETBUF_STREAM { offset } else { offset.wrapping_add(len.into()) }
}

/// Where a block is that is so many blocks behind this one.
fn ahead(offset: u64, len: u32, blocks: usize) -> u64 {
    (0..blocks).fold(offset, |offset, _| behind(offset, len))
}

impl getbuf {
    /// Looks that there is an SQE for each of `count` requests, and a slot for each `of_one` of them.
    fn has_room(&self, sqes: Sqes<'_>, count: u32, of_one: usize) -> Outcome {
        sqes.check(count as usize)?;
        if count == 0 || !(count as usize).is_multiple_of(of_one) {
            return Err(libc::EINVAL);
        }
        if count as usize / of_one > self.slots.free() { Err(libc::ENOBUFS) } else { Ok(()) }
    }
}

/// Fills count SQEs with as many fetches, each as getbuf_fetch() has it: the first at offset, each
/// of the others where the one before it ends. The leases are in leases, which has room for count
/// of them. 0; or an error, and then none is fetched.
///
/// Errors are those of getbuf_fetch(); -ENOBUFS: fewer than count slots are free. Where NULL is among
/// the SQEs: -EINVAL.
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
    let sqes = unsafe { Sqes::new(sqes, count) };
    // SAFETY: the caller's promise.
    let getbuf = unsafe { getbuf.as_mut() };
    // SAFETY: the caller's promise.
    let source = unsafe { source.as_ref() };
    sqes.told(getbuf, |getbuf| {
        let source = source.filter(|_| !leases.is_null()).ok_or(libc::EINVAL)?;
        getbuf.has_room(sqes, count, 1)?;
        let mut at = offset;
        for place in 0..count as usize {
            let (entry, value) = getbuf.fetch(source, at, len, data)?;
            sqes.part(place, 1).fill([entry]);
            // SAFETY: the caller's promise.
            unsafe { leases.wrapping_add(place).write(value) };
            at = behind(at, len);
        }
        Ok(())
    })
}

/// Fills count SQEs, consecutive ones of one submission, with as many chains as they are enough for,
/// each as getbuf_chain() has it: the first as *what says, each of the others behind the one before
/// it, in the source and in the sink. Their names are in leases, which has room for all of them. 0;
/// or an error, and then none is started.
///
/// Errors are those of getbuf_chain(); -EINVAL where count is not a multiple of getbuf_chain_len(),
/// or NULL is among the SQEs; -ENOBUFS: fewer slots are free than there are chains.
///
/// # Safety
///
/// What `getbuf_chain()` asks for, and `leases` is null or has room for one for each chain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_chain_batch(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    what: *const getbuf_chain,
    leases: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let sqes = unsafe { Sqes::new(sqes, count) };
    // SAFETY: the caller's promise.
    let getbuf = unsafe { getbuf.as_mut() };
    // SAFETY: the caller's promise.
    let what = unsafe { chain::read(what) };
    sqes.told(getbuf, |getbuf| {
        let mut what = what?;
        // SAFETY: the caller's promise.
        let of_one = unsafe { getbuf.chain_len(&what) }?;
        if leases.is_null() {
            return Err(libc::EINVAL);
        }
        getbuf.has_room(sqes, count, of_one)?;
        let chains = count as usize / of_one;
        let last = getbuf_chain { offset: ahead(what.offset, what.len, chains - 1), ..what };
        // SAFETY: the caller's promise.
        if unsafe { getbuf.chain_len(&last) }? != of_one {
            return Err(libc::EINVAL);
        }
        for place in 0..chains {
            // SAFETY: the caller's promise.
            let value = unsafe { getbuf.chain(&what, sqes.part(place * of_one, of_one)) }?;
            // SAFETY: the caller's promise.
            unsafe { leases.wrapping_add(place).write(value) };
            what.offset = behind(what.offset, what.len);
            what.sink_offset = behind(what.sink_offset, what.len);
        }
        Ok(())
    })
}

/// Fills count SQEs with as many writes, each of the same bytes of one of count leases and as
/// getbuf_write() has it: that of the first lease to offset of sink, each of the others where the one
/// before it ends (GETBUF_STREAM: where the sink stands). 0, or the error of the first that could not
/// be made; its SQE is made a no-op, and the others are.
///
/// Errors are those of getbuf_write(). Where NULL is among the SQEs or count is 0: -EINVAL, and none
/// is made.
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
    let sqes = unsafe { Sqes::new(sqes, count) };
    // SAFETY: the caller's promise.
    let getbuf = unsafe { getbuf.as_mut() };
    // SAFETY: the caller's promise.
    let sink = unsafe { sink.as_ref() };
    let mut first = 0;
    let made = sqes.told(getbuf, |getbuf| {
        sqes.check(count as usize)?;
        if leases.is_null() || count == 0 {
            return Err(libc::EINVAL);
        }
        // SAFETY: the caller's promise.
        let leases = unsafe { slice::from_raw_parts(leases, count as usize) };
        let (range, mut at) = (getbuf_range { start, len }, offset);
        for (place, lease) in leases.iter().enumerate() {
            let sink = sink.ok_or(libc::EINVAL);
            let made = sink
                .and_then(|sink| getbuf.consume(*lease, range, sink, GETBUF_WRITE, at, 0))
                .map(|entry| sqes.part(place, 1).fill([entry]));
            if let Err(errno) = made {
                sqes.part(place, 1).waste(getbuf.tag);
                first = if first == 0 { -errno } else { first };
            }
            at = behind(at, len);
        }
        Ok(())
    });
    if made == 0 { first } else { made }
}

/// Releases count leases, as getbuf_release() does one. 0, or the error of the first that could not
/// be released; the others are.
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
    let (Some(getbuf), false) = (unsafe { getbuf.as_mut() }, leases.is_null()) else {
        return -libc::EINVAL;
    };
    // SAFETY: the caller's promise.
    let leases = unsafe { slice::from_raw_parts(leases, count as usize) };
    let mut first = Ok(());
    for lease in leases {
        first = first.and(getbuf.leases.release(*lease));
    }
    first.told()
}
