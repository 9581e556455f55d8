// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files as C names them.

use std::ffi::c_int;

use io_uring::types::{Fd, Fixed};
use uring_getbuf::SendFlags;
use uring_getbuf::consume::Consumer;
use uring_getbuf::engine::Source;
use uring_getbuf::request::Target;

use crate::abi::{
    GETBUF_FILE_BOUND, GETBUF_FILE_BOUND_FIXED, GETBUF_FILE_COPIED, GETBUF_FILE_FIXED, GETBUF_SEND,
    GETBUF_SEND_ZC, GETBUF_WRITE, getbuf_file,
};
use crate::errors::Outcome;

const FLAGS: u32 =
    GETBUF_FILE_FIXED | GETBUF_FILE_COPIED | GETBUF_FILE_BOUND | GETBUF_FILE_BOUND_FIXED;

impl getbuf_file {
    /// The file itself.
    pub(crate) fn target(&self) -> Outcome<Target> {
        if self.flags & !FLAGS != 0 || self.reserved != 0 {
            return Err(libc::EINVAL);
        }
        target(self.fd, self.flags & GETBUF_FILE_FIXED != 0)
    }

    /// The file as something to fetch from.
    pub(crate) fn source(&self) -> Outcome<Source> {
        let file = self.target()?;
        let (bound, fixed) = (self.bound, self.flags & GETBUF_FILE_BOUND_FIXED != 0);
        match self.flags & (GETBUF_FILE_COPIED | GETBUF_FILE_BOUND) {
            0 if fixed => Err(libc::EINVAL),
            0 => Ok(file.into()),
            GETBUF_FILE_BOUND => Ok(Source::bound(file, target(bound, fixed)?)),
            _ => Ok(Source::copied(file)),
        }
    }

    /// The file as something that consumes: with GETBUF_WRITE, GETBUF_SEND or GETBUF_SEND_ZC.
    pub(crate) fn consumer(&self, how: u32, offset: u64, send_flags: c_int) -> Outcome<Consumer> {
        let sink = self.target()?;
        match how {
            GETBUF_WRITE if send_flags == 0 => Ok(Consumer::Write { sink, offset }),
            GETBUF_SEND => Ok(Consumer::Send { sink, flags: flags(send_flags)? }),
            GETBUF_SEND_ZC => Ok(Consumer::SendZc { sink, flags: flags(send_flags)? }),
            _ => Err(libc::EINVAL),
        }
    }
}

fn target(fd: c_int, fixed: bool) -> Outcome<Target> {
    match (u32::try_from(fd), fixed) {
        (Ok(index), true) => Ok(Fixed(index).into()),
        (Ok(_), false) => Ok(Fd(fd).into()),
        (Err(_), _) => Err(libc::EBADF),
    }
}

fn flags(bits: c_int) -> Outcome<SendFlags> {
    let mut flags = SendFlags::NONE;
    let mut rest = bits;
    for (bit, flag) in [
        (libc::MSG_MORE, SendFlags::MORE),
        (libc::MSG_WAITALL, SendFlags::WAIT_ALL),
        (libc::MSG_DONTWAIT, SendFlags::DONT_WAIT),
        (libc::MSG_NOSIGNAL, SendFlags::NONE),
    ] {
        if bits & bit != 0 {
            flags |= flag;
        }
        rest &= !bit;
    }
    if rest == 0 { Ok(flags) } else { Err(libc::EINVAL) }
}
