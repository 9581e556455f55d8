// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy engine's memory: one block per slot, registered with the ring once.

use std::ptr::{self, NonNull};
use std::time::Duration;
use std::{io, thread};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, ErrorKind, Result};

/// A registered buffer can hold at most this many bytes (`io_uring_register(2)`).
const MAX_BYTES: u64 = 1 << 30;
/// Blocks start on such a boundary, so that `O_DIRECT` works on them.
const ALIGN: u32 = 4096;
/// From this size on it is worth asking for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// How large a pool is to be, and which of its numbers may become smaller to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many blocks.
    pub blocks: u16,
    /// Bytes of a block, rounded up to whole pages.
    pub block_size: u32,
    /// Whether fewer blocks will do.
    pub fewer: bool,
    /// Whether smaller blocks will do.
    pub smaller: bool,
}

impl Shape {
    /// So few blocks still serve several requests at once.
    const FEW: u16 = 4;

    /// About half of it. `None`: it cannot become smaller.
    fn halved(self) -> Option<Self> {
        let Self { blocks, block_size, fewer, smaller } = self;
        if fewer && blocks > Self::FEW {
            Some(Self { blocks: (blocks / 2).max(Self::FEW), ..self })
        } else if smaller && block_size > ALIGN {
            Some(Self { block_size: (block_size / 2).next_multiple_of(ALIGN), ..self })
        } else if fewer && blocks > 1 {
            Some(Self { blocks: blocks / 2, ..self })
        } else {
            None
        }
    }
}

/// The kernel gives back what a closed ring has pinned, but not at once: where memory is missing, it
/// is worth to try again for some 100 ms.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    pub(crate) const fn new() -> Self {
        Self(Duration::from_millis(1))
    }

    /// Waits a little, longer each time. `false`: it has been long enough.
    pub(crate) fn wait(&mut self) -> bool {
        let more = self.0 < Duration::from_millis(100);
        if more {
            thread::sleep(self.0);
            self.0 *= 2;
        }
        more
    }

    /// Tries for as long as memory is missing and there is patience.
    pub(crate) fn attempt<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut patience = Self::new();
        loop {
            match attempt() {
                Err(error) if is_short(&error) && patience.wait() => {}
                done => return done,
            }
        }
    }
}

const fn stride(block_size: u32) -> u64 {
    (block_size as u64).next_multiple_of(ALIGN as u64)
}

/// Whether a pool is not too large for one registered buffer.
const fn can_be_registered(blocks: u16, block_size: u32) -> bool {
    blocks as u64 * stride(block_size) <= MAX_BYTES
}

fn is_short(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

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
        let stride = stride(block_size);
        let bytes = stride * u64::from(blocks);
        if !can_be_registered(blocks, block_size) {
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

    /// Maps a pool and has it pinned by `pin`, which registers it with a ring, or for `None` empties
    /// its entry.
    ///
    /// Where little memory may be locked, it becomes as small as its shape lets it, so that it fits and
    /// leaves half as much to others. What a ring had pinned that was closed a moment ago is waited
    /// for, for some 100 ms.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), and [`MemoryLimit`](ErrorKind::MemoryLimit) with the error of the
    /// last `pin`.
    pub fn fitting(
        shape: Shape,
        mut pin: impl FnMut(Option<&Self>) -> io::Result<()>,
    ) -> Result<Self> {
        let mut pinned = |blocks, block_size| {
            let pool = Self::new(blocks, block_size)?;
            // What is there would count until its successor is.
            let mut done = pin(None).and_then(|()| pin(Some(&pool)));
            if done.as_ref().is_err_and(is_short) {
                pool.avoid_huge_pages();
                done = pin(Some(&pool));
            }
            Ok(done.map_err(|error| (pool.bytes(), error)).map(|()| pool))
        };
        let is_limited = getrlimit(Resource::Memlock).current.is_some();
        let mut patience = Patience::new();
        let mut shape = shape;
        loop {
            let Shape { blocks, block_size, .. } = shape;
            let half = shape.halved();
            // Each ring of a user leaves something to the next one.
            let more = blocks.saturating_add(blocks.div_ceil(2));
            let leaves = match half {
                Some(_) if is_limited && can_be_registered(more, block_size) => {
                    pinned(more, block_size)?.map(drop)
                }
                _ => Ok(()),
            };
            let done = match leaves {
                Ok(()) => pinned(blocks, block_size)?,
                Err(why) => Err(why),
            };
            match (done, half) {
                (Ok(pool), _) => return Ok(pool),
                (Err((_, error)), Some(half)) if is_short(&error) => shape = half,
                (Err((_, error)), None) if is_short(&error) && patience.wait() => {}
                (Err((bytes, error)), _) => {
                    let what = format!("pinning a pool of {bytes} bytes");
                    return Err(Error::io(ErrorKind::MemoryLimit, &error, what));
                }
            }
        }
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
    use std::cell::Cell;

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
    fn a_shape_becomes_smaller_where_it_may() {
        let shapes = |blocks, block_size, fewer, smaller| {
            let first = Shape { blocks, block_size, fewer, smaller };
            let all = std::iter::successors(Some(first), |shape| shape.halved());
            all.map(|shape| (shape.blocks, shape.block_size)).collect::<Vec<_>>()
        };
        assert_eq!(shapes(32, 128 << 10, false, false), [(32, 128 << 10)]);
        assert_eq!(shapes(7, 4096, true, false), [(7, 4096), (4, 4096), (2, 4096), (1, 4096)]);
        assert_eq!(shapes(7, 20000, false, true), [(7, 20000), (7, 12288), (7, 8192), (7, 4096)]);
        let all = shapes(32, 128 << 10, true, true);
        assert_eq!(all.last(), Some(&(1, 4096)));
        assert!(all.contains(&(4, 128 << 10)) && all.contains(&(4, 4096)), "{all:?}");
        assert!(all.is_sorted_by(|a, b| {
            u64::from(a.0) * u64::from(a.1) > u64::from(b.0) * u64::from(b.1)
        }));
    }

    #[test]
    fn what_does_not_fit_is_tried_for_a_while() {
        let no = |errno| Err(io::Error::from_raw_os_error(errno));
        let shape = Shape { blocks: 8, block_size: 8192, fewer: false, smaller: false };
        let error = Pool::fitting(shape, |_| no(libc::ENOMEM)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MemoryLimit);
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        let mut times = 0;
        let later = Pool::fitting(shape, |_| {
            times += 1;
            if times > 6 { Ok(()) } else { no(libc::ENOMEM) }
        });
        assert_eq!(later.unwrap().blocks(), 8);
        // Another error is not waited for.
        let mut times = 0;
        let refused = Pool::fitting(shape, |_| {
            times += 1;
            no(libc::EFAULT)
        });
        assert_eq!((refused.unwrap_err().raw_os_error(), times), (Some(libc::EFAULT), 1));
    }

    #[test]
    fn what_is_limited_leaves_something_to_the_next() {
        let shape = Shape { blocks: 8, block_size: 8192, fewer: true, smaller: true };
        let fitted = |limit: usize| {
            let pinned = Cell::new(0);
            let pool = Pool::fitting(shape, |pool| {
                let bytes = pool.map_or(0, Pool::bytes);
                // As the kernel counts what is replaced.
                if bytes + if bytes > 0 { pinned.get() } else { 0 } > limit {
                    return Err(io::Error::from_raw_os_error(libc::ENOMEM));
                }
                pinned.set(bytes);
                Ok(())
            });
            assert!(pool.as_ref().is_err() || pool.as_ref().unwrap().bytes() == pinned.get());
            pool.map(|pool| pool.bytes())
        };
        // How much of it is left depends on whether there is a limit.
        let is_limited = getrlimit(Resource::Memlock).current.is_some();
        for limit in (4096..200_000).step_by(4096) {
            let bytes = fitted(limit).unwrap();
            assert!(bytes <= limit && (bytes > limit / 6 || bytes == 65536), "{bytes} of {limit}");
            assert!(!is_limited || bytes == 4096 || bytes / 2 * 3 <= limit, "{bytes} of {limit}");
        }
        assert_eq!(fitted(98304).unwrap(), 65536);
        assert_eq!(fitted(0).unwrap_err().kind(), ErrorKind::MemoryLimit);
        // The largest one leaves nothing that could be registered with it.
        let largest = Shape { blocks: 1024, block_size: 1 << 20, fewer: true, smaller: true };
        assert_eq!(Pool::fitting(largest, |_| Ok(())).unwrap().bytes(), 1 << 30);
    }

    #[test]
    fn blocks_are_whole_pages() {
        let pool = Pool::new(3, 4097).unwrap();
        assert_eq!(pool.block_size(), 8192);
        assert_eq!(pool.block(2) as usize - pool.base() as usize, 16384);
        assert_eq!(pool.block(1) as usize % 4096, 0);
    }
}
