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
//! are not used or moved. With [`STREAM`] as the offset they are read or written in order where they
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
mod ends;
mod fan;
mod inspect;
mod proxy;
mod stream;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::consume::STREAM;
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ring::{Attached, Ring};

use aside::Aside;
use ends::{At, Direct, MAX_OFFSET, Position, SECTOR, Sink, Source, check_apart, check_offset};
pub use fan::{FanFailure, FanOut, FanReport, SinkReport};
use inspect::Inspector;
pub use inspect::Verdict;
pub use proxy::{PairId, PairReport, Proxy, Step};

/// How often a relay that can be cancelled looks whether it was, while nothing moves.
const LOOK: Duration = Duration::from_millis(100);

/// What a relay did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How many bytes are in the sink, in order and without a gap. After a failure the sink is
    /// right up to here.
    pub bytes: u64,
    /// Bytes that the sink took in all. A file is written in any order: after a failure there can
    /// be more of them than [`bytes`](Self::bytes), behind a gap.
    pub taken: u64,
    /// How many of the bytes that were taken went through the copy pool. All others were lent.
    pub copied: u64,
    /// The engine that most of the bytes came from; that of the ring, if there were none.
    pub engine: Engine,
}

/// A relay that ended early: why, and what it had done until then.
#[derive(Debug)]
pub struct Failure {
    /// Why. [`Source`](ErrorKind::Source), [`Sink`](ErrorKind::Sink) and
    /// [`Cancelled`](ErrorKind::Cancelled) tell whose fault it was.
    pub error: Error,
    /// What had been done.
    pub report: Report,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (after {} bytes)", self.error, self.report.bytes)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// How far a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that the sink has taken.
    pub bytes: u64,
    /// Bytes that there will be, as far as the source tells.
    pub total: Option<u64>,
}

/// Cancels a relay, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// One that has not been used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The relay ends within a tenth of a second with [`Cancelled`](ErrorKind::Cancelled); what is
    /// in flight is cancelled.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Moves everything from a source to a sink. See the [module](self).
#[must_use = "a relay does nothing until it is run"]
pub struct Relay<'a> {
    source: BorrowedFd<'a>,
    sink: BorrowedFd<'a>,
    source_offset: u64,
    sink_offset: u64,
    limit: u64,
    block_size: u32,
    depth: usize,
    on_this_thread: bool,
    zero_copy_send: Option<bool>,
    canceller: Option<Canceller>,
    progress: Option<Box<dyn FnMut(Progress) + 'a>>,
    inspector: Option<Inspector<'a>>,
}

impl<'a> Relay<'a> {
    /// From a source that is open for reading to a sink that is open for writing.
    pub fn new(source: &'a impl AsFd, sink: &'a impl AsFd) -> Self {
        Self {
            source: source.as_fd(),
            sink: sink.as_fd(),
            source_offset: 0,
            sink_offset: 0,
            limit: u64::MAX,
            block_size: u32::MAX,
            depth: usize::MAX,
            on_this_thread: false,
            zero_copy_send: None,
            canceller: None,
            progress: None,
            inspector: None,
        }
    }

    /// Where in the source to begin, in bytes. Default 0.
    ///
    /// With [`STREAM`] a file is read from where it stands, and its position moves over what was
    /// moved. Others can read through the same position meanwhile: no byte is read twice. A pipe or a
    /// socket is always read where it stands.
    pub fn source_offset(mut self, offset: u64) -> Self {
        self.source_offset = offset;
        self
    }

    /// Where in the sink to begin, in bytes. Default 0.
    ///
    /// With [`STREAM`] a file is written where it stands, in order, and its position moves over what
    /// was written. Others can write through the same position meanwhile: nothing of theirs is
    /// overwritten. A pipe, a socket and a file that was opened with `O_APPEND` are always written
    /// where they stand.
    pub fn sink_offset(mut self, offset: u64) -> Self {
        self.sink_offset = offset;
        self
    }

    /// Most bytes to move. Default: until the source ends.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// Most bytes to fetch at once. Default and maximum: the ring's block size. From a pipe at least
    /// 4096 are asked for, so that a packet is not cut (see `O_DIRECT` in `pipe(2)`).
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Most leases to hold at once. Default and maximum: all the ring's slots.
    pub fn depth(mut self, leases: usize) -> Self {
        self.depth = leases;
        self
    }

    /// Whether blocks of a file that the page cache has are copied to another file by this thread, with
    /// `preadv2` (`RWF_NOWAIT`) and `pwrite`; only with the copy engine. Default: no, everything goes
    /// through the ring.
    ///
    /// It takes two system calls for each block, and less processor time where the ring gives buffered
    /// writes to a worker thread: on ext4 (`ext4_buffered_write_iter` in Linux 6.18 refuses
    /// `IOCB_NOWAIT`), not on xfs and btrfs. What would have to be waited for on the source's side goes
    /// through the ring all the same, and so does everything where the source's file system does not know
    /// such reads (tmpfs).
    pub fn on_this_thread(mut self, yes: bool) -> Self {
        self.on_this_thread = yes;
        self
    }

    /// Whether to use `SEND_ZC` for a socket. Default: where the engine lends the file's own
    /// memory and the peer is on another machine (to this one the kernel copies all the same). A
    /// socket that cannot is sent to in the ordinary way.
    pub fn zero_copy_send(mut self, yes: bool) -> Self {
        self.zero_copy_send = Some(yes);
        self
    }

    /// What may cancel it.
    pub fn canceller(mut self, canceller: &Canceller) -> Self {
        self.canceller = Some(canceller.clone());
        self
    }

    /// Called on this thread each time that something has moved.
    pub fn on_progress(mut self, call: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Some(Box::new(call));
        self
    }

    /// Has `look` see the first `bytes` bytes before any is moved, and decide by them; fewer only
    /// where the source or the limit ends sooner, it was opened with `O_DIRECT` and the rest is not
    /// in its first block, or it is a stream that gives less at a time than there are leases for.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use uring_getbuf::{Ring, relay::{Relay, Verdict}};
    ///
    /// let mut ring = Ring::new()?;
    /// let (source, sink) = (std::fs::File::open("a")?, std::fs::File::create("b")?);
    /// let relay = Relay::new(&source, &sink).inspect(4, |head| match head {
    ///     b"\x7fELF" => Verdict::refuse("this is a program"),
    ///     _ => Verdict::Pass,
    /// });
    /// relay.run(&mut ring)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A lease that is looked at as a relay runs has [`Ring::copy_out`].
    pub fn inspect(mut self, bytes: u32, look: impl FnOnce(&[u8]) -> Verdict + 'a) -> Self {
        self.inspector = Some(Inspector { bytes, look: Box::new(look) });
        self
    }

    /// Runs it to its end.
    ///
    /// Leases, events and requests of others on the same ring are left alone; events that come
    /// meanwhile are there afterwards. None are left of the relay's own: what the network still
    /// holds of a relay that failed (`SEND_ZC`) comes back to its slots without one.
    ///
    /// # Errors
    ///
    /// A [`Failure`], which has the error and the bytes that were moved before it.
    pub fn run(self, ring: &mut Ring) -> Result<Report, Failure> {
        let mut flow = Flow::default();
        let own = ring.engine();
        let done = self.start(ring, &mut flow);
        let engine = match flow.copied {
            0 => own,
            copied if copied > flow.moved / 2 => Engine::Copy,
            _ => own,
        };
        let bytes = flow.right.unwrap_or(flow.moved);
        let report = Report { bytes, taken: flow.moved, copied: flow.copied, engine };
        match done.err().or(flow.error) {
            None => Ok(report),
            Some(error) => Err(Failure { error, report }),
        }
    }

    fn start(mut self, ring: &mut Ring, flow: &mut Flow) -> Result<()> {
        self.block_size = self.block_size.min(ring.block_size());
        self.depth = self.depth.min(ring.capacity());
        ring.empty_slots()?;
        if self.block_size == 0 || self.depth == 0 || ring.free() == 0 {
            return Err(unfit());
        }
        check_offset(self.source_offset)?;
        check_offset(self.sink_offset)?;
        let mut source = Source::of(self.source)?;
        Sink::of(self.sink)?;
        self.check_apart(self.sink)?;
        let aside = match source.aside {
            true => Some(Aside::start(self.source, self.source_offset, self.limit)?),
            false => None,
        };
        let read = aside.as_ref().map_or(self.source, AsFd::as_fd);
        if aside.is_some() {
            source = Source::of(read)?;
        }
        self.block_size = source.block_size(self.block_size, ring.block_size());
        let from = ring.attach(&read)?;
        let mut head = self.inspect_source(ring, source, &from)?;
        let redirected = head.sink.take();
        let to = redirected.as_ref().map_or(self.sink, OwnedFd::as_fd);
        let sink = Sink::of(to)?;
        if redirected.is_some() {
            self.check_apart(to)?;
        }
        let files = Ends { source: from, sink: ring.attach(&to)? };
        ring.empty_slots()?;
        let (at, direct) = (At::new(to, sink, self.sink_offset), Direct::of(to, sink));
        let ends = (source, sink);
        let in_order = self.source_offset == STREAM || !matches!(at, At::Offset(_));
        let done = if source.ahead && !source.direct && !in_order {
            blocks::run(&mut self, ring, &files, source, to, direct, flow)
        } else {
            stream::run(&mut self, ring, &files, ends, (at, direct), flow, head)
        };
        let settled = ring.end_cancellations();
        // Detached now: the peer of a stream that the caller closes next is to see its end.
        drop(files);
        ring.sweep();
        if let Some(errno) = aside.and_then(|aside| aside.error()) {
            flow.source_failed(errno);
        }
        done.and(settled)
    }

    fn check_apart(&self, sink: BorrowedFd<'_>) -> Result<()> {
        check_apart((self.source, self.source_offset), (sink, self.sink_offset), self.limit)
    }

    /// Where it ends at most, counted from where it begins.
    fn most(&self) -> u64 {
        match self.source_offset {
            STREAM => self.limit,
            // No file is longer.
            offset => self.limit.min(MAX_OFFSET - offset),
        }
    }

    /// Where it ends, as far as the source tells.
    fn told(&self, source: Source) -> Option<u64> {
        let begin = match self.source_offset {
            STREAM => rustix::fs::tell(self.source).unwrap_or(0),
            offset => offset,
        };
        let size = source.size?;
        Some(size.saturating_sub(begin).min(self.most()))
    }

    /// `told`: where the source says that it ends.
    fn report_progress(&mut self, flow: &Flow, told: Option<u64>) {
        let bytes = flow.moved;
        let limit = (self.limit != u64::MAX).then_some(self.limit);
        let total = told.or(limit).map(|total| total.max(bytes));
        if let Some(call) = &mut self.progress {
            call(Progress { bytes, total });
        }
    }

    fn is_cancelled(&self) -> bool {
        self.canceller.as_ref().is_some_and(Canceller::is_cancelled)
    }

    /// Waits for a completion, and no longer than a cancellation may wait.
    fn pause(&self, ring: &mut Ring) -> Result<()> {
        ring.flush()?;
        match &self.canceller {
            None => ring.enter(1),
            Some(_) => ring.enter_for(1, LOOK),
        }
    }

    /// Waits for completions, and notices a cancellation.
    fn wait(&self, ring: &mut Ring, count: usize, flow: &mut Flow) -> Result<()> {
        ring.flush()?;
        let Some(canceller) = &self.canceller else { return ring.enter(count) };
        ring.enter_for(count, LOOK)?;
        if canceller.is_cancelled() && flow.error.is_none() {
            flow.fail(cancelled());
        }
        Ok(())
    }
}

impl fmt::Debug for Relay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("source", &self.source)
            .field("sink", &self.sink)
            .field("block_size", &self.block_size)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

/// What a running relay has come to.
#[derive(Default)]
struct Flow {
    /// Bytes that the sink took,
    moved: u64,
    /// those of them that went through the pool,
    copied: u64,
    /// and how many there are without a gap, if not all of them.
    right: Option<u64>,
    /// The sink cannot take the kernel's memory: everything goes through the pool.
    copies: bool,
    /// The first error. Nothing new is begun then; what is in flight is brought to its end.
    error: Option<Error>,
}

impl Flow {
    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    fn source_failed(&mut self, errno: Errno) {
        self.fail(source_failed(errno));
    }

    fn sink_failed(&mut self, errno: Errno) {
        self.fail(sink_failed(errno));
    }

    fn sink_is_full(&mut self) {
        self.fail(sink_is_full());
    }
}

#[cold]
fn source_failed(errno: Errno) -> Error {
    let what = match errno {
        Errno::AGAIN => "reading from the source, whose file system does not know O_NONBLOCK",
        _ => "reading from the source",
    };
    Error::os(ErrorKind::Source, errno, what)
}

#[cold]
fn sink_failed(errno: Errno) -> Error {
    let what = match errno {
        Errno::AGAIN => "writing to the sink, whose file system does not know O_NONBLOCK",
        _ => "writing to the sink",
    };
    Error::os(ErrorKind::Sink, errno, what)
}

#[cold]
fn sink_is_full() -> Error {
    Error::new(ErrorKind::Sink, "writing to the sink: it takes nothing more")
}

#[cold]
fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}

#[cold]
fn unfit() -> Error {
    let what = "a relay needs blocks of at least one byte, and at least one free slot";
    Error::new(ErrorKind::InvalidInput, what)
}

/// Both ends, attached.
struct Ends {
    source: Attached,
    sink: Attached,
}

impl Ends {
    /// Cancels what is in flight.
    fn cancel(&self, ring: &mut Ring) -> Result<()> {
        ring.cancel(&self.source)?;
        ring.cancel(&self.sink)
    }
}
