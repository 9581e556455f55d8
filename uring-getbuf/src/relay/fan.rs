// SPDX-License-Identifier: MIT OR Apache-2.0
//! One source, many sinks: every block is fetched once, and each sink takes it at its own speed.
//!
//! A block is kept until every sink has it, so the fastest sink can be ahead of the slowest by as
//! many blocks as there are leases. Beyond that it waits, unless the slowest one is given up first;
//! see [`FanOut::lag`] and [`FanOut::patience`].

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use super::aside::Aside;
use super::ends::{
    At, Direct, MAX_OFFSET, Position, SECTOR, Sink, Source, check_apart, check_offset,
};
use super::stream::{Gate, SOURCE_READY};
use super::{
    Canceller, LOOK, Progress, cancelled, sink_failed, sink_is_full, source_failed, unfit,
};
use crate::consume::{STREAM, SendFlags};
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::ring::{Attached, OWN_TOKENS, Ring};
use crate::slots::{Event, LeaseId, UseId};

/// What became of one sink.
#[derive(Debug)]
#[non_exhaustive]
pub struct SinkReport {
    /// Bytes that it took.
    pub bytes: u64,
    /// Why it was given up before the source's end: [`Sink`](ErrorKind::Sink) if it failed,
    /// [`Lagging`](ErrorKind::Lagging) if it was too slow. `None`: it has everything, or the whole
    /// fan-out ended early.
    pub error: Option<Error>,
}

/// What a fan-out did.
#[derive(Debug)]
#[non_exhaustive]
pub struct FanReport {
    /// Bytes that were fetched, once for all.
    pub bytes: u64,
    /// How many of them were read into the copy pool. All others were lent.
    pub copied: u64,
    /// The engine that most of them came from; that of the ring, if there were none.
    pub engine: Engine,
    /// One for each sink, in the order in which they were added.
    pub sinks: Vec<SinkReport>,
}

/// A fan-out that ended early: why, and what it had done until then.
#[derive(Debug)]
pub struct FanFailure {
    /// Why. A sink that fails ends only itself, so this is never one's fault.
    pub error: Error,
    /// What had been done.
    pub report: FanReport,
}

impl fmt::Display for FanFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (after {} bytes)", self.error, self.report.bytes)
    }
}

impl std::error::Error for FanFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

type OnDone<'a> = Box<dyn FnMut(usize, &SinkReport) + 'a>;

/// Moves everything from a source to every one of its sinks.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{fs::File, net::TcpStream, time::Duration};
/// use uring_getbuf::{Ring, relay::FanOut};
///
/// let mut ring = Ring::new()?;
/// let (source, copy) = (File::open("a")?, File::create("b")?);
/// let peer = TcpStream::connect("host.example:9000")?;
/// let report = FanOut::new(&source)
///     .sink(&copy)
///     .sink(&peer)
///     .patience(Duration::from_secs(10))
///     .run(&mut ring)?;
/// for sink in report.sinks {
///     println!("{} bytes, {:?}", sink.bytes, sink.error);
/// }
/// # Ok(())
/// # }
/// ```
///
/// What it says of sources, sinks and `O_NONBLOCK` is said of a [`Relay`](super::Relay), with two
/// exceptions: a character device among the sinks has everything read into the pool, and any other
/// sink that cannot take the kernel's memory (`EFAULT`) is given up.
#[must_use = "a fan-out does nothing until it is run"]
pub struct FanOut<'a> {
    source: BorrowedFd<'a>,
    sinks: Vec<(BorrowedFd<'a>, u64)>,
    source_offset: u64,
    limit: u64,
    block_size: u32,
    depth: usize,
    lag: Option<usize>,
    patience: Option<Duration>,
    zero_copy_send: bool,
    discard_replies: bool,
    canceller: Option<Canceller>,
    progress: Option<Box<dyn FnMut(Progress) + 'a>>,
    done: Option<OnDone<'a>>,
}

impl<'a> FanOut<'a> {
    /// From a source that is open for reading.
    pub fn new(source: &'a impl AsFd) -> Self {
        Self {
            source: source.as_fd(),
            sinks: Vec::new(),
            source_offset: 0,
            limit: u64::MAX,
            block_size: u32::MAX,
            depth: usize::MAX,
            lag: None,
            patience: None,
            zero_copy_send: false,
            discard_replies: false,
            canceller: None,
            progress: None,
            done: None,
        }
    }

    /// Adds a sink that is open for writing.
    pub fn sink(self, sink: &'a impl AsFd) -> Self {
        self.sink_at(sink, 0)
    }

    /// Adds a sink that is written to from this offset on, in bytes. With [`STREAM`] a file is
    /// written where it stands, and its position moves over what was written; see
    /// [`Relay::sink_offset`](super::Relay::sink_offset).
    pub fn sink_at(mut self, sink: &'a impl AsFd, offset: u64) -> Self {
        self.sinks.push((sink.as_fd(), offset));
        self
    }

    /// Where in the source to begin, in bytes. Default 0. With [`STREAM`] a file is read from where
    /// it stands, and its position moves over what was read; see
    /// [`Relay::source_offset`](super::Relay::source_offset).
    pub fn source_offset(mut self, offset: u64) -> Self {
        self.source_offset = offset;
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

    /// Gives up a sink that is more than `blocks` blocks behind the one that is furthest. A number
    /// as large as the depth, or larger, counts as one less than the depth. Default: no sink is
    /// given up for this, and the fastest waits for the slowest.
    pub fn lag(mut self, blocks: usize) -> Self {
        self.lag = Some(blocks);
        self
    }

    /// Gives up a sink that has something to take and takes nothing for this long. Default: it has
    /// all the time it wants.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Whether to use `SEND_ZC` for sockets. Default no: what a receiver has not acknowledged would
    /// keep its leases, and a slow one could keep them all, whatever `lag` and `patience` say.
    pub fn zero_copy_send(mut self, yes: bool) -> Self {
        self.zero_copy_send = yes;
        self
    }

    /// Whether what a socket among the sinks sends back is read and thrown away while it is sent to.
    /// Default no. A receiver that talks while it receives can otherwise block both sides: it waits
    /// until somebody reads what it says, and takes nothing meanwhile.
    pub fn discard_replies(mut self, yes: bool) -> Self {
        self.discard_replies = yes;
        self
    }

    /// What may cancel it.
    pub fn canceller(mut self, canceller: &Canceller) -> Self {
        self.canceller = Some(canceller.clone());
        self
    }

    /// Called on this thread each time that something has moved. The bytes are those of the sink
    /// that is furthest.
    pub fn on_progress(mut self, call: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Some(Box::new(call));
        self
    }

    /// Called on this thread when a sink has everything or was given up: with its number, counted
    /// from 0, and what became of it. The ring does not hold the sink any more then, so what the
    /// caller shuts down is shut down.
    pub fn on_done(mut self, call: impl FnMut(usize, &SinkReport) + 'a) -> Self {
        self.done = Some(Box::new(call));
        self
    }

    /// Runs it until the source has ended and every sink has everything or was given up.
    ///
    /// Leases, events and requests of others on the same ring are left alone; events that come
    /// meanwhile are there afterwards.
    ///
    /// # Errors
    ///
    /// A [`FanFailure`] if the source or the ring fails, or it was cancelled. That a sink failed is
    /// no failure of the whole, even if it was the last one; see [`SinkReport::error`].
    pub fn run(mut self, ring: &mut Ring) -> Result<FanReport, FanFailure> {
        let engine = ring.engine();
        let mut report = FanReport { bytes: 0, copied: 0, engine, sinks: Vec::new() };
        for _ in &self.sinks {
            report.sinks.push(SinkReport { bytes: 0, error: None });
        }
        let done = self.start(ring, &mut report);
        if report.copied > report.bytes / 2 {
            report.engine = Engine::Copy;
        }
        match done {
            Ok(()) => Ok(report),
            Err(error) => Err(FanFailure { error, report }),
        }
    }

    fn start(&mut self, ring: &mut Ring, report: &mut FanReport) -> Result<()> {
        self.block_size = self.block_size.min(ring.block_size());
        self.depth = self.depth.min(ring.capacity());
        ring.empty_slots()?;
        if self.block_size == 0 || self.depth == 0 || ring.free() == 0 {
            return Err(unfit());
        }
        if self.sinks.is_empty() || self.sinks.len() > MOST_SINKS {
            let what = format!("{} sinks: there can be 1 to {MOST_SINKS}", self.sinks.len());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        check_offset(self.source_offset)?;
        let mut source = Source::of(self.source)?;
        for (sink, offset) in &self.sinks {
            check_offset(*offset)?;
            Sink::of(*sink)?;
            check_apart((self.source, self.source_offset), (*sink, *offset), self.limit)?;
        }
        let aside = match source.aside {
            true => Some(Aside::start(self.source, self.source_offset, self.limit)?),
            false => None,
        };
        let read = aside.as_ref().map_or(self.source, AsFd::as_fd);
        if aside.is_some() {
            source = Source::of(read)?;
        }
        let file = ring.attach(&read)?;
        let mut outs = Vec::with_capacity(self.sinks.len());
        let zero_copy = self.zero_copy_send && ring.support().features().send_zc;
        for (sink, begin) in &self.sinks {
            let mut out = Out::new(ring.attach(sink)?, *sink, Sink::of(*sink)?, *begin);
            out.zero_copy = zero_copy && out.kind == Sink::Socket;
            if self.discard_replies && out.kind == Sink::Socket {
                out.replies = Replies::Due;
            }
            outs.push(out);
        }
        self.block_size = source.block_size(self.block_size, ring.block_size());
        let (position, most) = match self.source_offset {
            STREAM => (rustix::fs::tell(self.source).unwrap_or(0), self.limit),
            // No file is longer.
            offset => (offset, self.limit.min(MAX_OFFSET - offset)),
        };
        let copied = outs.iter().any(|out| out.kind == Sink::Device);
        let mut run = Run {
            end: most,
            told: source.size.map(|size| size.saturating_sub(position).min(most)),
            position: source
                .seekable
                .then(|| Position::of(self.source, self.source_offset))
                .flatten(),
            taken: 0,
            again: VecDeque::new(),
            source,
            file,
            outs,
            copied,
            fetching: VecDeque::with_capacity(self.depth),
            blocks: VecDeque::with_capacity(self.depth),
            first: 0,
            next: 0,
            ended: false,
            fetches: 0,
            ours: vec![None; ring.capacity()].into(),
            gate: Gate::Open,
            fan: self,
            ring,
            report,
        };
        let mut done = run.run();
        // Whatever happened: nothing of it stays on the ring.
        let quiet = run.quiesce();
        for (out, report) in run.outs.iter().zip(&mut run.report.sinks) {
            report.bytes = out.bytes;
        }
        for out in &mut run.outs {
            out.at.end();
        }
        run.give_back();
        // Detached now: the peer of a stream that the caller closes next is to see its end.
        drop(run);
        ring.sweep();
        if let Some(errno) = aside.and_then(|aside| aside.error()) {
            done = done.and(Err(source_failed(errno)));
        }
        done.and(quiet)
    }
}

impl fmt::Debug for FanOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FanOut")
            .field("source", &self.source)
            .field("sinks", &self.sinks)
            .field("lag", &self.lag)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Most sinks: the tokens of their waits are apart from those of the source.
const MOST_SINKS: usize = 0xff00;
/// The tokens of waits until a sink can be written to, and until it has sent something back.
const WRITABLE: u32 = OWN_TOKENS;
const REPLIES: u32 = OWN_TOKENS | 1 << 16;

/// A fetch on its way. `position` counts from where the fan-out began.
struct Asked {
    position: u64,
    /// Where in the source.
    offset: u64,
    ahead: bool,
    bytes: u32,
    lease: Lease<Fetched>,
}

/// A lease that sinks take from.
struct Block {
    position: u64,
    /// Bytes of it that are to be moved. A direct fetch may bring more.
    bytes: u32,
    lease: Lease<Installed>,
}

/// What a sink sends back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replies {
    /// Nobody reads it: that was not asked for, or it has ended.
    Unheard,
    /// It may be there, to be thrown away.
    Due,
    /// A wait until something comes is in flight,
    Awaited,
    /// or is being cancelled.
    Ending,
}

/// One sink.
struct Out<'a> {
    fd: BorrowedFd<'a>,
    /// `None` once it is done or given up, and nothing of it is in flight.
    file: Option<Attached>,
    /// Its index among the ring's files. Nobody else has it as long as anything is in flight.
    place: u32,
    kind: Sink,
    at: At<'a>,
    direct: Direct<'a>,
    zero_copy: bool,
    /// The number of the block that it takes next, counted from the first one,
    block: u64,
    /// and how much of that it has.
    taken: u32,
    bytes: u64,
    /// What it is taking now.
    busy: Option<UseId>,
    /// `SEND_ZC` requests that have their result and still use their lease.
    unreturned: usize,
    gate: Gate,
    /// What it sends back.
    replies: Replies,
    /// Since when it has had something to take and has taken nothing.
    since: Option<Instant>,
    /// It has everything, or was given up.
    over: bool,
}

impl<'a> Out<'a> {
    fn new(file: Attached, fd: BorrowedFd<'a>, kind: Sink, offset: u64) -> Self {
        Self {
            fd,
            place: file.index(),
            file: Some(file),
            kind,
            at: At::new(fd, kind, offset),
            direct: Direct::of(fd, kind),
            zero_copy: false,
            block: 0,
            taken: 0,
            bytes: 0,
            busy: None,
            unreturned: 0,
            gate: Gate::Open,
            replies: Replies::Unheard,
            since: None,
            over: false,
        }
    }

    /// Whether nothing is in flight that writes to it.
    fn is_idle(&self) -> bool {
        self.busy.is_none() && self.gate != Gate::Waiting
    }

    /// Whether nothing of it is in flight.
    fn is_quiet(&self) -> bool {
        self.is_idle() && !matches!(self.replies, Replies::Awaited | Replies::Ending)
    }

    /// A wait has ended: for what it sends back, or until it can be written to.
    fn is_ready(&mut self, replies: bool) {
        match (replies, self.replies) {
            (false, _) => self.gate = Gate::Open,
            (true, Replies::Awaited) => self.replies = Replies::Due,
            (true, _) => self.replies = Replies::Unheard,
        }
    }

    /// Throws away what has come back.
    fn discard(&self) -> Replies {
        let mut scrap = [0; 4096];
        loop {
            match recv(self.fd, &mut scrap, RecvFlags::DONTWAIT) {
                Ok((1.., _)) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Replies::Awaited,
                // What is wrong with it is told where it is sent to.
                Ok(_) | Err(_) => return Replies::Unheard,
            }
        }
    }
}

struct Run<'r, 'a> {
    fan: &'r mut FanOut<'a>,
    ring: &'r mut Ring,
    report: &'r mut FanReport,
    source: Source,
    file: Attached,
    /// Where the source stands, if it is read there; how many bytes were taken from there, and which
    /// of them are to be fetched once more.
    position: Option<Position<'a>>,
    taken: u64,
    again: VecDeque<(u64, u32)>,
    outs: Vec<Out<'a>>,
    /// Everything goes through the pool.
    copied: bool,
    /// In the order of their positions.
    fetching: VecDeque<Asked>,
    /// Likewise, and before all of `fetching`.
    blocks: VecDeque<Block>,
    /// The number of the first of `blocks`.
    first: u64,
    /// Position of the next fetch.
    next: u64,
    /// Where the source says that it ends. Beyond it one fetch at a time asks for more.
    told: Option<u64>,
    /// Where it ends: there a fetch has got nothing, or it is not to go on.
    end: u64,
    /// Whether everything has been fetched.
    ended: bool,
    /// Fetches in flight, also of leases that were dropped.
    fetches: usize,
    /// Which lease of ours each slot holds.
    ours: Box<[Option<LeaseId>]>,
    gate: Gate,
}

impl Run<'_, '_> {
    fn run(&mut self) -> Result<()> {
        loop {
            self.settle()?;
            self.fetch()?;
            self.consume()?;
            self.give_up_the_slow()?;
            self.retire();
            if self.outs.iter().all(|out| out.over) {
                return Ok(());
            }
            self.fetch()?;
            self.wait()?;
            self.take_events();
            if self.fan.canceller.as_ref().is_some_and(Canceller::is_cancelled) {
                return Err(cancelled());
            }
            self.tell();
        }
    }

    /// What was taken of the source's position and no sink has is there for the next reader.
    fn give_back(&mut self) {
        let moved = self.outs.iter().map(|out| out.bytes).max().unwrap_or(0);
        if let Some(position) = &mut self.position {
            position.give_back_last(self.taken.saturating_sub(moved));
        }
    }

    /// Whether the source is fetched from ahead, at the next position.
    fn is_ahead(&self) -> bool {
        self.source.ahead && self.told.is_none_or(|told| self.next < told)
    }

    /// The number of the block after the last one.
    fn last(&self) -> u64 {
        self.first + self.blocks.len() as u64
    }

    /// Looks at the fetches, in order.
    fn settle(&mut self) -> Result<()> {
        while let Some(asked) = self.fetching.pop_front() {
            let Asked { position, offset, ahead, bytes, lease } = asked;
            match lease.installed() {
                Ok(lease) => {
                    let there = lease.len().min(bytes);
                    let after = position + u64::from(there);
                    self.report.bytes = after;
                    if lease.engine() == Engine::Copy {
                        self.report.copied += u64::from(there);
                    }
                    self.blocks.push_back(Block { position, bytes: there, lease });
                    if !ahead {
                        self.next = after;
                    } else if there < bytes {
                        self.fetch_anew(after, offset + u64::from(there), bytes - there);
                    }
                    if self.source.direct && there < bytes && !after.is_multiple_of(SECTOR.into()) {
                        // A direct read ends within a sector only where the file does.
                        self.end = after;
                    }
                }
                Err(NotInstalled::Pending(lease)) => {
                    self.fetching.push_front(Asked { position, offset, ahead, bytes, lease });
                    return Ok(());
                }
                Err(NotInstalled::EndOfFile) => {
                    self.fetching.clear();
                    self.next = position;
                    self.end = position;
                    self.ended = true;
                }
                Err(NotInstalled::Failed(Errno::INTR)) if ahead => {
                    self.fetch_anew(position, offset, bytes);
                }
                Err(NotInstalled::Failed(Errno::INTR)) => {}
                Err(NotInstalled::Failed(Errno::AGAIN)) if !self.source.seekable => {
                    self.gate = Gate::Shut;
                }
                Err(NotInstalled::Failed(errno)) => return Err(source_failed(errno)),
            }
        }
        Ok(())
    }

    /// What was asked for from here on is asked for once more: `rest` bytes at this offset, and what
    /// was fetched behind them.
    fn fetch_anew(&mut self, position: u64, offset: u64, rest: u32) {
        self.next = position;
        let behind = self.fetching.drain(..).map(|asked| (asked.offset, asked.bytes));
        let mut again: VecDeque<_> = behind.collect();
        again.push_front((offset, rest));
        if self.position.is_some() {
            again.append(&mut self.again);
            self.again = again;
        }
    }

    /// Starts fetches: as many as there are slots where the source has offsets, else one.
    fn fetch(&mut self) -> Result<()> {
        if self.gate == Gate::Shut {
            self.gate = Gate::Waiting;
            self.ring.poll(&self.file, libc::POLLIN as u32, SOURCE_READY)?;
        }
        if self.gate != Gate::Open {
            return Ok(());
        }
        if self.ring.free() == 0 {
            // Slots of leases that are over may still have to be emptied.
            self.ring.flush()?;
        }
        while !self.ended
            && self.blocks.len() + self.fetching.len() < self.fan.depth
            && self.ring.free() > 0
        {
            let ahead = self.is_ahead();
            if !ahead && !self.fetching.is_empty() {
                return Ok(());
            }
            // A direct fetch finds the end by itself, within a sector.
            let end = match self.told {
                Some(told) if ahead && !self.source.direct => told,
                _ => self.end,
            };
            let mut bytes =
                end.saturating_sub(self.next).min(u64::from(self.fan.block_size)) as u32;
            if bytes == 0 {
                self.ended = self.fetching.is_empty();
                return Ok(());
            }
            let mut offset = STREAM;
            match &mut self.position {
                None if self.source.seekable => offset = self.fan.source_offset + self.next,
                Some(_) if !self.again.is_empty() => {
                    (offset, bytes) = self.again.pop_front().unwrap_or_default();
                }
                Some(position) if ahead => match position.take(bytes) {
                    Ok(Some(taken)) => {
                        (offset, bytes) = taken;
                        self.taken += u64::from(bytes);
                    }
                    Ok(None) => {
                        self.end = self.next;
                        continue;
                    }
                    Err(errno) => return Err(source_failed(Errno::new(errno.raw_os_error()))),
                },
                _ => {}
            }
            // A direct read must ask for whole sectors.
            let len = if self.source.direct { bytes.next_multiple_of(SECTOR) } else { bytes };
            let at_position = self.position.is_some() && offset == STREAM;
            let lease = if self.copied || at_position {
                self.ring.fetch_copied(&self.file, offset, len)?
            } else {
                self.ring.fetch(&self.file, offset, len)?
            };
            self.ours[usize::from(lease.id().slot())] = Some(lease.id());
            self.fetches += 1;
            self.fetching.push_back(Asked { position: self.next, offset, ahead, bytes, lease });
            if ahead {
                self.next += u64::from(bytes);
            }
        }
        Ok(())
    }

    /// Has every sink take what is there for it.
    fn consume(&mut self) -> Result<()> {
        let now = self.fan.patience.map(|_| Instant::now());
        for index in 0..self.outs.len() {
            self.hear(index)?;
            let (first, last) = (self.first, self.last());
            let out = &mut self.outs[index];
            if out.over || !out.is_idle() {
                continue;
            }
            if out.block == last {
                if self.ended && self.fetching.is_empty() {
                    if out.unreturned > 0 {
                        out.since = out.since.or(now);
                    } else if out.is_quiet() {
                        self.done(index, None);
                    } else if let (Replies::Awaited, Some(file)) = (out.replies, &out.file) {
                        // It has everything: nobody waits for what it says any more.
                        out.replies = Replies::Ending;
                        self.ring.cancel_poll(file, REPLIES | index as u32)?;
                    }
                }
                continue;
            }
            out.since = out.since.or(now);
            let Some(file) = &out.file else { continue };
            if out.gate == Gate::Shut {
                out.gate = Gate::Waiting;
                self.ring.poll(file, libc::POLLOUT as u32, WRITABLE | index as u32)?;
                continue;
            }
            let block = &self.blocks[(out.block - first) as usize];
            let left = block.bytes - out.taken;
            let (offset, fits) = match out.at.place(block.position + u64::from(out.taken), left) {
                Ok(Some(place)) => place,
                Ok(None) => {
                    self.done(index, Some(sink_failed(Errno::FBIG)));
                    continue;
                }
                Err(errno) => {
                    self.done(index, Some(sink_failed(Errno::new(errno.raw_os_error()))));
                    continue;
                }
            };
            let (lease, range) = (&block.lease, out.taken..out.taken + fits);
            let id = match out.kind {
                Sink::Socket if out.zero_copy => {
                    self.ring.send_zc(lease, range, file, SendFlags::NONE)?
                }
                Sink::Socket => self.ring.send(lease, range, file, SendFlags::NONE)?,
                _ => self.ring.write(lease, range, file, offset)?,
            };
            out.busy = Some(id);
        }
        Ok(())
    }

    /// Throws away what a sink has sent back, and waits for more of it.
    fn hear(&mut self, index: usize) -> Result<()> {
        let out = &mut self.outs[index];
        if out.over || out.replies != Replies::Due {
            return Ok(());
        }
        out.replies = out.discard();
        if let (Replies::Awaited, Some(file)) = (out.replies, &out.file) {
            self.ring.poll(file, libc::POLLIN as u32, REPLIES | index as u32)?;
        }
        Ok(())
    }

    /// Gives up the sinks that have been too slow.
    fn give_up_the_slow(&mut self) -> Result<()> {
        let live = |out: &&Out| !out.over;
        let furthest = self.outs.iter().filter(live).map(|out| out.block).max().unwrap_or(0);
        let lag = self.fan.lag.map(|lag| lag.min(self.fan.depth - 1) as u64);
        let now = self.fan.patience.map(|patience| (patience, Instant::now()));
        for index in 0..self.outs.len() {
            let out = &self.outs[index];
            if out.over {
                continue;
            }
            let behind = furthest - out.block;
            let waited = now.zip(out.since).map(|((most, now), since)| (now - since, most));
            let why = match (lag, waited) {
                (Some(lag), _) if behind > lag => format!(
                    "the sink was {behind} blocks behind the fastest, and {lag} were allowed"
                ),
                (_, Some((waited, most))) if waited >= most => {
                    format!("the sink has taken nothing for {most:?}")
                }
                _ => continue,
            };
            self.give_up(index, Error::new(ErrorKind::Lagging, why))?;
        }
        Ok(())
    }

    fn give_up(&mut self, index: usize, error: Error) -> Result<()> {
        self.cancel(index)?;
        self.done(index, Some(error));
        Ok(())
    }

    /// Cancels what a sink has in flight.
    fn cancel(&mut self, index: usize) -> Result<()> {
        let out = &self.outs[index];
        if let Some(id) = out.busy {
            self.ring.cancel_use(id)?;
        }
        if let (Gate::Waiting, Some(file)) = (out.gate, &out.file) {
            self.ring.cancel_poll(file, WRITABLE | index as u32)?;
        }
        if let (Replies::Awaited, Some(file)) = (out.replies, &out.file) {
            self.ring.cancel_poll(file, REPLIES | index as u32)?;
        }
        Ok(())
    }

    /// Nothing more is to be done for this sink.
    fn done(&mut self, index: usize, error: Option<Error>) {
        let (out, report) = (&mut self.outs[index], &mut self.report.sinks[index]);
        out.over = true;
        // A request in flight keeps the file attached as long as it needs it.
        out.file = None;
        *report = SinkReport { bytes: out.bytes, error };
        self.ring.sweep();
        if let Some(call) = &mut self.fan.done {
            call(index, report);
        }
    }

    /// Lets go of the blocks that every sink has.
    fn retire(&mut self) {
        let slowest = self.outs.iter().filter(|out| !out.over).map(|out| out.block).min();
        while self.first < slowest.unwrap_or(self.last()) {
            self.blocks.pop_front();
            self.first += 1;
        }
    }

    /// Waits for completions, and not beyond what has to be looked at in time.
    fn wait(&mut self) -> Result<()> {
        self.ring.flush()?;
        let look = self.fan.canceller.as_ref().map(|_| LOOK);
        let patience = self.fan.patience.and_then(|patience| {
            let now = Instant::now();
            let oldest = self.outs.iter().filter(|out| !out.over).filter_map(|out| out.since).min();
            oldest.map(|since| (since + patience).saturating_duration_since(now))
        });
        match look.into_iter().chain(patience).min() {
            None => self.ring.enter(1),
            Some(timeout) => self.ring.enter_for(1, timeout),
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.ring.next_completion() {
            match event {
                Event::Fetched { lease, .. } if self.is_ours(lease) => self.fetches -= 1,
                Event::Used { id, result, more } if self.is_ours(id.lease()) => {
                    self.used(id, result, more);
                }
                Event::Returned { id } if self.is_ours(id.lease()) => {
                    let place = u32::from(id.token());
                    let is_it = |out: &&mut Out| out.place == place;
                    if let Some(out) = self.outs.iter_mut().find(is_it) {
                        out.unreturned -= 1;
                        out.since = None;
                    }
                }
                Event::Ready { token: SOURCE_READY, .. } => self.gate = Gate::Open,
                Event::Ready { token, .. } if token & OWN_TOKENS == OWN_TOKENS => {
                    if let Some(out) = self.outs.get_mut(token as usize & 0xffff) {
                        out.is_ready(token & REPLIES == REPLIES);
                    }
                }
                event => self.ring.keep(event),
            }
        }
    }

    fn is_ours(&self, lease: LeaseId) -> bool {
        self.ours[usize::from(lease.slot())] == Some(lease)
    }

    fn used(&mut self, id: UseId, result: Result<u32, Errno>, more: bool) {
        let Some(index) = self.outs.iter().position(|out| out.busy == Some(id)) else { return };
        let out = &mut self.outs[index];
        out.busy = None;
        out.unreturned += usize::from(more);
        if let Ok(bytes) = result {
            out.bytes += u64::from(bytes);
            out.at.took(bytes);
        }
        if out.over {
            // Given up before. It counts what it took all the same.
            self.report.sinks[index].bytes = out.bytes;
            return;
        }
        match result {
            Ok(0) => self.done(index, Some(sink_is_full())),
            Ok(bytes) => {
                out.since = None;
                out.taken += bytes;
                if out.taken == self.blocks[(out.block - self.first) as usize].bytes {
                    out.block += 1;
                    out.taken = 0;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if out.kind != Sink::File => out.gate = Gate::Shut,
            Err(Errno::OPNOTSUPP) if out.zero_copy => out.zero_copy = false,
            // No whole sectors.
            Err(Errno::INVAL) if out.direct.clear() => {}
            Err(errno) => self.done(index, Some(sink_failed(errno))),
        }
    }

    fn tell(&mut self) {
        if let Some(call) = &mut self.fan.progress {
            let bytes = self.outs.iter().map(|out| out.bytes).max().unwrap_or(0);
            let limit = (self.fan.limit != u64::MAX).then_some(self.fan.limit);
            let total = self.told.or(limit).map(|total| total.max(bytes));
            call(Progress { bytes, total });
        }
    }

    /// Brings what is in flight to its end, so that nothing of it is left on the ring.
    fn quiesce(&mut self) -> Result<()> {
        self.blocks.clear();
        self.fetching.clear();
        for index in 0..self.outs.len() {
            self.outs[index].over = true;
            self.cancel(index)?;
        }
        // What a lender refuses is repeated through the pool, and has to be cancelled once more.
        let mut cancel = self.fetches > 0 || self.gate == Gate::Waiting;
        while self.fetches > 0 || self.gate == Gate::Waiting || !self.outs.iter().all(Out::is_quiet)
        {
            cancel |= self.fetches > 0 && self.ring.has_requests();
            self.ring.flush()?;
            if std::mem::take(&mut cancel) {
                self.ring.cancel(&self.file)?;
            }
            self.ring.enter(1)?;
            self.take_events();
        }
        // The network may hold on to what was sent for as long as the peer leaves it there.
        for lease in self.ours.iter().flatten() {
            self.ring.mute(*lease);
        }
        Ok(())
    }
}
