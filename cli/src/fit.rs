// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring of the size that was asked for or, as far as nothing was, of one that fits.

use uring_getbuf::Ring;

use crate::args::Options;
use crate::end::End;

/// Measured: larger ones leave the processor's cache.
pub(crate) const BLOCK_SIZE: u32 = 256 << 10;
pub(crate) const DEPTH: u16 = 16;

/// Made before anything is touched. `files`: the ends of the transfer.
pub(crate) fn ring(options: &Options, files: usize) -> Result<Ring, End> {
    let mut builder = Ring::builder().files(u16::try_from(files).unwrap_or(u16::MAX));
    // What the person insists on stays as it is.
    builder = match options.depth {
        Some(depth) => builder.slots(depth),
        None => builder.slots_up_to(DEPTH),
    };
    builder = match options.block_size {
        Some(block_size) => builder.block_size(block_size),
        None => builder.block_size_up_to(BLOCK_SIZE),
    };
    if let Some(engine) = options.engine {
        builder = builder.engine(engine);
    }
    builder.build().map_err(End::failed)
}
