// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot is being emptied.
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::request::Target;

fn late(lease: Lease<Installed>) {
    let _ = lease.release();
    let _ = lease.write(.., Target::Fd(1), 0);
}

fn main() {}
