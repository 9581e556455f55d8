// SPDX-License-Identifier: MIT OR Apache-2.0
//! A request that has not been pushed yet still names the lease.
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::request::Target;

fn under(lease: Lease<Installed>) {
    let request = lease.write(.., Target::Fd(1), 0);
    let _ = lease.release();
    drop(request);
}

fn main() {}
