// SPDX-License-Identifier: MIT OR Apache-2.0
//! The opcode engine: `GET_BUF` and `PUT_BUF` of a kernel with the project's patches, or of the RFC.
//!
//! A kernel cannot be asked for `GET_BUF` by number. `IORING_REGISTER_PROBE` counts opcodes, and
//! the RFC's 49 is `READ_MULTISHOT` on mainline since 6.7, so the probe calls 49 supported on every
//! kernel since. What tells them apart is the answer to a request on an eventfd, which can never
//! lend memory: `-524` (`ENOTSUPP`) where the number is `GET_BUF`, `-EINVAL` where it is not. The
//! request is sent without `IOSQE_BUFFER_SELECT`; so 49 is `-EINVAL` on every mainline kernel,
//! before any of its fields is looked at.
//!
//! Another number is tried only where the kernel's table is longer than that of the mainline
//! release it calls itself, and by no more than the requests that a `GET_BUF` tree adds. So no
//! request is ever sent whose meaning on a mainline kernel is something else.

use std::os::fd::AsRawFd;

use io_uring::types::Fd;
use rustix::fs::MemfdFlags;
use uring_getbuf_sys as sys;

use super::{
    Emptied, Ending, Fetch, Found, Look, Needs, Origin, Refusal, Release, Room, Traits,
    refused_by_lender,
};
use crate::error::Errno;
use crate::kernel::{Kernel, Version};
use crate::request::{GetBuf, Piece, PutBuf, Sqe, Target};

/// `GET_BUF`, and `PUT_BUF` where there is one.
const MOST_EXTRA: u8 = 2;

pub(super) const NEEDS: Needs = Needs { slots: true, device: None };

pub(super) fn probe(kernel: &mut Kernel) -> Result<Found, String> {
    let last = kernel.version.mainline_last();
    let extra =
        last.filter(|last| (1..=MOST_EXTRA).contains(&kernel.opcodes.saturating_sub(*last)));
    let rfc = sys::IORING_OP_GET_BUF_RFC as u8;
    let get_buf = [Some(rfc), extra]
        .into_iter()
        .flatten()
        .find(|number| is_get_buf(kernel, *number, |get| get));
    let Some(get_buf) = get_buf else { return Err(reason(kernel, last)) };
    let put_buf = sys::put_buf_after(get_buf);
    let put_buf = can_release(kernel, get_buf, put_buf).then_some(put_buf);
    let links = is_get_buf(kernel, get_buf, GetBuf::linked);
    Ok(Found { opcodes: Some((get_buf, put_buf)), links })
}

fn reason(kernel: &Kernel, last: Option<u8>) -> String {
    let (version, opcodes) = (kernel.version, kernel.opcodes);
    let why = match last {
        None if version.is_unknown() => {
            format!("Linux {version} is newer than the opcode tables that this library knows")
        }
        Some(last) if opcodes == last => format!("all of its {last} requests are mainline's"),
        _ => format!("none of its {opcodes} requests answers as GET_BUF does"),
    };
    let multishot = if version >= Version(6, 7) {
        " (49, the RFC's number, is READ_MULTISHOT here)"
    } else {
        ""
    };
    format!(
        "Linux {} has no GET_BUF: {why}{multishot}; it takes a kernel with this project's patches, \
         see kernel/patches",
        kernel.name
    )
}

/// Whether a request with this number, on a file that never lends its memory, is answered as
/// `GET_BUF` is; with what `with` adds to it.
fn is_get_buf(kernel: &mut Kernel, number: u8, with: impl FnOnce(GetBuf) -> GetBuf) -> bool {
    let fetch = with(GetBuf::new(number, kernel.never_lends(), 1, 0));
    kernel.ask(fetch.sqe()).map(Errno::check) == Some(Err(Errno::NOTSUPP))
}

/// Whether `put_buf` empties a slot that `get_buf` has filled. Both happen on a ring and a file of
/// the probe's own.
fn can_release(kernel: &mut Kernel, get_buf: u8, put_buf: u8) -> bool {
    let Ok(file) = rustix::fs::memfd_create("getbuf-probe", MemfdFlags::CLOEXEC) else {
        return false;
    };
    if rustix::io::write(&file, b"x") != Ok(1) || !kernel.make_slot() {
        return false;
    }
    let fetch = GetBuf::new(get_buf, Fd(file.as_raw_fd()), 1, 0).sqe();
    let release = PutBuf::new(put_buf, 0).sqe();
    let answers = [fetch, release, release].map(|request| kernel.ask(request));
    answers == [Some(1), Some(0), Some(-libc::EINVAL)]
}

pub(super) fn room(found: Found, _: Option<Target>, first: u16) -> Option<Box<dyn Room>> {
    let (get_buf, put_buf) = found.opcodes?;
    Some(Box::new(Requests { get_buf, put_buf, links: found.links, first }))
}

pub(super) fn attach(_: Target, _: i32) -> Option<Sqe> {
    None
}

#[derive(Debug)]
struct Requests {
    get_buf: u8,
    /// Not there on a kernel that has only the RFC's request.
    put_buf: Option<u8>,
    links: bool,
    /// The table's index of slot 0.
    first: u16,
}

impl Room for Requests {
    fn origin(&self) -> Origin {
        Origin::Opcode
    }

    fn traits(&self) -> Traits {
        let ending = match self.put_buf {
            _ if self.links => Ending::HandedOver,
            Some(_) => Ending::Released,
            None => Ending::Left,
        };
        Traits { lent: true, emptied: Emptied::ByRequest, ending, installs_empty: true }
    }

    fn serves(&self, what: &Fetch) -> bool {
        what.may_be_lent()
    }

    fn fetch(&self, slot: u16, what: &Fetch) -> Sqe {
        let get = GetBuf::new(self.get_buf, what.source.file, what.len, self.first + slot);
        let get = get.offset(what.offset);
        if what.linked { get.linked() } else { get }.sqe()
    }

    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        Piece { addr: start.into(), len, index: self.first + slot }
    }

    fn release(&self, slot: u16) -> Release {
        let index = self.first + slot;
        match self.put_buf {
            Some(put_buf) => Release::Request(PutBuf::new(put_buf, index).sqe()),
            None => Release::Update(index),
        }
    }

    fn classify(&self, errno: Errno, offset: u64) -> Refusal {
        refused_by_lender(errno, offset)
    }

    fn look(&self, _: u16, _: u32, _: &mut [u8]) -> Look {
        Look::Pipe
    }
}
