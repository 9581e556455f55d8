// SPDX-License-Identifier: MIT OR Apache-2.0
//! The adversary: programs without `unsafe` that call everything public in random orders, and that
//! mean no good. Whatever they do, sources stay as they are, a lease shows its own bytes and no
//! others, a sink holds what was written to it and nothing else, memory that no request names stays
//! as it is, and the process lives.
//!
//! ```text
//! cargo test -p getbuf-tests --test adversary                a bounded share
//! GETBUF_ADVERSARY=1000000 cargo test -p getbuf-tests --test adversary
//! GETBUF_SEED=0x2a cargo test -p getbuf-tests --test adversary copy::defer
//! ```
//!
//! `GETBUF_ADVERSARY` is the number of programs of each trial. Programs run in child processes, many
//! in each: one that crashes, or hangs, is a failure that has the name of its seed, which
//! `GETBUF_SEED` runs alone. `GETBUF_TEST_ENGINE` names the only engine to try. A long run prints how
//! far it is, and ends in order when there is the file that `GETBUF_TEST_STOP` names.

#![forbid(unsafe_code)]

mod moves;
mod program;
mod provider;
mod sans_io;
mod world;

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use getbuf_tests::{Progress, SETUPS, number};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use uring_getbuf::{Engine, Support};

use crate::program::Program;
use crate::world::{Tally, World};

/// Tells the executable that it runs programs.
const CHILD: &str = "--child";
/// Programs of a trial.
const SHARE: u64 = 150;
/// Programs of a process.
const BATCH: u64 = 50;
/// A program that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    if let [CHILD, engine, setup, first, count] = args[..] {
        return match child(engine, setup, first, count) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                println!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let asked = |name: &str| std::env::var(name).ok().map(|text| number(&text)).transpose();
    let (programs, seed) = match (asked("GETBUF_ADVERSARY"), asked("GETBUF_SEED")) {
        (Ok(programs), Ok(seed)) => (programs, seed),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("GETBUF_ADVERSARY and GETBUF_SEED are numbers: {error}");
            return ExitCode::FAILURE;
        }
    };
    let only = std::env::var("GETBUF_TEST_ENGINE").ok();
    let support = Support::detect();
    let mut trials = Vec::new();
    for engine in Engine::ALL {
        if only.as_deref().is_some_and(|only| only != engine.name()) {
            continue;
        }
        let works = support.engine(engine).map_err(str::to_owned);
        for (setup, _) in SETUPS {
            let works = works.clone();
            let name = format!("{engine}::{setup}");
            trials.push(Trial::ignorable_test(name.clone(), move || {
                if let Err(reason) = works {
                    return Ok(Completion::ignored_with(reason));
                }
                let mut progress = match programs {
                    Some(_) => Progress::new(&name),
                    None => Progress::silent(),
                };
                let (first, count) = match seed {
                    Some(seed) => (seed, 1),
                    None => (0x5eed, programs.unwrap_or(SHARE)),
                };
                run(engine, setup, first, count, &mut progress).map_err(Failed::from)?;
                Ok(Completion::Completed)
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs programs in one process after the other.
fn run(
    engine: Engine,
    setup: &str,
    first: u64,
    count: u64,
    progress: &mut Progress,
) -> Result<(), String> {
    let mut done = 0;
    let mut tally = [0; Tally::ALL.len()];
    while done < count {
        if progress.tell(format_args!("{done} programs: {}", shown(&tally))) {
            break;
        }
        let some = BATCH.min(count - done);
        let more = batch(engine, setup, first.wrapping_add(done), some)?;
        tally.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        done += some;
    }
    println!("{engine}::{setup}: {done} programs: {}", shown(&tally));
    // So many programs do a little of everything, or the test tests nothing.
    match Tally::ALL.iter().zip(tally).find(|(_, count)| *count == 0) {
        Some((what, _)) if done >= SHARE => Err(format!("nothing was {what} by {done} programs")),
        _ => Ok(()),
    }
}

type Counts = [u64; Tally::ALL.len()];

fn shown(tally: &Counts) -> String {
    let counts = Tally::ALL.iter().zip(tally).map(|(what, count)| format!("{count} {what}"));
    counts.collect::<Vec<_>>().join(", ")
}

/// Runs programs in one process, which says the seed of each before it begins.
fn batch(engine: Engine, setup: &str, first: u64, count: u64) -> Result<Counts, String> {
    let error = |error: std::io::Error| error.to_string();
    let mut child = Command::new(std::env::current_exe().map_err(error)?)
        .args([CHILD, engine.name(), setup, &first.to_string(), &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(error)?;
    let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
    let (say, said) = channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = say.send(line);
        }
    });
    let (mut seed, mut last, mut counts) = (first, String::new(), None);
    let hangs = loop {
        match said.recv_timeout(PATIENCE) {
            Ok(line) => {
                if let Some(text) = line.strip_prefix("seed ") {
                    seed = number(text)?;
                } else if let Some(text) = line.strip_prefix("did ") {
                    counts =
                        text.split(' ').map(number).collect::<Result<Vec<_>, _>>()?.try_into().ok();
                } else {
                    last = line;
                }
            }
            Err(RecvTimeoutError::Timeout) => break true,
            Err(RecvTimeoutError::Disconnected) => break false,
        }
    };
    if hangs {
        child.kill().map_err(error)?;
    }
    let status = child.wait().map_err(error)?;
    let _ = reader.join();
    if let Some(counts) = counts.filter(|_| status.success() && !hangs) {
        return Ok(counts);
    }
    let what = if hangs { format!("it hangs ({PATIENCE:?})") } else { format!("{status}: {last}") };
    Err(format!("program {seed:#x}: {what}\nalone: GETBUF_SEED={seed:#x} and {engine}::{setup}"))
}

fn child(engine: &str, setup: &str, first: &str, count: &str) -> Result<(), String> {
    let engine: Engine = engine.parse().map_err(|error| format!("{error}"))?;
    let setup = SETUPS.iter().find(|(name, _)| *name == setup).ok_or("no such set-up")?.1;
    let (first, count) = (number(first)?, number(count)?);
    let world = World::new().map_err(|error| error.to_string())?;
    let support = Support::detect();
    world::end_at_panics();
    for seed in (0..count).map(|place| first.wrapping_add(place)) {
        println!("seed {seed:#x}");
        Program::run(&world, engine, setup, &support, seed);
    }
    let done = Tally::take();
    let done = Tally::ALL.map(|what| done.get(what).copied().unwrap_or(0).to_string());
    println!("did {}", done.join(" "));
    Ok(())
}
