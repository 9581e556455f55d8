// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring of the size that was asked for or, as far as nothing was, of one that fits.

use uring_getbuf::{ErrorKind, Ring};

use crate::args::Options;
use crate::end::End;

/// Measured: larger ones leave the processor's cache.
pub(crate) const BLOCK_SIZE: u32 = 256 << 10;
pub(crate) const DEPTH: u16 = 16;
/// Blocks are whole pages.
const LEAST_BLOCK: u32 = 4096;

/// Made before anything is touched. `files`: the ends of the transfer.
pub(crate) fn ring(options: &Options, files: usize) -> Result<Ring, End> {
    let files = u16::try_from(files).unwrap_or(u16::MAX);
    let mut block_size = options.block_size.unwrap_or(BLOCK_SIZE);
    let mut depth = options.depth.unwrap_or(DEPTH);
    loop {
        let mut builder = Ring::builder().slots(depth).block_size(block_size).files(files);
        if let Some(engine) = options.engine {
            builder = builder.engine(engine);
        }
        let error = match builder.build() {
            Ok(ring) => return Ok(ring),
            Err(error) => error,
        };
        // What the person insists on stays as it is.
        if error.kind() != ErrorKind::MemoryLimit {
            return Err(End::failed(error));
        } else if options.depth.is_none() && depth > 1 {
            depth /= 2;
        } else if options.block_size.is_none() && block_size > LEAST_BLOCK {
            block_size /= 2;
        } else {
            return Err(End::failed(error));
        }
    }
}
