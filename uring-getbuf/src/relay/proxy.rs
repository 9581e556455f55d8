// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many two-way connections on one ring: what one end of a pair sends goes to the other.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use super::control::{sink_failed, source_failed};
use super::ends::check_socket;
use crate::engine::Origin;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ring::{Attached, Ring, RingId};
use crate::slots::consume::{STREAM, SendFlags};
use crate::slots::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::slots::{Event, LeaseId, UseId};

/// Moves bytes both ways between the two sockets of each of its pairs.
///
/// A direction fetches, which waits in the kernel until something comes, sends what came, and
/// fetches again: socket, lease, socket, and no pipe. It has one lease at most, so a pair takes two
/// slots of the ring and two attached files; a pair whose receiver is slow keeps its own, and takes
/// none from another.
///
/// The end of what one end sends is passed on (`shutdown(2)`), and the other direction goes on. A
/// pair is over when both directions have ended, or when one has failed; then nothing of it is in
/// flight, and both sockets have been closed. After a failure they are reset, so that nobody takes
/// what has arrived for the whole. No pair notices what becomes of another.
///
/// The program drives the ring that the proxy was made with: it gives each event to [`take`](Self::take).
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::{TcpListener, TcpStream};
/// use uring_getbuf::relay::{Proxy, Step};
/// use uring_getbuf::Ring;
///
/// let mut ring = Ring::new()?;
/// let mut proxy = Proxy::new(&ring);
/// let client = TcpListener::bind("127.0.0.1:8080")?.accept()?.0;
/// proxy.add(&mut ring, client, TcpStream::connect("127.0.0.1:80")?)?;
/// while !proxy.is_empty() {
///     ring.wait(1)?;
///     while let Some(event) = ring.next_event() {
///         if let Step::Over(pair) = proxy.take(&mut ring, event)? {
///             println!("{} bytes there, {} back", pair.bytes[0], pair.bytes[1]);
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Proxy {
    /// The ring that it was made with.
    own: RingId,
    pairs: Vec<Option<Pair>>,
    /// Places in `pairs` that are free.
    free: Vec<u32>,
    /// Whose lease each slot holds: the pair, and from which end it came.
    owners: Box<[Option<(LeaseId, u32, u8)>]>,
}

/// Names a pair of a [`Proxy`] as long as it is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairId(u32);

/// What an event was.
#[derive(Debug)]
#[non_exhaustive]
pub enum Step {
    /// None of the proxy's.
    Other(Event),
    /// A pair goes on.
    Moved,
    /// A pair is over.
    Over(PairReport),
}

/// A pair that is over.
#[derive(Debug)]
#[non_exhaustive]
pub struct PairReport {
    /// Its name, which another pair may get now.
    pub id: PairId,
    /// Bytes that were sent: from the first socket to the second, and from the second to the first.
    pub bytes: [u64; 2],
    /// Why it ended before both had sent everything: [`Source`](ErrorKind::Source),
    /// [`Sink`](ErrorKind::Sink) or [`Cancelled`](ErrorKind::Cancelled).
    pub error: Option<Error>,
}

struct Pair {
    ends: [End; 2],
    error: Option<Error>,
}

/// One socket, and what it sends.
struct End {
    socket: OwnedFd,
    file: Attached,
    way: Way,
    /// Bytes of it that the other end has taken.
    moved: u64,
    /// The kernel does not lend its memory.
    copied: bool,
}

/// One direction.
enum Way {
    Fetching(Lease<Fetched>),
    Sending(Lease<Installed>, u32, UseId),
    Ended,
}

impl Proxy {
    /// One on this ring, without pairs.
    #[must_use]
    pub fn new(ring: &Ring) -> Self {
        Self {
            own: ring.id(),
            pairs: Vec::new(),
            free: Vec::new(),
            owners: vec![None; ring.capacity()].into(),
        }
    }

    /// How many pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a pair of connected sockets. They are made blocking, which keeps no thread waiting.
    ///
    /// # Errors
    ///
    /// [`NoSlot`](ErrorKind::NoSlot) or [`NoFile`](ErrorKind::NoFile) if the ring has no room for
    /// one more, [`InvalidInput`](ErrorKind::InvalidInput) if one is no socket of a stream,
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`Ring::submit`]. The sockets are closed then.
    pub fn add(
        &mut self,
        ring: &mut Ring,
        one: impl Into<OwnedFd>,
        other: impl Into<OwnedFd>,
    ) -> Result<PairId> {
        ring.check_id(&self.own)?;
        if ring.free() < 2 {
            ring.flush()?;
        }
        if ring.free() < 2 {
            let what = "a pair takes two slots: build the ring with more";
            return Err(Error::new(ErrorKind::NoSlot, what));
        }
        let ends = [End::new(ring, one.into())?, End::new(ring, other.into())?];
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            (self.pairs.len() - 1) as u32
        });
        self.pairs[index as usize] = Some(Pair { ends, error: None });
        for from in [0, 1] {
            // There is a slot, so only the ring itself can fail, and then all is over.
            self.fetch(ring, index, from)?;
        }
        Ok(PairId(index))
    }

    /// Ends a pair before its time. It is over when what it has in flight is.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`Ring::submit`].
    pub fn cut(&mut self, ring: &mut Ring, id: PairId) -> Result<()> {
        ring.check_id(&self.own)?;
        self.fail(ring, id.0, Error::new(ErrorKind::Cancelled, "cut"))
    }

    /// Ends all pairs before their time.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`Ring::submit`].
    pub fn cut_all(&mut self, ring: &mut Ring) -> Result<()> {
        for index in 0..self.pairs.len() as u32 {
            self.cut(ring, PairId(index))?;
        }
        Ok(())
    }

    /// Bytes that a pair has moved so far: from the first socket to the second, and from the second to
    /// the first. `None` if it is over.
    #[must_use]
    pub fn bytes(&self, id: PairId) -> Option<[u64; 2]> {
        let pair = self.pairs.get(id.0 as usize)?.as_ref()?;
        Some([pair.ends[0].moved, pair.ends[1].moved])
    }

    /// Ends the pairs of which a socket was reset after the end of what it sent.
    ///
    /// Nothing is read from such a socket any more, so no event tells of it before something is sent
    /// there. A program that wants to know sooner calls this now and then.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`Ring::submit`].
    pub fn end_reset(&mut self, ring: &mut Ring) -> Result<()> {
        ring.check_id(&self.own)?;
        for index in 0..self.pairs.len() {
            let Some(pair) = &self.pairs[index] else { continue };
            let ended = pair.ends.iter().filter(|end| matches!(end.way, Way::Ended));
            let mut errors = ended.map(|end| rustix::net::sockopt::socket_error(&end.socket));
            if pair.error.is_none() && errors.any(|error| matches!(error, Ok(Err(_)))) {
                // Whatever it is called in the state of the socket.
                let reset = source_failed(Errno::new(libc::ECONNRESET));
                self.fail(ring, index as u32, reset)?;
            }
        }
        Ok(())
    }

    /// Takes an event of the ring, and goes on with the pair that it is of.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`Ring::submit`]. What a pair itself meets is in its report.
    pub fn take(&mut self, ring: &mut Ring, event: Event) -> Result<Step> {
        ring.check_id(&self.own)?;
        let lease = match event {
            Event::Fetched { lease, .. } => lease,
            Event::Used { id, .. } => id.lease(),
            event => return Ok(Step::Other(event)),
        };
        let owner = self.owners.get(usize::from(lease.slot())).copied().flatten();
        let Some((_, index, from)) = owner.filter(|(owned, ..)| *owned == lease) else {
            return Ok(Step::Other(event));
        };
        let from = usize::from(from);
        match event {
            Event::Used { result, .. } => self.sent(ring, index, from, result)?,
            _ => self.fetched(ring, index, from)?,
        }
        Ok(self.over(ring, index).map_or(Step::Moved, Step::Over))
    }

    fn pair(&mut self, index: u32) -> &mut Pair {
        self.pairs[index as usize].as_mut().expect("a pair that has a lease is there")
    }

    fn fetch(&mut self, ring: &mut Ring, index: u32, from: usize) -> Result<()> {
        let len = ring.block_size();
        let end = &mut self.pair(index).ends[from];
        let fetched = match end.copied {
            true => ring.fetch_copied(&end.file, STREAM, len),
            false => ring.fetch(&end.file, STREAM, len),
        };
        match fetched {
            Ok(lease) => {
                let id = lease.id();
                end.way = Way::Fetching(lease);
                self.owners[usize::from(id.slot())] = Some((id, index, from as u8));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NoSlot => {
                end.way = Way::Ended;
                self.fail(ring, index, error)
            }
            Err(error) => Err(error),
        }
    }

    fn fetched(&mut self, ring: &mut Ring, index: u32, from: usize) -> Result<()> {
        let lends = ring.traits().lent;
        let pair = self.pair(index);
        let [end, other] = of(&mut pair.ends, from);
        let Way::Fetching(lease) = std::mem::replace(&mut end.way, Way::Ended) else {
            return Ok(());
        };
        match lease.installed() {
            Err(NotInstalled::Pending(lease)) => end.way = Way::Fetching(lease),
            // What is cut takes nothing more.
            _ if pair.error.is_some() => {}
            Ok(lease) => {
                end.copied |= lends && lease.origin() == Origin::Copy;
                end.send(ring, other, lease, 0)?;
            }
            // A peer that has gone altogether shows in the other direction.
            Err(NotInstalled::EndOfFile) => drop(other.shut_down()),
            Err(NotInstalled::Failed(Errno::INTR)) => return self.fetch(ring, index, from),
            Err(NotInstalled::Failed(errno)) => {
                return self.fail(ring, index, source_failed(errno));
            }
        }
        Ok(())
    }

    fn sent(
        &mut self,
        ring: &mut Ring,
        index: u32,
        from: usize,
        result: Result<u32, Errno>,
    ) -> Result<()> {
        let pair = self.pair(index);
        let [end, other] = of(&mut pair.ends, from);
        let Way::Sending(lease, mut done, _) = std::mem::replace(&mut end.way, Way::Ended) else {
            return Ok(());
        };
        match result {
            Ok(bytes) => {
                end.moved += u64::from(bytes);
                done += bytes;
            }
            Err(Errno::INTR) => {}
            Err(errno) => {
                drop(lease);
                return self.fail(ring, index, sink_failed(errno));
            }
        }
        if pair.error.is_some() {
            return Ok(());
        }
        if done < lease.len() {
            return end.send(ring, other, lease, done);
        }
        drop(lease);
        if ring.free() == 0 {
            // Its own slot has to be emptied by a request first.
            ring.empty_slots()?;
        }
        self.fetch(ring, index, from)
    }

    /// Ends a pair: the first error is the one that is told.
    fn fail(&mut self, ring: &mut Ring, index: u32, error: Error) -> Result<()> {
        let Some(Some(pair)) = self.pairs.get_mut(index as usize) else { return Ok(()) };
        if pair.error.is_some() {
            return Ok(());
        }
        pair.error = Some(error);
        for end in &pair.ends {
            match &end.way {
                Way::Fetching(lease) => ring.cancel_fetch(lease)?,
                Way::Sending(_, _, id) => ring.cancel_use(*id)?,
                Way::Ended => {}
            }
        }
        Ok(())
    }

    /// Takes a pair away of which nothing is in flight any more.
    fn over(&mut self, ring: &mut Ring, index: u32) -> Option<PairReport> {
        let ended = |end: &End| matches!(end.way, Way::Ended);
        let place = &mut self.pairs[index as usize];
        let pair = place.take_if(|pair| pair.ends.iter().all(ended))?;
        self.free.push(index);
        let bytes = [pair.ends[0].moved, pair.ends[1].moved];
        for end in pair.ends {
            end.close(pair.error.is_some());
        }
        // Detached now, so that the peers see it.
        ring.sweep();
        Some(PairReport { id: PairId(index), bytes, error: pair.error })
    }
}

/// The end with this number, and the other one.
fn of(ends: &mut [End; 2], from: usize) -> [&mut End; 2] {
    let [one, other] = ends;
    if from == 0 { [one, other] } else { [other, one] }
}

impl End {
    fn new(ring: &mut Ring, socket: OwnedFd) -> Result<Self> {
        let invalid = |errno: rustix::io::Errno| {
            Error::io(ErrorKind::InvalidInput, &errno.into(), "looking at a socket of a pair")
        };
        check_socket(socket.as_fd())?;
        rustix::io::ioctl_fionbio(&socket, false).map_err(invalid)?;
        let file = ring.attach(&socket.as_fd())?;
        Ok(Self { socket, file, way: Way::Ended, moved: 0, copied: false })
    }

    fn send(
        &mut self,
        ring: &mut Ring,
        to: &Self,
        lease: Lease<Installed>,
        done: u32,
    ) -> Result<()> {
        let id = ring.send(&lease, done.., &to.file, SendFlags::WAIT_ALL)?;
        self.way = Way::Sending(lease, done, id);
        Ok(())
    }

    fn shut_down(&self) -> rustix::io::Result<()> {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write)
    }

    fn close(self, reset: bool) {
        if reset {
            let _ = rustix::net::sockopt::set_socket_linger(
                &self.socket,
                Some(std::time::Duration::ZERO),
            );
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("pairs", &self.len()).finish_non_exhaustive()
    }
}
