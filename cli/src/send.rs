// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf send`, to one receiver or to many: what becomes of one is nothing to the others.

use std::cell::Cell;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{connect_unspec, sockopt::set_socket_linger};
use uring_getbuf::relay::{FanOut, FanReport, SinkReport};
use uring_getbuf::{Engine, ErrorKind, Ring};

use crate::args::SendArgs;
use crate::end::{End, say};
use crate::ends::{self, Named, failed};
use crate::progress::Bar;
use crate::signals::{self, Signals};
use crate::transfer::{self, Moved, plural};
use crate::{connect, fit};

/// How long the receivers have to close their connections, once everything is sent.
const PATIENCE: Duration = Duration::from_secs(2);
const LEFT: &str = "the receiver left before it had everything";
const STILL_OPEN: &str = "; the receiver has not closed the connection yet";
/// How often a wait for it looks at what else there is.
const LOOK: Duration = Duration::from_millis(100);

/// A receiver, by the name that it was given.
struct Peer {
    name: String,
    stream: TcpStream,
    /// It was sent everything.
    whole: Cell<bool>,
    /// It was sent everything, and had reset the connection by then.
    gone: Cell<bool>,
}

pub(crate) fn run(args: &SendArgs) -> Result<(), End> {
    let source = ends::open_source(&args.source)?;
    let mut ring = fit::ring(&args.options, args.addresses.len() + 1)?;
    let signals = Signals::take()?;
    signals::need_worker()?;
    let count = args.addresses.len();
    let mut peers = Vec::with_capacity(count);
    let connected = connect::all(&args.addresses, args.patience, &signals)?;
    for (address, outcome) in args.addresses.iter().zip(connected) {
        let name = address.to_string();
        match outcome {
            Ok(stream) => {
                peers.push(Peer { name, stream, whole: Cell::new(false), gone: Cell::new(false) });
            }
            Err(why) if count == 1 => return Err(failed(&name, why)),
            Err(why) => failed(&name, why).say(),
        }
    }
    if peers.is_empty() {
        return Err(End::failed("there is no receiver to send to"));
    }
    let (mut report, time) = send(&mut ring, &source, &peers, args, &signals)?;
    let deadline = Instant::now() + PATIENCE;
    let mut whole = 0;
    let mut remark = "";
    for (peer, SinkReport { bytes, error, .. }) in
        peers.into_iter().zip(std::mem::take(&mut report.sinks))
    {
        let outcome = match error {
            Some(error) => Err(error.to_string()),
            None if peer.gone.get() => Err(format!("{LEFT}: it has reset the connection")),
            None => {
                finish(peer.stream, deadline, &signals).map_err(|error| format!("{LEFT}: {error}"))
            }
        };
        match outcome {
            Ok(open) => {
                whole += 1;
                remark = open;
                if count > 1 && !args.options.quiet {
                    say(format_args!("{}: {}{open}", peer.name, plural(bytes)));
                }
            }
            Err(why) => {
                let end = failed(&peer.name, format_args!("{why}; {} arrived", at_most(bytes)));
                if count == 1 {
                    return Err(end);
                }
                end.say();
            }
        }
    }
    if !args.options.quiet {
        let all = format!(", to {whole} of {count} receivers");
        let remark = if count == 1 { remark } else { &all };
        let FanReport { bytes, copied, engine, .. } = report;
        transfer::tell(Moved { bytes, copied, holes: 0, engine }, time, remark);
    }
    if whole < count {
        let left = count - whole;
        return Err(End::failed(format!("{left} of {count} receivers have not got everything")));
    }
    Ok(())
}

fn send(
    ring: &mut Ring,
    source: &Named,
    peers: &[Peer],
    args: &SendArgs,
    signals: &Signals,
) -> Result<(FanReport, Duration), End> {
    let mut bar = Bar::new(&args.options);
    let begin = Instant::now();
    let mut fan = FanOut::new(&source.file)
        .source_offset(source.offset())
        .block_size(args.options.block_size.unwrap_or(u32::MAX))
        .discard_replies(true)
        .zero_copy_send(pays_zero_copy(ring, peers))
        .canceller(signals.canceller())
        .on_progress(|progress| bar.show(progress))
        .on_done(|index, sink| peers[index].close(sink.error.is_none()));
    for peer in peers {
        fan = fan.sink(&peer.stream);
    }
    if let Some(patience) = args.patience {
        fan = fan.patience(patience);
    }
    if let Some(lag) = args.lag {
        fan = fan.lag(lag);
    }
    let done = fan.run(ring);
    let time = begin.elapsed();
    bar.clear();
    let failure = match done {
        Ok(report) => return Ok((report, time)),
        Err(failure) => failure,
    };
    let arrived = match (peers, &failure.report.sinks[..]) {
        ([peer], [sink]) => format!("{} arrived at {}", at_most(sink.bytes), peer.name),
        _ => {
            let whole = peers.iter().filter(|peer| peer.whole.get()).count();
            format!("{whole} of {} receivers have everything", peers.len())
        }
    };
    Err(match failure.error.kind() {
        ErrorKind::Cancelled => signals.interrupted(format_args!("interrupted; {arrived}")),
        _ => failed(&source.name, format_args!("{}; {arrived}", failure.error)),
    })
}

/// Whether it is sent without a copy. Of many receivers a slow one would keep all the leases, and
/// to this machine the kernel copies all the same.
fn pays_zero_copy(ring: &Ring, peers: &[Peer]) -> bool {
    let [peer] = peers else { return false };
    let is_here = || {
        let own = peer.stream.local_addr()?.ip().to_canonical();
        let other = peer.stream.peer_addr()?.ip().to_canonical();
        io::Result::Ok(other.is_loopback() || own == other)
    };
    ring.engine() != Engine::Copy && !is_here().unwrap_or(true)
}

/// What a socket takes, its peer may never get.
fn at_most(bytes: u64) -> String {
    format!("{}{}", if bytes > 0 { "at most " } else { "" }, plural(bytes))
}

impl Peer {
    /// Ends a connection for writing; one that has not got everything is reset now, so that nobody
    /// takes what there is for the whole.
    fn close(&self, whole: bool) {
        self.whole.set(whole);
        if whole {
            let _ = set_socket_linger(&self.stream, None);
            // What its answers were read for may have taken the reset with it: a socket tells it once.
            self.gone.set(self.stream.shutdown(Shutdown::Write).is_err());
        } else {
            let _ = connect_unspec(&self.stream);
        }
    }
}

/// Waits a little for the receiver to end the connection for reading, which has been ended for
/// writing: what was sent is with our kernel only, and a receiver that leaves without having read it
/// resets the connection. What it has to say is read and dropped, as leaving that unread would reset
/// it, too. A signal ends the wait: there is nothing left to interrupt.
fn finish(mut stream: TcpStream, deadline: Instant, signals: &Signals) -> io::Result<&'static str> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut dropped = vec![0; 1 << 16];
    loop {
        match stream.read(&mut dropped) {
            // The end of what it says may come before its reset.
            Ok(0) => return stream.take_error()?.map_or(Ok(""), Err),
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Err(error);
            }
            Ok(_) | Err(_) if signals.are_there() || Instant::now() >= deadline => {
                return Ok(STILL_OPEN);
            }
            Ok(_) | Err(_) => {}
        }
    }
}
