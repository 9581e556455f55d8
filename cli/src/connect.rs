// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections to receivers: all at once, so that none waits for another, and none for ever.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::args::Address;
use crate::end::End;
use crate::signals::{Signals, spawn};

/// How often it looks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(100);

/// Connects to all of them. Each has its connection, or the reason why there is none. Looking up a
/// name and each of its addresses may take as long as `patience`.
///
/// A connection is reset when it is closed, until it is told otherwise: however the program ends,
/// nobody takes what there is for the whole.
pub(crate) fn all(
    addresses: &[Address],
    patience: Option<Duration>,
    signals: &Signals,
) -> Result<Vec<Result<TcpStream, String>>, End> {
    let mut names = Names::new()?;
    let mut peers = Vec::with_capacity(addresses.len());
    for (index, address) in addresses.iter().enumerate() {
        let mut peer = Peer::default();
        match address.host.parse::<IpAddr>() {
            Ok(host) => peer.found(Ok(vec![SocketAddr::new(host, address.port)])),
            Err(_) => names.look_up(index, address)?,
        }
        peers.push(peer);
    }
    while peers.iter().any(|peer| peer.outcome.is_none()) {
        if signals.are_there() {
            return Err(signals.interrupted("interrupted while connecting; nothing was sent"));
        }
        wait(&names, &peers, patience)?;
        while let Ok((index, found)) = names.found.try_recv() {
            peers[index].found(found);
        }
        for peer in &mut peers {
            peer.go_on(patience);
        }
    }
    Ok(peers.into_iter().filter_map(|peer| peer.outcome).collect())
}

/// Until something has happened, or has to be looked at.
fn wait(names: &Names, peers: &[Peer], patience: Option<Duration>) -> Result<(), End> {
    let mut timeout = LOOK;
    let mut files = vec![PollFd::new(&*names.bell, PollFlags::IN)];
    for peer in peers.iter().filter(|peer| peer.outcome.is_none()) {
        if let Some(patience) = patience {
            timeout = timeout.min(patience.saturating_sub(peer.since.elapsed()));
        }
        if let Some((socket, _)) = &peer.opening {
            files.push(PollFd::new(socket, PollFlags::OUT));
        }
    }
    // Rounded up: what is due then has to be due.
    let timeout = Timespec::try_from(timeout + Duration::from_millis(1)).ok();
    match poll(&mut files, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(End::failed(format!("waiting for connections: {errno}"))),
    }
    if !files[0].revents().is_empty() {
        let _ = rustix::io::read(&*names.bell, &mut [0; 8]);
    }
    Ok(())
}

type Found = io::Result<Vec<SocketAddr>>;

/// Names that are being looked up, each by a thread: nothing else can be interrupted.
struct Names {
    tell: Sender<(usize, Found)>,
    found: Receiver<(usize, Found)>,
    /// Rung when something was found.
    bell: Arc<OwnedFd>,
}

impl Names {
    fn new() -> Result<Self, End> {
        let (tell, found) = channel();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| End::failed(format!("eventfd: {errno}")))?;
        Ok(Self { tell, found, bell: Arc::new(bell) })
    }

    /// A thread that does not come back is left behind.
    fn look_up(&mut self, index: usize, address: &Address) -> Result<(), End> {
        let (tell, bell, address) = (self.tell.clone(), Arc::clone(&self.bell), address.clone());
        spawn("name", move || {
            let found = (address.host.as_str(), address.port).to_socket_addrs();
            let _ = tell.send((index, found.map(Iterator::collect)));
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        })?;
        Ok(())
    }
}

/// One receiver, on the way to it.
struct Peer {
    /// Its addresses that were not tried yet, once it was looked up.
    candidates: Option<VecDeque<SocketAddr>>,
    opening: Option<(OwnedFd, SocketAddr)>,
    /// Since when it is looked up, or opened.
    since: Instant,
    /// What each of its addresses has said.
    why: Vec<String>,
    outcome: Option<Result<TcpStream, String>>,
}

impl Default for Peer {
    fn default() -> Self {
        let since = Instant::now();
        Self { candidates: None, opening: None, since, why: Vec::new(), outcome: None }
    }
}

impl Peer {
    fn found(&mut self, found: Found) {
        if self.outcome.is_some() {
            return;
        }
        match found {
            Ok(found) if found.is_empty() => self.fail("this host has no address".into()),
            Ok(found) => {
                self.candidates = Some(found.into());
                self.try_next();
            }
            Err(error) => self.fail(format!("looking up the host: {error}")),
        }
    }

    /// It has failed for good.
    fn fail(&mut self, why: String) {
        self.outcome = Some(Err(why));
    }

    fn try_next(&mut self) {
        while let Some(to) = self.candidates.as_mut().and_then(VecDeque::pop_front) {
            match begin(&to) {
                Ok(socket) => {
                    self.opening = Some((socket, to));
                    self.since = Instant::now();
                    return;
                }
                Err(errno) => self.why.push(format!("connecting to {to}: {errno}")),
            }
        }
        self.fail(self.why.join("; "));
    }

    /// Looks whether it is there, or has had its time.
    fn go_on(&mut self, patience: Option<Duration>) {
        if self.outcome.is_some() {
            return;
        }
        let late = patience.filter(|patience| self.since.elapsed() >= *patience);
        let Some((socket, to)) = self.opening.take() else {
            if let Some(patience) = late {
                self.fail(format!("looking up the host: no answer within {patience:?}"));
            }
            return;
        };
        match is_open(&socket) {
            Ok(true) => {
                match ready(socket) {
                    Ok(stream) => self.outcome = Some(Ok(stream)),
                    Err(error) => {
                        self.why.push(format!("connecting to {to}: {error}"));
                        self.try_next();
                    }
                }
                return;
            }
            Ok(false) => match late {
                None => {
                    self.opening = Some((socket, to));
                    return;
                }
                Some(patience) => {
                    self.why.push(format!("connecting to {to}: no answer within {patience:?}"));
                }
            },
            Err(errno) => self.why.push(format!("connecting to {to}: {errno}")),
        }
        self.try_next();
    }
}

/// Begins to open a connection.
pub(crate) fn begin(address: &SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Whether a connection that was begun is there, or why it never will be.
fn is_open(socket: &OwnedFd) -> rustix::io::Result<bool> {
    let mut files = [PollFd::new(socket, PollFlags::OUT)];
    match poll(&mut files, Some(&Timespec::default())) {
        Ok(0) | Err(Errno::INTR) => return Ok(false),
        Ok(_) => {}
        Err(errno) => return Err(errno),
    }
    sockopt::socket_error(socket)?.map(|()| true)
}

fn ready(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket);
    if stream.local_addr()? == stream.peer_addr()? {
        // TCP allows for that where nobody listens.
        return Err(io::Error::other("nobody listens there, it is connected to itself"));
    }
    stream.set_nonblocking(false)?;
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(stream)
}
