// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures every way of moving bytes that the running kernel offers, side by side in one run:
//! interleaved, repeated, with medians and spread. `getbuf bench` is its command line.
//!
//! ```text
//! cases     what is moved from where to where: the points that are measured
//! ground    the files, pipes and sockets of one point, and who reads at the far end
//! ways      how it is moved: the library, requests by hand, system calls
//! measure   a thread for each way; rounds of all of them, one after the other
//! report    terminal, JSON, HTML
//! ```
//!
//! Each way runs in a thread of its own, one at a time. So its processor time, and that of the
//! worker threads that the kernel starts for it, can be told from that of everything else.

pub mod cases;
mod ground;
mod machine;
mod mark;
mod measure;
mod report;
mod ways;

pub use measure::{Options, Progress, run};
pub use report::Results;
