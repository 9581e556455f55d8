// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors as C has them: negative, and never in `errno`.

use std::ffi::{c_char, c_int};

use uring_getbuf::{Error, ErrorKind};

use crate::abi::{
    GETBUF_VERSION, GETBUF_VERSION_MAJOR, GETBUF_VERSION_MINOR, GETBUF_VERSION_PATCH,
};

/// A result whose error is a positive error number.
pub(crate) type Outcome<T = ()> = Result<T, c_int>;

/// What C is told: 0 or more, or a negative error number.
pub(crate) trait Told {
    fn told(self) -> c_int;
}

impl Told for Outcome<c_int> {
    fn told(self) -> c_int {
        self.unwrap_or_else(|errno| -errno)
    }
}

impl Told for Outcome {
    fn told(self) -> c_int {
        self.map(|()| 0).told()
    }
}

/// The error number of an error of the Rust library.
#[cold]
#[expect(clippy::needless_pass_by_value, reason = "the end of the error, for map_err")]
pub(crate) fn number(error: Error) -> c_int {
    match error.kind() {
        ErrorKind::Unavailable => libc::EOPNOTSUPP,
        ErrorKind::InvalidInput => libc::EINVAL,
        ErrorKind::MemoryLimit => libc::ENOMEM,
        ErrorKind::NoSlot => libc::ENOBUFS,
        ErrorKind::OutOfRange => libc::ERANGE,
        ErrorKind::Busy => libc::EBUSY,
        ErrorKind::WrongRing => libc::EXDEV,
        ErrorKind::NoRegion => libc::ENOSPC,
        ErrorKind::Provider => libc::EPROTO,
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Puts `errno` back as it was: what makes system calls through libc goes between.
pub(crate) struct KeptErrno(c_int);

impl KeptErrno {
    pub(crate) fn new() -> Self {
        // SAFETY: takes nothing; the result is valid as long as the thread.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        Self(unsafe { *place })
    }
}

impl Drop for KeptErrno {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: as in `new`.
        unsafe { *place = self.0 };
    }
}

/// Words for an error of this library or of a completion, negative or positive. Unlike
/// strerror(3) it knows 524, which the kernel answers when a file cannot lend its memory.
///
/// Never NULL. Valid until the thread calls it or strerror(3) again.
#[unsafe(no_mangle)]
pub extern "C" fn getbuf_strerror(error: c_int) -> *const c_char {
    let error = error.checked_abs().unwrap_or(0);
    if error == uring_getbuf::sys::GETBUF_ENOTSUPP as c_int {
        return c"This kind of file cannot lend its memory".as_ptr();
    }
    let _errno = KeptErrno::new();
    // SAFETY: takes a number and returns a string, of which glibc and musl give each thread its
    // own where it is not constant.
    unsafe { libc::strerror(error) }
}

const fn number_in(text: &str) -> u32 {
    let (mut number, mut at) = (0, 0);
    while at < text.len() {
        number = number * 10 + (text.as_bytes()[at] - b'0') as u32;
        at += 1;
    }
    number
}

const _: () = assert!(
    number_in(env!("CARGO_PKG_VERSION_MAJOR")) == GETBUF_VERSION_MAJOR
        && number_in(env!("CARGO_PKG_VERSION_MINOR")) == GETBUF_VERSION_MINOR
        && number_in(env!("CARGO_PKG_VERSION_PATCH")) == GETBUF_VERSION_PATCH,
    "GETBUF_VERSION_* in abi.rs is the version in Cargo.toml"
);

/// The version of the library: major << 16 | minor << 8 | patch. GETBUF_VERSION is that of the
/// header.
#[unsafe(no_mangle)]
pub extern "C" fn getbuf_version() -> u32 {
    GETBUF_VERSION
}
