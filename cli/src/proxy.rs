// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf proxy`: accepts connections, opens one to the upstream for each, and has the ring move
//! bytes both ways. One thread, however many there are.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uring_getbuf::relay::{PairId, PairReport, Proxy, Step};
use uring_getbuf::ring::Attached;
use uring_getbuf::slots::Event;
use uring_getbuf::{ErrorKind as Kind, Ring};

use crate::args::{Address, ProxyArgs};
use crate::connect;
use crate::end::{End, say};
use crate::ends::failed;
use crate::signals::Signals;
use crate::transfer::plural;

/// How often the loop looks for a signal while nothing moves, and tries again to accept.
const LOOK: Duration = Duration::from_millis(100);
/// How long connections have to end once they were cut.
const GRACE: Duration = Duration::from_secs(2);
const CONNECTIONS: u16 = 1024;
const BLOCK_SIZE: u32 = 16 << 10;
/// Blocks are whole pages.
const LEAST_BLOCK: u32 = 4096;
const LISTENER: u32 = 0;
/// Larger tokens are of connections that are being opened.
const OPENING: u32 = 1;

/// A client whose connection to the upstream is being opened.
struct Opening {
    client: TcpStream,
    upstream: OwnedFd,
    /// Named by a wait until it is there.
    file: Attached,
    since: Instant,
    /// It has had its time.
    late: bool,
    tried: Tried,
}

/// What was tried for a client.
#[derive(Default)]
struct Tried {
    /// How many of the upstream's addresses,
    count: usize,
    /// and what each has said.
    why: Vec<String>,
}

/// When a pair has moved something for the last time, as far as was looked.
struct Last {
    bytes: [u64; 2],
    at: Instant,
    /// It was cut, because that was too long ago.
    cut: bool,
}

struct Server<'a> {
    args: &'a ProxyArgs,
    ring: Ring,
    proxy: Proxy,
    listener: TcpListener,
    listening: Attached,
    upstream: Vec<SocketAddr>,
    /// Most connections at a time.
    most: usize,
    opening: Vec<Option<Opening>>,
    free: Vec<u32>,
    /// A wait for the next client is in flight.
    accepting: bool,
    /// No client can be accepted before.
    rest: Option<Instant>,
    /// Kept if there is a limit.
    last: HashMap<PairId, Last>,
    looked: Instant,
    served: u64,
    failed: u64,
    bytes: [u64; 2],
}

pub(crate) fn run(args: &ProxyArgs) -> Result<(), End> {
    let upstream: Vec<_> = look_up(&args.upstream)?;
    let listener = listen(&args.listen)?;
    let (mut ring, connections) = make_ring(args)?;
    let listening = ring.attach(&listener).map_err(End::failed)?;
    let signals = Signals::take()?;
    let mut server = Server {
        proxy: Proxy::new(&ring),
        opening: Vec::new(),
        free: Vec::new(),
        accepting: false,
        rest: None,
        last: HashMap::new(),
        looked: Instant::now(),
        served: 0,
        failed: 0,
        bytes: [0; 2],
        args,
        ring,
        listener,
        listening,
        upstream,
        most: connections.into(),
    };
    server.serve(&signals).map_err(End::failed)?;
    server.close().map_err(End::failed)?;
    server.tell();
    Ok(())
}

fn look_up(address: &Address) -> Result<Vec<SocketAddr>, End> {
    let failed = |what: String| failed(&address.to_string(), what);
    let found: Vec<_> = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .map_err(|error| failed(format!("looking up the host: {error}")))?
        .collect();
    if found.is_empty() {
        return Err(failed("this host has no address".into()));
    }
    Ok(found)
}

fn listen(address: &Address) -> Result<TcpListener, End> {
    let found = look_up(address)?;
    let listener = TcpListener::bind(&found[..])
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| failed(&address.to_string(), format!("listening: {error}")))
}

/// A ring, and how many connections there can be. Each has a lease in each direction, so that none
/// can take what another needs.
fn make_ring(args: &ProxyArgs) -> Result<(Ring, u16), End> {
    let mut connections = args.connections.unwrap_or(CONNECTIONS);
    let mut block_size = args.block_size.unwrap_or(BLOCK_SIZE);
    // Two sockets of a connection, and what else is open.
    let files = u64::from(connections) * 2 + 64;
    allow(files);
    if let Some(most) = getrlimit(Resource::Nofile).current.filter(|most| *most < files) {
        return Err(End::failed(format!(
            "{connections} connections take {files} open files, and RLIMIT_NOFILE allows {most}: \
             use fewer (--connections), or raise the limit (ulimit -n)"
        )));
    }
    loop {
        let mut builder = Ring::builder()
            .slots(connections * 2)
            .block_size(block_size)
            // One more for each that is being opened, and the listener.
            .files(connections * 3 + 1);
        if let Some(engine) = args.engine {
            builder = builder.engine(engine);
        }
        let error = match builder.build() {
            Ok(ring) => return Ok((ring, connections)),
            Err(error) => error,
        };
        // What the person insists on stays as it is.
        if error.kind() != Kind::MemoryLimit {
            return Err(End::failed(error));
        } else if args.block_size.is_none() && block_size > LEAST_BLOCK {
            block_size /= 2;
        } else if args.connections.is_none() && connections > 1 {
            connections /= 2;
        } else {
            return Err(End::failed(format!("{error}. A connection takes two slots")));
        }
    }
}

/// Raises the limit of open files, as far as that takes no privilege.
fn allow(files: u64) {
    // The ring's table of files is bounded by it, too.
    let wanted = files * 3;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        let current = Some(maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }
}

impl Server<'_> {
    fn serve(&mut self, signals: &Signals) -> uring_getbuf::Result<()> {
        let address = self.listener.local_addr();
        if let (Ok(address), false) = (address, self.args.quiet) {
            let most = self.most;
            say(format_args!("listening on {address}, for at most {most} connections at a time"));
        }
        while !signals.are_there() {
            self.accept()?;
            self.ring.wait_timeout(1, LOOK)?;
            while let Some(event) = self.ring.next_event() {
                self.take(event)?;
            }
            if self.looked.elapsed() >= LOOK {
                self.look()?;
            }
        }
        Ok(())
    }

    /// Looks for what no event tells.
    fn look(&mut self) -> uring_getbuf::Result<()> {
        self.looked = Instant::now();
        self.proxy.end_reset(&mut self.ring)?;
        if let Some(most) = self.args.connect_timeout {
            for opening in self.opening.iter_mut().flatten() {
                if !opening.late && opening.since.elapsed() >= most {
                    // The wait for it comes back.
                    opening.late = true;
                    self.ring.cancel(&opening.file)?;
                }
            }
        }
        if let Some(most) = self.args.idle_timeout {
            for (id, last) in &mut self.last {
                let bytes = self.proxy.bytes(*id).unwrap_or(last.bytes);
                if bytes != last.bytes {
                    (last.bytes, last.at) = (bytes, Instant::now());
                } else if !last.cut && last.at.elapsed() >= most {
                    last.cut = true;
                    self.proxy.cut(&mut self.ring, *id)?;
                }
            }
        }
        Ok(())
    }

    fn over(&mut self, pair: &PairReport) {
        self.served += 1;
        self.bytes[0] += pair.bytes[0];
        self.bytes[1] += pair.bytes[1];
        let idle = self.last.remove(&pair.id).is_some_and(|last| last.cut);
        match (&pair.error, self.args.idle_timeout) {
            (Some(_), Some(most)) if idle => {
                self.complain(&format_args!("nothing was moved for {most:?}"));
            }
            (Some(error), _) if error.kind() != Kind::Cancelled => self.complain(error),
            _ => {}
        }
    }

    fn connections(&self) -> usize {
        self.proxy.len() + self.opening.len() - self.free.len()
    }

    /// Waits for the next client, as long as there is room for one.
    fn accept(&mut self) -> uring_getbuf::Result<()> {
        if self.rest.is_some_and(|rest| Instant::now() < rest) {
            return Ok(());
        }
        if !self.accepting && self.connections() < self.most {
            self.ring.poll_readable(&self.listening, LISTENER)?;
            self.accepting = true;
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> uring_getbuf::Result<()> {
        match event {
            Event::Ready { token: LISTENER, .. } => {
                self.accepting = false;
                self.greet()
            }
            Event::Ready { token, .. } => self.opened(token - OPENING),
            event => {
                if let Step::Over(pair) = self.proxy.take(&mut self.ring, event)? {
                    self.over(&pair);
                }
                Ok(())
            }
        }
    }

    /// Accepts everybody who is there.
    fn greet(&mut self) -> uring_getbuf::Result<()> {
        while self.connections() < self.most {
            match self.listener.accept() {
                Ok((client, _)) => {
                    let _ = client.set_nodelay(true);
                    self.open(client, Tried::default())?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // One that has gone before it was accepted, or too many open files: then the
                    // next try fails as well, until one is closed.
                    if error.kind() != ErrorKind::WouldBlock {
                        self.complain(&format_args!("accepting a client: {error}"));
                        self.rest = Some(Instant::now() + LOOK);
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Begins to open a connection to the upstream, for this client.
    fn open(&mut self, client: TcpStream, mut tried: Tried) -> uring_getbuf::Result<()> {
        while let Some(address) = self.upstream.get(tried.count) {
            tried.count += 1;
            let upstream = match connect::begin(address) {
                Ok(upstream) => upstream,
                Err(errno) => {
                    tried.why.push(format!("connecting to {address}: {errno}"));
                    continue;
                }
            };
            let place = self.free.pop().unwrap_or_else(|| {
                self.opening.push(None);
                (self.opening.len() - 1) as u32
            });
            let file = self.ring.attach(&upstream)?;
            self.ring.poll_writable(&file, OPENING + place)?;
            let since = Instant::now();
            self.opening[place as usize] =
                Some(Opening { client, upstream, file, since, late: false, tried });
            return Ok(());
        }
        // The client sees its connection reset: nobody is there to serve it.
        reset(&client);
        self.served += 1;
        self.complain(&tried.why.join("; "));
        Ok(())
    }

    /// A connection to the upstream is there, or is not to be had.
    fn opened(&mut self, place: u32) -> uring_getbuf::Result<()> {
        let Some(opening) = self.opening.get_mut(place as usize).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(place);
        let Opening { client, upstream, late, mut tried, .. } = opening;
        let why = match sockopt::socket_error(&upstream) {
            Ok(Ok(())) if !late => {
                let _ = sockopt::set_tcp_nodelay(&upstream, true);
                match self.proxy.add(&mut self.ring, client, upstream) {
                    Ok(id) if self.args.idle_timeout.is_some() => {
                        let last = Last { bytes: [0; 2], at: Instant::now(), cut: false };
                        self.last.insert(id, last);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        self.served += 1;
                        self.complain(&error);
                    }
                }
                return Ok(());
            }
            Ok(Ok(())) => {
                format!("no answer within {:?}", self.args.connect_timeout.unwrap_or_default())
            }
            Ok(Err(errno)) | Err(errno) => errno.to_string(),
        };
        let address = self.upstream[tried.count - 1];
        tried.why.push(format!("connecting to {address}: {why}"));
        self.open(client, tried)
    }

    fn complain(&mut self, why: &dyn std::fmt::Display) {
        self.failed += 1;
        if !self.args.quiet {
            say(format_args!("getbuf: a connection: {why}"));
        }
    }

    /// Takes nobody any more, cuts what there is, and waits until nothing of it is in flight.
    fn close(&mut self) -> uring_getbuf::Result<()> {
        self.opening.clear();
        self.free.clear();
        self.proxy.cut_all(&mut self.ring)?;
        let deadline = Instant::now() + GRACE;
        while !self.proxy.is_empty() && Instant::now() < deadline {
            self.ring.wait_timeout(1, LOOK)?;
            while let Some(event) = self.ring.next_event() {
                if let Step::Over(pair) = self.proxy.take(&mut self.ring, event)? {
                    self.over(&pair);
                }
            }
        }
        Ok(())
    }

    fn tell(&self) {
        if !self.args.quiet {
            let [there, back] = self.bytes.map(plural);
            let (served, failed) = (self.served, self.failed);
            say(format_args!(
                "{served} connections, {failed} of them failed; {there} to the upstream, {back} back"
            ));
        }
    }
}

fn reset(client: &TcpStream) {
    let _ = sockopt::set_socket_linger(client, Some(Duration::ZERO));
}
