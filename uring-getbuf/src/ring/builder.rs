// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a ring: its io_uring, its table of registered buffers, its pool.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::IoUring;
use rustix::process::{Resource, getrlimit};

use super::drive::{Ring, set_buffer};
use super::files::{Attached, Files};
use super::within::Limits;
use crate::engine::Engine;
use crate::engine::copy::Shape;
use crate::error::{Error, ErrorKind, Result, no_thread};
use crate::kernel::{STARVED, memory_is_limited, no_ring, open_device};
use crate::memory::Patience;
use crate::probe::Support;
use crate::request::Target;
use crate::slots::Plan;

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
    /// ([`Ring::register_eventfd`]).
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
    regions: u16,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            files: 64,
            engine: None,
            setup: Setup::default(),
            entries: None,
            regions: 0,
        }
    }
}

impl Ring {
    /// Makes a ring with 32 slots of 128 KiB, or what fits, and the engine that costs least.
    ///
    /// # Errors
    ///
    /// See [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a ring with other numbers.
    pub fn builder() -> Builder {
        Builder::default()
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
        let plan = Plan::new(&support, engine)?.shape(self.shape).regions(self.regions);
        // Numbers that make no sense are told before there is a ring.
        let places = plan.places()?;
        let uring = self.uring(&support)?;
        let files = self.register_files(&uring, plan.device().is_some())?;
        let device = plan.device().map(|path| attach_device(&uring, &files, path)).transpose()?;
        let submitter = uring.submitter();
        submitter
            .register_buffers_sparse(places.into())
            .map_err(|error| Error::io(ErrorKind::Ring, &error, "registering the slots"))?;
        let register = |index, base, len| set_buffer(&submitter, index, (base, len));
        let slots = plan.build(device.as_ref().map(Target::from), register);
        let slots = slots.inspect_err(|_| {
            // The kernel takes its time to put the ring away, with what is pinned.
            let _ = submitter.unregister_buffers();
        })?;
        Ok(Ring {
            names: vec![Default::default(); slots.capacity()].into(),
            kept: VecDeque::with_capacity(slots.capacity()),
            taken: VecDeque::new(),
            muted: Vec::new(),
            batch: Vec::new(),
            asked: 0,
            answered: None,
            cancelling: 0,
            looker: None,
            limits: Limits::default(),
            uring,
            slots,
            files,
            support,
            device,
            places,
            process: std::process::id(),
        })
    }

    /// Makes room for attached files. An engine with a device has that there, and a second place
    /// for each file that is bound to it.
    fn register_files(&self, uring: &IoUring, has_device: bool) -> Result<Rc<Files>> {
        let places = if has_device {
            let all = self.files.saturating_mul(2).saturating_add(1).min(u16::MAX - 1);
            // Where the limit is lower, some sources are not bound, and so are copied.
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            all.min(limit.try_into().unwrap_or(u16::MAX)).max(self.files.saturating_add(1))
        } else {
            self.files
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
}

/// So few entries take a whole chain, and no more memory than fewer would.
const LEAST_ENTRIES: u32 = 8;
const LEAST: &str = "The smallest ring takes 12 KiB";

/// About how many bytes the queues of a ring take: 64 for each request, and 16 for each of the four
/// completions that there is room for.
const fn queues(entries: u32) -> u64 {
    (entries as u64) * (64 + 4 * 16)
}

/// Attaches an engine's device.
fn attach_device(uring: &IoUring, files: &Rc<Files>, path: &str) -> Result<Attached> {
    let device = open_device(path).map_err(|errno| {
        let error = io::Error::from(errno);
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Error::io(ErrorKind::Ring, &error, STARVED),
            _ => Error::io(ErrorKind::Unavailable, &error, format!("opening {path}")),
        }
    })?;
    let place = files.take()?;
    uring
        .submitter()
        .register_files_update(place.index(), &[device.as_raw_fd()])
        .map_err(|error| Error::io(ErrorKind::Ring, &error, format!("attaching {path}")))?;
    Ok(place)
}
