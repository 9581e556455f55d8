// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile programs against the kernel's side: random requests and commands with random fields from
//! several processes and threads, on rings of every set-up, while the files change under them (cut,
//! punched, renamed, written to, also through a mapping, remounted, out of the page cache); kills, and
//! the module unloaded right after; allocations that fail. What must hold: the kernel complains of
//! nothing (the test bed reads its log), the files that nobody may write to stay as they are, and no
//! lease is left.
//!
//! ```text
//! cargo test -p getbuf-tests --test hostile                        a bounded share
//! cargo test -p getbuf-tests --test hostile -- --run random|failing REQUESTS [SEED]
//! cargo test -p getbuf-tests --test hostile -- --run killed KILLS [SEED]
//! ```
//!
//! It runs in the test kernels, as root. Where the kernel lends nothing, every trial is ignored.

mod attack;
mod place;

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use fastrand::Rng;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};
use uring_getbuf::{Engine, Support};

use crate::place::Place;

type Outcome<T = ()> = Result<T, String>;

/// Tells the executable that it is an attacker.
const ATTACK: &str = "--attack";
/// Where the kernels count live leases: the patched one, and the module.
const COUNTS: [&str; 2] =
    ["/sys/kernel/debug/io_uring/leases", "/sys/class/misc/getbuf/stats/leases"];
/// Where allocations are made to fail, for tasks that ask for it.
const FAILING: [&str; 2] = ["/sys/kernel/debug/failslab", "/sys/kernel/debug/fail_page_alloc"];
const DEVICE: &str = "/dev/getbuf";
/// A file that no attacker can write to.
const SACRED: usize = 200_003;
const ATTACKERS: u64 = 2;
/// An attacker that takes longer for a share hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests that an attacker sends in a row.
const SHARE: u64 = 3_000;
const KILLS: u64 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Random,
    Failing,
    Killed,
}

impl Way {
    const ALL: [(&str, Self); 3] =
        [("random", Self::Random), ("failing", Self::Failing), ("killed", Self::Killed)];
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [ATTACK, folder, seed, requests, failing] => attack::main(folder, seed, requests, failing),
        ["--run", way, count, ref seed @ ..] => long(way, count, seed.first().copied()),
        _ => return trials(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> ExitCode {
    let lends = lends();
    let trials = Way::ALL.map(|(name, way)| {
        let lends = lends.clone();
        Trial::ignorable_test(name, move || {
            if let Err(reason) = lends {
                return Ok(Completion::ignored_with(reason));
            }
            if let (Way::Failing, Err(reason)) = (way, can_fail()) {
                return Ok(Completion::ignored_with(reason));
            }
            let count = if way == Way::Killed { KILLS } else { ATTACKERS * SHARE };
            run(way, count, 0xbad).map_err(Failed::from)?;
            Ok(Completion::Completed)
        })
    });
    // The count of leases is the kernel's, so one at a time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn long(way: &str, count: &str, seed: Option<&str>) -> Outcome {
    let known = Way::ALL.into_iter().find(|(name, _)| *name == way);
    let (_, way) = known.ok_or_else(|| format!("no way {way}"))?;
    let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    lends()?;
    let begin = Instant::now();
    let (count, seed) = (number(count)?, seed.map_or(Ok(1), number)?);
    run(way, count, seed)?;
    println!("{way:?}: {count} from seed {seed}, {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Whether there is anything to attack.
fn lends() -> Outcome {
    let support = Support::detect();
    let opcode = support.engine(Engine::Opcode);
    let Err(reason) = opcode.or_else(|_| support.engine(Engine::Module)) else { return Ok(()) };
    Err(reason.to_owned())
}

fn can_fail() -> Outcome {
    let _ = live_leases();
    match FAILING.iter().find(|folder| !Path::new(folder).exists()) {
        Some(folder) => Err(format!("the kernel cannot make allocations fail: no {folder}")),
        None => Ok(()),
    }
}

/// The kernel's count.
fn live_leases() -> Outcome<u64> {
    if !Path::new("/sys/kernel/debug/io_uring").exists() {
        let _ = Command::new("mount").args(["-t", "debugfs", "none", "/sys/kernel/debug"]).status();
    }
    let mut sum = None;
    for path in COUNTS {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let line = text.lines().find_map(|line| line.strip_prefix("leases ")).unwrap_or(&text);
        let count: u64 = line.trim().parse().map_err(|error| format!("{path}: {error}"))?;
        sum = Some(sum.unwrap_or(0) + count);
    }
    sum.ok_or_else(|| "the kernel does not count its leases".into())
}

/// A ring that was closed gives its leases back a little later.
fn no_leases_left() -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    while live_leases()? != 0 {
        if Instant::now() > deadline {
            return Err(format!("{} leases are left", live_leases()?));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}

fn run(way: Way, count: u64, seed: u64) -> Outcome {
    let place = Place::new()?;
    let mut rng = Rng::with_seed(seed);
    if way == Way::Failing {
        can_fail()?;
        failures(true).map_err(said)?;
    }
    let mut left = count;
    let done = loop {
        let seed = rng.u64(..);
        let round = match way {
            Way::Killed => kill(&place, seed, &mut rng).map(|()| 1),
            Way::Random | Way::Failing => {
                share(&place, seed, left.min(ATTACKERS * SHARE), way, &mut rng)
            }
        };
        match round.and_then(|done| place.check().and(no_leases_left()).map(|()| done)) {
            Ok(done) if done < left => left -= done,
            Ok(_) => break Ok(()),
            Err(error) => break Err(format!("seed {seed}: {error}")),
        }
    };
    if way == Way::Failing {
        failures(false).map_err(said)?;
    }
    done
}

/// Attackers that come to their own end.
fn share(place: &Place, seed: u64, requests: u64, way: Way, rng: &mut Rng) -> Outcome<u64> {
    let each = requests.div_ceil(ATTACKERS);
    let attackers = (0..ATTACKERS).map(|number| place.attacker(seed ^ number, each, way));
    let mut attackers = attackers.collect::<Outcome<Vec<_>>>()?;
    let begin = Instant::now();
    loop {
        let _ = place.change(rng);
        let mut running = 0;
        for attacker in &mut attackers {
            match attacker.try_wait().map_err(said)? {
                None => running += 1,
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("an attacker: {status}")),
            }
        }
        if running == 0 {
            return Ok(each * ATTACKERS);
        }
        if begin.elapsed() > PATIENCE {
            for attacker in &mut attackers {
                let _ = attacker.kill();
                let _ = attacker.wait();
            }
            return Err("an attacker hangs".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An attacker that is killed in the middle.
fn kill(place: &Place, seed: u64, rng: &mut Rng) -> Outcome {
    let mut attacker = place.attacker(seed, u64::MAX, Way::Killed)?;
    // It says when it begins.
    let begun = attacker.stdout.take().map(|mut from| from.read_exact(&mut [0]));
    if !matches!(begun, Some(Ok(()))) {
        let status = attacker.wait().map_err(said)?;
        return Err(format!("an attacker does not begin: {status}"));
    }
    std::thread::sleep(Duration::from_micros(rng.u64(0..20_000)));
    attacker.kill().map_err(said)?;
    attacker.wait().map_err(said)?;
    // Where the test bed says what to load again.
    match std::env::var_os("GETBUF_MODULE") {
        Some(module) if rng.u32(0..8) == 0 => reload(Path::new(&module)),
        _ => Ok(()),
    }
}

/// Unloads the module as soon as it lets us, while the kernel takes the leases of the dead back.
fn reload(module: &Path) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    let permissions = fs::metadata(DEVICE).map_err(said)?.permissions();
    loop {
        match delete_module(c"getbuf", OFlags::NONBLOCK.bits() as i32) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK | Errno::BUSY) if Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(errno) => return Err(format!("unloading the module: {errno}")),
        }
    }
    finit_module(File::open(module).map_err(said)?, c"", 0).map_err(said)?;
    fs::set_permissions(DEVICE, permissions).map_err(said)
}

/// One of fifty allocations fails for tasks that ask for it, or none.
fn failures(yes: bool) -> std::io::Result<()> {
    for folder in FAILING {
        let set = |name: &str, value: &str| {
            File::options()
                .write(true)
                .open(Path::new(folder).join(name))?
                .write_all(value.as_bytes())
        };
        set("task-filter", "Y")?;
        set("probability", if yes { "2" } else { "0" })?;
        set("interval", "1")?;
        set("times", "-1")?;
        // Its own messages would fill the log.
        set("verbose", "0")?;
        // Those that may wait fail, too.
        set("ignore-gfp-wait", "N")?;
    }
    Ok(())
}
