// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rounds: each way in a thread of its own, one after the other, again and again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::gettid;
use uring_getbuf::{Engine, Support};

use crate::cases::{Case, Point, Sink};
use crate::ground::{Ground, SIZE, pattern, source_file, spawn};
use crate::machine::Machine;
use crate::mark::mark;
use crate::report::{CaseResult, Measured, NotRun, PointResult, Results, WayResult};
use crate::ways::Kind;

/// How long a way may take for one sample or its set-up, besides what it is given.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer ones say no more than several do.
const LONGEST: Duration = Duration::from_millis(250);
/// Files that the largest point needs, twice.
const FILES: u64 = 16384;
/// Bytes of a sample whose requests are counted.
const MOST: u64 = 64 << 20;
/// Shorter samples say nothing.
const SHORTEST: Duration = Duration::from_millis(2);

/// What is to be measured, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cases.
    pub cases: Vec<&'static Case>,
    /// How long all of it is to take, about.
    pub time: Duration,
    /// Not so long, but so many requests in each sample, of at most 64 MiB altogether.
    pub requests: Option<u64>,
    /// Samples of each way; more, where the time allows for it.
    pub repeats: usize,
    /// Where files are made.
    pub folder: PathBuf,
    /// Only the ways whose names have this in them.
    pub only: Option<String>,
}

impl Options {
    fn wants(&self, kind: &Kind) -> bool {
        self.only.as_ref().is_none_or(|only| kind.to_string().contains(only))
    }

    fn check_only(&self) -> Result<()> {
        let all = || self.cases.iter().flat_map(|case| Kind::of(case));
        let Some(only) = &self.only else { return Ok(()) };
        if all().any(|kind| self.wants(&kind)) {
            return Ok(());
        }
        let mut names: Vec<_> = all().map(|kind| format!("{:?}", kind.to_string())).collect();
        names.sort();
        names.dedup();
        bail!("no way has {only:?} in its name; there are {}", names.join(", "))
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Points that are done.
    pub done: usize,
    /// Points that there are.
    pub total: usize,
    /// What is being done.
    pub what: &'a str,
}

/// What one run of a way took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) requests: u64,
    pub(crate) wall: Duration,
    /// Processor time of the way's thread, and of the kernel's worker threads for it.
    pub(crate) own: Duration,
    pub(crate) workers_time: Duration,
    /// Worker threads that did something.
    pub(crate) workers: usize,
    /// The mark before it; the one after it is the next.
    pub(crate) mark: u64,
}

/// Measures. Ends early, with what there is, when `stop` says so.
///
/// # Errors
///
/// Where nothing can be measured at all: there is no room for the files, or no way has the name that
/// is asked for.
pub fn run(
    options: &Options,
    stop: &dyn Fn() -> bool,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Results> {
    options.check_only()?;
    raise_file_limit();
    let data = pattern();
    let source = source_file(&options.folder, &data)?;
    let support = Support::detect();
    let bench = Bench { options, stop, support: &support, source, data };
    let end = Instant::now() + options.time;
    let missing = Engine::ALL.into_iter().filter_map(|engine| {
        let reason = support.engine(engine).err()?;
        Some((engine, reason.to_owned()))
    });
    let mut results = Results {
        machine: Machine::look(&options.folder),
        missing: missing.collect(),
        cases: Vec::new(),
        interrupted: false,
    };
    let total = options.cases.iter().map(|case| case.points().count()).sum();
    let mut done = 0;
    for case in &options.cases {
        let mut points = Vec::new();
        for point in case.points() {
            if stop() {
                results.interrupted = true;
                break;
            }
            let what = format!("{}, {} {}", case.name, point.on(case.axis), case.axis.name());
            progress(Progress { done, total, what: &what });
            let time = end.saturating_duration_since(Instant::now()) / (total - done) as u32;
            let (point, complete) = bench.point(case, point, time)?;
            results.interrupted |= !complete;
            points.push(point);
            done += 1;
        }
        results.cases.push(CaseResult { case: **case, points });
    }
    progress(Progress { done, total, what: "" });
    Ok(results)
}

/// Every flow needs files.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map(|most| most.max(FILES));
    // Above the maximum with privileges only.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    if raised.is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

struct Bench<'a> {
    options: &'a Options,
    stop: &'a dyn Fn() -> bool,
    support: &'a Support,
    source: File,
    data: Arc<[u8]>,
}

impl Bench<'_> {
    fn ground(&self, case: &Case, point: Point) -> Result<Arc<Ground>> {
        let ground = Ground::new(case, point, &self.source, &self.options.folder, &self.data);
        ground.map(Arc::new)
    }

    /// Measures a point, and says whether it came to its end.
    fn point(&self, case: &Case, point: Point, time: Duration) -> Result<(PointResult, bool)> {
        let wanted = |kind: &Kind| self.options.wants(kind);
        let kinds: Vec<_> = Kind::of(case).into_iter().filter(wanted).collect();
        let begin = Instant::now();
        // What a way leaves half done is not another one's to start with.
        let mut ground = None;
        let mut ways = Vec::new();
        for kind in kinds {
            ways.push((kind, self.prepare(kind, case, point, &mut ground)));
        }
        let left = time.saturating_sub(begin.elapsed());
        let running = ways.iter().filter(|(_, way)| way.is_ok()).count().max(1);
        let slot = left / (running * (self.options.repeats + 1)) as u32;
        let complete = self.rounds(&mut ways, slot.clamp(SHORTEST, LONGEST), point, begin + time);
        let ways = ways.into_iter().map(|(kind, way)| WayResult {
            name: kind.to_string(),
            outcome: way.map(Running::end),
        });
        Ok((PointResult { point, ways: ways.collect() }, complete))
    }

    /// Sets a way up, and sees to it that it moves the right bytes.
    fn prepare(
        &self,
        kind: Kind,
        case: &Case,
        point: Point,
        ground: &mut Option<Arc<Ground>>,
    ) -> Result<Running, NotRun> {
        if let Some(engine) = kind.engine()
            && self.support.engine(engine).is_err()
        {
            return Err(NotRun::NoEngine(engine));
        }
        if ground.is_none() {
            *ground = Some(self.ground(case, point)?);
        }
        let Some(there) = ground else { unreachable!("it was made") };
        // Of many lanes, one block each is enough to look at.
        let most = if point.lanes() < 64 { 3 } else { 1 };
        let round = u64::from(point.lanes()) * u64::from(point.block);
        let blocks = (SIZE / round).clamp(1, most);
        if case.sink == Sink::Null {
            // What goes to /dev/null cannot be looked at: the same into a file can.
            let kept = Case { sink: Sink::File, ..*case };
            let ground = self.ground(&kept, point)?;
            Running::start(kind, &ground, self.support)?.verify(blocks)?;
        }
        let before = Memory::now();
        let mut running = Running::start(kind, there, self.support)?;
        let tried = if case.sink == Sink::Null {
            running.sample(blocks).map(|_| ())
        } else {
            running.verify(blocks)
        };
        if let Err(error) = tried {
            *ground = None;
            return Err(error.into());
        }
        running.measured.memory = Memory::now().since(before);
        Ok(running)
    }

    /// Whether there are as many samples as were asked for.
    fn rounds(
        &self,
        ways: &mut [(Kind, Result<Running, NotRun>)],
        slot: Duration,
        point: Point,
        end: Instant,
    ) -> bool {
        let lanes = u64::from(point.lanes());
        let stopped = || (self.stop)();
        for (_, way) in ways.iter_mut() {
            let Ok(running) = way else { continue };
            let set = match self.options.requests {
                Some(requests) => {
                    let most = MOST / u64::from(point.block);
                    running.blocks = requests.min(most).div_ceil(lanes);
                    // Whatever is made the first time is there afterwards.
                    running.sample(running.blocks.div_ceil(4)).map(|_| ())
                }
                None => running.calibrate(slot),
            };
            if let Err(error) = set {
                *way = Err(error.into());
            }
            if stopped() {
                return false;
            }
        }
        let count = ways.len();
        for round in 0.. {
            // Where there is more time, more samples rather than longer ones.
            let more =
                self.options.requests.is_none() && Instant::now() + slot * count as u32 <= end;
            let enough = round >= self.options.repeats;
            if enough && !more {
                return true;
            }
            for index in 0..count {
                // There and back, so that nobody always has the same neighbour before it.
                let index = if round % 2 == 0 { index } else { count - 1 - index };
                let (_, way) = &mut ways[index];
                let Ok(running) = way else { continue };
                if stopped() {
                    return enough;
                }
                match running.sample(running.blocks) {
                    Ok(sample) => running.measured.samples.push(sample),
                    Err(error) => *way = Err(error.into()),
                }
            }
        }
        true
    }
}

/// Memory of the process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Bytes that it has in memory.
    pub(crate) resident: u64,
    /// Bytes that it has pinned.
    pub(crate) pinned: u64,
}

impl Memory {
    fn now() -> Self {
        let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let field = |name| field(name).unwrap_or(0) << 10;
        Self { resident: field("VmRSS:"), pinned: field("VmPin:") }
    }

    fn since(self, before: Self) -> Self {
        Self {
            resident: self.resident.saturating_sub(before.resident),
            pinned: self.pinned.saturating_sub(before.pinned),
        }
    }
}

/// What a way's thread is to do.
#[derive(Clone, Copy, Debug)]
enum Task {
    Measure { blocks: u64 },
    Verify { blocks: u64 },
}

/// A way that is set up, in its thread.
struct Running {
    tasks: Sender<Task>,
    answers: Receiver<Result<Sample>>,
    thread: JoinHandle<()>,
    blocks: u64,
    measured: Measured,
}

impl Running {
    fn start(kind: Kind, ground: &Arc<Ground>, support: &Support) -> Result<Self> {
        let (tasks, todo) = channel();
        let (answer, answers) = channel();
        let (ground, support) = (Arc::clone(ground), support.clone());
        let thread = spawn("way", move || live(kind, &ground, &support, &todo, &answer))?;
        let running = Self { tasks, answers, thread, blocks: 1, measured: Measured::default() };
        running.answer()?;
        Ok(running)
    }

    fn answer(&self) -> Result<Sample> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow!("it did not end in {} s", PATIENCE.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("its thread has ended")),
        }
    }

    fn task(&self, task: Task) -> Result<Sample> {
        self.tasks.send(task).ok().context("its thread has ended")?;
        self.answer()
    }

    fn sample(&self, blocks: u64) -> Result<Sample> {
        self.task(Task::Measure { blocks })
    }

    fn verify(&self, blocks: u64) -> Result<()> {
        self.task(Task::Verify { blocks }).map(|_| ())
    }

    /// Finds out how many blocks take so long.
    fn calibrate(&mut self, slot: Duration) -> Result<()> {
        loop {
            let wall = self.sample(self.blocks)?.wall.max(Duration::from_nanos(1));
            let factor = slot.as_secs_f64() / wall.as_secs_f64();
            if factor < 4.0 {
                self.blocks = ((self.blocks as f64 * factor) as u64).max(1);
                return Ok(());
            }
            self.blocks = (self.blocks as f64 * factor.min(16.0) / 2.0) as u64;
        }
    }

    fn end(self) -> Measured {
        drop(self.tasks);
        let _ = self.thread.join();
        self.measured
    }
}

/// A way's thread.
fn live(
    kind: Kind,
    ground: &Arc<Ground>,
    support: &Support,
    todo: &Receiver<Task>,
    answer: &Sender<Result<Sample>>,
) {
    let nothing = Sample {
        requests: 0,
        wall: Duration::ZERO,
        own: Duration::ZERO,
        workers_time: Duration::ZERO,
        workers: 0,
        mark: 0,
    };
    let mut way = match kind.build(ground, support) {
        Ok(way) => way,
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    if answer.send(Ok(nothing)).is_err() {
        return;
    }
    while let Ok(task) = todo.recv() {
        let done = match task {
            Task::Verify { blocks } => (|| {
                ground.wipe(blocks)?;
                ground.begin(true, blocks);
                way.run(blocks)?;
                ground.end()?;
                ground.check(blocks)?;
                Ok(nothing)
            })(),
            Task::Measure { blocks } => measure(ground, blocks, || way.run(blocks)),
        };
        if answer.send(done).is_err() {
            return;
        }
    }
}

fn measure(ground: &Ground, blocks: u64, run: impl FnOnce() -> Result<()>) -> Result<Sample> {
    ground.begin(false, blocks);
    let tid = gettid().as_raw_nonzero().get();
    let workers = Workers::of(tid);
    let own = thread_time();
    let begin = Instant::now();
    let mark = mark_here();
    run()?;
    ground.end()?;
    mark_here();
    let wall = begin.elapsed();
    let own = thread_time().saturating_sub(own);
    let (workers, workers_time) = Workers::of(tid).since(&workers);
    let requests = blocks * u64::from(ground.point.lanes());
    Ok(Sample { requests, wall, own, workers_time, workers, mark })
}

/// From one place, so that both marks of a sample count the same on their way.
#[inline(never)]
fn mark_here() -> u64 {
    mark()
}

/// Not rustix's: it insists on a vDSO that has everything, which user-mode Linux has not.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is written to. This clock is there since Linux 2.6.12.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Worker threads that the kernel has started for a thread, and their processor time.
struct Workers(Vec<(i32, Duration)>);

impl Workers {
    fn of(tid: i32) -> Self {
        let name = format!("iou-wrk-{tid}");
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let worker = |path: &Path| -> Option<(i32, Duration)> {
            let comm = fs::read_to_string(path.join("comm")).ok()?;
            if comm.trim() != name {
                return None;
            }
            let worker = path.file_name()?.to_str()?.parse().ok()?;
            Some((worker, running_time(path)?))
        };
        Self(tasks.filter_map(|task| worker(&task.path())).collect())
    }

    /// How many have run, and for how long.
    fn since(&self, before: &Self) -> (usize, Duration) {
        let mut count = 0;
        let mut sum = Duration::ZERO;
        for (worker, time) in &self.0 {
            let known = before.0.iter().find(|(other, _)| other == worker);
            let more = time.saturating_sub(known.map_or(Duration::ZERO, |(_, time)| *time));
            count += usize::from(!more.is_zero());
            sum += more;
        }
        (count, sum)
    }
}

/// Processor time of a thread: in nanoseconds where the kernel tells, or else in ticks.
fn running_time(task: &Path) -> Option<Duration> {
    if let Ok(text) = fs::read_to_string(task.join("schedstat")) {
        return Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?));
    }
    let text = fs::read_to_string(task.join("stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}
