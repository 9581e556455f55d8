// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random programs on real rings, checked against a model that knows what each call must return
//! and what each byte must be.
//!
//! ```text
//! cargo test -p getbuf-tests --test fuzz                            a bounded share
//! cargo test -p getbuf-tests --test fuzz -- --run ENGINE SETUP OPERATIONS [SEED]
//! ```
//!
//! A failure prints the seed of its program: `--run` with that seed, and as many operations as one
//! program has, makes the same choices again as long as the kernel completes requests at the same
//! moments. `GETBUF_TEST_ENGINE` names the only engine to try. A long run prints how far it is, and
//! ends in order, with what it did, when there is the file that `GETBUF_TEST_STOP` names.

mod model;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use getbuf_tests::{Progress, Rig, SETUPS, number};
use libtest_mimic::{Arguments, Failed, Trial};
use uring_getbuf::{Engine, Support};

use crate::model::{Program, Tally};

/// Operations of one program: then its ring is dropped, with whatever is in flight, and everything
/// is looked at.
const PROGRAM: u64 = 2_000;
/// Operations of a trial.
const SHARE: u64 = 30_000;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    if let ["--run", engine, setup, operations, seed @ ..] = &args[..] {
        return match long(engine, setup, operations, seed.first().copied()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let only = std::env::var("GETBUF_TEST_ENGINE").ok();
    let support = Support::detect();
    let mut trials = Vec::new();
    for engine in Engine::ALL {
        if only.as_deref().is_some_and(|only| only != engine.name()) {
            continue;
        }
        let works = support.engine(engine).map_err(str::to_owned);
        for (name, setup) in SETUPS {
            let works = works.clone();
            trials.push(Trial::ignorable_test(format!("{engine}::{name}"), move || {
                if let Err(reason) = works {
                    return Ok(libtest_mimic::Completion::ignored_with(reason));
                }
                let rig = Rig { engine, setup };
                let tally = run(rig, 0x5eed, SHARE, &mut Progress::silent());
                let tally = tally.map_err(Failed::from)?;
                println!("{engine}::{name}: {tally}");
                Ok(libtest_mimic::Completion::Completed)
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Programs one after the other, the first one with this seed.
fn run(rig: Rig, seed: u64, operations: u64, progress: &mut Progress) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for number in 0..operations.div_ceil(PROGRAM) {
        if progress.tell(tally) {
            break;
        }
        let seed = seed.wrapping_add(number);
        let some = PROGRAM.min(operations - number * PROGRAM);
        // A panic names the program, too.
        let program = std::panic::catch_unwind(|| Program::run(rig, seed, some));
        let failed = |why: &str| format!("seed {seed:#x}, {some} operations: {why}");
        match program {
            Ok(Ok(more)) => tally += more,
            Ok(Err(why)) => return Err(failed(&why)),
            Err(_) => return Err(failed("a panic")),
        }
    }
    Ok(tally)
}

fn long(engine: &str, setup: &str, operations: &str, seed: Option<&str>) -> Result<(), String> {
    let engine: Engine = engine.parse().map_err(|error| format!("{error}"))?;
    let (_, setup) = *SETUPS
        .iter()
        .find(|(name, _)| *name == setup)
        .ok_or_else(|| format!("no set-up {setup}: there are cooperative, defer and sqpoll"))?;
    let operations = number(operations)?;
    // Any will do: it is printed.
    let seed = match seed {
        Some(seed) => number(seed)?,
        None => u64::from(std::process::id()) << 32,
    };
    let name = format!("{engine} from seed {seed:#x}");
    println!("{name}: {operations} operations are wanted");
    let begin = Instant::now();
    let tally = run(Rig { engine, setup }, seed, operations, &mut Progress::new(&name))?;
    println!("{name}: {tally}, {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}
