// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a ring: its io_uring, its table of registered buffers, its pool.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::types::Fixed;

use super::queues::Queues;
use super::{Attached, Files, Ring};
use rustix::process::{Resource, getrlimit};

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result, no_thread};
use crate::pool::{Patience, Pool, Shape};
use crate::probe::{STARVED, Support, memory_is_limited, no_ring, open_device};
use crate::slots::Slots;

/// How the io_uring is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setup {
    /// Completions are processed when the thread enters the kernel (`COOP_TASKRUN`). For any use.
    #[default]
    Cooperative,
    /// `SINGLE_ISSUER` and `DEFER_TASKRUN` (Linux 6.1): completions are processed only when the
    /// ring is asked for events. Least overhead for a thread that serves one ring. Before Linux
    /// 7.3 its descriptor does not wake who polls it; in another event loop use an eventfd there
    /// (`ring.submitter().register_eventfd`).
    DeferTaskrun,
    /// `SQPOLL`: a kernel thread submits; no system call while it is awake.
    SqPoll {
        /// How long that thread waits for work before it sleeps; rounded to milliseconds.
        idle: Duration,
    },
}

/// Makes a [`Ring`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    shape: Shape,
    files: u16,
    engine: Option<Engine>,
    setup: Setup,
    entries: Option<u32>,
    replace: bool,
    regions: u16,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            shape: Shape { blocks: 32, block_size: 128 << 10, fewer: true, smaller: true },
            files: 64,
            engine: None,
            setup: Setup::default(),
            entries: None,
            replace: false,
            regions: 0,
        }
    }
}

impl Builder {
    /// How many leases there can be at once. Default 32, or [what fits](Self::slots_up_to).
    pub fn slots(mut self, slots: u16) -> Self {
        (self.shape.blocks, self.shape.fewer) = (slots, false);
        self
    }

    /// How many leases there can be at once, or as many as fit where `RLIMIT_MEMLOCK` allows less
    /// memory. [`Ring::capacity`] tells how many there are.
    pub fn slots_up_to(mut self, slots: u16) -> Self {
        (self.shape.blocks, self.shape.fewer) = (slots, true);
        self
    }

    /// Most bytes that one lease holds, rounded up to whole pages. Default 128 KiB, or
    /// [what fits](Self::block_size_up_to).
    pub fn block_size(mut self, bytes: u32) -> Self {
        (self.shape.block_size, self.shape.smaller) = (bytes, false);
        self
    }

    /// Most bytes that one lease holds, or less where `RLIMIT_MEMLOCK` allows less memory.
    /// [`Ring::block_size`] tells how many those are.
    pub fn block_size_up_to(mut self, bytes: u32) -> Self {
        (self.shape.block_size, self.shape.smaller) = (bytes, true);
        self
    }

    /// How many files can be attached at once. Default 64.
    pub fn files(mut self, files: u16) -> Self {
        self.files = files;
        self
    }

    /// Insists on an engine. Default: the one that costs least of those that work here.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// How the io_uring is set up. Default [`Setup::Cooperative`].
    pub fn setup(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    /// Entries of the submission queue. Default: three for each slot, 4,096 at most, and fewer where
    /// they would take more than a quarter of `RLIMIT_MEMLOCK`.
    pub fn entries(mut self, entries: u32) -> Self {
        self.entries = Some(entries);
        self
    }

    /// Has slots of kernel memory replaced rather than emptied, where the kernel can; see
    /// [`slots::Builder::replace`](crate::slots::Builder::replace) for what it costs. Default no.
    pub fn replace(mut self, yes: bool) -> Self {
        self.replace = yes;
        self
    }

    /// How many regions of [providers](crate::provider) can be registered, and pieces of their
    /// memory that is in none can be lent at once. Default 0.
    pub fn regions(mut self, regions: u16) -> Self {
        self.regions = regions;
        self
    }

    /// Makes the ring.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) with the reason if the engine, or io_uring itself,
    /// does not work here; [`InvalidInput`](ErrorKind::InvalidInput) for numbers that make no
    /// sense; [`MemoryLimit`](ErrorKind::MemoryLimit), naming the limit and what would fit, where the
    /// numbers that were asked for, or three pages (12 KiB), are more than may be locked;
    /// [`Ring`](ErrorKind::Ring) with `EMFILE` where `RLIMIT_NOFILE` leaves no descriptor for the
    /// ring (while it is made it takes three), or is less than the places for attached files.
    pub fn build(self) -> Result<Ring> {
        let support = Support::detect();
        let engine = match self.engine {
            None => support.best()?,
            Some(engine) => support.require(engine).map(|()| engine)?,
        };
        let most = self.shape.blocks;
        // Numbers that make no sense are told before there is a ring.
        Pool::new(most, self.shape.block_size)?;
        let uring = self.uring(&support)?;
        let files = self.register_files(&uring, engine)?;
        let device = match engine {
            Engine::Module => Some(attach_device(&uring, &files)?),
            Engine::Opcode | Engine::Copy | Engine::Provider => None,
        };
        let submitter = uring.submitter();
        // The pool comes last in the table, behind the slots of an engine that lends memory.
        let pool_index = if engine.lends() { most } else { 0 };
        let buffers = u32::from(pool_index) + 1 + u32::from(self.regions);
        submitter
            .register_buffers_sparse(buffers)
            .map_err(|error| Error::io(ErrorKind::Ring, &error, "registering the slots"))?;
        let pin = |base: *mut u8, iov_len| {
            let vector = libc::iovec { iov_base: base.cast(), iov_len };
            // SAFETY: it is a part of a pool, or null, which empties the entry. The kernel pins its
            // pages, so it may even be unmapped while they are registered.
            unsafe { submitter.register_buffers_update(u32::from(pool_index), &[vector], None) }
                .map(drop)
        };
        let pool = Pool::fitting(self.shape, |pool| match pool {
            Some(pool) => pin(pool.base(), pool.bytes()),
            None => pin(ptr::null_mut(), 0),
        });
        let pool = pool.map_err(|error| {
            let refused = self.pool_refused(error, &support, |pool, blocks| {
                // What is replaced counts until its successor is there.
                let _ = pin(ptr::null_mut(), 0);
                pin(pool.base(), usize::from(blocks) * pool.block_size() as usize).is_ok()
            });
            // The kernel takes its time to put the ring away, with what is pinned.
            let _ = submitter.unregister_buffers();
            refused
        })?;
        let blocks = pool.blocks();
        let mut slots = Slots::builder(&support);
        match engine {
            Engine::Copy | Engine::Provider => {}
            Engine::Opcode => {
                let get_buf =
                    support.get_buf_opcode().expect("the engine works, so it has a number");
                let put_buf = support.put_buf_opcode();
                // What replaces is newer than what releases.
                slots = slots.replace(self.replace && put_buf.is_some());
                slots = slots.opcode(get_buf, put_buf, 0, blocks);
            }
            Engine::Module => {
                let device = Fixed(device.as_ref().map_or(0, Attached::index));
                slots = slots.replace(self.replace && support.module_replaces());
                slots = slots.module(device, 0, blocks);
            }
        }
        if self.regions > 0 {
            slots = slots.regions(pool_index + 1, self.regions);
        }
        Ok(Ring {
            slots: slots.pool(pool, pool_index).build()?,
            files,
            events: VecDeque::with_capacity(usize::from(blocks)),
            early: VecDeque::new(),
            muted: RefCell::default(),
            asked: 0,
            answered: Cell::new(None),
            cancelling: Cell::new(0),
            looker: None,
            limits: None,
            uring: Queues::new(uring),
            support,
            device,
            buffers,
            process: std::process::id(),
        })
    }

    /// Makes room for attached files. The module engine has its device there, and a second place
    /// for each file that is bound to it.
    fn register_files(&self, uring: &IoUring, engine: Engine) -> Result<Rc<Files>> {
        let places = match engine {
            Engine::Module => {
                let all = self.files.saturating_mul(2).saturating_add(1).min(u16::MAX - 1);
                // Where the limit is lower, some sources are not bound, and so are copied.
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                all.min(limit.try_into().unwrap_or(u16::MAX)).max(self.files.saturating_add(1))
            }
            Engine::Opcode | Engine::Copy | Engine::Provider => self.files,
        };
        if places > 0 {
            uring.submitter().register_files_sparse(u32::from(places)).map_err(|error| {
                let what = format!(
                    "making room for {places} attached files: RLIMIT_NOFILE bounds their number; \
                     build the ring for fewer, or raise it (ulimit -n)"
                );
                Error::io(ErrorKind::Ring, &error, what)
            })?;
        }
        Ok(Files::new(places))
    }

    /// How many entries the submission queue is to have. Where nobody has said so and little memory
    /// may be locked, most of it is for the pool: some kernels count the queues as well.
    fn queue_size(&self, support: &Support) -> u32 {
        let wanted = self.entries.unwrap_or_else(|| u32::from(self.shape.blocks).saturating_mul(3));
        let mut entries = wanted.clamp(LEAST_ENTRIES, 4096).next_power_of_two();
        let limit = support.memlock_limit().unwrap_or(u64::MAX);
        while self.entries.is_none() && entries > LEAST_ENTRIES && queues(entries) > limit / 4 {
            entries /= 2;
        }
        entries
    }

    fn uring(&self, support: &Support) -> Result<IoUring> {
        let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        if self.files == u16::MAX {
            return invalid(format!("{} attached files: there can be 0 to 65534", self.files));
        }
        let entries = self.queue_size(support);
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_clamp().setup_cqsize(entries * 4);
        match self.setup {
            Setup::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag(),
            Setup::DeferTaskrun => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()
            }
            Setup::SqPoll { idle } => {
                let idle = idle.as_millis().clamp(1, 3_600_000);
                builder.setup_sqpoll(idle as u32)
            }
        };
        Patience::attempt(|| builder.build(entries)).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::io(
                ErrorKind::Unavailable,
                &error,
                format!("this kernel does not know the ring setup {:?}", self.setup),
            ),
            Some(libc::ENOMEM) => Error::io(
                ErrorKind::MemoryLimit,
                &error,
                format!(
                    "making a ring of {entries} entries, whose queues take some {} bytes: {}. \
                     {LEAST}",
                    queues(entries),
                    memory_is_limited(support.memlock_limit()),
                ),
            ),
            Some(libc::EAGAIN) => {
                let why = no_thread().unwrap_or_else(|| "no thread was left".into());
                Error::io(ErrorKind::Ring, &error, format!("making the ring's thread: {why}"))
            }
            Some(libc::EMFILE | libc::ENFILE) => Error::io(ErrorKind::Ring, &error, STARVED),
            _ => Error::new(ErrorKind::Unavailable, no_ring(&error)),
        })
    }

    /// Says what would fit.
    fn pool_refused(
        &self,
        error: Error,
        support: &Support,
        fits: impl Fn(&Pool, u16) -> bool,
    ) -> Error {
        if error.raw_os_error() != Some(libc::ENOMEM) {
            return error;
        }
        // What it was last tried with.
        let Shape { fewer, smaller, .. } = self.shape;
        let slots = if fewer { 1 } else { self.shape.blocks };
        let block_size = if smaller { 1 } else { self.shape.block_size };
        let Ok(pool) = Pool::new(slots, block_size) else { return error };
        pool.avoid_huge_pages();
        let what = format!(
            "pinning the pool of {slots} slots of {} bytes ({} bytes): {}; at most {} slots of this \
             size would fit now. Use fewer or smaller ones, or raise the limit (ulimit -l). {LEAST}",
            pool.block_size(),
            pool.bytes(),
            memory_is_limited(support.memlock_limit()),
            most(slots, |blocks| fits(&pool, blocks)),
        );
        let cause = io::Error::from_raw_os_error(libc::ENOMEM);
        Error::io(ErrorKind::MemoryLimit, &cause, what)
    }
}

/// So few entries take a whole chain, and no more memory than fewer would.
const LEAST_ENTRIES: u32 = 8;
const LEAST: &str = "The smallest ring takes 12 KiB";

/// About how many bytes the queues of a ring take: 64 for each request, and 16 for each of the four
/// completions that there is room for.
const fn queues(entries: u32) -> u64 {
    (entries as u64) * (64 + 4 * 16)
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

/// Attaches `/dev/getbuf` itself.
fn attach_device(uring: &IoUring, files: &Rc<Files>) -> Result<Attached> {
    let device = open_device().map_err(|errno| {
        let error = io::Error::from(errno);
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Error::io(ErrorKind::Ring, &error, STARVED),
            _ => Error::io(ErrorKind::Unavailable, &error, "opening /dev/getbuf"),
        }
    })?;
    let place = files.take()?;
    uring
        .submitter()
        .register_files_update(place.index(), &[device.as_raw_fd()])
        .map_err(|error| Error::io(ErrorKind::Ring, &error, "attaching /dev/getbuf"))?;
    Ok(place)
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
