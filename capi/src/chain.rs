// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chains: fetch, consume and release as linked requests.

use std::ffi::c_int;
use std::ptr;

use io_uring::types::Fd;
use uring_getbuf::chain::Chain;
use uring_getbuf::consume::Consumer;

use crate::abi::{GETBUF_WRITE, getbuf_chain, getbuf_lease, io_uring_sqe};
use crate::create::read_sized;
use crate::errors::{Outcome, Told, number};
use crate::slots::getbuf;
use crate::sqe::Sqes;

const NONE: getbuf_chain = getbuf_chain {
    size: 0,
    consumer: GETBUF_WRITE,
    source: ptr::null(),
    offset: 0,
    len: 0,
    send_flags: 0,
    sink: ptr::null(),
    sink_offset: 0,
    data: ptr::null_mut(),
    reserved: [0; 2],
};

/// Reads what C says of a chain.
///
/// # Safety
///
/// What [`getbuf_chain_len`] asks for.
pub(crate) unsafe fn read(what: *const getbuf_chain) -> Outcome<getbuf_chain> {
    if what.is_null() {
        return Err(libc::EINVAL);
    }
    // SAFETY: not null, and the caller's promise.
    let chain = unsafe { read_sized(what, size_of::<getbuf_chain>(), NONE) }?;
    if chain.reserved == [0; 2] { Ok(chain) } else { Err(libc::EINVAL) }
}

/// What a chain is to do.
///
/// # Safety
///
/// What [`getbuf_chain_len`] asks for.
unsafe fn described(what: &getbuf_chain) -> Outcome<Chain> {
    // SAFETY: the caller's promise.
    let source = unsafe { what.source.as_ref() }.ok_or(libc::EINVAL)?.source()?;
    // SAFETY: the caller's promise.
    let sink = unsafe { what.sink.as_ref() }.ok_or(libc::EINVAL)?;
    let consumer = sink.consumer(what.consumer, what.sink_offset, what.send_flags)?;
    Ok(Chain::new(source, what.offset, what.len, consumer))
}

impl getbuf {
    /// How many SQEs a chain takes.
    ///
    /// # Safety
    ///
    /// What [`getbuf_chain_len`] asks for.
    pub(crate) unsafe fn chain_len(&self, what: &getbuf_chain) -> Outcome<usize> {
        // SAFETY: the caller's promise.
        let source = unsafe { what.source.as_ref() }.ok_or(libc::EINVAL)?.source()?;
        // Whoever consumes it, which need not be said yet.
        let consumer = Consumer::Write { sink: Fd(-1).into(), offset: 0 };
        Ok(self.slots.chain_len(&Chain::new(source, what.offset, what.len, consumer)))
    }

    /// Reserves a slot, and fills the SQEs, if they are as many as the chain takes.
    ///
    /// # Safety
    ///
    /// What [`getbuf_chain_len`] asks for.
    pub(crate) unsafe fn chain(
        &mut self,
        what: &getbuf_chain,
        sqes: Sqes<'_>,
    ) -> Outcome<getbuf_lease> {
        // SAFETY: the caller's promise.
        let chain = unsafe { described(what) }?;
        sqes.check(self.slots.chain_len(&chain))?;
        let (id, chain) = self.slots.chain(chain).map_err(number)?;
        sqes.fill(chain.into_entries());
        Ok(self.leases.chain(id, what.data))
    }
}

/// How many SQEs getbuf_chain() will take for a chain: 2 or GETBUF_CHAIN_MAX.
///
/// -EINVAL: NULL, a size that makes no sense, an unknown flag. -E2BIG: a chain of a newer version,
/// with something that this one does not know. -EBADF: a negative descriptor.
///
/// # Safety
///
/// `getbuf` is null or live; `what` is null or points to as many bytes as its `size` says, with
/// files that are null or can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_chain_len(
    getbuf: *const getbuf,
    what: *const getbuf_chain,
) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    // SAFETY: the caller's promise.
    let what = unsafe { read(what) };
    // SAFETY: the caller's promise.
    let len = what.and_then(|what| unsafe { getbuf.chain_len(&what) });
    len.map(|len| len as c_int).told()
}

/// Reserves a slot and fills count SQEs, consecutive ones of one submission, with fetch, consume
/// and release, linked. 0, and the chain's name in *lease: GETBUF_EVENT_CHAINED tells what became
/// of it, and nothing else can be done with it. The slot is free again then. The files must stay
/// open until then.
///
/// Errors are those of getbuf_fetch() and getbuf_chain_len(), -EOPNOTSUPP for GETBUF_SEND_ZC before
/// Linux 6.0, and -EINVAL where count is not getbuf_chain_len().
///
/// # Safety
///
/// What [`getbuf_chain_len`] asks for; `sqes` is null or has `count` elements, each null or writable; `lease` is
/// null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_chain(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    what: *const getbuf_chain,
    lease: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let sqes = unsafe { Sqes::of_chain(sqes, count) };
    // SAFETY: the caller's promise.
    let getbuf = unsafe { getbuf.as_mut() };
    // SAFETY: the caller's promise.
    let lease = unsafe { lease.as_mut() };
    // SAFETY: the caller's promise.
    let what = unsafe { read(what) };
    sqes.told(getbuf, |getbuf| {
        let lease = lease.ok_or(libc::EINVAL)?;
        // SAFETY: the caller's promise.
        *lease = unsafe { getbuf.chain(&what?, sqes) }?;
        Ok(())
    })
}
