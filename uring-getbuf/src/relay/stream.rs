// SPDX-License-Identifier: MIT OR Apache-2.0
//! In order: fetches run ahead where the source has offsets, consumers follow one another.
//!
//! Consumers that can go are queued together, linked, so that one system call serves many; one that
//! ends early or fails breaks the link, and the next round begins where it stopped.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use rustix::net::{getpeername, getsockname};

use super::inspect::Head;
use super::{At, Direct, Ends, Flow, Position, Relay, SECTOR, Sink, Source};
use crate::consume::STREAM;
use crate::engine::Engine;
use crate::error::{Errno, Result};
use crate::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::ring::{Ring, Use};
use crate::slots::{Event, LeaseId, UseId};

/// Most consumers that are linked.
const BATCH: usize = 16;

/// The tokens of waits for a file to be ready.
pub(super) const SOURCE_READY: u32 = u32::MAX - 1;
const SINK_READY: u32 = u32::MAX - 2;

/// A lease on its way. `position` counts from where the relay began.
struct Block {
    position: u64,
    /// Where in the source.
    offset: u64,
    asked: u32,
    lease: Stage,
}

impl Block {
    /// What there is of what was asked for. A direct fetch may bring more.
    fn there(&self, lease: &Lease<Installed>) -> u32 {
        lease.len().min(self.asked)
    }
}

enum Stage {
    Fetching(Lease<Fetched>),
    /// Some of its bytes may have been consumed.
    Ready(Lease<Installed>, u32),
    /// To be fetched again.
    Again,
}

/// One end's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// It answered `EAGAIN`.
    Shut,
    /// A wait until it is ready is in flight.
    Waiting,
}

struct Stream<'r, 'a> {
    relay: &'r mut Relay<'a>,
    ring: &'r mut Ring,
    files: &'r Ends,
    source: Source,
    sink: Sink,
    /// Where the source stands, if it is read there.
    position: Option<Position<'a>>,
    at: At<'r>,
    direct: Direct<'r>,
    flow: &'r mut Flow,
    /// In the order of their positions.
    blocks: VecDeque<Block>,
    /// Consumers in flight, with the position of their block; in order.
    batch: VecDeque<(UseId, u64)>,
    /// A consumer of the batch ended early: those behind it are cancelled, and are sent again.
    broken: bool,
    /// Which lease of ours each slot holds.
    ours: Box<[Option<LeaseId>]>,
    /// Fetches in flight.
    fetches: usize,
    /// `SEND_ZC` requests that have their result and still use their lease.
    unreturned: usize,
    /// Position of the next block.
    next: u64,
    /// Bytes at the begin that are not moved.
    skipped: u64,
    /// Where the source says that it ends. Beyond it one fetch at a time asks for more.
    told: Option<u64>,
    /// Where it ends: there a fetch has got nothing, or it is not to go on.
    end: u64,
    source_gate: Gate,
    sink_gate: Gate,
    zero_copy: bool,
}

/// Whether what a socket is sent stays on this machine. The kernel then copies it when it is
/// received, also where it was sent without a copy, and `SEND_ZC` only adds its notification.
fn stays_here(socket: BorrowedFd<'_>) -> bool {
    let host = |address| Some(SocketAddr::try_from(address).ok()?.ip().to_canonical());
    let own = getsockname(socket).ok().and_then(host);
    let peer = getpeername(socket).ok().flatten().and_then(host);
    is_same_machine(own, peer)
}

/// A UNIX socket has neither.
fn is_same_machine(own: Option<IpAddr>, peer: Option<IpAddr>) -> bool {
    peer.is_none_or(|peer| peer.is_loopback() || own == Some(peer))
}

pub(super) fn run<'r>(
    relay: &mut Relay<'_>,
    ring: &mut Ring,
    files: &Ends,
    (source, sink): (Source, Sink),
    (at, direct): (At<'r>, Direct<'r>),
    flow: &mut Flow,
    head: Head,
) -> Result<()> {
    let skipped = u64::from(head.skip);
    let end = relay.most().saturating_add(skipped);
    let told = relay.told(source).map(|told| told.saturating_add(skipped).min(end));
    let zero_copy = sink == Sink::Socket
        && ring.support().features().send_zc
        && relay
            .zero_copy_send
            .unwrap_or_else(|| ring.engine() != Engine::Copy && !stays_here(relay.sink));
    let position =
        if source.seekable { Position::of(relay.source, relay.source_offset) } else { None };
    // What a stream has given cannot be fetched again in another way.
    flow.copies = sink == Sink::Device && !source.seekable;
    let mut stream = Stream {
        skipped,
        blocks: VecDeque::with_capacity(relay.depth + 1),
        batch: VecDeque::with_capacity(BATCH),
        broken: false,
        ours: vec![None; ring.capacity()].into(),
        fetches: 0,
        unreturned: 0,
        next: 0,
        told,
        end,
        source_gate: Gate::Open,
        sink_gate: Gate::Open,
        zero_copy,
        relay,
        ring,
        files,
        source,
        sink,
        position,
        at,
        direct,
        flow,
    };
    stream.begin_with(head);
    let done = stream.run();
    stream.at.end();
    stream.give_back();
    done
}

impl Stream<'_, '_> {
    /// What an inspector has seen of a stream comes first.
    fn begin_with(&mut self, head: Head) {
        let mut skip = head.skip;
        for lease in head.leases {
            let there = u64::from(lease.len()).min(self.end - self.next) as u32;
            let position = self.next;
            self.next += u64::from(there);
            let done = skip.min(there);
            skip -= done;
            if done < there {
                self.ours[usize::from(lease.id().slot())] = Some(lease.id());
                let lease = Stage::Ready(lease, done);
                self.blocks.push_back(Block { position, offset: STREAM, asked: there, lease });
            }
        }
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.settle();
            if self.flow.error.is_none() {
                self.consume()?;
            }
            if self.ring.free() == 0 {
                // Slots of leases that are over may still have to be emptied.
                self.ring.flush()?;
            }
            if self.flow.error.is_none() {
                self.fetch()?;
            }
            if self.flow.error.is_some() {
                return self.abandon();
            }
            if self.idle() && self.unreturned == 0 && self.next >= self.end {
                return Ok(());
            }
            self.relay.wait(self.ring, self.batch.len().max(1), self.flow)?;
            self.take_events();
            self.relay.report_progress(self.flow, self.told.map(|told| told - self.skipped));
        }
    }

    /// What was taken of the source's position and not moved is there for the next reader.
    fn give_back(&mut self) {
        if let Some(position) = &mut self.position {
            position.give_back_last(self.next.saturating_sub(self.flow.moved + self.skipped));
        }
    }

    /// Whether the source is fetched from ahead, at the next position.
    fn is_ahead(&self) -> bool {
        self.source.ahead && self.told.is_none_or(|told| self.next < told)
    }

    /// Whether nothing is to be done or waited for.
    fn idle(&self) -> bool {
        self.blocks.is_empty()
            && self.batch.is_empty()
            && self.fetches == 0
            && self.source_gate != Gate::Waiting
            && self.sink_gate != Gate::Waiting
    }

    /// Brings what is in flight to its end, so that nothing of it is left on the ring.
    fn abandon(&mut self) -> Result<()> {
        self.blocks.clear();
        // What a lender refuses is repeated through the pool, and has to be cancelled once more.
        let mut cancel = true;
        while !self.idle() {
            cancel |= self.ring.has_requests();
            self.ring.flush()?;
            if std::mem::take(&mut cancel) {
                self.files.cancel(self.ring)?;
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

    /// Starts fetches: as many as there are slots where the source has offsets, else one.
    fn fetch(&mut self) -> Result<()> {
        match self.source_gate {
            Gate::Open => {}
            Gate::Waiting => return Ok(()),
            Gate::Shut => {
                self.source_gate = Gate::Waiting;
                return self.ring.poll(&self.files.source, libc::POLLIN as u32, SOURCE_READY);
            }
        }
        for index in 0..self.blocks.len() {
            let Block { offset, asked, ref lease, .. } = self.blocks[index];
            if matches!(lease, Stage::Again) && self.ring.free() > 0 {
                self.blocks[index].lease = self.begin(offset, asked)?;
            }
        }
        while self.blocks.len() < self.relay.depth && self.ring.free() > 0 && self.next < self.end {
            let ahead = self.is_ahead();
            if !ahead && self.is_fetching() {
                break;
            }
            // A direct fetch finds the end by itself, within a sector.
            let end = match self.told {
                Some(told) if ahead && !self.source.direct => told,
                _ => self.end,
            };
            let mut asked = (end - self.next).min(u64::from(self.relay.block_size)) as u32;
            let mut offset = STREAM;
            match &mut self.position {
                None if self.source.seekable => offset = self.relay.source_offset + self.next,
                Some(position) if ahead => match position.take(asked) {
                    Ok(Some(taken)) => (offset, asked) = taken,
                    Ok(None) => {
                        self.end = self.next;
                        break;
                    }
                    Err(errno) => {
                        self.flow.source_failed(Errno::new(errno.raw_os_error()));
                        break;
                    }
                },
                _ => {}
            }
            let lease = self.begin(offset, asked)?;
            self.blocks.push_back(Block { position: self.next, offset, asked, lease });
            // Where a stream's next block starts is known when this one's bytes are there.
            if ahead {
                self.next += u64::from(asked);
            }
        }
        Ok(())
    }

    fn is_fetching(&self) -> bool {
        self.blocks.back().is_some_and(|block| !matches!(block.lease, Stage::Ready(..)))
    }

    fn begin(&mut self, offset: u64, asked: u32) -> Result<Stage> {
        // A direct read must ask for whole sectors.
        let asked = if self.source.direct { asked.next_multiple_of(SECTOR) } else { asked };
        let at_position = self.position.is_some() && offset == STREAM;
        let lease = if self.flow.copies || at_position {
            self.ring.fetch_copied(&self.files.source, offset, asked)?
        } else {
            self.ring.fetch(&self.files.source, offset, asked)?
        };
        self.ours[usize::from(lease.id().slot())] = Some(lease.id());
        self.fetches += 1;
        Ok(Stage::Fetching(lease))
    }

    /// Looks at the fetches, in order.
    fn settle(&mut self) {
        let mut index = 0;
        while index < self.blocks.len() {
            let block = &mut self.blocks[index];
            block.lease = match std::mem::replace(&mut block.lease, Stage::Again) {
                Stage::Fetching(lease) => match lease.installed() {
                    Ok(lease) => {
                        let (len, asked) = (block.there(&lease), block.asked);
                        let after = block.position + u64::from(len);
                        let offset = block.offset.saturating_add(len.into());
                        let ahead = after <= self.next;
                        block.lease = Stage::Ready(lease, 0);
                        if self.source.direct && len < asked && !after.is_multiple_of(SECTOR.into())
                        {
                            // A direct read ends within a sector only where the file does, and
                            // cannot begin there.
                            self.end = self.end.min(after);
                            self.next = self.next.max(after);
                            return self.blocks.truncate(index + 1);
                        } else if !ahead {
                            self.next = after;
                        } else if len < asked {
                            // The rest comes before what was fetched behind this block.
                            let asked = asked - len;
                            let lease = Stage::Again;
                            let rest = Block { position: after, offset, asked, lease };
                            self.blocks.insert(index + 1, rest);
                        }
                        index += 1;
                        continue;
                    }
                    Err(NotInstalled::Pending(lease)) => Stage::Fetching(lease),
                    Err(NotInstalled::EndOfFile) => {
                        self.end = self.end.min(block.position);
                        return self.blocks.truncate(index);
                    }
                    Err(NotInstalled::Failed(Errno::INTR)) => Stage::Again,
                    Err(NotInstalled::Failed(Errno::AGAIN)) if !self.source.seekable => {
                        self.source_gate = Gate::Shut;
                        Stage::Again
                    }
                    Err(NotInstalled::Failed(errno)) => return self.flow.source_failed(errno),
                },
                other => other,
            };
            index += 1;
        }
    }

    /// Queues consumers for the blocks at the front that are there, linked.
    fn consume(&mut self) -> Result<()> {
        match self.sink_gate {
            Gate::Open if self.batch.is_empty() => {}
            Gate::Open | Gate::Waiting => return Ok(()),
            Gate::Shut => {
                self.sink_gate = Gate::Waiting;
                return self.ring.poll(&self.files.sink, libc::POLLOUT as u32, SINK_READY);
            }
        }
        self.broken = false;
        let most = match self.at.is_position() {
            true => 1,
            false => BATCH.min(self.ring.queue_capacity()),
        };
        let mut places = [(0, 0); BATCH];
        let mut count = 0;
        for block in self.blocks.iter().take(most) {
            let Stage::Ready(lease, done) = &block.lease else { break };
            let (begin, len) = (block.position + u64::from(*done), block.there(lease) - done);
            match self.at.place(begin - self.skipped, len) {
                Ok(Some((offset, fits))) => {
                    places[count] = (offset, fits);
                    count += 1;
                    if fits < len {
                        break;
                    }
                }
                Ok(None) => {
                    if count == 0 {
                        self.flow.sink_failed(Errno::FBIG);
                    }
                    break;
                }
                Err(errno) => {
                    self.flow.sink_failed(Errno::new(errno.raw_os_error()));
                    return Ok(());
                }
            }
        }
        let (sink, zero_copy) = (self.sink, self.zero_copy);
        let uses = self.blocks.range(..count).zip(places).map(|(block, (offset, fits))| {
            let Stage::Ready(lease, done) = &block.lease else { unreachable!("they are ready") };
            let consumer = match sink {
                Sink::Socket if zero_copy => Use::SendZc,
                Sink::Socket => Use::Send,
                Sink::File | Sink::Stream | Sink::Device => Use::Write { offset },
            };
            (lease, *done..done + fits, consumer)
        });
        let mut positions = self.blocks.iter().map(|block| block.position);
        let batch = &mut self.batch;
        self.ring.use_in_order(&self.files.sink, uses, |id| {
            batch.extend(positions.next().map(|position| (id, position)));
        })
    }

    fn take_events(&mut self) {
        while let Some(event) = self.ring.next_completion() {
            match event {
                Event::Fetched { lease, .. } if self.is_ours(lease) => self.fetches -= 1,
                Event::Used { id, result, more } if self.is_ours(id.lease()) => {
                    self.unreturned += usize::from(more);
                    self.used(id, result);
                }
                Event::Returned { id } if self.is_ours(id.lease()) => self.unreturned -= 1,
                Event::Ready { token: SOURCE_READY, .. } => self.source_gate = Gate::Open,
                Event::Ready { token: SINK_READY, .. } => self.sink_gate = Gate::Open,
                event => self.ring.keep(event),
            }
        }
    }

    fn is_ours(&self, lease: LeaseId) -> bool {
        self.ours[usize::from(lease.slot())] == Some(lease)
    }

    fn used(&mut self, id: UseId, result: Result<u32, Errno>) {
        let Some(index) = self.batch.iter().position(|(used, _)| *used == id) else { return };
        let Some((_, position)) = self.batch.remove(index) else { return };
        match result {
            Ok(0) => self.flow.sink_is_full(),
            Ok(bytes) => self.moved(position, bytes),
            // It waited behind one that ended early.
            Err(Errno::CANCELED) if self.broken => {}
            Err(Errno::INTR) => self.broken = true,
            Err(Errno::AGAIN) if self.sink != Sink::File => {
                self.broken = true;
                self.sink_gate = Gate::Shut;
            }
            Err(Errno::OPNOTSUPP) if self.zero_copy => {
                self.broken = true;
                self.zero_copy = false;
            }
            Err(Errno::FAULT) if self.fetch_again_copied(position) => self.broken = true,
            // No whole sectors: those behind it are cancelled by the link.
            Err(Errno::INVAL) if self.direct.clear() => self.broken = true,
            Err(errno) => {
                self.broken = true;
                self.flow.sink_failed(errno);
            }
        }
    }

    /// The sink cannot take the kernel's memory: what it has not taken of a block is read into the
    /// pool. False if the block is there already, or cannot be fetched twice.
    fn fetch_again_copied(&mut self, position: u64) -> bool {
        let block = self.blocks.iter_mut().find(|block| block.position == position);
        match block {
            Some(Block { position, offset, asked, lease: stage @ Stage::Ready(..) })
                if *offset != STREAM =>
            {
                let Stage::Ready(lease, done) = std::mem::replace(stage, Stage::Again) else {
                    return false;
                };
                if lease.engine() == Engine::Copy {
                    *stage = Stage::Ready(lease, done);
                    return false;
                }
                *position += u64::from(done);
                *offset += u64::from(done);
                *asked = lease.len().min(*asked) - done;
                self.flow.copies = true;
                true
            }
            _ => false,
        }
    }

    /// The sink has taken that many more bytes of a block.
    fn moved(&mut self, position: u64, bytes: u32) {
        self.flow.moved += u64::from(bytes);
        self.at.took(bytes);
        let Some(index) = self.blocks.iter().position(|block| block.position == position) else {
            return;
        };
        let block = &mut self.blocks[index];
        if let Stage::Ready(lease, done) = &mut block.lease {
            let there = lease.len().min(block.asked);
            if lease.engine() == Engine::Copy {
                self.flow.copied += u64::from(bytes);
            }
            *done += bytes;
            if *done < there {
                self.broken = true;
            } else {
                self.blocks.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_stays_on_this_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(stays_here(near.as_fd()));
        assert!(stays_here(UnixStream::pair().unwrap().0.as_fd()));
        let of = |text: &str| Some(text.parse().unwrap());
        assert!(is_same_machine(of("192.0.2.1"), of("192.0.2.1")));
        assert!(is_same_machine(of("::1"), of("::1")));
        assert!(!is_same_machine(of("192.0.2.1"), of("192.0.2.2")));
        assert!(!is_same_machine(of("2001:db8::1"), of("2001:db8::2")));
    }
}
