// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a move is told while it runs, what it tells, and how it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ring::Ring;

/// How often a move that can be cancelled looks whether it was, while nothing moves.
const LOOK: Duration = Duration::from_millis(100);

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that the sink has taken.
    pub bytes: u64,
    /// Bytes that there will be, as far as the source tells.
    pub total: Option<u64>,
}

/// Cancels a move, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// One that has not been used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The move ends within a tenth of a second with [`Cancelled`](ErrorKind::Cancelled); what is
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

/// What was moved to one sink.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Bytes that are there in order, without a gap,
    pub(super) right: u64,
    /// that the sink took in all,
    pub(super) taken: u64,
    /// and that went through the pool.
    pub(super) copied: u64,
}

/// The engine that most bytes came from.
pub(super) fn mostly(own: Engine, bytes: u64, copied: u64) -> Engine {
    if copied > bytes / 2 { Engine::Copy } else { own }
}

/// Who may end a move, and who is told how far it is.
#[derive(Default)]
pub(super) struct Control<'a> {
    pub(super) canceller: Option<Canceller>,
    pub(super) progress: Option<Box<dyn FnMut(Progress) + 'a>>,
}

impl Control<'_> {
    pub(super) fn is_cancelled(&self) -> bool {
        self.canceller.as_ref().is_some_and(Canceller::is_cancelled)
    }

    /// Fails if the move was cancelled.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits for so many completions, and not beyond what has to be looked at in time.
    pub(super) fn wait(&self, ring: &mut Ring, count: usize, most: Option<Duration>) -> Result<()> {
        ring.flush()?;
        let look = self.canceller.as_ref().map(|_| LOOK);
        match look.into_iter().chain(most).min() {
            None => ring.enter(count),
            Some(timeout) => ring.enter_for(count, timeout),
        }
    }

    pub(super) fn tell(&mut self, bytes: u64, total: Option<u64>) {
        if let Some(call) = &mut self.progress {
            call(Progress { bytes, total: total.map(|total| total.max(bytes)) });
        }
    }
}

#[cold]
pub(super) fn source_failed(errno: Errno) -> Error {
    let what = match errno {
        Errno::AGAIN => "reading from the source, whose file system does not know O_NONBLOCK",
        _ => "reading from the source",
    };
    Error::os(ErrorKind::Source, errno, what)
}

#[cold]
pub(super) fn sink_failed(errno: Errno) -> Error {
    let what = match errno {
        Errno::AGAIN => "writing to the sink, whose file system does not know O_NONBLOCK",
        _ => "writing to the sink",
    };
    Error::os(ErrorKind::Sink, errno, what)
}

#[cold]
pub(super) fn sink_is_full() -> Error {
    Error::new(ErrorKind::Sink, "writing to the sink: it takes nothing more")
}

#[cold]
pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}

/// Refuses blocks and depths with which nothing moves.
pub(super) fn check_fit(ring: &mut Ring, block_size: u32, depth: usize) -> Result<()> {
    ring.empty_slots()?;
    if block_size > 0 && depth > 0 && ring.free() > 0 {
        return Ok(());
    }
    let what = "a relay needs blocks of at least one byte, and at least one free slot";
    Err(Error::new(ErrorKind::InvalidInput, what))
}
