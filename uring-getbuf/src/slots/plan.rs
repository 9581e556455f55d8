// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plan: how a ring's tables are divided, and which engines serve its slots.

use std::{io, ptr};

use super::{Builder, MAX_SLOTS, Slots};
use crate::engine::Engine;
use crate::engine::copy::{Pool, Shape};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::memory_is_limited;
use crate::probe::Support;
use crate::request::Target;

/// How slots take their places in the ring's table of registered buffers.
///
/// The slots of an engine that lends memory come first, one place for each; then the pool, in one
/// place; then the places for [providers'](crate::provider) memory. The pool stands in wherever the
/// engine cannot serve a source.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use uring_getbuf::{Engine, Support, slots::Plan};
///
/// let uring = io_uring::IoUring::new(64)?;
/// let plan = Plan::new(&Support::detect(), Engine::Copy)?.slots(16).block_size(64 << 10);
/// uring.submitter().register_buffers_sparse(plan.places()?.into())?;
/// let slots = plan.build(None, |index, base, len| {
///     let vector = libc::iovec { iov_base: base.cast(), iov_len: len };
///     // SAFETY: the slots keep this memory, and are dropped after the ring.
///     unsafe { uring.submitter().register_buffers_update(index.into(), &[vector], None) }?;
///     Ok(())
/// })?;
/// # drop(slots);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Plan {
    builder: Builder,
    support: Support,
    engine: Engine,
    shape: Shape,
    regions: u16,
    first: u16,
}

/// The least memory that slots can have.
const LEAST: &str = "The smallest ring takes 12 KiB";

impl Plan {
    /// Plans 32 slots of 128 KiB, or as many and as large ones as fit, from the start of the table.
    ///
    /// # Errors
    ///
    /// Those of [`Support::require`], if the engine does not work here.
    pub fn new(support: &Support, engine: Engine) -> Result<Self> {
        support.require(engine)?;
        Ok(Self {
            builder: Slots::builder(support),
            support: support.clone(),
            engine,
            shape: Shape::default(),
            regions: 0,
            first: 0,
        })
    }

    /// Sets how many leases there can be at once.
    pub fn slots(mut self, slots: u16) -> Self {
        (self.shape.blocks, self.shape.fewer) = (slots, false);
        self
    }

    /// Sets most bytes that one lease holds, rounded up to whole pages.
    pub fn block_size(mut self, bytes: u32) -> Self {
        (self.shape.block_size, self.shape.smaller) = (bytes, false);
        self
    }

    /// Sets both, and which of the two may become smaller to fit.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Sets how many regions of [providers](crate::provider) can be registered, and pieces of their
    /// memory that is in none can be lent at once. Default 0.
    pub fn regions(mut self, regions: u16) -> Self {
        self.regions = regions;
        self
    }

    /// Sets the first place of the table that is the slots'. Default 0.
    pub fn first(mut self, index: u16) -> Self {
        self.first = index;
        self
    }

    /// Sets the top byte of every `user_data`; see [`Builder::tag`].
    pub fn tag(mut self, tag: u8) -> Self {
        self.builder = self.builder.tag(tag);
        self
    }

    /// How many places of the table it takes.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if a table has no room for them, or for numbers of
    /// slots and bytes that make no sense.
    pub fn places(&self) -> Result<u16> {
        self.shape.check()?;
        if self.shape.blocks > MAX_SLOTS {
            let what = format!("{} slots: there can be 1 to {MAX_SLOTS}", self.shape.blocks);
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let places = self.lent().checked_add(1).and_then(|places| places.checked_add(self.regions));
        let fit = places.filter(|places| self.first.checked_add(*places).is_some());
        fit.ok_or_else(|| {
            let Self { shape: Shape { blocks, .. }, regions, first, .. } = self;
            let what = format!(
                "{blocks} slots and {regions} regions from {first} of the ring's table: it has at \
                 most {} places",
                u16::MAX
            );
            Error::new(ErrorKind::InvalidInput, what)
        })
    }

    /// Places of slots that have one each.
    fn lent(&self) -> u16 {
        if self.engine.needs().slots { self.shape.blocks } else { 0 }
    }

    /// The device whose descriptor [`build`](Self::build) has to be given, if the engine has one.
    #[must_use]
    pub fn device(&self) -> Option<&'static str> {
        self.engine.needs().device
    }

    /// Makes the slots. `register` registers the memory that it is given (base and length in bytes)
    /// under this index of the ring's table, instead of what is there; none empties it.
    ///
    /// Where little memory may be locked, it is called again with less, as far as the plan leaves that
    /// open, so that it fits and leaves half as much to others; and for some 100 ms with as much: what a
    /// ring had pinned that was closed a moment ago is given back late.
    ///
    /// # Errors
    ///
    /// Those of [`places`](Self::places), [`Pool::new`] and [`Builder::build`], and
    /// [`MemoryLimit`](ErrorKind::MemoryLimit) with what would fit.
    pub fn build(
        self,
        device: Option<Target>,
        mut register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Slots> {
        self.places()?;
        let (lent, first) = (self.lent(), self.first);
        let index = first + lent;
        let pool = Pool::fitting(self.shape, |pool| match pool {
            Some(pool) => register(index, pool.base(), pool.bytes()),
            None => register(index, ptr::null_mut(), 0),
        });
        let pool = pool.map_err(|error| self.refused(error, index, register))?;
        let mut builder = self.builder;
        if lent > 0 {
            let found = self.support.found(self.engine).unwrap_or_default();
            builder = builder.lending(self.engine, found, device, first, pool.blocks());
        }
        if self.regions > 0 {
            builder = builder.regions(index + 1, self.regions);
        }
        builder.pool(pool, index).build()
    }

    /// Says what would fit.
    fn refused(
        &self,
        error: Error,
        index: u16,
        mut register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Error {
        if error.raw_os_error() != Some(libc::ENOMEM) {
            return error;
        }
        // What it was last tried with.
        let Shape { blocks, block_size, fewer, smaller } = self.shape;
        let slots = if fewer { 1 } else { blocks };
        let block_size = if smaller { 1 } else { block_size };
        let Ok(pool) = Pool::new(slots, block_size) else { return error };
        pool.avoid_huge_pages();
        let most = most(slots, |blocks| {
            // What is replaced counts until its successor is there.
            let _ = register(index, ptr::null_mut(), 0);
            let bytes = usize::from(blocks) * pool.block_size() as usize;
            register(index, pool.base(), bytes).is_ok()
        });
        let _ = register(index, ptr::null_mut(), 0);
        let what = format!(
            "pinning the pool of {slots} slots of {} bytes ({} bytes): {}; at most {most} slots of \
             this size would fit now. Use fewer or smaller ones, or raise the limit (ulimit -l). \
             {LEAST}",
            pool.block_size(),
            pool.bytes(),
            memory_is_limited(self.support.memlock_limit()),
        );
        let cause = io::Error::from_raw_os_error(libc::ENOMEM);
        Error::io(ErrorKind::MemoryLimit, &cause, what)
    }
}

/// The largest number below `limit` that fits, 0 if none does.
fn most(limit: u16, mut fits: impl FnMut(u16) -> bool) -> u16 {
    let (mut good, mut bad) = (0, limit);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if fits(middle) { good = middle } else { bad = middle }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::most;

    #[test]
    fn the_largest_number_that_fits_is_found() {
        for limit in 1..40 {
            for fits in 0..limit {
                assert_eq!(most(limit, |number| number <= fits), fits);
            }
        }
    }
}
