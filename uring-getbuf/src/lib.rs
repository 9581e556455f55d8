// SPDX-License-Identifier: MIT OR Apache-2.0
#![doc = include_str!("../README.md")]
//!
//! # The layers
//!
//! ```text
//! relay     what to move: whole files and streams, many leases in flight
//! ring      drives: owns the io_uring, the slots and the attached files
//! slots     the lease machine, sans-IO: hands out requests, is told completions
//! engine    a room for each way to fill a slot: opcode, module, copy; and memory of providers
//! probe     what can this kernel do?
//! request   SQEs, and builders of those that the io-uring crate does not know
//! ```
//!
//! `docs/architecture.md` of the project follows a fetch, a write and a release through them.

pub mod engine;
mod error;
mod kernel;
mod memory;
pub mod probe;
pub mod provider;
pub mod relay;
pub mod request;
pub mod ring;
pub mod slots;

pub use engine::copy::{Pool, Shape};
pub use engine::{Engine, Origin};
pub use error::{Errno, Error, ErrorKind, Result};
pub use probe::Support;
pub use ring::Ring;
pub use slots::consume::{STREAM, SendFlags};
pub use slots::{chain, consume, lease};
/// The binary interface, for who needs it raw.
pub use uring_getbuf_sys as sys;
