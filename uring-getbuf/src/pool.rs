// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy engine's memory: one block per slot, registered with the ring once.

use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{Error, ErrorKind, Result};

/// A registered buffer can hold at most this many bytes (`io_uring_register(2)`).
const MAX_BYTES: u64 = 1 << 30;
/// Blocks start on such a boundary, so that `O_DIRECT` works on them.
const ALIGN: u32 = 4096;
/// From this size on it is worth asking for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// Memory for the copy engine: a block for each slot, in one mapping.
///
/// The memory is never handed out as a reference: the kernel writes into it and reads from it, and
/// this crate only computes addresses.
#[derive(Debug)]
pub struct Pool {
    base: NonNull<u8>,
    stride: u32,
    blocks: u16,
}

impl Pool {
    /// Maps `blocks` blocks of at least `block_size` bytes each.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if a size is zero or the whole is larger than one
    /// registered buffer can be (1 GiB), [`MemoryLimit`](ErrorKind::MemoryLimit) if the memory
    /// cannot be mapped. The message names the number that would do.
    pub fn new(blocks: u16, block_size: u32) -> Result<Self> {
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if blocks == 0 || block_size == 0 {
            return invalid(format!(
                "a pool of {blocks} blocks of {block_size} bytes: both must be at least 1"
            ));
        }
        let stride = u64::from(block_size).next_multiple_of(u64::from(ALIGN));
        let bytes = stride * u64::from(blocks);
        if bytes > MAX_BYTES {
            let most = MAX_BYTES / u64::from(blocks) / u64::from(ALIGN) * u64::from(ALIGN);
            return invalid(format!(
                "a pool of {blocks} blocks of {block_size} bytes is {bytes} bytes, and one \
                 registered buffer holds at most {MAX_BYTES}: use at most {} blocks of this size, \
                 or blocks of at most {most} bytes",
                MAX_BYTES / stride,
            ));
        }
        // SAFETY: a new private mapping at an address that the kernel chooses touches nothing
        // that exists.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|errno| {
            Error::io(
                ErrorKind::MemoryLimit,
                &errno.into(),
                format!("mapping {bytes} bytes for a pool of {blocks} blocks of {block_size}"),
            )
        })?;
        let pool = Self {
            base: NonNull::new(base.cast()).expect("mmap does not return null without MAP_FIXED"),
            stride: stride as u32,
            blocks,
        };
        if pool.bytes() >= HUGE_PAGE {
            // SAFETY: the range is the mapping made above. The advice changes no content; a
            // kernel without huge pages refuses it, which costs nothing.
            let _ = unsafe { madvise(base, pool.bytes(), Advice::LinuxHugepage) };
        }
        Ok(pool)
    }

    /// Gives up its huge pages, and what is in it: the kernel counts the whole of a huge page of
    /// which a byte is pinned (`RLIMIT_MEMLOCK`).
    pub(crate) fn avoid_huge_pages(&self) {
        let base = self.base().cast();
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontNeed] {
            // SAFETY: the range is this pool's mapping, to whose content nothing refers. A kernel
            // without huge pages refuses the advice, which costs nothing.
            let _ = unsafe { madvise(base, self.bytes(), advice) };
        }
    }

    /// The whole of it, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.stride as usize * self.blocks as usize
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn blocks(&self) -> u16 {
        self.blocks
    }

    /// The size of a block in bytes: what was asked for, rounded up to whole pages.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.stride
    }

    /// Where it starts. What is registered with the ring is `bytes()` bytes from here.
    #[must_use]
    pub const fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of a block.
    pub(crate) const fn block(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.blocks);
        self.base.as_ptr().wrapping_add(self.stride as usize * index as usize)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Requests on a registered buffer go to its pinned pages, not to these addresses, so they
        // may even be in flight. Requests that name the address itself (a plain SEND) are the
        // ring's care: it leaks the pool rather than drop it under one.
        // SAFETY: the mapping was made by `new`, and no reference into it is ever made.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_named() {
        for (blocks, size) in [(0, 4096), (4, 0)] {
            assert_eq!(Pool::new(blocks, size).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let error = Pool::new(4096, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("at most 1024 blocks"), "{error}");
        assert!(error.contains("at most 262144 bytes"), "{error}");
    }

    #[test]
    fn blocks_are_whole_pages() {
        let pool = Pool::new(3, 4097).unwrap();
        assert_eq!(pool.block_size(), 8192);
        assert_eq!(pool.block(2) as usize - pool.base() as usize, 16384);
        assert_eq!(pool.block(1) as usize % 4096, 0);
    }
}
