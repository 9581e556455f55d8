// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making and ending the slots of a ring.

use std::ffi::{c_int, c_void};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::{io, slice};

use io_uring::types::Fd;
use uring_getbuf::slots::{DEFAULT_TAG, Plan};
use uring_getbuf::{Shape, Support};

use crate::abi::{GETBUF_ENGINE_ANY, GETBUF_PARAM_TABLE, getbuf_params, getbuf_stats};
use crate::errors::{KeptErrno, Outcome, Told, number};
use crate::live::Live;
use crate::probe;
use crate::register::RingFd;
use crate::slots::{Table, getbuf};

/// No structure will ever be larger.
const LARGEST: usize = 4096;

static LIVE: Live = Live::new();

/// What could not be freed because requests in flight may use it. Kept where a leak checker sees
/// that it is known.
static LEFT: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Reads a structure that says its size: from an older program it ends early, which means zeroes;
/// what a newer one has at the end must be zero.
///
/// # Safety
///
/// `from` points to as many bytes as its first 32 bits say, if they say `least` or more.
#[inline]
pub(crate) unsafe fn read_sized<T: Copy>(from: *const T, least: usize, zero: T) -> Outcome<T> {
    // SAFETY: every one of these structures begins with its size.
    let size = unsafe { *from.cast::<u32>() } as usize;
    if size == size_of::<T>() {
        // SAFETY: the caller's promise; `T` is plain data of C.
        return Ok(unsafe { from.read_unaligned() });
    }
    if size < least {
        return Err(libc::EINVAL);
    }
    if size > LARGEST {
        return Err(libc::E2BIG);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes.iter().skip(size_of::<T>()).any(|byte| *byte != 0) {
        return Err(libc::E2BIG);
    }
    let mut value = zero;
    let to = (&raw mut value).cast::<u8>();
    // SAFETY: no more than the size of both; `T` is plain data of C.
    unsafe { bytes.as_ptr().copy_to_nonoverlapping(to, size.min(size_of::<T>())) };
    Ok(value)
}

const PARAMS: getbuf_params = getbuf_params {
    size: 0,
    flags: 0,
    engine: GETBUF_ENGINE_ANY,
    block_size: 0,
    slots: 0,
    tag: 0,
    reserved0: 0,
    table_first: 0,
    table_count: 0,
    regions: 0,
    probe: std::ptr::null(),
    reserved2: [0; 2],
};

/// Makes slots on the ring whose descriptor is ring_fd (struct io_uring's ring_fd), and registers
/// with it what they need: without GETBUF_PARAM_TABLE a table of buffers, which the ring must not
/// have yet. params may be NULL for defaults. 0, and the slots in *getbuf.
///
/// The ring must stay open until getbuf_destroy(). It is not changed otherwise, and what else the
/// program does with it is the program's business.
///
/// -EINVAL: a parameter that makes no sense, getbuf is NULL, ring_fd is no ring. -E2BIG: params of
/// a newer version with something that this one does not know. -EBADF: ring_fd. -EOPNOTSUPP: the
/// engine does not work here; getbuf_probe_reason() says why. -EBUSY: the ring has a table of
/// buffers. -ENOSPC: table_count is too small. -ENOMEM: the slots' memory cannot be pinned; fewer
/// slots, a smaller block_size or a larger RLIMIT_MEMLOCK helps, where the program has not left these
/// to the library; -ENOMEM, -EMFILE and -ENFILE without a probe: there was no memory or descriptor to
/// look with. Others: as io_uring_register(2).
///
/// # Safety
///
/// `params` is null or points to as many bytes as its `size` says, with a probe that is null or
/// live; `getbuf` is null or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_create(
    ring_fd: c_int,
    params: *const getbuf_params,
    getbuf: *mut *mut getbuf,
) -> c_int {
    if getbuf.is_null() {
        return -libc::EINVAL;
    }
    let _errno = KeptErrno::new();
    let params = if params.is_null() {
        Ok(PARAMS)
    } else {
        // SAFETY: the caller's promise.
        unsafe { read_sized(params, size_of::<getbuf_params>(), PARAMS) }
    };
    let made = params.and_then(|params| create(ring_fd, &params)).map(|made| {
        // SAFETY: the caller's promise.
        unsafe { *getbuf = LIVE.give(made) };
    });
    made.told()
}

fn create(ring_fd: c_int, params: &getbuf_params) -> Outcome<getbuf> {
    let has = |flag| params.flags & flag != 0;
    if params.flags & !GETBUF_PARAM_TABLE != 0
        || (params.reserved0, params.reserved2) != (0, [0; 2])
        || (!has(GETBUF_PARAM_TABLE) && (params.table_first, params.table_count) != (0, 0))
    {
        return Err(libc::EINVAL);
    }
    if ring_fd < 0 {
        return Err(libc::EBADF);
    }
    let detected;
    // SAFETY: `getbuf_create` was promised that it is null or live.
    let support = match unsafe { params.probe.as_ref() } {
        Some(probe) => &probe.support,
        None => {
            detected = Support::detect();
            &detected
        }
    };
    let engine = match params.engine {
        GETBUF_ENGINE_ANY => support.best().map_err(number)?,
        engine => probe::engine(engine).ok_or(libc::EINVAL)?,
    };
    support.require(engine).map_err(number)?;

    let mut shape = Shape::default();
    if params.slots != 0 {
        (shape.blocks, shape.fewer) = (params.slots, false);
    }
    if params.block_size != 0 {
        (shape.block_size, shape.smaller) = (params.block_size, false);
    }
    let tag = if params.tag == 0 { DEFAULT_TAG } else { params.tag };
    let narrow = |number: u32| u16::try_from(number).map_err(|_| libc::EINVAL);
    let plan = Plan::new(support, engine).map_err(number)?.shape(shape).tag(tag);
    let plan = plan.first(narrow(params.table_first)?).regions(narrow(params.regions)?);
    let count = u32::from(plan.places().map_err(number)?);
    let table = Table { first: params.table_first, count, is_ours: !has(GETBUF_PARAM_TABLE) };
    if has(GETBUF_PARAM_TABLE) && params.table_count < count {
        return Err(libc::ENOSPC);
    }
    let device = plan.device().map(open).transpose()?;
    let ring = RingFd(ring_fd);
    if table.is_ours {
        ring.make_table(count)?;
    }
    let device_target = device.as_ref().map(|device| Fd(device.as_raw_fd()).into());
    let mut refused = None;
    let slots = plan.build(device_target, |index, base, len| {
        let set = ring.set(index.into(), base, len);
        refused = set.err();
        set.map_err(io::Error::from_raw_os_error)
    });
    match slots {
        Ok(slots) => Ok(getbuf::new(slots, tag, ring, table, device)),
        Err(error) => {
            let _ = match table.is_ours {
                true => ring.drop_table(),
                false => ring.clear(table.first, count),
            };
            // The kernel's own word for it, if it is the kernel's.
            Err(refused.unwrap_or_else(|| number(error)))
        }
    }
}

fn open(device: &str) -> Outcome<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(device);
    device.map(Into::into).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// Ends the slots, with all their leases, and empties their part of the ring's table. Call it
/// before the ring is closed. Afterwards no pointer to them may be used any more.
///
/// How many requests are in flight, 0 or more: what those may still use stays registered, and in
/// memory as long as the process; so let them complete first, see struct getbuf_stats.
///
/// NULL is fine. -EINVAL: getbuf is not one, or not any more.
///
/// # Safety
///
/// Nobody uses it at the same time or afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_destroy(getbuf: *mut getbuf) -> c_int {
    if getbuf.is_null() {
        return 0;
    }
    let _errno = KeptErrno::new();
    let ended = LIVE.take(getbuf).map(|mut getbuf| {
        let in_flight = getbuf.in_flight();
        if in_flight > 0 {
            let left = Box::into_raw(getbuf) as usize;
            LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(left);
            return in_flight.try_into().unwrap_or(c_int::MAX);
        }
        // Providers are told.
        getbuf.leases.release_all();
        // Where it fails, the table or the ring is gone already.
        let _ = if getbuf.table.is_ours {
            getbuf.ring.drop_table()
        } else {
            getbuf.ring.clear(getbuf.table.first, getbuf.table.count)
        };
        0
    });
    ended.told()
}

/// Fills stats. 0; -EINVAL: NULL, or a stats.size that is smaller than it ever was.
///
/// # Safety
///
/// `getbuf` is null or live; `stats` is null or can be written to, as many bytes as its `size`
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getbuf_stats(getbuf: *const getbuf, stats: *mut getbuf_stats) -> c_int {
    // SAFETY: the caller's promise.
    let Some(getbuf) = (unsafe { getbuf.as_ref() }) else { return -libc::EINVAL };
    if stats.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's promise; it begins with its size.
    let size = unsafe { *stats.cast::<u32>() };
    if (size as usize) < size_of::<getbuf_stats>() {
        return -libc::EINVAL;
    }
    let counters = getbuf.slots.stats();
    let filled = getbuf_stats {
        size,
        engine: probe::engine_number(getbuf.slots.engine()),
        slots: getbuf.slots.capacity() as u32,
        free_slots: getbuf.slots.free() as u32,
        max_fetch: getbuf.slots.max_fetch(),
        reserved: 0,
        in_flight: getbuf.in_flight(),
        fetches: counters.fetches,
        fallbacks: counters.fallbacks,
        stale: counters.stale,
    };
    // SAFETY: at least that large.
    unsafe { *stats = filled };
    let rest = size as usize - size_of::<getbuf_stats>();
    let end = stats.wrapping_add(1).cast::<c_void>().cast::<u8>();
    // SAFETY: what is behind, up to its size, is the caller's too.
    unsafe { end.write_bytes(0, rest) };
    0
}
