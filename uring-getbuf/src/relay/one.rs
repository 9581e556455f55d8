// SPDX-License-Identifier: MIT OR Apache-2.0
//! One source, one sink.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{getpeername, getsockname};

use super::at_once::AtOnce;
use super::blocks::Blocks;
use super::control::{Canceller, Control, Progress, Tally, check_fit, mostly};
use super::ends::{At, Direct, SinkKind, check_apart, check_offset};
use super::extent::Extent;
use super::feed::Feed;
use super::inspect::{Head, Inspector, Single, Verdict};
use super::mover::{Mover, Patience};
use super::opened::Opened;
use super::out::{Manner, Out};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ring::{Attached, Ring};
use crate::slots::consume::STREAM;

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
    /// Why. [`Source`](crate::ErrorKind::Source), [`Sink`](crate::ErrorKind::Sink) and
    /// [`Cancelled`](crate::ErrorKind::Cancelled) tell whose fault it was.
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

/// Moves everything from a source to a sink. See the [module](super).
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
    control: Control<'a>,
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
            control: Control::default(),
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
        self.control.canceller = Some(canceller.clone());
        self
    }

    /// Called on this thread each time that something has moved.
    pub fn on_progress(mut self, call: impl FnMut(Progress) + 'a) -> Self {
        self.control.progress = Some(Box::new(call));
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
        let (own, mut tally) = (ring.engine(), Tally::default());
        let done = self.start(ring, &mut tally);
        let Tally { right, taken, copied } = tally;
        let report = Report { bytes: right, taken, copied, engine: mostly(own, taken, copied) };
        done.map(|()| report).map_err(|error| Failure { error, report })
    }

    fn start(mut self, ring: &mut Ring, tally: &mut Tally) -> Result<()> {
        let depth = self.depth.min(ring.capacity());
        let block_size = self.block_size.min(ring.block_size());
        check_fit(ring, block_size, depth)?;
        check_offset(self.source_offset)?;
        check_offset(self.sink_offset)?;
        SinkKind::of(self.sink)?;
        self.check_apart(self.sink)?;
        let source = Opened::new(self.source, self.source_offset, self.limit)?;
        let block_size = source.kind.block_size(block_size, ring.block_size());
        let file = ring.attach(&source)?;
        let mut head = match self.inspector.take() {
            None => Head::default(),
            Some(inspector) => {
                let control = &self.control;
                Single { ring, control, source: source.kind, file: &file }.inspect(
                    inspector,
                    self.source_offset,
                    self.limit,
                    block_size,
                )?
            }
        };
        let redirected = head.sink.take();
        let sink = redirected.as_ref().map_or(self.sink, OwnedFd::as_fd);
        if redirected.is_some() {
            self.check_apart(sink)?;
        }
        if let Some(limit) = head.limit {
            self.limit = limit.min(self.limit - u64::from(head.skip));
        }
        if source.kind.seekable && self.source_offset != STREAM {
            self.source_offset += u64::from(std::mem::take(&mut head.skip));
        }
        let done = self.move_all(ring, &source, file, sink, head, (block_size, depth), tally);
        let settled = ring.end_cancellations();
        // Detached now: the peer of a stream that the caller closes next is to see its end.
        ring.sweep();
        done.and(source.check()).and(settled)
    }

    #[expect(clippy::too_many_arguments, reason = "what start() has found out")]
    fn move_all(
        &mut self,
        ring: &mut Ring,
        source: &Opened<'_>,
        file: Attached,
        sink: BorrowedFd<'_>,
        head: Head,
        (block_size, depth): (u32, usize),
        tally: &mut Tally,
    ) -> Result<()> {
        let kind = SinkKind::of(sink)?;
        let to = ring.attach(&sink)?;
        ring.empty_slots()?;
        let seen = head.leases.iter().map(|lease| u64::from(lease.len())).sum();
        let limit = self.limit.saturating_add(head.skip.into());
        let begin = (self.source_offset, seen);
        let mut extent = Extent::new(source.as_fd(), source.kind, begin, limit, block_size);
        extent.total = extent.total.map(|total| total.saturating_sub(head.skip.into()));
        let in_order =
            self.source_offset == STREAM || !At::new(sink, kind, self.sink_offset).is_offset();
        if source.kind.ahead && !source.kind.direct && !in_order {
            let at_once = match self.on_this_thread && !ring.traits().lent {
                true => AtOnce::new(self.source, sink, block_size),
                false => AtOnce::never(self.source, sink),
            };
            let at = (self.sink_offset, Direct::of(sink, kind));
            let (files, control) = ((&file, &to), &mut self.control);
            return Blocks::new(ring, control, extent, files, at, at_once, depth).run(tally);
        }
        let zero_copy = ring.support().features().send_zc
            && self.zero_copy_send.unwrap_or_else(|| ring.traits().lent && !stays_here(sink));
        let mut feed = Feed::new(ring, file, extent, depth);
        // What a stream has given cannot be fetched again in another way.
        feed.copies = kind == SinkKind::Device && !source.kind.seekable;
        feed.begin_with(head.leases)?;
        let manner = Manner { zero_copy, alone: true, discard_replies: false, skip: head.skip };
        let out = Out::new(0, (sink, to), kind, self.sink_offset, manner);
        let mut mover = Mover {
            ring,
            control: &mut self.control,
            feed,
            outs: vec![out],
            patience: Patience::default(),
            on_over: &mut |_, _| {},
        };
        let done = mover.run();
        let out = &mut mover.outs[0];
        *tally = Tally { right: out.bytes, taken: out.bytes, copied: out.copied };
        out.error.take().map_or(done, Err)
    }

    fn check_apart(&self, sink: BorrowedFd<'_>) -> Result<()> {
        check_apart((self.source, self.source_offset), (sink, self.sink_offset), self.limit)
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
