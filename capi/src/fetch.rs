// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests: each of these functions fills one SQE, or those of a chain, that the caller took from
//! its ring.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::slice;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed};
use uring_getbuf::SendFlags;
use uring_getbuf::chain::Chain;
use uring_getbuf::consume::Consumer;
use uring_getbuf::engine::Source;
use uring_getbuf::opcode::Target;
use uring_getbuf::slots::{DEFAULT_TAG, Outgoing, Values};

use crate::abi::{
    GETBUF_CHAIN_MAX, GETBUF_FILE_BOUND, GETBUF_FILE_BOUND_FIXED, GETBUF_FILE_COPIED,
    GETBUF_FILE_FIXED, GETBUF_RANGES_MAX, GETBUF_SEND, GETBUF_SEND_ZC, GETBUF_WRITE, getbuf_chain,
    getbuf_file, getbuf_lease, getbuf_range, io_uring_sqe,
};
use crate::create::read_sized;
use crate::errors::{Outcome, missed, number, told};
use crate::slots::getbuf;
use crate::sqe::{Sqes, entry, waste};

const FILE_FLAGS: u32 =
    GETBUF_FILE_FIXED | GETBUF_FILE_COPIED | GETBUF_FILE_BOUND | GETBUF_FILE_BOUND_FIXED;

/// # Safety
///
/// `getbuf` is null or live.
#[inline(always)]
pub(crate) unsafe fn slots<'a>(getbuf: *const getbuf) -> Option<Values<'a>> {
    // SAFETY: the caller's promise.
    Some(unsafe { getbuf.as_ref() }?.slots.values())
}

/// # Safety
///
/// `file` is null or can be read.
#[inline(always)]
pub(crate) unsafe fn plain(file: *const getbuf_file) -> Option<Target> {
    // SAFETY: the caller's promise.
    unsafe { file.as_ref() }?.plain()
}

impl getbuf_file {
    #[inline(always)]
    fn head(&self) -> u64 {
        u64::from(self.fd as u32) | u64::from(self.flags) << 32
    }

    #[inline(always)]
    fn named(&self) -> Target {
        if self.flags & GETBUF_FILE_FIXED != 0 {
            Fixed(self.fd as u32).into()
        } else {
            Fd(self.fd).into()
        }
    }

    /// The file as most programs name one: a number, or an index, and nothing else.
    #[inline(always)]
    fn plain(&self) -> Option<Target> {
        let unusual = !(u64::from(i32::MAX as u32) | u64::from(GETBUF_FILE_FIXED) << 32);
        if self.head() & unusual != 0 || self.reserved != 0 { None } else { Some(self.named()) }
    }

    fn target(&self) -> Outcome<Target> {
        match self.plain() {
            Some(target) => Ok(target),
            None => self.other_target(),
        }
    }

    #[cold]
    fn other_target(&self) -> Outcome<Target> {
        if self.flags & !FILE_FLAGS != 0 || self.reserved != 0 {
            return Err(libc::EINVAL);
        }
        target(self.fd, self.flags & GETBUF_FILE_FIXED != 0)
    }

    fn source(&self) -> Outcome<Source> {
        match self.plain() {
            Some(target) => Ok(target.into()),
            None => self.other_source(),
        }
    }

    #[cold]
    fn other_source(&self) -> Outcome<Source> {
        let target = self.other_target()?;
        if self.flags & GETBUF_FILE_COPIED != 0 {
            return Ok(Source::copied(target));
        }
        if self.flags & GETBUF_FILE_BOUND == 0 {
            return Err(libc::EINVAL);
        }
        let bound = crate::fetch::target(self.bound, self.flags & GETBUF_FILE_BOUND_FIXED != 0)?;
        Ok(Source::bound(target, bound))
    }
}

fn target(fd: c_int, fixed: bool) -> Outcome<Target> {
    match (u32::try_from(fd), fixed) {
        (Ok(index), true) => Ok(Fixed(index).into()),
        (Ok(_), false) => Ok(Fd(fd).into()),
        (Err(_), _) => Err(libc::EBADF),
    }
}

fn send_flags(bits: c_int) -> Outcome<SendFlags> {
    let mut flags = SendFlags::NONE;
    for (bit, flag) in [
        (libc::MSG_MORE, SendFlags::MORE),
        (libc::MSG_WAITALL, SendFlags::WAIT_ALL),
        (libc::MSG_DONTWAIT, SendFlags::DONT_WAIT),
        (libc::MSG_NOSIGNAL, SendFlags::NONE),
    ] {
        if bits & bit != 0 {
            flags |= flag;
        }
    }
    let known = libc::MSG_MORE | libc::MSG_WAITALL | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if bits & !known == 0 { Ok(flags) } else { Err(libc::EINVAL) }
}

/// Has a request made that fills the SQE, which is not null; or makes the SQE harmless and says why.
///
/// # Safety
///
/// `getbuf` is null or live, and used by nobody else now; `sqe` is null or can be written to.
#[inline]
unsafe fn request(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    make: impl FnOnce(&getbuf, &mut MaybeUninit<Entry>) -> Outcome,
) -> c_int {
    // SAFETY: the caller's promise.
    let made = match (unsafe { getbuf.as_ref() }, unsafe { entry(sqe) }) {
        (Some(getbuf), Some(entry)) => make(getbuf, entry),
        _ => Err(libc::EINVAL),
    };
    match made {
        Ok(()) => 0,
        // SAFETY: the caller's promise.
        Err(errno) => unsafe { refuse(getbuf, sqe, errno) },
    }
}

/// # Safety
///
/// As [`request`].
#[cold]
unsafe fn refuse(getbuf: *const getbuf, sqe: *mut io_uring_sqe, errno: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let tag = unsafe { getbuf.as_ref() }.map_or(DEFAULT_TAG, |getbuf| getbuf.tag);
    // SAFETY: the caller's promise.
    unsafe { waste(sqe, tag) };
    -errno
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
    if let Some(slots) = unsafe { slots(getbuf) }
        // SAFETY: the caller's promise.
        && let Some(entry) = unsafe { entry(sqe) }
        // SAFETY: the caller's promise.
        && let Some(plain) = unsafe { plain(source) }
        // SAFETY: the caller's promise.
        && let Some(lease) = unsafe { lease.as_mut() }
        && let Some(value) = slots.fetch_plainly(entry, (plain, offset, len), data)
    {
        lease.id = value;
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { fetch(getbuf, sqe, source, offset, len, data, lease) }
}

/// The same in all cases.
///
/// # Safety
///
/// As [`getbuf_fetch`].
#[inline(never)]
pub(crate) unsafe fn fetch(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    source: *const getbuf_file,
    offset: u64,
    len: u32,
    data: *mut c_void,
    lease: *mut getbuf_lease,
) -> c_int {
    let make = |getbuf: &getbuf, sqe: &mut _| {
        // SAFETY: the caller's promise.
        let source = unsafe { source.as_ref() }.ok_or(libc::EINVAL)?.source()?;
        // SAFETY: the caller's promise.
        let lease = unsafe { lease.as_mut() }.ok_or(libc::EINVAL)?;
        let fetch = (source, offset, len);
        lease.id = getbuf.slots.values().fetch(sqe, fetch, data).map_err(number)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { request(getbuf, sqe, make) }
}

/// Bytes of a lease to a file.
///
/// # Safety
///
/// As `getbuf_write`.
#[inline]
unsafe fn consume(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    range: getbuf_range,
    sink: *const getbuf_file,
    consumer: impl FnOnce(Target) -> Outcome<Consumer>,
) -> c_int {
    let make = |getbuf: &getbuf, sqe: &mut _| {
        let lease = getbuf.slots.values().installed(lease.id).map_err(missed)?;
        // SAFETY: the caller's promise.
        let sink = unsafe { sink.as_ref() }.ok_or(libc::EINVAL)?;
        let consumer = consumer(sink.target()?)?;
        lease.consume(sqe, (range.start, range.len), consumer, sink.token).map_err(number)
    };
    // SAFETY: the caller's promise.
    unsafe { request(getbuf, sqe, make) }
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
    // SAFETY: the caller's promise.
    if let Some(slots) = unsafe { slots(getbuf) }
        // SAFETY: the caller's promise.
        && let Some(entry) = unsafe { entry(sqe) }
        // SAFETY: the caller's promise.
        && let Some(plain) = unsafe { plain(sink) }
        // SAFETY: `plain` has read it.
        && let token = unsafe { (*sink).token }
        && let Some(()) =
            slots.write_plainly(lease.id, entry, (start, len), (plain, offset), token)
    {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { write(getbuf, sqe, lease, start, len, sink, offset) }
}

/// The same in all cases.
///
/// # Safety
///
/// As [`getbuf_write`].
#[inline(never)]
pub(crate) unsafe fn write(
    getbuf: *mut getbuf,
    sqe: *mut io_uring_sqe,
    lease: getbuf_lease,
    start: u32,
    len: u32,
    sink: *const getbuf_file,
    offset: u64,
) -> c_int {
    let write = |sink| Ok(Consumer::Write { sink, offset });
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, getbuf_range { start, len }, sink, write) }
}

/// The same with a send to a socket. flags: MSG_MORE, MSG_WAITALL, MSG_DONTWAIT or 0;
/// MSG_NOSIGNAL is always set. Without MSG_WAITALL a socket takes what it has room for.
///
/// Errors as getbuf_write(), and -EINVAL for other flags.
///
/// # Safety
///
/// As [`getbuf_write`].
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
    let send = |sink| Ok(Consumer::Send { sink, flags: send_flags(flags)? });
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, getbuf_range { start, len }, sink, send) }
}

/// The same without a copy into the socket. Where GETBUF_EVENT_USED says GETBUF_EVENT_MORE, a
/// GETBUF_EVENT_RETURNED follows when the network does not need the bytes any more.
///
/// Errors as getbuf_send(), and -EOPNOTSUPP before Linux 6.0.
///
/// # Safety
///
/// As [`getbuf_write`].
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
    let send = |sink| Ok(Consumer::SendZc { sink, flags: send_flags(flags)? });
    // SAFETY: the caller's promise.
    unsafe { consume(getbuf, sqe, lease, getbuf_range { start, len }, sink, send) }
}

/// As getbuf_write(), with up to GETBUF_RANGES_MAX ranges of the lease, one behind the other. A
/// lease takes one at a time. ranges is not needed after the call.
///
/// Errors as getbuf_write(), -EINVAL for no or too many ranges, and -EBUSY while another is in
/// flight.
///
/// # Safety
///
/// As [`getbuf_write`]; `ranges` is null or has `count` elements.
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
    let make = |getbuf: &getbuf, sqe: &mut MaybeUninit<Entry>| {
        let lease = getbuf.slots.values().installed(lease.id).map_err(missed)?;
        // SAFETY: the caller's promise.
        let sink = unsafe { sink.as_ref() }.ok_or(libc::EINVAL)?;
        if ranges.is_null() || count == 0 || count > GETBUF_RANGES_MAX {
            return Err(libc::EINVAL);
        }
        // SAFETY: the caller's promise.
        let ranges = unsafe { slice::from_raw_parts(ranges, count as usize) };
        let ranges = ranges.iter().map(|range| (range.start, range.len));
        lease.writev(sqe, ranges, (sink.target()?, offset), sink.token).map_err(number)
    };
    // SAFETY: the caller's promise.
    unsafe { request(getbuf, sqe, make) }
}

const CHAIN: getbuf_chain = getbuf_chain {
    size: 0,
    consumer: GETBUF_WRITE,
    source: std::ptr::null(),
    offset: 0,
    len: 0,
    send_flags: 0,
    sink: std::ptr::null(),
    sink_offset: 0,
    data: std::ptr::null_mut(),
    reserved: [0; 2],
};

/// Looks at a chain that C describes.
///
/// # Safety
///
/// As [`getbuf_chain()`].
#[inline(always)]
pub(crate) unsafe fn described<T>(
    chain: *const getbuf_chain,
    take: impl FnOnce(&getbuf_chain) -> Outcome<T>,
) -> Outcome<T> {
    let other;
    // SAFETY: the caller's promise.
    let chain = match unsafe { chain.as_ref() }.ok_or(libc::EINVAL)? {
        chain if chain.size as usize == size_of::<getbuf_chain>() => chain,
        chain => {
            // SAFETY: the caller's promise.
            other = unsafe { read_sized(chain, size_of::<getbuf_chain>(), CHAIN) }?;
            &other
        }
    };
    if chain.reserved[0] | chain.reserved[1] != 0 {
        return Err(libc::EINVAL);
    }
    take(chain)
}

/// How many SQEs getbuf_chain() will take for a chain: 2 or GETBUF_CHAIN_MAX.
///
/// -EINVAL: NULL, a size that makes no sense, an unknown flag. -E2BIG: as getbuf_create(). -EBADF:
/// a negative descriptor.
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
    let len = |what: &getbuf_chain| {
        // SAFETY: the caller's promise.
        let source = unsafe { what.source.as_ref() }.ok_or(libc::EINVAL)?.source()?;
        Ok(getbuf.slots.chain_len(source) as c_int)
    };
    // SAFETY: the caller's promise.
    told(unsafe { described(what, len) })
}

/// Reserves a slot and fills count SQEs, consecutive ones of one submission, with fetch, consume
/// and release, linked. 0, and the chain's name in *lease: GETBUF_EVENT_CHAINED tells what became
/// of it, and nothing else can be done with it. The slot is free again then. The files must stay
/// open until then.
///
/// Errors as getbuf_fetch() and getbuf_chain_len(), -EOPNOTSUPP for GETBUF_SEND_ZC before Linux
/// 6.0, and -EINVAL where count is not getbuf_chain_len().
///
/// # Safety
///
/// As [`getbuf_chain_len`]; `sqes` is null or has `count` elements, each null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_chain(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    what: *const getbuf_chain,
    lease: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(slots) = unsafe { slots(getbuf) }
        && !sqes.is_null()
        && count <= GETBUF_CHAIN_MAX
        // SAFETY: the caller's promise.
        && let Some(what) = unsafe { what.as_ref() }
        && what.is_plain()
        // SAFETY: the caller's promise.
        && let Some((source, sink)) = unsafe { plain_pair(what.source, what.sink) }
        // SAFETY: the caller's promise.
        && let Some(lease) = unsafe { lease.as_mut() }
    {
        // SAFETY: the caller's promise; a null pointer is `None`.
        let requests = unsafe { slice::from_raw_parts(sqes.cast(), count as usize) };
        let len = what.len;
        let wanted = || {
            let consumer = Consumer::Write { sink, offset: what.sink_offset };
            Chain::new(source, what.offset, len, consumer)
        };
        let data = || what.data;
        // SAFETY: the caller's promise.
        if let Some(value) = unsafe { slots.chain_plainly(requests, (source, len), wanted, data) } {
            lease.id = value;
            return 0;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { chain(getbuf, sqes, count, what, lease) }
}

/// # Safety
///
/// Each is null or can be read.
#[inline(always)]
pub(crate) unsafe fn plain_pair(
    one: *const getbuf_file,
    other: *const getbuf_file,
) -> Option<(Target, Target)> {
    // SAFETY: the caller's promise.
    let (one, other) = (unsafe { one.as_ref() }?, unsafe { other.as_ref() }?);
    let unusual = !(u64::from(i32::MAX as u32) | u64::from(GETBUF_FILE_FIXED) << 32);
    if (one.head() | other.head()) & unusual != 0 || one.reserved | other.reserved != 0 {
        return None;
    }
    Some((one.named(), other.named()))
}

impl getbuf_chain {
    /// Whether it is of this version and ends with a write.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        let head = u64::from(self.size) | u64::from(self.consumer) << 32;
        let plain = size_of::<Self>() as u64 | u64::from(GETBUF_WRITE) << 32;
        let rest = self.reserved[0] | self.reserved[1] | u64::from(self.send_flags as u32);
        head == plain && rest == 0
    }
}

/// The same in all cases.
///
/// # Safety
///
/// As [`getbuf_chain()`].
#[inline(never)]
pub(crate) unsafe fn chain(
    getbuf: *mut getbuf,
    sqes: *const *mut io_uring_sqe,
    count: u32,
    what: *const getbuf_chain,
    lease: *mut getbuf_lease,
) -> c_int {
    // SAFETY: the caller's promise.
    let sqes = unsafe { Sqes::new(sqes, count) };
    let start = |what: &getbuf_chain| {
        // SAFETY: the caller's promise.
        let getbuf = unsafe { getbuf.as_ref() }.ok_or(libc::EINVAL)?;
        // SAFETY: the caller's promise.
        let source = unsafe { what.source.as_ref() }.ok_or(libc::EINVAL)?.source()?;
        // SAFETY: the caller's promise.
        let sink = unsafe { what.sink.as_ref() }.ok_or(libc::EINVAL)?.target()?;
        // SAFETY: the caller's promise.
        let lease = unsafe { lease.as_mut() }.ok_or(libc::EINVAL)?;
        let consumer = match what.consumer {
            GETBUF_WRITE if what.send_flags == 0 => {
                Consumer::Write { sink, offset: what.sink_offset }
            }
            GETBUF_SEND => Consumer::Send { sink, flags: send_flags(what.send_flags)? },
            GETBUF_SEND_ZC => Consumer::SendZc { sink, flags: send_flags(what.send_flags)? },
            _ => return Err(libc::EINVAL),
        };
        let chain = Chain::new(source, what.offset, what.len, consumer);
        // SAFETY: the caller's promise.
        let value = unsafe { getbuf.slots.values().chain(sqes.entries(), chain, what.data) };
        lease.id = value.map_err(number)?.ok_or(libc::EINVAL)?;
        Ok(0)
    };
    // SAFETY: the caller's promise.
    match unsafe { described(what, start) } {
        Ok(_) => 0,
        // SAFETY: the caller's promise.
        Err(errno) => unsafe { refuse_all(getbuf, sqes, errno) },
    }
}

/// # Safety
///
/// `getbuf` is null or live.
#[cold]
pub(crate) unsafe fn refuse_all(getbuf: *const getbuf, sqes: Sqes<'_>, errno: c_int) -> c_int {
    // SAFETY: the caller's promise.
    sqes.waste(unsafe { getbuf.as_ref() }.map_or(DEFAULT_TAG, |getbuf| getbuf.tag));
    -errno
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
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    match getbuf.slots.values().release(lease.id) {
        Ok(()) => 0,
        Err(miss) => -missed(miss),
    }
}

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
        told(getbuf.take_outgoing())
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
    let sqes = unsafe { Sqes::new(sqes, count) };
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else {
        sqes.waste(DEFAULT_TAG);
        return -libc::EINVAL;
    };
    let ready = match getbuf.outgoing.len() {
        0 => Err(libc::ENOENT),
        announced => sqes.check(announced),
    };
    match ready {
        Ok(()) => {
            sqes.fill(&getbuf.outgoing);
            getbuf.outgoing.clear();
            getbuf.announced = 0;
            0
        }
        Err(errno) => {
            sqes.waste(getbuf.tag);
            -errno
        }
    }
}

/// With GETBUF_PARAM_REPLACE: has what free slots still hold released. getbuf_pending() says what
/// has to be sent for that. 0; -EINVAL: NULL.
///
/// # Safety
///
/// `getbuf` is null or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_trim(getbuf: *mut getbuf) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_mut() }) else { return -libc::EINVAL };
    getbuf.slots.trim();
    0
}
