// SPDX-License-Identifier: MIT OR Apache-2.0
//! One sink that takes the pieces of a feed in their order, at its own speed.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::net::{RecvFlags, recv};

use super::control::{sink_failed, sink_is_full};
use super::ends::{At, Direct, SinkKind};
use super::feed::{Feed, Gate};
use crate::engine::Origin;
use crate::error::{Errno, Error, Result};
use crate::ring::{Attached, OWN_TOKENS, Ring, Use};
use crate::slots::UseId;
use crate::slots::consume::SendFlags;

/// Most sinks: the tokens of their waits are apart from those of the source.
pub(super) const MOST_SINKS: usize = 0xff00;
/// The tokens of waits until a sink can be written to, and until it has sent something back.
const WRITABLE: u32 = OWN_TOKENS;
const REPLIES: u32 = OWN_TOKENS | 1 << 16;

/// Most consumers that are linked.
const BATCH: usize = 16;

/// The number of the sink that a wait was for, and whether it was for what the sink sends back.
pub(super) fn waited_for(token: u32) -> Option<(usize, bool)> {
    let is_ours = token & OWN_TOKENS == OWN_TOKENS;
    is_ours.then_some((token as usize & 0xffff, token & REPLIES == REPLIES))
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

/// How a sink is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Sockets are sent to with `SEND_ZC`.
    pub(super) zero_copy: bool,
    /// It is the only sink: consumers are linked, so that one system call serves many, and pieces
    /// that it cannot take are fetched again in another way.
    pub(super) alone: bool,
    /// What it sends back is read and thrown away.
    pub(super) discard_replies: bool,
    /// How many bytes at the begin of the source it does not get.
    pub(super) skip: u32,
}

/// One sink.
pub(super) struct Out<'a> {
    fd: BorrowedFd<'a>,
    /// Its number, counted from 0.
    number: usize,
    /// `None` once it is done or given up.
    file: Option<Attached>,
    /// Its index among the ring's files. Nobody else has it as long as anything is in flight.
    pub(super) index: u32,
    pub(super) kind: SinkKind,
    at: At<'a>,
    direct: Direct<'a>,
    manner: Manner,
    /// The number of the piece that it takes next,
    pub(super) piece: u64,
    /// and how much of that it has.
    taken: u32,
    /// Bytes that it took, and those of them that went through the pool.
    pub(super) bytes: u64,
    pub(super) copied: u64,
    /// What it is taking now, in order.
    batch: VecDeque<UseId>,
    /// A consumer of the batch ended early: those behind it are cancelled, and are sent again.
    broken: bool,
    /// `SEND_ZC` requests that have their result and still use their lease.
    unreturned: usize,
    gate: Gate,
    replies: Replies,
    /// Since when it has had something to take and has taken nothing.
    pub(super) since: Option<Instant>,
    /// Why it was given up.
    pub(super) error: Option<Error>,
    /// It has everything, or was given up.
    pub(super) over: bool,
}

impl<'a> Out<'a> {
    pub(super) fn new(
        number: usize,
        (fd, file): (BorrowedFd<'a>, Attached),
        kind: SinkKind,
        offset: u64,
        mut manner: Manner,
    ) -> Self {
        let is_socket = kind == SinkKind::Socket;
        manner.zero_copy &= is_socket;
        let hears = manner.discard_replies && is_socket;
        Self {
            fd,
            number,
            index: file.index(),
            file: Some(file),
            kind,
            at: At::new(fd, kind, offset),
            direct: Direct::of(fd, kind),
            manner,
            piece: 0,
            taken: manner.skip,
            bytes: 0,
            copied: 0,
            batch: VecDeque::with_capacity(BATCH),
            broken: false,
            unreturned: 0,
            gate: Gate::Open,
            replies: if hears { Replies::Due } else { Replies::Unheard },
            since: None,
            error: None,
            over: false,
        }
    }

    /// How many consumers are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.batch.len()
    }

    /// Whether nothing is in flight that writes to it.
    fn is_idle(&self) -> bool {
        self.batch.is_empty() && self.gate != Gate::Waiting
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_idle() && !matches!(self.replies, Replies::Awaited | Replies::Ending)
    }

    /// Goes on with what is there for it. Whether it has everything.
    pub(super) fn go_on(
        &mut self,
        ring: &mut Ring,
        feed: &Feed<'_>,
        now: Option<Instant>,
    ) -> Result<bool> {
        self.hear(ring)?;
        while self.taken > 0 && self.taken >= feed.piece(self.piece).map_or(u32::MAX, |p| p.0.len) {
            // What it is not to get is more than a piece.
            self.taken -= feed.piece(self.piece).map_or(0, |p| p.0.len);
            self.piece += 1;
        }
        if !self.is_idle() {
            return Ok(false);
        }
        if self.piece == feed.last() {
            let is_over = feed.is_complete() && feed.error().is_none();
            return if is_over { self.finish(ring, now) } else { Ok(false) };
        }
        self.since = self.since.or(now);
        self.consume(ring, feed)?;
        Ok(false)
    }

    /// Whether it has taken everything that is there.
    pub(super) fn has_all(&self, feed: &Feed<'_>) -> bool {
        self.is_idle() && self.piece == feed.last()
    }

    /// Everything was taken. Whether nothing is left to wait for.
    fn finish(&mut self, ring: &mut Ring, now: Option<Instant>) -> Result<bool> {
        if self.unreturned > 0 {
            self.since = self.since.or(now);
            return Ok(false);
        }
        if let (Replies::Awaited, Some(file)) = (self.replies, &self.file) {
            // Nobody waits for what it says any more.
            self.replies = Replies::Ending;
            ring.cancel_poll(file, REPLIES | self.number as u32)?;
        }
        Ok(self.is_quiet())
    }

    /// Queues consumers for the pieces that are there, linked if there are many.
    fn consume(&mut self, ring: &mut Ring, feed: &Feed<'_>) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.gate == Gate::Shut {
            self.gate = Gate::Waiting;
            return ring.poll(file, libc::POLLOUT as u32, WRITABLE | self.number as u32);
        }
        self.broken = false;
        let most = match self.manner.alone && !self.at.is_position() {
            true => BATCH.min(ring.queue_capacity()),
            false => 1,
        };
        let mut rooms = [const { (0, 0..0) }; BATCH];
        let mut count = 0;
        let mut taken = self.taken;
        while count < most
            && let Some((span, _)) = feed.piece(self.piece + count as u64)
        {
            let position = span.position + u64::from(taken) - u64::from(self.manner.skip);
            match self.at.room(position, span.len - taken) {
                Ok(Some((offset, fits))) => {
                    rooms[count] = (offset, taken..taken + fits);
                    count += 1;
                    if taken + fits < span.len {
                        break;
                    }
                }
                Ok(None) if count > 0 => break,
                Ok(None) => return Err(sink_failed(Errno::FBIG)),
                Err(errno) => return Err(sink_failed(Errno::new(errno.raw_os_error()))),
            }
            taken = 0;
        }
        if !self.manner.alone {
            let ((offset, range), Some((_, lease))) = (rooms[0].clone(), feed.piece(self.piece))
            else {
                return Ok(());
            };
            self.batch.push_back(match self.kind {
                SinkKind::Socket if self.manner.zero_copy => {
                    ring.send_zc(lease, range, file, SendFlags::NONE)?
                }
                SinkKind::Socket => ring.send(lease, range, file, SendFlags::NONE)?,
                _ => ring.write(lease, range, file, offset)?,
            });
            return Ok(());
        }
        let (kind, zero_copy, first) = (self.kind, self.manner.zero_copy, self.piece);
        let uses = (0..count).map(|index| {
            let (_, lease) = feed.piece(first + index as u64).expect("it is ready");
            let (offset, range) = rooms[index].clone();
            let consumer = match kind {
                SinkKind::Socket if zero_copy => Use::SendZc,
                SinkKind::Socket => Use::Send,
                _ => Use::Write { offset },
            };
            (lease, range, consumer)
        });
        let batch = &mut self.batch;
        ring.use_in_order(file, uses, |id| batch.push_back(id))
    }

    /// A consumer has its result: `None` if it was another sink's.
    pub(super) fn used(
        &mut self,
        feed: &mut Feed<'_>,
        id: UseId,
        result: Result<u32, Errno>,
        more: bool,
    ) -> Option<Result<()>> {
        let index = self.batch.iter().position(|used| *used == id)?;
        self.batch.remove(index);
        self.unreturned += usize::from(more);
        if let Ok(bytes @ 1..) = result {
            self.took(feed, bytes);
            return Some(Ok(()));
        }
        let was_broken = std::mem::replace(&mut self.broken, true);
        Some(match result {
            Ok(_) => Err(sink_is_full()),
            // It waited behind one that ended early.
            Err(Errno::CANCELED) if was_broken => Ok(()),
            Err(Errno::INTR) => Ok(()),
            Err(Errno::AGAIN) if self.kind != SinkKind::File => {
                self.gate = Gate::Shut;
                Ok(())
            }
            Err(Errno::OPNOTSUPP) if self.manner.zero_copy => {
                self.manner.zero_copy = false;
                Ok(())
            }
            // No whole sectors: those behind it are cancelled by the link.
            Err(Errno::INVAL) if self.direct.clear() => Ok(()),
            Err(Errno::FAULT)
                if self.manner.alone && feed.fetch_again_copied(self.piece, self.taken) =>
            {
                self.taken = 0;
                Ok(())
            }
            Err(errno) => Err(sink_failed(errno)),
        })
    }

    fn took(&mut self, feed: &Feed<'_>, bytes: u32) {
        self.since = None;
        self.bytes += u64::from(bytes);
        self.at.took(bytes);
        self.taken += bytes;
        let Some((span, lease)) = feed.piece(self.piece) else { return };
        if lease.origin() == Origin::Copy {
            self.copied += u64::from(bytes);
        }
        if self.taken == span.len {
            self.piece += 1;
            self.taken = 0;
        } else {
            self.broken = true;
        }
    }

    /// The network does not need a piece any more.
    pub(super) fn returned(&mut self) {
        self.unreturned -= 1;
        self.since = None;
    }

    /// A wait has ended: for what it sends back, or until it can be written to.
    pub(super) fn is_ready(&mut self, replies: bool) {
        match (replies, self.replies) {
            (false, _) => self.gate = Gate::Open,
            (true, Replies::Awaited) => self.replies = Replies::Due,
            (true, _) => self.replies = Replies::Unheard,
        }
    }

    /// Throws away what it has sent back, and waits for more of it.
    fn hear(&mut self, ring: &mut Ring) -> Result<()> {
        if self.replies != Replies::Due {
            return Ok(());
        }
        self.replies = discard(self.fd);
        match (self.replies, &self.file) {
            (Replies::Awaited, Some(file)) => {
                ring.poll(file, libc::POLLIN as u32, REPLIES | self.number as u32)
            }
            _ => Ok(()),
        }
    }

    /// Cancels what is in flight.
    pub(super) fn cancel(&self, ring: &mut Ring) -> Result<()> {
        for id in &self.batch {
            ring.cancel_use(*id)?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        if self.gate == Gate::Waiting {
            ring.cancel_poll(file, WRITABLE | self.number as u32)?;
        }
        if self.replies == Replies::Awaited {
            ring.cancel_poll(file, REPLIES | self.number as u32)?;
        }
        Ok(())
    }

    /// Nothing more is to be done for it. What is in flight keeps the file attached as long as it
    /// needs it.
    pub(super) fn close(&mut self, error: Option<Error>) {
        self.over = true;
        self.file = None;
        self.error = error;
    }

    /// Nothing more is in flight.
    pub(super) fn end(&mut self) {
        self.at.end();
    }
}

/// Throws away what a socket has received.
fn discard(socket: BorrowedFd<'_>) -> Replies {
    let mut scrap = [0; 4096];
    loop {
        match recv(socket, &mut scrap, RecvFlags::DONTWAIT) {
            Ok((1.., _)) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Replies::Awaited,
            // What is wrong with it is told where it is sent to.
            Ok(_) | Err(_) => return Replies::Unheard,
        }
    }
}
