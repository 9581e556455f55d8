// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moving a whole file or a whole stream, with many leases in flight.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::fs::File;
//! use uring_getbuf::{Ring, relay::Relay};
//!
//! let mut ring = Ring::new()?;
//! let report = Relay::new(&File::open("a")?, &File::create("b")?).run(&mut ring)?;
//! println!("{} bytes", report.bytes);
//! # Ok(())
//! # }
//! ```
//!
//! | source | sink | how |
//! |---|---|---|
//! | regular file, block device | the same, not opened with `O_APPEND` | chains, in any order |
//! | any | pipe, terminal, socket, `O_APPEND` | fetches ahead, consumers in order, linked |
//! | pipe, terminal, socket, file of procfs | any | one fetch at a time, consumers in order, linked |
//! | file opened with `O_DIRECT` | any | fetches ahead of whole pages, consumers in order, linked |
//! | file of FUSE | any | read with `read(2)` on a thread of its own, then as from a socket |
//!
//! A source may shrink or grow meanwhile: what is there when it is reached is moved. A source ends
//! where a fetch gives nothing, whatever size it says it has.
//!
//! A file that is read and a file that is written are addressed by offset, and their own positions
//! are not used or moved. With [`STREAM`](crate::STREAM) as the offset they are read or written in order where they
//! stand, and their positions move.
//!
//! A sink that was opened with `O_DIRECT` loses that flag for a while if something is written to it
//! that is no whole sector, as with dd(1).
//!
//! Descriptors may be blocking or not: where one answers `EAGAIN`, the relay waits until it is
//! ready.
//!
//! [`FanOut`] moves one source to many sinks at once, and [`Proxy`] both ways between many pairs of
//! sockets.

mod aside;
mod at_once;
mod blocks;
mod control;
mod ends;
mod extent;
mod fan;
mod feed;
mod inspect;
mod mover;
mod one;
mod opened;
mod out;
mod proxy;

pub use control::{Canceller, Progress};
pub use fan::{FanFailure, FanOut, FanReport, SinkReport};
pub use inspect::Verdict;
pub use one::{Failure, Relay, Report};
pub use proxy::{PairId, PairReport, Proxy, Step};
