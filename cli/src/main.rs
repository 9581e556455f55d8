// SPDX-License-Identifier: MIT OR Apache-2.0
//! `getbuf`: copies and sends files through io_uring leases, on any kernel.

mod args;
mod bench;
mod connect;
mod cp;
mod end;
mod ends;
mod fit;
mod probe;
mod progress;
mod proxy;
mod send;
mod signals;
mod stdio;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use end::End;

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Probe { json } => probe::run(json),
        Command::Cp(args) => cp::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Proxy(args) => proxy::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    done.map_or_else(End::report, |()| ExitCode::SUCCESS)
}
