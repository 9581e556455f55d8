// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the bytes of one point are moved on: files, pipes and sockets. None of it has a name in a
//! file system, so nothing is left behind, however the program ends.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::cases::{Case, Point, Sink, Source};

/// Bytes in the source, and in a sink that is a file.
pub(crate) const SIZE: u64 = 32 << 20;
/// How far apart flows begin.
const APART: u64 = 1 << 20;
/// How long the far end may be silent while something is on its way to it.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is asked for a pipe's room, in bytes: most that a program without privileges gets.
pub(crate) const PIPE: usize = 1 << 20;

/// The bytes that are moved: every word differs from all others.
pub(crate) fn pattern() -> Arc<[u8]> {
    // xorshift64
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..SIZE / 8).map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// Files, pipes and sockets of one point.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) case: Case,
    pub(crate) point: Point,
    pub(crate) source: OwnedFd,
    /// Those of the first flow, then those of the second, and so on.
    pub(crate) sinks: Vec<OwnedFd>,
    data: Arc<[u8]>,
    peer: Option<Peer>,
    feeder: Option<JoinHandle<()>>,
    /// How much of a pipe has been taken.
    taken: AtomicU64,
}

/// Which blocks a lane moves: one request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    start: u64,
    stride: u64,
    /// The first of its sinks.
    pub(crate) sink: usize,
}

impl Lane {
    /// Where its n-th block is in the source.
    #[inline]
    pub(crate) fn offset(&self, n: u64) -> u64 {
        (self.start + n * self.stride) & (SIZE - 1)
    }
}

impl Ground {
    /// `source`: the file with the pattern. `folder` is where a sink is made that is a file.
    pub(crate) fn new(
        case: &Case,
        point: Point,
        source: &File,
        folder: &Path,
        data: &Arc<[u8]>,
    ) -> Result<Self> {
        let count = usize::from(point.flows) * usize::from(point.sinks);
        let mut feeder = None;
        let source = match case.source {
            Source::File => source.try_clone()?.into(),
            Source::Pipe => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                let _ = fcntl_setpipe_size(&write, PIPE);
                feeder = Some(feed(write, Arc::clone(data))?);
                read
            }
        };
        let mut sinks = Vec::with_capacity(count);
        let mut far = Vec::new();
        match case.sink {
            Sink::Null => sinks.push(File::create("/dev/null")?.into()),
            Sink::File => sinks.push(sink_file(folder)?.into()),
            Sink::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                for _ in 0..count {
                    let near = TcpStream::connect(listener.local_addr()?)?;
                    near.set_nodelay(true)?;
                    sinks.push(near.into());
                    far.push(listener.accept()?.0.into());
                }
            }
            Sink::Unix => {
                for _ in 0..count {
                    let (near, other) = UnixStream::pair()?;
                    sinks.push(near.into());
                    far.push(other.into());
                }
            }
            Sink::Memory => {}
        }
        let mut ground = Self {
            case: *case,
            point,
            source,
            sinks,
            data: Arc::clone(data),
            peer: None,
            feeder,
            taken: AtomicU64::new(0),
        };
        if case.sink.is_socket() {
            let starts = (0..count).map(|sink| ground.lane(sink / usize::from(point.sinks)).start);
            let starts: Vec<_> = starts.collect();
            ground.peer = Some(Peer::new(far, starts, case.sink == Sink::Tcp, data)?);
        }
        Ok(ground)
    }

    fn lane(&self, index: usize) -> Lane {
        let block = u64::from(self.point.block);
        if self.case.sink.is_socket() {
            let start = (index as u64 * APART) & (SIZE - 1);
            Lane { start, stride: block, sink: index * usize::from(self.point.sinks) }
        } else {
            // All of them share a sink.
            let lanes = u64::from(self.point.lanes());
            Lane { start: index as u64 * block, stride: lanes * block, sink: 0 }
        }
    }

    /// What is in flight.
    pub(crate) fn lanes(&self) -> Vec<Lane> {
        (0..usize::from(self.point.lanes())).map(|index| self.lane(index)).collect()
    }

    /// Bytes that the sinks get where every lane moves so many blocks.
    fn bytes(&self, blocks: u64) -> u64 {
        let point = self.point;
        blocks * u64::from(point.lanes()) * u64::from(point.sinks) * u64::from(point.block)
    }

    /// A way is about to move so many blocks in each lane.
    pub(crate) fn begin(&self, verify: bool, blocks: u64) {
        if let Some(peer) = &self.peer {
            // A pipe goes on where it was left.
            let taken = self.taken.fetch_add(self.bytes(blocks), Ordering::Relaxed);
            let shift = if self.case.source == Source::Pipe { taken } else { 0 };
            peer.begin(verify, shift, self.bytes(blocks));
        }
    }

    /// It has: waits until the far end has everything.
    pub(crate) fn end(&self) -> Result<()> {
        self.peer.as_ref().map_or(Ok(()), Peer::end)
    }

    /// What has to be checked of a sink that is not read from at its far end, before and after.
    pub(crate) fn wipe(&self, blocks: u64) -> Result<()> {
        if self.case.sink == Sink::File {
            let bytes = self.bytes(blocks).min(SIZE) as usize;
            File::from(self.sinks[0].try_clone()?).write_all_at(&vec![0; bytes], 0)?;
        }
        Ok(())
    }

    pub(crate) fn check(&self, blocks: u64) -> Result<()> {
        match self.case.sink {
            Sink::Null => bail!("/dev/null keeps nothing to look at"),
            Sink::File => {
                let mut bytes = vec![0; self.bytes(blocks).min(SIZE) as usize];
                File::from(self.sinks[0].try_clone()?).read_exact_at(&mut bytes, 0)?;
                ensure!(bytes == self.data[..bytes.len()], "the sink has other bytes");
                Ok(())
            }
            Sink::Tcp | Sink::Unix => self.peer.as_ref().context("a socket has a peer")?.check(),
            // Who looks compares, each time that it has run.
            Sink::Memory => Ok(()),
        }
    }

    /// Compares what is in memory with the beginning of the source.
    pub(crate) fn compare(&self, got: &[u8]) -> Result<()> {
        ensure!(got == &self.data[..got.len()], "there are other bytes in memory");
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.sinks.clear();
        if let Some(peer) = &mut self.peer
            && let Some(thread) = peer.thread.take()
        {
            let _ = thread.join();
        }
        if let Some(feeder) = self.feeder.take() {
            // Its pipe is closed for reading when nobody has it any more.
            if let Ok(null) = File::open("/dev/null") {
                self.source = null.into();
            }
            let _ = feeder.join();
        }
    }
}

/// A file without a name that has all its blocks.
pub(crate) fn sink_file(folder: &Path) -> Result<File> {
    let mut file = tempfile::tempfile_in(folder).context(folder.display().to_string())?;
    for _ in 0..SIZE >> 20 {
        file.write_all(&[0; 1 << 20])?;
    }
    Ok(file)
}

/// A file without a name that has the pattern.
pub(crate) fn source_file(folder: &Path, data: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile_in(folder).context(folder.display().to_string())?;
    file.write_all(data)?;
    file.sync_all()?;
    // Once from the beginning, so that all of it is in the page cache.
    let mut there = vec![0; data.len()];
    file.read_exact_at(&mut there, 0)?;
    // Nobody writes to it from here on.
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

/// Starts a thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(body).with_context(|| {
        format!("starting the thread {name:?}: where RLIMIT_NPROC forbids it, raise it (ulimit -u)")
    })
}

/// Keeps a pipe full until nobody reads it.
fn feed(pipe: OwnedFd, data: Arc<[u8]>) -> Result<JoinHandle<()>> {
    spawn("feed", move || {
        let mut at = 0;
        while let Ok(bytes) = rustix::io::write(&pipe, &data[at..]) {
            at = (at + bytes) % data.len();
        }
    })
}

/// Who reads at the far ends.
#[derive(Debug)]
struct Peer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    verify: AtomicBool,
    /// Goes up when a way begins.
    turn: AtomicU64,
    shift: AtomicU64,
    /// Still to come.
    left: AtomicU64,
    wrong: AtomicU64,
    done: Mutex<()>,
    bell: Condvar,
}

impl Peer {
    fn new(far: Vec<OwnedFd>, starts: Vec<u64>, tcp: bool, data: &Arc<[u8]>) -> Result<Self> {
        let shared = Arc::new(Shared {
            verify: AtomicBool::new(false),
            turn: AtomicU64::new(0),
            shift: AtomicU64::new(0),
            left: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            done: Mutex::new(()),
            bell: Condvar::new(),
        });
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, socket) in far.iter().enumerate() {
            rustix::io::ioctl_fionbio(socket, true)?;
            epoll::add(
                &poll,
                socket,
                epoll::EventData::new_u64(index as u64),
                epoll::EventFlags::IN,
            )?;
        }
        let receiver = Receiver { poll, far, starts, tcp, data: Arc::clone(data) };
        let theirs = Arc::clone(&shared);
        let thread = spawn("peer", move || receiver.run(&theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn begin(&self, verify: bool, shift: u64, bytes: u64) {
        let shared = &*self.shared;
        shared.verify.store(verify, Ordering::Relaxed);
        shared.shift.store(shift, Ordering::Relaxed);
        shared.left.store(bytes, Ordering::Relaxed);
        shared.wrong.store(0, Ordering::Relaxed);
        shared.turn.fetch_add(1, Ordering::Release);
    }

    fn end(&self) -> Result<()> {
        let mut done = self.shared.done.lock().expect("the peer does not panic");
        let mut seen = (self.shared.left.load(Ordering::Acquire), Instant::now());
        while seen.0 != 0 {
            let bell = self.shared.bell.wait_timeout(done, Duration::from_millis(100));
            done = bell.expect("the peer does not panic").0;
            let left = self.shared.left.load(Ordering::Acquire);
            if left != seen.0 {
                seen = (left, Instant::now());
            }
            ensure!(seen.1.elapsed() < PATIENCE, "{left} bytes did not arrive");
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let wrong = self.shared.wrong.load(Ordering::Acquire);
        ensure!(wrong == 0, "{wrong} pieces arrived with other bytes");
        Ok(())
    }
}

struct Receiver {
    poll: OwnedFd,
    far: Vec<OwnedFd>,
    starts: Vec<u64>,
    tcp: bool,
    data: Arc<[u8]>,
}

impl Receiver {
    fn run(self, shared: &Shared) {
        let mut room = vec![0_u8; 1 << 20];
        let mut events = Vec::with_capacity(64);
        let mut positions = self.starts.clone();
        let mut turn = 0;
        let mut open = self.far.len();
        while open > 0 {
            events.clear();
            let wait = epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None);
            if wait.is_err() {
                continue;
            }
            let now = shared.turn.load(Ordering::Acquire);
            if now != turn {
                turn = now;
                let shift = shared.shift.load(Ordering::Relaxed);
                positions = self.starts.iter().map(|start| start + shift).collect();
            }
            let verify = shared.verify.load(Ordering::Relaxed);
            // What is dropped unseen need not be copied.
            let flags = if verify || !self.tcp { RecvFlags::empty() } else { RecvFlags::TRUNC };
            for event in &events {
                let index = event.data.u64() as usize;
                match recv(&self.far[index], &mut room[..], flags) {
                    Ok((0, 0)) => {
                        let _ = epoll::delete(&self.poll, &self.far[index]);
                        open -= 1;
                    }
                    Ok((_, bytes)) => {
                        if verify {
                            self.compare(&room[..bytes], positions[index], shared);
                            positions[index] += bytes as u64;
                        }
                        let before = shared.left.fetch_sub(bytes as u64, Ordering::AcqRel);
                        if before <= bytes as u64 {
                            let _done = shared.done.lock();
                            shared.bell.notify_all();
                        }
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(_) => {
                        let _ = epoll::delete(&self.poll, &self.far[index]);
                        open -= 1;
                    }
                }
            }
        }
    }

    fn compare(&self, got: &[u8], position: u64, shared: &Shared) {
        let mut at = (position & (SIZE - 1)) as usize;
        let mut got = got;
        while !got.is_empty() {
            let count = got.len().min(self.data.len() - at);
            if got[..count] != self.data[at..at + count] {
                shared.wrong.fetch_add(1, Ordering::Relaxed);
            }
            got = &got[count..];
            at = 0;
        }
    }
}
