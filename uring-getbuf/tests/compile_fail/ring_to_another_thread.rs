// SPDX-License-Identifier: MIT OR Apache-2.0
//! Its leases would stay behind.
use uring_getbuf::Ring;

fn on_another_thread(_: impl Send) {}

fn elsewhere(ring: Ring) {
    on_another_thread(ring);
}

fn main() {}
