// SPDX-License-Identifier: MIT OR Apache-2.0
#![doc = include_str!("../README.md")]
//!
//! # The layers
//!
//! ```text
//! relay         whole files and streams, many leases in flight
//! ring          safe driver: owns the io_uring, the slots and the attached files
//! slots, lease  sans-IO: typestate over slots; hands out requests, is told completions
//! chain         fetch, consume and release as one
//! engine        opcode, module, copy: how to fetch and how to release
//! probe         what can this kernel do?
//! provider      the program's own memory as a source
//! opcode        builders of the requests that the io-uring crate does not know
//! ```
//!
//! A fetch becomes an SQE in `slots/table.rs` (`fetch_request`), a consumer in `consume.rs`.

pub mod chain;
pub mod consume;
pub mod engine;
mod error;
pub mod lease;
pub mod opcode;
mod pool;
pub mod probe;
pub mod provider;
pub mod relay;
pub mod ring;
pub mod slots;

pub use consume::{STREAM, SendFlags};
pub use engine::Engine;
pub use error::{Errno, Error, ErrorKind, Result};
pub use pool::{Pool, Shape};
pub use probe::Support;
pub use ring::Ring;
/// The binary interface, for who needs it raw.
pub use uring_getbuf_sys as sys;
