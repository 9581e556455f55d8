// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf send`, to many receivers at once: what becomes of one is nothing to the others.

use std::cell::Cell;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use uring_getbuf::relay::{Canceller, FanOut, FanReport, SinkReport};
use uring_getbuf::{ErrorKind, Ring};

use crate::args::SendArgs;
use crate::end::{End, say};
use crate::ends::{self, Named, failed};
use crate::fit;
use crate::progress::Bar;
use crate::send::{LEFT, PATIENCE, Receiver, STILL_OPEN, connect, finish};
use crate::transfer::{self, plural};

/// A receiver, by the name that it was given.
struct Peer {
    name: String,
    stream: TcpStream,
}

pub(crate) fn run(args: &SendArgs) -> Result<(), End> {
    let source = ends::open_source(&args.source)?;
    let mut ring = fit::ring(&args.options, args.addresses.len() + 1)?;
    let canceller = transfer::cancel_on_signals()?;
    let mut peers = Vec::with_capacity(args.addresses.len());
    let mut refused = 0;
    for address in &args.addresses {
        match connect(address) {
            Ok(stream) => peers.push(Peer { name: address.to_string(), stream }),
            Err(end) => {
                refused += 1;
                end.say();
            }
        }
    }
    if peers.is_empty() {
        return Err(End::failed("there is no receiver to send to"));
    }
    let (report, time) = send(&mut ring, &source, &peers, args, &canceller)?;
    let (bytes, engine) = (report.bytes, report.engine);
    let left = tell_each(peers, report.sinks, args, &canceller)?;
    let count = args.addresses.len();
    let remark = format!(", to {} of {count} receivers", count - refused - left);
    if !args.options.quiet {
        transfer::tell(bytes, engine, time, &remark);
    }
    match refused + left {
        0 => Ok(()),
        failed => {
            Err(End::failed(format!("{failed} of {count} receivers have not got everything")))
        }
    }
}

fn send(
    ring: &mut Ring,
    source: &Named,
    peers: &[Peer],
    args: &SendArgs,
    canceller: &Canceller,
) -> Result<(FanReport, Duration), End> {
    let from = source.position();
    let mut bar = Bar::new(&args.options);
    let begin = Instant::now();
    let whole: Vec<_> = peers.iter().map(|_| Cell::new(false)).collect();
    let mut fan = FanOut::new(&source.file)
        .source_offset(from.unwrap_or(0))
        .block_size(args.options.block_size.unwrap_or(u32::MAX))
        .canceller(canceller)
        .on_progress(|progress| bar.show(progress))
        .on_done(|index, sink| {
            whole[index].set(sink.error.is_none());
            close(&peers[index].stream, sink.error.is_none());
        });
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
    let bytes = done.as_ref().map_or_else(|failure| failure.report.bytes, |report| report.bytes);
    source.advance(from, bytes);
    let failure = match done {
        Ok(report) => return Ok((report, time)),
        Err(failure) => failure,
    };
    for (peer, _) in peers.iter().zip(&whole).filter(|(_, whole)| !whole.get()) {
        close(&peer.stream, false);
    }
    let whole = whole.iter().filter(|whole| whole.get()).count();
    let (error, count) = (&failure.error, peers.len());
    Err(match error.kind() {
        ErrorKind::Cancelled => {
            End::interrupted(format!("interrupted; {whole} of {count} receivers have everything"))
        }
        _ => failed(&source.name, format!("{error}; {whole} of {count} receivers have everything")),
    })
}

/// Ends a connection for writing; one that has not got everything is reset, so that nobody takes
/// what there is for the whole.
fn close(stream: &TcpStream, whole: bool) {
    if whole {
        // If it fails, the connection has gone, and the last look at it will say so.
        let _ = stream.shutdown(Shutdown::Write);
    } else {
        let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    }
}

/// Says of every receiver what became of it; how many have not got everything.
fn tell_each(
    peers: Vec<Peer>,
    sinks: Vec<SinkReport>,
    args: &SendArgs,
    canceller: &Canceller,
) -> Result<usize, End> {
    let deadline = Instant::now() + PATIENCE;
    let mut left = 0;
    for (Peer { name, stream }, SinkReport { bytes, error, .. }) in peers.into_iter().zip(sinks) {
        let why = match error {
            Some(error) => Some(error.to_string()),
            None => match finish(stream, deadline, canceller) {
                Ok(Receiver::Interrupted) => return Err(End::interrupted("interrupted")),
                Ok(receiver) => {
                    if !args.options.quiet {
                        let open = matches!(receiver, Receiver::StillOpen);
                        let remark = if open { STILL_OPEN } else { "" };
                        say(format_args!("{name}: {}{remark}", plural(bytes)));
                    }
                    None
                }
                Err(error) => Some(format!("{LEFT}: {error}")),
            },
        };
        if let Some(why) = why {
            left += 1;
            failed(&name, format_args!("{why}; at most {} arrived", plural(bytes))).say();
        }
    }
    Ok(left)
}
