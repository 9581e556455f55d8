// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy engine: `READ_FIXED` into a pool, memory with one block per slot that is registered once.

use std::io;

use rustix::process::{Resource, getrlimit};

use super::{Emptied, Ending, Fetch, Found, Look, Needs, Origin, Room, Traits};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::Kernel;
use crate::memory::{Memory, Patience, is_short};
use crate::request::{Piece, Sqe, Target};

/// A registered buffer can hold at most this many bytes (`io_uring_register(2)`).
const MAX_BYTES: u64 = 1 << 30;
/// Blocks start on such a boundary, so that `O_DIRECT` works on them.
const ALIGN: u32 = 4096;
/// From this size on it is worth asking for huge pages.
const HUGE_PAGE: usize = 2 << 20;

pub(super) const NEEDS: Needs = Needs { slots: false, device: None };

pub(super) fn probe(kernel: &mut Kernel) -> Result<Found, String> {
    if kernel.has(io_uring::opcode::Socket::CODE) {
        Ok(Found::default())
    } else {
        Err(format!("it needs Linux 5.19 or newer; this is {}", kernel.name))
    }
}

/// Its room is made with its [`Pool`], which stands in for every other engine, too.
pub(super) fn room(_: Found, _: Option<Target>, _: u16) -> Option<Box<dyn Room>> {
    None
}

pub(super) fn attach(_: Target, _: i32) -> Option<Sqe> {
    None
}

/// A pool, and where it is registered.
#[derive(Debug)]
pub(crate) struct Copying {
    pub(crate) pool: Pool,
    pub(crate) index: u16,
}

impl Room for Copying {
    fn origin(&self) -> Origin {
        Origin::Copy
    }

    fn traits(&self) -> Traits {
        Traits {
            lent: false,
            emptied: Emptied::AtOnce,
            ending: Ending::Left,
            installs_empty: false,
        }
    }

    fn serves(&self, _: &Fetch) -> bool {
        true
    }

    fn fetch(&self, slot: u16, what: &Fetch) -> Sqe {
        self.piece(slot, 0, what.len).read(what.source.file, what.offset)
    }

    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        let addr = self.pool.memory.at(self.pool.offset(slot, start)) as u64;
        Piece { addr, len, index: self.index }
    }

    fn look(&self, slot: u16, start: u32, into: &mut [u8]) -> Look {
        self.pool.memory.read(self.pool.offset(slot, start), into);
        Look::Copied(into.len())
    }
}

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

impl Default for Shape {
    /// 32 blocks of 128 KiB, or what fits.
    fn default() -> Self {
        Self { blocks: 32, block_size: 128 << 10, fewer: true, smaller: true }
    }
}

impl Shape {
    /// So few blocks still serve several requests at once.
    const FEW: u16 = 4;

    /// Looks that there can be such a pool.
    pub(crate) fn check(self) -> Result<()> {
        let Self { blocks, block_size, .. } = self;
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if blocks == 0 || block_size == 0 {
            return invalid(format!(
                "a pool of {blocks} blocks of {block_size} bytes: both must be at least 1"
            ));
        }
        let (stride, bytes) = (stride(block_size), stride(block_size) * u64::from(blocks));
        if !can_be_registered(blocks, block_size) {
            let most = MAX_BYTES / u64::from(blocks) / u64::from(ALIGN) * u64::from(ALIGN);
            return invalid(format!(
                "a pool of {blocks} blocks of {block_size} bytes is {bytes} bytes, and one \
                 registered buffer holds at most {MAX_BYTES}: use at most {} blocks of this size, \
                 or blocks of at most {most} bytes",
                MAX_BYTES / stride,
            ));
        }
        Ok(())
    }

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

const fn stride(block_size: u32) -> u64 {
    (block_size as u64).next_multiple_of(ALIGN as u64)
}

/// Whether a pool is not too large for one registered buffer.
const fn can_be_registered(blocks: u16, block_size: u32) -> bool {
    blocks as u64 * stride(block_size) <= MAX_BYTES
}

/// Memory for the copy engine: a block for each slot, in one mapping.
///
/// The memory is never handed out as a reference: the kernel writes into it and reads from it, and
/// this crate only computes addresses and copies.
#[derive(Debug)]
pub struct Pool {
    memory: Memory,
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
        Shape { blocks, block_size, ..Shape::default() }.check()?;
        let stride = stride(block_size);
        let bytes = stride * u64::from(blocks);
        let memory = Memory::new(bytes as usize).map_err(|error| {
            let what =
                format!("mapping {bytes} bytes for a pool of {blocks} blocks of {block_size}");
            Error::io(ErrorKind::MemoryLimit, &error, what)
        })?;
        if memory.len() >= HUGE_PAGE {
            memory.huge_pages(true);
        }
        Ok(Self { memory, stride: stride as u32, blocks })
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
        self.memory.huge_pages(false);
    }

    /// The whole of it, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// How many blocks there are.
    #[must_use]
    pub fn blocks(&self) -> u16 {
        self.blocks
    }

    /// The size of a block in bytes: what was asked for, rounded up to whole pages.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.stride
    }

    /// Where it starts. What is registered with the ring is `bytes()` bytes from here.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.memory.base()
    }

    /// Where a byte of a block is.
    fn offset(&self, block: u16, start: u32) -> usize {
        debug_assert!(block < self.blocks && start < self.stride);
        usize::from(block) * self.stride as usize + start as usize
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
        assert_eq!(pool.offset(2, 0), 16384);
        assert_eq!(pool.base() as usize % 4096, 0);
    }
}
