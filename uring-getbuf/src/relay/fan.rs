// SPDX-License-Identifier: MIT OR Apache-2.0
//! One source, many sinks: every block is fetched once, and each sink takes it at its own speed.
//!
//! A block is kept until every sink has it, so the fastest sink can be ahead of the slowest by as
//! many blocks as there are leases. Beyond that it waits, unless the slowest one is given up first;
//! see [`FanOut::lag`] and [`FanOut::patience`].

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::control::{Canceller, Control, Progress, check_fit, mostly};
use super::ends::{SinkKind, check_apart, check_offset};
use super::extent::Extent;
use super::feed::Feed;
use super::mover::{Mover, Patience};
use super::opened::Opened;
use super::out::{MOST_SINKS, Manner, Out};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::ring::Ring;

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
    control: Control<'a>,
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
            control: Control::default(),
            done: None,
        }
    }

    /// Adds a sink that is open for writing.
    pub fn sink(self, sink: &'a impl AsFd) -> Self {
        self.sink_at(sink, 0)
    }

    /// Adds a sink that is written to from this offset on, in bytes. With [`STREAM`](crate::STREAM) a file is
    /// written where it stands, and its position moves over what was written; see
    /// [`Relay::sink_offset`](super::Relay::sink_offset).
    pub fn sink_at(mut self, sink: &'a impl AsFd, offset: u64) -> Self {
        self.sinks.push((sink.as_fd(), offset));
        self
    }

    /// Where in the source to begin, in bytes. Default 0. With [`STREAM`](crate::STREAM) a file is read from where
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
        self.control.canceller = Some(canceller.clone());
        self
    }

    /// Called on this thread each time that something has moved. The bytes are those of the sink
    /// that is furthest.
    pub fn on_progress(mut self, call: impl FnMut(Progress) + 'a) -> Self {
        self.control.progress = Some(Box::new(call));
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
        report.engine = mostly(engine, report.bytes, report.copied);
        match done {
            Ok(()) => Ok(report),
            Err(error) => Err(FanFailure { error, report }),
        }
    }

    fn start(&mut self, ring: &mut Ring, report: &mut FanReport) -> Result<()> {
        let depth = self.depth.min(ring.capacity());
        let block_size = self.block_size.min(ring.block_size());
        check_fit(ring, block_size, depth)?;
        if self.sinks.is_empty() || self.sinks.len() > MOST_SINKS {
            let what = format!("{} sinks: there can be 1 to {MOST_SINKS}", self.sinks.len());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        check_offset(self.source_offset)?;
        for (sink, offset) in &self.sinks {
            check_offset(*offset)?;
            SinkKind::of(*sink)?;
            check_apart((self.source, self.source_offset), (*sink, *offset), self.limit)?;
        }
        let source = Opened::new(self.source, self.source_offset, self.limit)?;
        let block_size = source.kind.block_size(block_size, ring.block_size());
        let file = ring.attach(&source)?;
        let manner = Manner {
            zero_copy: self.zero_copy_send && ring.support().features().send_zc,
            alone: false,
            discard_replies: self.discard_replies,
            skip: 0,
        };
        let mut outs = Vec::with_capacity(self.sinks.len());
        for (number, (sink, offset)) in self.sinks.iter().enumerate() {
            let (kind, attached) = (SinkKind::of(*sink)?, ring.attach(sink)?);
            outs.push(Out::new(number, (*sink, attached), kind, *offset, manner));
        }
        let begin = (self.source_offset, 0);
        let extent = Extent::new(source.as_fd(), source.kind, begin, self.limit, block_size);
        let mut feed = Feed::new(ring, file, extent, depth);
        feed.copies = outs.iter().any(|out| out.kind == SinkKind::Device);
        let lag = self.lag.map(|lag| lag.min(depth - 1) as u64);
        let on_done = &mut self.done;
        let mut mover = Mover {
            ring,
            control: &mut self.control,
            feed,
            outs,
            patience: Patience { lag, time: self.patience },
            on_over: &mut |number, out| {
                let sink = &mut report.sinks[number];
                *sink = SinkReport { bytes: out.bytes, error: out.error.take() };
                if let Some(call) = on_done {
                    call(number, sink);
                }
            },
        };
        let done = mover.run();
        let Mover { feed, outs, .. } = mover;
        for (out, sink) in outs.iter().zip(&mut report.sinks) {
            // What it took after it was given up counts all the same.
            sink.bytes = out.bytes;
        }
        (report.bytes, report.copied) = (feed.fetched, feed.copied);
        // Detached now: the peer of a stream that the caller closes next is to see its end.
        drop((feed, outs));
        let settled = ring.end_cancellations();
        ring.sweep();
        done.and(source.check()).and(settled)
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
