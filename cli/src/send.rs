// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf send`

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use uring_getbuf::relay::Canceller;

use crate::args::{Address, SendArgs};
use crate::end::End;
use crate::ends::{self, Named, failed};
use crate::transfer;
use crate::{fan, fit};

/// How long the receiver has to close the connection, once everything is sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
pub(crate) const LEFT: &str = "the receiver left before it had everything";
pub(crate) const STILL_OPEN: &str = "; the receiver has not closed the connection yet";
/// How often a wait for it looks at what else there is.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &SendArgs) -> Result<(), End> {
    let [address] = &args.addresses[..] else { return fan::run(args) };
    let source = ends::open_source(&args.source)?;
    let mut ring = fit::ring(&args.options, 2)?;
    let stream = connect(address)?;
    let name = address.to_string();
    let other = stream.try_clone().map_err(|error| failed(&name, error))?;
    let sink = Named::own(name, other);
    let canceller = transfer::cancel_on_signals()?;
    let moved = transfer::run(&mut ring, &source, &sink, &args.options, &canceller)?;
    let arrived = || transfer::arrived(moved.bytes(), &sink);
    let ended = stream.shutdown(Shutdown::Write);
    let remark = match ended.and_then(|()| finish(stream, Instant::now() + PATIENCE, &canceller)) {
        Ok(Receiver::Closed) => "",
        Ok(Receiver::StillOpen) => STILL_OPEN,
        Ok(Receiver::Interrupted) => {
            return Err(End::interrupted(format!("interrupted; {}", arrived())));
        }
        Err(error) => {
            return Err(failed(&sink.name, format_args!("{LEFT}: {error}; {}", arrived())));
        }
    };
    moved.tell(&args.options, remark);
    Ok(())
}

/// Tries every address that the name has, and tells what the last one said.
pub(crate) fn connect(address: &Address) -> Result<TcpStream, End> {
    let failed = |what: String| failed(&address.to_string(), what);
    let found = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .map_err(|error| failed(format!("looking up the host: {error}")))?;
    let mut last = failed("this host has no address".into());
    for candidate in found {
        match TcpStream::connect(candidate) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(format!("connecting to {candidate}: {error}")),
        }
    }
    Err(last)
}

pub(crate) enum Receiver {
    Closed,
    StillOpen,
    Interrupted,
}

/// Waits a little for the receiver to end the connection for reading, which has been ended for
/// writing: what was sent is with our kernel only, and a receiver that leaves without having read it
/// resets the connection. What it has to say is read and dropped, as leaving that unread would reset
/// it, too.
pub(crate) fn finish(
    mut stream: TcpStream,
    deadline: Instant,
    canceller: &Canceller,
) -> std::io::Result<Receiver> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut dropped = [0; 4096];
    loop {
        match stream.read(&mut dropped) {
            // The end of what it says may come before its reset.
            Ok(0) => return stream.take_error()?.map_or(Ok(Receiver::Closed), Err),
            Err(error)
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Err(error);
            }
            Ok(_) | Err(_) if canceller.is_cancelled() => return Ok(Receiver::Interrupted),
            Ok(_) | Err(_) if Instant::now() >= deadline => return Ok(Receiver::StillOpen),
            Ok(_) | Err(_) => {}
        }
    }
}
