// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases.
pub mod chain;
pub mod consume;
pub mod engine;
mod error;
pub mod lease;
pub mod opcode;
mod pool;
pub mod probe;
pub mod relay;
pub mod ring;
pub mod slots;

pub use consume::STREAM;
pub use engine::Engine;
pub use error::{Errno, Error, ErrorKind, Result};
pub use pool::Pool;
pub use probe::Support;
pub use ring::Ring;
