// SPDX-License-Identifier: MIT OR Apache-2.0
//! What C sees: constants and structures.

#![expect(non_camel_case_types, reason = "the names that C sees")]

use std::ffi::{c_int, c_void};
use std::mem::{offset_of, size_of};

use static_assertions::const_assert;

use crate::probe::getbuf_probe;

/// The version of this header.
pub const GETBUF_VERSION_MAJOR: u32 = 0;
/// The version of this header.
pub const GETBUF_VERSION_MINOR: u32 = 1;
/// The version of this header.
pub const GETBUF_VERSION_PATCH: u32 = 0;
/// The version of this header as one number; getbuf_version() is that of the library.
pub const GETBUF_VERSION: u32 =
    GETBUF_VERSION_MAJOR << 16 | GETBUF_VERSION_MINOR << 8 | GETBUF_VERSION_PATCH;

/// The best engine that the kernel has.
pub const GETBUF_ENGINE_ANY: u32 = 0;
/// IORING_OP_GET_BUF: no copy.
pub const GETBUF_ENGINE_OPCODE: u32 = 1;
/// /dev/getbuf: no copy.
pub const GETBUF_ENGINE_MODULE: u32 = 2;
/// READ_FIXED into registered memory: any kernel since 5.19.
pub const GETBUF_ENGINE_COPY: u32 = 3;

/// No engine of slots, but what a lease of getbuf_provide() says: no copy.
pub const GETBUF_ENGINE_PROVIDER: u32 = 4;

/// getbuf_provide(), flags: the provider must not wait (IOU_GET_BUF_F_NOWAIT).
pub const GETBUF_PROVIDE_NOWAIT: u32 = 1;

/// getbuf_params.flags: the ring has a table of registered buffers already, and the entries from
/// table_first on, table_count of them, are empty and for these slots. The flag 2 is reserved.
pub const GETBUF_PARAM_TABLE: u32 = 1;

/// getbuf_file.flags: fd is an index into the ring's registered files.
pub const GETBUF_FILE_FIXED: u32 = 1;
/// getbuf_file.flags: always read this source into memory; do not ask it to lend its own.
pub const GETBUF_FILE_COPIED: u32 = 2;
/// getbuf_file.flags: bound is a descriptor that GETBUF_CMD_BIND made for this source.
pub const GETBUF_FILE_BOUND: u32 = 4;
/// getbuf_file.flags: with GETBUF_FILE_BOUND, bound is an index into the ring's registered files.
pub const GETBUF_FILE_BOUND_FIXED: u32 = 8;

/// The offset that means "where the stream stands".
pub const GETBUF_STREAM: u64 = u64::MAX;

/// Most requests of one chain.
pub const GETBUF_CHAIN_MAX: u32 = 3;
/// Most ranges of one getbuf_writev().
pub const GETBUF_RANGES_MAX: u32 = 8;

/// getbuf_chain.consumer: write to sink at sink_offset.
pub const GETBUF_WRITE: u32 = 0;
/// getbuf_chain.consumer: send to sink.
pub const GETBUF_SEND: u32 = 1;
/// getbuf_chain.consumer: send to sink without a copy (Linux 6.0).
pub const GETBUF_SEND_ZC: u32 = 2;

/// getbuf_event.kind: ours, and nothing to tell.
pub const GETBUF_EVENT_NONE: c_int = 0;
/// getbuf_event.kind: a fetch is done. res: the bytes there are; 0 at end of file, or a negative
/// errno, and then the lease is over.
pub const GETBUF_EVENT_FETCHED: c_int = 1;
/// getbuf_event.kind: a consumer has its result. res: bytes, or a negative errno.
pub const GETBUF_EVENT_USED: c_int = 2;
/// getbuf_event.kind: a consumer that had its result (GETBUF_EVENT_MORE) does not use the lease
/// any more.
pub const GETBUF_EVENT_RETURNED: c_int = 3;
/// getbuf_event.kind: the kernel has emptied the slot of a lease that was released.
pub const GETBUF_EVENT_RELEASED: c_int = 4;
/// getbuf_event.kind: a chain is done and over. outcome says how, res how many bytes.
pub const GETBUF_EVENT_CHAINED: c_int = 5;
/// getbuf_event.kind: it carries the slots' tag and answers no request that is outstanding.
pub const GETBUF_EVENT_STALE: c_int = 6;
/// getbuf_event.kind, of getbuf_complete_batch(): the completion is the program's own.
pub const GETBUF_EVENT_FOREIGN: c_int = 7;

/// getbuf_event.flags: a GETBUF_EVENT_RETURNED for this request will follow.
pub const GETBUF_EVENT_MORE: u32 = 1;

/// getbuf_event.outcome: all bytes were fetched and consumed; res of them.
pub const GETBUF_CHAIN_DONE: u32 = 0;
/// getbuf_event.outcome: the source had only res bytes (0: end of file); nothing was consumed.
pub const GETBUF_CHAIN_SHORT_FETCH: u32 = 1;
/// getbuf_event.outcome: the sink took only the first res bytes.
pub const GETBUF_CHAIN_SHORT_USE: u32 = 2;
/// getbuf_event.outcome: the fetch failed with res; nothing was consumed.
pub const GETBUF_CHAIN_FETCH_FAILED: u32 = 3;
/// getbuf_event.outcome: the consumer failed with res.
pub const GETBUF_CHAIN_USE_FAILED: u32 = 4;

/// A request of io_uring, from `<liburing.h>` or `<linux/io_uring.h>`.
#[derive(Debug)]
pub struct io_uring_sqe {
    _words: [u64; 8],
}

/// A completion of io_uring, from `<liburing.h>` or `<linux/io_uring.h>`.
#[derive(Debug)]
pub struct io_uring_cqe {
    _words: [u64; 2],
}

/// Names a lease: a value, to copy, compare and forget. It stays recognisable when the lease is
/// over. All zeroes is no lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct getbuf_lease {
    /// Unique in the process, until some 67 million leases later.
    pub id: u64,
}

/// A file that a request names. Zero what is not used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct getbuf_file {
    /// A descriptor, open until the request has completed; or an index.
    pub fd: i32,
    /// GETBUF_FILE_*.
    pub flags: u32,
    /// With GETBUF_FILE_BOUND.
    pub bound: i32,
    /// Of a sink: comes back in getbuf_event.token.
    pub token: u16,
    /// 0.
    pub reserved: u16,
}

/// Bytes of a lease.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct getbuf_range {
    /// The first.
    pub start: u32,
    /// How many.
    pub len: u32,
}

/// For getbuf_create(). Zero it, set size, then what is to differ.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct getbuf_params {
    /// sizeof(struct getbuf_params).
    pub size: u32,
    /// GETBUF_PARAM_*.
    pub flags: u32,
    /// GETBUF_ENGINE_*.
    pub engine: u32,
    /// Most bytes of a lease, rounded up to whole pages. 0: 128 KiB, or what fits.
    pub block_size: u32,
    /// How many leases there can be at once. 0: 32, or what fits.
    pub slots: u16,
    /// The top byte of the user_data of all requests of the slots. No other request on the ring
    /// may have it. 0: 0xb5.
    pub tag: u8,
    /// 0.
    pub reserved0: u8,
    /// With GETBUF_PARAM_TABLE.
    pub table_first: u32,
    /// With GETBUF_PARAM_TABLE: slots + 1 + regions are always enough, 1 + regions are with the copy
    /// engine.
    pub table_count: u32,
    /// How many regions there can be, and vectors of providers whose memory is in none.
    pub regions: u32,
    /// What getbuf_probe() found out; NULL: it is found out again.
    pub probe: *const getbuf_probe,
    /// 0.
    pub reserved2: [u64; 2],
}

/// What a provider is asked for, from `<getbuf_uapi.h>`.
#[derive(Debug)]
pub struct iou_get_buf_info {
    _words: [u64; 4],
}

/// Answers what a provider is asked for, as ->iou_get_buf of getbuf_uapi.h: fills info->desc, and
/// returns how many bytes there are, or a negative errno.
pub type getbuf_get_buf =
    Option<unsafe extern "C" fn(context: *mut c_void, info: *mut iou_get_buf_info) -> i64>;

/// A provider: the program's own memory as a source. Zero it, set size, then the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct getbuf_provider {
    /// sizeof(struct getbuf_provider).
    pub size: u32,
    /// 0.
    pub reserved0: u32,
    /// See getbuf_provide().
    pub get_buf: getbuf_get_buf,
    /// What get_buf is called with.
    pub context: *mut c_void,
    /// 0.
    pub reserved1: [u64; 2],
}

/// What a chain is to do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct getbuf_chain {
    /// sizeof(struct getbuf_chain).
    pub size: u32,
    /// GETBUF_WRITE, GETBUF_SEND or GETBUF_SEND_ZC.
    pub consumer: u32,
    /// Where the bytes come from,
    pub source: *const getbuf_file,
    /// from where in it,
    pub offset: u64,
    /// how many,
    pub len: u32,
    /// MSG_* of a send,
    pub send_flags: i32,
    /// where they go,
    pub sink: *const getbuf_file,
    /// and with GETBUF_WRITE to where in it.
    pub sink_offset: u64,
    /// Comes back in getbuf_event.data.
    pub data: *mut c_void,
    /// 0.
    pub reserved: [u64; 2],
}

/// What a completion meant. Set size once; getbuf_complete() fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct getbuf_event {
    /// sizeof(struct getbuf_event).
    pub size: u32,
    /// GETBUF_EVENT_*.
    pub kind: c_int,
    /// The lease or chain.
    pub lease: getbuf_lease,
    /// What getbuf_fetch() or getbuf_chain() was given.
    pub data: *mut c_void,
    /// See kind.
    pub res: i32,
    /// GETBUF_EVENT_MORE or 0.
    pub flags: u32,
    /// GETBUF_CHAIN_*.
    pub outcome: u32,
    /// That of the sink.
    pub token: u16,
    /// 0.
    pub reserved: u16,
}

/// Counters. Set size; getbuf_stats() fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct getbuf_stats {
    /// sizeof(struct getbuf_stats).
    pub size: u32,
    /// The engine that serves a fetch unless its source cannot lend its memory.
    pub engine: u32,
    /// How many slots there are,
    pub slots: u32,
    /// and how many of them are free.
    pub free_slots: u32,
    /// Most bytes that one fetch may ask for.
    pub max_fetch: u32,
    /// 0.
    pub reserved: u32,
    /// Requests that have not had their last completion.
    pub in_flight: u64,
    /// Fetches and chains so far.
    pub fetches: u64,
    /// Those that went through memory because the source would not lend its own.
    pub fallbacks: u64,
    /// Completions with the slots' tag that answered nothing.
    pub stale: u64,
}

// What programs have been compiled with does not move. A structure grows at its end.
const_assert!(size_of::<getbuf_lease>() == 8);
const_assert!(size_of::<getbuf_file>() == 16);
const_assert!(size_of::<getbuf_range>() == 8);
const_assert!(size_of::<getbuf_params>() == 56);
const_assert!(offset_of!(getbuf_params, probe) == 32);
const_assert!(offset_of!(getbuf_params, regions) == 28);
const_assert!(size_of::<getbuf_provider>() == 40);
const_assert!(size_of::<iou_get_buf_info>() == 32);
const_assert!(GETBUF_PROVIDE_NOWAIT == uring_getbuf::sys::IOU_GET_BUF_F_NOWAIT);
const_assert!(size_of::<getbuf_chain>() == 72);
const_assert!(offset_of!(getbuf_chain, data) == 48);
const_assert!(size_of::<getbuf_event>() == 40);
const_assert!(offset_of!(getbuf_event, token) == 36);
const_assert!(size_of::<getbuf_stats>() == 56);
const_assert!(size_of::<io_uring_sqe>() == 64);
