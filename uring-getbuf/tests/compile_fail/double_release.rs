// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lease is let go once.
use uring_getbuf::Ring;
use uring_getbuf::lease::{Installed, Lease};

fn twice(ring: &mut Ring, lease: Lease<Installed>) {
    ring.release(lease);
    ring.release(lease);
}

fn released(lease: Lease<Installed>) {
    let _ = lease.release().release();
}

fn main() {}
