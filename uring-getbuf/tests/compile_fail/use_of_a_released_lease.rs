// SPDX-License-Identifier: MIT OR Apache-2.0
//! What release gives back has nothing to use.
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::request::Target;

fn late(lease: Lease<Installed>) {
    let released = lease.release();
    let _ = released.write(.., Target::Fd(1), 0);
}

fn main() {}
