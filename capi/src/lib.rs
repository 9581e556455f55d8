// SPDX-License-Identifier: MIT OR Apache-2.0
//! `libgetbuf`: the slots and leases of `uring-getbuf` for C programs that have an io_uring of
//! their own.
//!
//! Nothing here is called from Rust. `include/getbuf.h` is made from these files by cbindgen, and
//! the comments on what is exported are the header's; the types of Rust are checked at run time
//! here: a lease is a value that names a slot and one of its lives, and `slots.rs` finds the typed
//! lease behind it or says why there is none.
//!
//! ```text
//! abi       what C sees: constants and structures
//! probe     what can this kernel do?
//! create    parameters, registration with the ring, the end
//! slots     struct getbuf
//! leases    the leases that C has, as values
//! request   requests that fill and use slots
//! chain     fetch, use and release as linked requests
//! pending   what the slots themselves need sent
//! batch     several of them at once
//! complete  what a completion meant
//! provide   the program's own memory as a source
//! ```

pub mod abi;
pub mod batch;
pub mod chain;
pub mod complete;
pub mod create;
pub mod errors;
mod file;
mod leases;
mod live;
pub mod pending;
pub mod probe;
pub mod provide;
pub mod query;
mod register;
pub mod request;
pub mod slots;
mod sqe;
