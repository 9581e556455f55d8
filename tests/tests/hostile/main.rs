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
//! Requests are those that the kernel has taken; a kill counts if a lease was alive just before it.
//! A long run prints how far it is, and ends in order, with what it did, when there is the file that
//! `GETBUF_TEST_STOP` names.
//!
//! It runs in the test kernels, as root. Where the kernel lends nothing, every trial is ignored.

mod attack;
mod place;
mod request;

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::AddAssign;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use fastrand::Rng;
use getbuf_tests::Progress;
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
const PATIENCE: Duration = Duration::from_secs(600);
/// Requests that an attacker sends in a row,
const SHARE: u64 = 3_000;
/// and in a long run: a process costs a slow kernel as much as hundreds of requests.
const LONG_SHARE: u64 = 40_000;
const KILLS: u64 = 20;

/// What attackers did.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Requests that the kernel took,
    sent: u64,
    /// completions that tell no error, of those that were looked at,
    done: u64,
    /// and kills, while a lease was alive,
    killed: u64,
    /// or none was.
    idle: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.done += more.done;
        self.killed += more.killed;
        self.idle += more.idle;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.killed + self.idle > 0 {
            write!(f, "{} killed with leases, {} without", self.killed, self.idle)
        } else {
            write!(f, "{} requests, {} successes seen", self.sent, self.done)
        }
    }
}

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
        [ATTACK, ref rest @ ..] => match *rest {
            [folder, seed, requests, get_buf, put_buf, failing] => {
                attack::main([folder, seed, requests, get_buf, put_buf, failing])
            }
            _ => Err("an attacker is told six things".into()),
        },
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
            let tally = run(way, count, SHARE, 0xbad, &mut Progress::silent());
            println!("{name}: {}", tally.map_err(Failed::from)?);
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
    let name = format!("{way:?} from seed {seed}");
    let tally = run(way, count, LONG_SHARE, seed, &mut Progress::new(&name))?;
    println!("{name}: {tally}, {:.1} s", begin.elapsed().as_secs_f64());
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

fn run(way: Way, count: u64, most: u64, seed: u64, progress: &mut Progress) -> Outcome<Tally> {
    let place = Place::new()?;
    let mut rng = Rng::with_seed(seed);
    if way == Way::Failing {
        can_fail()?;
        failures(true).map_err(said)?;
    }
    let mut tally = Tally::default();
    let done = loop {
        let done = if way == Way::Killed { tally.killed } else { tally.sent };
        if done >= count || progress.tell(tally) {
            break Ok(tally);
        }
        let seed = rng.u64(..);
        let round = match way {
            Way::Killed => kill(&place, seed, &mut rng),
            Way::Random | Way::Failing => {
                let each = (count - done).div_ceil(ATTACKERS).min(most);
                share(&place, seed, each, way, &mut rng)
            }
        };
        match round.and_then(|more| place.check().and(no_leases_left()).map(|()| more)) {
            Ok(more) => tally += more,
            Err(error) => break Err(format!("after {tally}, seed {seed}: {error}")),
        }
    };
    if way == Way::Failing {
        failures(false).map_err(said)?;
    }
    done
}

/// Attackers that come to their own end.
fn share(place: &Place, seed: u64, each: u64, way: Way, rng: &mut Rng) -> Outcome<Tally> {
    let attackers = (0..ATTACKERS).map(|number| place.attacker(seed ^ number, each, way));
    let mut attackers = attackers.collect::<Outcome<Vec<_>>>()?;
    let begin = Instant::now();
    loop {
        let change = Instant::now();
        let _ = place.change(rng);
        // A quarter of the time of a slow machine is enough for that.
        let pause = (change.elapsed() * 3).max(Duration::from_millis(1));
        let mut running = 0;
        for attacker in &mut attackers {
            match attacker.try_wait().map_err(said)? {
                None => running += 1,
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("an attacker: {status}")),
            }
        }
        if running == 0 {
            break;
        }
        if begin.elapsed() > PATIENCE {
            for attacker in &mut attackers {
                let _ = attacker.kill();
                let _ = attacker.wait();
            }
            return Err("an attacker hangs".into());
        }
        std::thread::sleep(pause);
    }
    let mut tally = Tally::default();
    for attacker in attackers {
        tally += told(attacker)?;
    }
    if tally.sent == 0 { Err("nothing was sent".into()) } else { Ok(tally) }
}

/// What an attacker that has ended says that it did.
fn told(attacker: Child) -> Outcome<Tally> {
    let said = attacker.wait_with_output().map_err(said)?.stdout;
    let text = String::from_utf8_lossy(&said);
    let numbers: Vec<_> = text.trim_start_matches('!').split_whitespace().collect();
    match numbers[..] {
        [sent, done] => Ok(Tally {
            sent: sent.parse().map_err(crate::said)?,
            done: done.parse().map_err(crate::said)?,
            ..Tally::default()
        }),
        _ => Err(format!("an attacker says {text:?}")),
    }
}

/// An attacker that is killed in the middle.
fn kill(place: &Place, seed: u64, rng: &mut Rng) -> Outcome<Tally> {
    let mut attacker = place.attacker(seed, u64::MAX, Way::Killed)?;
    // It says when it begins.
    let begun = attacker.stdout.take().map(|mut from| from.read_exact(&mut [0]));
    if !matches!(begun, Some(Ok(()))) {
        let status = attacker.wait().map_err(said)?;
        return Err(format!("an attacker does not begin: {status}"));
    }
    std::thread::sleep(Duration::from_micros(rng.u64(0..20_000)));
    // Most of them once they have leases, which takes a slow kernel longer.
    let patience = Instant::now() + Duration::from_secs(1);
    while rng.u32(0..16) > 0 && live_leases()? == 0 && Instant::now() < patience {
        std::thread::sleep(Duration::from_micros(rng.u64(0..2_000)));
    }
    let with_leases = live_leases()? > 0;
    attacker.kill().map_err(said)?;
    attacker.wait().map_err(said)?;
    // Where the test bed says what to load again.
    if let Some(module) = std::env::var_os("GETBUF_MODULE")
        && rng.u32(0..8) == 0
    {
        reload(Path::new(&module))?;
    }
    let (killed, idle) = (u64::from(with_leases), u64::from(!with_leases));
    Ok(Tally { killed, idle, ..Tally::default() })
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
