// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every engine, end to end, on real files, pipes and sockets.
//!
//! A case is a function that gets a [`Rig`]; each runs once per engine that works here, as
//! `<engine>::<area>::<case>`, and the central ones once more for each ring setup. The executable
//! needs nothing but itself: it can be copied into a test kernel and run there.
//!
//! | environment | |
//! |---|---|
//! | `GETBUF_TEST_ENGINE=copy` (`opcode`, `module`) | only this engine; if it does not work here, that is a failure |
//! | `TMPDIR` | where files go |

mod alike;
mod bad;
mod chain;
mod child;
mod ends;
mod fan;
mod lease;
mod life;
mod limits;
mod look;
mod odd;
mod provide;
mod relay;
mod waits;

use std::process::ExitCode;
use std::time::Duration;

use getbuf_tests::{Rig, Stop, Verdict, within};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use uring_getbuf::engine::Engine;
use uring_getbuf::probe::Support;
use uring_getbuf::ring::Setup;

/// Longer than any case takes on a loaded machine or in a slow test kernel.
const LIMIT: Duration = Duration::from_secs(60);

/// Name and function.
pub(crate) type Case = (&'static str, fn(&Rig) -> Verdict);

const SETUPS: [(&str, Setup); 3] = [
    ("", Setup::Cooperative),
    ("@defer", Setup::DeferTaskrun),
    ("@sqpoll", Setup::SqPoll { idle: Duration::from_millis(50) }),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(child::FLAG) {
        return child::main(&args.collect::<Vec<_>>());
    }
    let support = Support::detect();
    let only = std::env::var("GETBUF_TEST_ENGINE").ok();
    let mut trials = Vec::new();
    for engine in Engine::ALL {
        if only.as_deref().is_some_and(|only| only != engine.name()) {
            continue;
        }
        match support.engine(engine) {
            Ok(()) => add(engine, &mut trials),
            Err(reason) if only.is_some() => {
                let reason = format!("the {engine} engine was asked for: {reason}");
                trials.push(Trial::test(format!("{engine}::available"), || Err(reason.into())));
            }
            Err(reason) => {
                let name = format!("{engine}::not here: {reason}");
                trials.push(Trial::test(name, || Ok(())).with_ignored_flag(true));
            }
        }
    }
    if let Some(only) = only.filter(|only| only.parse::<Engine>().is_err()) {
        eprintln!("GETBUF_TEST_ENGINE={only}: there are opcode, module and copy");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn add(engine: Engine, trials: &mut Vec<Trial>) {
    let areas = [
        ("lease", lease::CENTRAL, lease::CASES),
        ("chain", chain::CENTRAL, &[]),
        ("life", life::CENTRAL, life::CASES),
        ("ends", &[], ends::CASES),
        ("fan", fan::CENTRAL, fan::CASES),
        ("look", look::CENTRAL, look::CASES),
        ("odd", &[], odd::CASES),
        ("provide", provide::CENTRAL, provide::CASES),
        ("relay", relay::CENTRAL, relay::CASES),
        ("waits", waits::CENTRAL, waits::CASES),
        ("bad", bad::CENTRAL, bad::CASES),
        ("alike", &[], alike::CASES),
        ("process", &[], child::CASES),
        ("limits", &[], limits::CASES),
    ];
    for (area, central, cases) in areas {
        for (suffix, setup) in SETUPS {
            let rig = Rig { engine, setup };
            for (name, case) in central {
                trials.push(trial(format!("{engine}::{area}::{name}{suffix}"), rig, *case));
            }
        }
        let rig = Rig { engine, setup: Setup::Cooperative };
        for (name, case) in cases {
            trials.push(trial(format!("{engine}::{area}::{name}"), rig, *case));
        }
    }
}

fn trial(name: String, rig: Rig, case: fn(&Rig) -> Verdict) -> Trial {
    Trial::ignorable_test(name, move || match within(LIMIT, move || case(&rig)) {
        Ok(()) => Ok(Completion::Completed),
        Err(Stop::Skip(reason)) => Ok(Completion::ignored_with(reason)),
        Err(Stop::Fail(how)) => Err(Failed::from(how)),
    })
}
