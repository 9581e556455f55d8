// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf send`

use std::net::{Shutdown, TcpStream, ToSocketAddrs};

use crate::args::SendArgs;
use crate::end::End;
use crate::transfer::{self, Named};

pub(crate) fn run(args: &SendArgs) -> Result<(), End> {
    let source = transfer::open_source(&args.source)?;
    let mut ring = transfer::ring(&args.options)?;
    let stream = connect(&args.address)?;
    let for_end = stream.try_clone().map_err(|error| End::failed(error.to_string()))?;
    let sink = Named { name: args.address.clone(), file: stream.into() };
    transfer::run(&mut ring, &source, &sink, &args.options)?;
    for_end
        .shutdown(Shutdown::Write)
        .map_err(|error| End::failed(format!("{}: ending the connection: {error}", args.address)))
}

/// Tries every address that the name has, and tells what the last one said.
fn connect(address: &str) -> Result<TcpStream, End> {
    let failed = |what: String| End::failed(format!("{address}: {what}"));
    let found = address
        .to_socket_addrs()
        .map_err(|error| failed(format!("{error} (as HOST:PORT; an IPv6 address in brackets)")))?;
    let mut last = failed("this name has no address".into());
    for candidate in found {
        match TcpStream::connect(candidate) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(format!("connecting to {candidate}: {error}")),
        }
    }
    Err(last)
}
