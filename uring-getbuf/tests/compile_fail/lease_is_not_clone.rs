// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two would release the slot twice.
use uring_getbuf::lease::{Installed, Lease};

fn two(lease: Lease<Installed>) -> (Lease<Installed>, Lease<Installed>) {
    (lease.clone(), lease)
}

fn main() {}
