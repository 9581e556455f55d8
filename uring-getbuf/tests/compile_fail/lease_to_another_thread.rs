// SPDX-License-Identifier: MIT OR Apache-2.0
//! It shares the slot table with its ring.
use uring_getbuf::lease::{Installed, Lease};

fn on_another_thread(_: impl Send) {}

fn elsewhere(lease: Lease<Installed>) {
    on_another_thread(lease);
}

fn main() {}
