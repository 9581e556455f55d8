// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the end-to-end cases share: a ring of the engine under test, files with content that tells
//! its position, peers that read, and a limit on how long a case may take.

pub mod fuse;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uring_getbuf::engine::Engine;
use uring_getbuf::ring::{Attached, Builder, Ring, Setup};
use uring_getbuf::slots::Event;

/// Why a case stopped early.
#[derive(Debug)]
pub enum Stop {
    /// It cannot run here; why.
    Skip(String),
    /// It failed; how.
    Fail(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Fail(error.to_string())
    }
}

/// What a case comes to. Assertions panic.
pub type Verdict = Result<(), Stop>;

/// Forgets a value as [`std::mem::forget`] does; a leak checker still finds it.
pub fn forget<T: 'static>(value: T) {
    static FORGOTTEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let address = Box::into_raw(Box::new(value)).expose_provenance();
    FORGOTTEN.lock().expect("nobody panics here").push(address);
}

/// Ends a case that cannot run here.
///
/// # Errors
///
/// Always, with the reason.
pub fn skip<T>(reason: impl fmt::Display) -> Result<T, Stop> {
    Err(Stop::Skip(reason.to_string()))
}

/// The ways to set a ring up that random programs run with, and their names.
pub const SETUPS: [(&str, Setup); 3] = [
    ("cooperative", Setup::Cooperative),
    ("defer", Setup::DeferTaskrun),
    ("sqpoll", Setup::SqPoll { idle: Duration::from_millis(20) }),
];

/// A number as a seed is written: decimal, or hexadecimal behind `0x`.
///
/// # Errors
///
/// What is wrong with it.
pub fn number(text: &str) -> Result<u64, String> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    u64::from_str_radix(digits, radix).map_err(|error| format!("{text}: {error}"))
}

/// What a case runs on.
#[derive(Clone, Copy, Debug)]
pub struct Rig {
    /// The engine under test.
    pub engine: Engine,
    /// How the ring is set up.
    pub setup: Setup,
}

impl Rig {
    /// A ring of small blocks, so that a few kilobytes are many leases.
    pub fn small(&self) -> Builder {
        Ring::builder().engine(self.engine).setup(self.setup).slots(4).block_size(4096).files(8)
    }

    /// The ring that most cases use: 4 slots of 4 KiB.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.small().build().expect("a small ring")
    }
}

/// `len` bytes that differ from position to position and from seed to seed, in a period that no
/// block size divides.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Tells how far a long run is, and whether it is to end before its time.
#[derive(Debug)]
pub struct Progress {
    name: Option<String>,
    stop: Option<PathBuf>,
    begin: Instant,
    told: Instant,
}

impl Progress {
    /// Of a run that may take hours.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let stop = std::env::var_os("GETBUF_TEST_STOP").map(PathBuf::from);
        let now = Instant::now();
        Self { name: Some(name.to_owned()), stop, begin: now, told: now }
    }

    /// Of one that is short.
    #[must_use]
    pub fn silent() -> Self {
        Self { name: None, stop: None, ..Self::new("") }
    }

    /// Prints what was done so far, at most every ten seconds. Whether the file is there that
    /// `GETBUF_TEST_STOP` names.
    pub fn tell(&mut self, done: impl fmt::Display) -> bool {
        if let Some(name) = &self.name
            && self.told.elapsed() >= Duration::from_secs(10)
        {
            println!("{name}: {done}, {} s", self.begin.elapsed().as_secs());
            self.told = Instant::now();
        }
        self.stop.as_deref().is_some_and(Path::exists)
    }
}

/// A folder for a case's files, gone with it. In `TMPDIR`.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    ///
    /// Those of making a folder.
    pub fn new() -> io::Result<Self> {
        tempfile::Builder::new().prefix("getbuf-").tempdir().map(Self)
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file with this content, open for reading.
    ///
    /// # Errors
    ///
    /// Those of writing and opening it.
    pub fn source(&self, content: &[u8]) -> io::Result<File> {
        std::fs::write(self.path("source"), content)?;
        File::open(self.path("source"))
    }

    /// An empty file, open for writing.
    ///
    /// # Errors
    ///
    /// Those of making it.
    pub fn sink(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(self.path("sink"))
    }

    /// What is in the sink.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn sunk(&self) -> io::Result<Vec<u8>> {
        std::fs::read(self.path("sink"))
    }
}

/// Two ends of a TCP connection over loopback.
///
/// # Errors
///
/// Those of making it.
pub fn tcp() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

/// Reads everything on a thread of its own.
pub fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // A peer that is reset has sent what it has sent.
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// Writes everything on a thread of its own, in pieces of a size that changes, then closes.
pub fn writer(mut to: impl Write + Send + 'static, content: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut rest = &content[..];
        let mut size = 1;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            if to.write_all(piece).is_err() {
                return;
            }
            rest = after;
            size = size * 3 % 7919 + 1;
        }
    })
}

/// Fills a socket or a pipe until it takes nothing more; how many bytes that took. It is left
/// blocking.
///
/// # Errors
///
/// Those of the descriptor, but not that it is full.
pub fn fill(file: &impl AsFd) -> io::Result<usize> {
    rustix::io::ioctl_fionbio(file, true)?;
    let mut bytes = 0;
    let chunk = [0x55; 4096];
    let mut size = chunk.len();
    while size > 0 {
        match rustix::io::write(file, &chunk[..size]) {
            Ok(written) => bytes += written,
            Err(rustix::io::Errno::AGAIN) => size /= 2,
            Err(errno) => return Err(errno.into()),
        }
    }
    rustix::io::ioctl_fionbio(file, false)?;
    Ok(bytes)
}

/// Waits until the ring has this many free slots, and returns the events that came meanwhile.
///
/// # Panics
///
/// If that takes more than thirty seconds, or the ring fails.
pub fn until_free(ring: &mut Ring, free: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..3000 {
        ring.wait_timeout(usize::from(ring.free() < free), Duration::from_millis(10))
            .expect("waiting");
        while let Some(event) = ring.next_event() {
            events.push(event);
        }
        if ring.free() >= free {
            return events;
        }
    }
    panic!("{} of {} slots are free, not {free}: {events:?}", ring.free(), ring.capacity());
}

/// Waits until everything that was queued has been issued: requests are issued in order, also by a
/// kernel thread, so when a wait for `ready`, which is, has ended, what came before it runs.
///
/// # Panics
///
/// Where [`until`] does.
pub fn until_issued(ring: &mut Ring, ready: &Attached) {
    ring.poll_writable(ready, 0x155).expect("a poll");
    until(ring, |event| matches!(event, Event::Ready { token: 0x155, .. }));
}

/// Whether an event tells nothing that a program could have asked for.
#[must_use]
pub fn is_quiet(event: &Event) -> bool {
    matches!(event, Event::Released { .. } | Event::Pending)
}

/// Waits for an event that `wanted` accepts; others are dropped.
///
/// # Panics
///
/// If that takes more than thirty seconds, or the ring fails.
pub fn until(ring: &mut Ring, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    for _ in 0..3000 {
        while let Some(event) = ring.next_event() {
            if wanted(&event) {
                return event;
            }
        }
        ring.wait_timeout(1, Duration::from_millis(10)).expect("waiting");
    }
    panic!("the event did not come");
}

/// Runs a case on a thread of its own, and gives it up if it hangs: its thread stays behind until
/// the process ends.
///
/// # Errors
///
/// The case's, or that it hung or panicked.
pub fn within(limit: Duration, case: impl FnOnce() -> Verdict + Send + 'static) -> Verdict {
    let (done, wait) = channel();
    let thread = thread::spawn(move || {
        let verdict = case();
        let _ = done.send(verdict);
    });
    match wait.recv_timeout(limit) {
        Ok(verdict) => verdict,
        Err(RecvTimeoutError::Timeout) => Err(Stop::Fail(format!("it hangs ({limit:?})"))),
        Err(RecvTimeoutError::Disconnected) => {
            let payload = thread.join().expect_err("only a panic ends it without a verdict");
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            Err(Stop::Fail(text.unwrap_or("it panicked").into()))
        }
    }
}
