// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nothing is known of the slot's content yet.
use uring_getbuf::lease::{Fetched, Lease};
use uring_getbuf::request::Target;

fn early(lease: Lease<Fetched>) {
    let _ = lease.write(.., Target::Fd(1), 0);
}

fn main() {}
