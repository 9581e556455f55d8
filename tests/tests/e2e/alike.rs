// SPDX-License-Identifier: MIT OR Apache-2.0
//! One interface, the same answers: every class of argument on this engine, beside what the copy engine
//! answers. The copy engine's own answers are beside those of read(2) and write(2).

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write, pipe};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use getbuf_tests::{Folder, Rig, Stop, Verdict, pattern};
use rustix::fs::MemfdFlags;
use uring_getbuf::chain::ChainOutcome;
use uring_getbuf::engine::Engine;
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::{Attached, Ring};
use uring_getbuf::{STREAM, SendFlags};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("fetches", fetches),
    ("chains", chains),
    ("consumers", consumers),
    ("as_read_answers", as_read_answers),
    ("streams_of_regular_files", streams_of_regular_files),
    ("devices_as_streams", devices_as_streams),
];

const BLOCK: u32 = 4096;
const BYTES: usize = 3 * BLOCK as usize + 100;
/// Where files stand.
const STANDS: u64 = 4000;
const LAST: u64 = i64::MAX as u64;

const OFFSETS: [u64; 12] = [
    0,
    BLOCK as u64,
    3 * BLOCK as u64,
    BYTES as u64 - 1,
    BYTES as u64,
    BYTES as u64 + 1,
    1 << 40,
    LAST - BLOCK as u64,
    LAST,
    LAST + 1,
    u64::MAX - 1,
    STREAM,
];

const LENGTHS: [u32; 4] = [0, 100, BLOCK, BLOCK + 1];

/// A file of a kind, and what has to stay open for it.
struct Source {
    file: OwnedFd,
    _other: Option<OwnedFd>,
}

type Open = fn(&Folder) -> Result<Source, Stop>;

fn only(file: impl Into<OwnedFd>) -> Result<Source, Stop> {
    Ok(Source { file: file.into(), _other: None })
}

fn standing(mut file: File) -> Result<Source, Stop> {
    file.seek(SeekFrom::Start(STANDS))?;
    only(file)
}

fn content() -> Vec<u8> {
    pattern(41, BYTES)
}

const SOURCES: [(&str, Open); 15] = [
    ("a regular file", |folder| standing(File::open(folder.path("source"))?)),
    ("one that stands at its end", |folder| {
        let mut file = File::open(folder.path("source"))?;
        file.seek(SeekFrom::End(0))?;
        only(file)
    }),
    ("one open for both", |folder| {
        standing(File::options().read(true).write(true).open(folder.path("source"))?)
    }),
    ("an empty file", |folder| only(File::open(folder.path("empty"))?)),
    ("memory of a file", |_| {
        let mut file = File::from(rustix::fs::memfd_create("alike", MemfdFlags::CLOEXEC)?);
        file.write_all(&content())?;
        standing(file)
    }),
    ("/dev/zero", |_| only(File::open("/dev/zero")?)),
    ("/dev/null", |_| only(File::open("/dev/null")?)),
    ("/dev/full", |_| only(File::open("/dev/full")?)),
    ("a file of procfs", |_| only(File::open("/proc/sys/kernel/ostype")?)),
    ("a pipe", |_| {
        let (from, mut to) = pipe()?;
        to.write_all(&content()[..5000])?;
        only(from)
    }),
    ("the end of a pipe", |_| only(pipe()?.0)),
    ("a socket", |_| {
        let (near, mut far) = UnixStream::pair()?;
        far.write_all(&content()[..5000])?;
        far.shutdown(Shutdown::Write)?;
        Ok(Source { file: near.into(), _other: Some(far.into()) })
    }),
    ("the writing end of a pipe", |_| {
        let (from, to) = pipe()?;
        Ok(Source { file: to.into(), _other: Some(from.into()) })
    }),
    ("a folder", |folder| only(File::open(folder.path("."))?)),
    ("a file open for writing", |folder| {
        only(OpenOptions::new().write(true).open(folder.path("empty"))?)
    }),
];

fn place() -> Result<Folder, Stop> {
    let folder = Folder::new()?;
    std::fs::write(folder.path("source"), content())?;
    std::fs::write(folder.path("empty"), b"")?;
    Ok(folder)
}

/// Few bytes of a text for many.
fn digest(bytes: &[u8]) -> String {
    let mut sum = 0_u64;
    for byte in bytes {
        sum = (sum.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    format!("{} bytes {sum:x}", bytes.len())
}

const NOWHERE: &str = "stands nowhere";

/// Where a file stands afterwards, if it stands anywhere.
fn stands(file: &impl AsFd) -> String {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Current(0)) {
        Ok(at) => format!("stands at {at}"),
        Err(_) => NOWHERE.into(),
    }
}

fn refused(error: &uring_getbuf::Error) -> String {
    format!("{:?} {:?}", error.kind(), error.raw_os_error())
}

/// A ring of this rig, and one of the copy engine.
fn both(rig: &Rig) -> [Ring; 2] {
    [rig.ring(), Rig { engine: Engine::Copy, ..*rig }.ring()]
}

/// Compares both answers to everything that is asked.
struct Answers {
    different: String,
    asked: u32,
}

impl Answers {
    fn new() -> Self {
        Self { different: String::new(), asked: 0 }
    }

    fn compare(&mut self, what: &str, [this, copy]: &[String; 2]) {
        self.asked += 1;
        if this != copy {
            let _ = writeln!(self.different, "{what}: {this}, and not {copy}");
        }
    }

    fn verdict(self, least: u32) -> Verdict {
        assert!(self.asked >= least, "{} questions", self.asked);
        if self.different.is_empty() { Ok(()) } else { Err(Stop::Fail(self.different)) }
    }
}

/// Asks both rings the same thing, each of files of its own.
fn ask(
    rings: &mut [Ring; 2],
    mut question: impl FnMut(&mut Ring) -> Result<String, Stop>,
) -> Result<[String; 2], Stop> {
    let [this, copy] = rings;
    let answers = [question(this)?, question(copy)?];
    for ring in [this, copy] {
        ring.submit()?;
        getbuf_tests::until_free(ring, ring.capacity());
    }
    Ok(answers)
}

fn looked_at(ring: &mut Ring, lease: &Lease<Installed>) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0; lease.len() as usize];
    let mut done = 0;
    while done < bytes.len() {
        done += ring.copy_out(lease, done as u32, &mut bytes[done..])? as usize;
    }
    Ok(bytes)
}

fn fetch(ring: &mut Ring, open: Open, folder: &Folder, at: u64, len: u32) -> Result<String, Stop> {
    let source = open(folder)?;
    let attached = ring.attach(&source.file)?;
    let answer = match ring.fetch(&attached, at, len) {
        Err(error) => format!("refused: {}", refused(&error)),
        Ok(fetched) => match ring.wait_installed(fetched) {
            Err(error) => refused(&error),
            Ok(None) => "the end".into(),
            Ok(Some(lease)) => digest(&looked_at(ring, &lease)?),
        },
    };
    Ok(format!("{answer}, {}", stands(&source.file)))
}

fn fetches(rig: &Rig) -> Verdict {
    let (folder, mut rings, mut answers) = (place()?, both(rig), Answers::new());
    for (kind, open) in SOURCES {
        for at in OFFSETS {
            for len in LENGTHS {
                let both = ask(&mut rings, |ring| fetch(ring, open, &folder, at, len))?;
                answers.compare(&format!("{len} bytes at {at:#x} of {kind}"), &both);
            }
        }
    }
    answers.verdict((SOURCES.len() * OFFSETS.len() * LENGTHS.len()) as u32)
}

fn chains(rig: &Rig) -> Verdict {
    let (folder, mut rings, mut answers) = (place()?, both(rig), Answers::new());
    for (kind, open) in SOURCES {
        for at in OFFSETS {
            for (len, sink_at) in LENGTHS.into_iter().zip([0, STREAM].into_iter().cycle()) {
                let both = ask(&mut rings, |ring| {
                    let (source, sink) = (open(&folder)?, folder.sink()?);
                    let (from, to) = (ring.attach(&source.file)?, ring.attach(&sink)?);
                    let answer = match ring.chain_write(&from, at, len, &to, sink_at) {
                        Err(error) => format!("refused: {}", refused(&error)),
                        Ok(chain) => format!("{:?}", ring.wait_chain(chain)?),
                    };
                    let sunk = digest(&folder.sunk()?);
                    Ok(format!("{answer}, {sunk}, {}, {}", stands(&source.file), stands(&sink)))
                })?;
                answers.compare(&format!("a chain of {len} bytes at {at:#x} of {kind}"), &both);
            }
        }
    }
    answers.verdict((SOURCES.len() * OFFSETS.len() * LENGTHS.len()) as u32)
}

/// A sink of a kind, and what came out at the other end of it.
struct Sink {
    file: OwnedFd,
    end: Option<OwnedFd>,
}

type OpenSink = fn(&Folder) -> Result<Sink, Stop>;

fn to(file: impl Into<OwnedFd>) -> Result<Sink, Stop> {
    Ok(Sink { file: file.into(), end: None })
}

/// Without files that only know write(2), such as /dev/full, which take no memory of the kernel's.
const SINKS: [(&str, OpenSink); 9] = [
    ("an empty file", |folder| to(folder.sink()?)),
    ("a file that stands somewhere", |folder| {
        let mut file = folder.sink()?;
        file.write_all(b"before")?;
        to(file)
    }),
    ("a file that is appended to", |folder| {
        folder.sink()?.write_all(b"before")?;
        to(OpenOptions::new().append(true).open(folder.path("sink"))?)
    }),
    ("a pipe", |_| {
        let (from, into) = pipe()?;
        Ok(Sink { file: into.into(), end: Some(from.into()) })
    }),
    ("a pipe that nobody reads", |_| to(pipe()?.1)),
    ("a socket", |_| {
        let (near, far) = UnixStream::pair()?;
        Ok(Sink { file: near.into(), end: Some(far.into()) })
    }),
    ("a socket whose peer is gone", |_| to(UnixStream::pair()?.0)),
    ("/dev/null", |_| to(OpenOptions::new().write(true).open("/dev/null")?)),
    ("a file open for reading", |folder| to(File::open(folder.path("empty"))?)),
];

/// A consumer of a lease, by its number.
fn consume(
    ring: &mut Ring,
    lease: &Lease<Installed>,
    sink: &Attached,
    at: u64,
    consumer: usize,
) -> Option<uring_getbuf::Result<String>> {
    let flags = SendFlags::WAIT_ALL;
    let used = match consumer {
        0 => ring.write(lease, .., sink, at),
        1 => ring.write(lease, 1..100, sink, at),
        2 => ring.write(lease, 7..7, sink, at),
        3 => ring.write(lease, 1.., sink, at),
        4 => ring.write(lease, 0..BLOCK + 1, sink, at),
        5 => ring.write(lease, ..u32::MAX, sink, at),
        6 => ring.writev(lease, &[1..100, 4000..BLOCK], sink, at),
        7 => ring.writev(lease, &[], sink, at),
        8 => ring.writev(lease, &[0..1, 3..BLOCK + 1], sink, at),
        // These know no offset.
        _ if at != 0 => return None,
        9 => ring.send(lease, .., sink, flags),
        10 => ring.send(lease, 1..100, sink, flags),
        11 => ring.send(lease, 7..7, sink, flags),
        12 => ring.send(lease, 0..BLOCK + 1, sink, flags),
        13 if ring.support().features().send_zc => ring.send_zc(lease, .., sink, flags),
        14 => return Some(ring.write_all(lease, sink, at).map(|()| "all".into())),
        15 => return Some(ring.send_all(lease, sink).map(|()| "all".into())),
        _ => return None,
    };
    Some(used.and_then(|used| ring.wait_used(used)).map(|bytes| format!("took {bytes}")))
}

const CONSUMERS: usize = 16;

fn consumers(rig: &Rig) -> Verdict {
    let (folder, mut rings, mut answers) = (place()?, both(rig), Answers::new());
    let file = File::open(folder.path("source"))?;
    for (kind, open) in SINKS {
        for at in OFFSETS {
            for consumer in 0..CONSUMERS {
                let both = ask(&mut rings, |ring| {
                    let source = ring.attach(&file)?;
                    let sink = open(&folder)?;
                    let attached = ring.attach(&sink.file)?;
                    let fetched = ring.fetch(&source, 0, BLOCK)?;
                    let lease = ring.wait_installed(fetched)?.expect("a block");
                    let answer = match consume(ring, &lease, &attached, at, consumer) {
                        None => return Ok("not asked".into()),
                        Some(Ok(answer)) => answer,
                        Some(Err(error)) => refused(&error),
                    };
                    drop((lease, attached));
                    ring.submit()?;
                    getbuf_tests::until_free(ring, ring.capacity());
                    ring.submit()?;
                    let stands = stands(&sink.file);
                    let arrived = match sink.end {
                        Some(end) => {
                            drop(sink.file);
                            rustix::io::ioctl_fionbio(&end, true)?;
                            let (mut end, mut got) = (File::from(end), Vec::new());
                            // The kernel may let go of the ring's own reference a little later.
                            let deadline = Instant::now() + Duration::from_secs(10);
                            loop {
                                match end.read_to_end(&mut got) {
                                    Ok(_) => break digest(&got),
                                    Err(error)
                                        if error.kind() == ErrorKind::WouldBlock
                                            && Instant::now() < deadline =>
                                    {
                                        thread::sleep(Duration::from_millis(1));
                                    }
                                    Err(error) => {
                                        break format!("{} {:?}", digest(&got), error.kind());
                                    }
                                }
                            }
                        }
                        // A sparse file may be long.
                        None => {
                            let sunk = File::open(folder.path("sink"));
                            let len =
                                sunk.and_then(|file| file.metadata()).map_or(0, |data| data.len());
                            match len {
                                0..=100_000 => digest(&folder.sunk().unwrap_or_default()),
                                _ => format!("{len} bytes"),
                            }
                        }
                    };
                    Ok(format!("{answer}, {arrived}, {stands}"))
                })?;
                answers.compare(&format!("consumer {consumer} at {at:#x} of {kind}"), &both);
            }
        }
    }
    answers.verdict((SINKS.len() * OFFSETS.len() * CONSUMERS) as u32)
}

/// A fetch brings what read(2) and pread(2) bring, errors included. What has no offsets is asked for
/// none, and what has is not asked for those that no file has: io_uring and pread(2) look at them in
/// another order.
fn as_read_answers(rig: &Rig) -> Verdict {
    let (folder, mut ring, mut answers) = (place()?, rig.ring(), Answers::new());
    for (kind, open) in SOURCES {
        let has_offsets = stands(&open(&folder)?.file) != NOWHERE;
        for at in OFFSETS {
            if at != STREAM && (at > LAST || (at != 0 && !has_offsets)) {
                continue;
            }
            for len in [1, BLOCK] {
                let answer = fetch(&mut ring, open, &folder, at, len)?;
                let source = open(&folder)?;
                let mut bytes = vec![0; len as usize];
                let file = File::from(source.file.try_clone()?);
                let got = if at == STREAM || !has_offsets {
                    (&file).read(&mut bytes)
                } else {
                    file.read_at(&mut bytes, at)
                };
                let read = match got {
                    Ok(0) => "the end".into(),
                    Ok(count) => digest(&bytes[..count]),
                    Err(error) => format!("Source {:?}", error.raw_os_error()),
                };
                let read = format!("{read}, {}", stands(&source.file));
                answers.compare(&format!("{len} bytes at {at:#x} of {kind}"), &[answer, read]);
            }
        }
    }
    answers.verdict(11 * 9 * 2)
}

/// A file that is read from where it stands, to its end: each byte once, and in order.
fn streams_of_regular_files(rig: &Rig) -> Verdict {
    let (folder, mut ring) = (place()?, rig.ring());
    let file = standing(File::open(folder.path("source"))?)?.file;
    let source = ring.attach(&file)?;
    let mut got = Vec::new();
    // Several at once: they are served in order, whoever serves them.
    loop {
        let fetched = [1000, 4096, 77].map(|len| ring.fetch(&source, STREAM, len));
        let before = got.len();
        for fetched in fetched {
            if let Some(lease) = ring.wait_installed(fetched?)? {
                got.extend(looked_at(&mut ring, &lease)?);
            }
        }
        if got.len() == before {
            break;
        }
    }
    assert!(got == content()[STANDS as usize..]);
    assert_eq!(stands(&file), format!("stands at {BYTES}"));

    // In chains.
    let file = standing(File::open(folder.path("source"))?)?.file;
    let (source, sink) = (ring.attach(&file)?, ring.attach(&folder.sink()?)?);
    let mut moved = STANDS as usize;
    while moved < BYTES {
        let len = 777.min(BYTES - moved) as u32;
        let chain = ring.chain_write(&source, STREAM, len, &sink, STREAM)?;
        assert_eq!(ring.wait_chain(chain)?, ChainOutcome::Done(len));
        moved += len as usize;
    }
    let chain = ring.chain_write(&source, STREAM, 1, &sink, STREAM)?;
    assert_eq!(ring.wait_chain(chain)?, ChainOutcome::ShortFetch(0));
    assert!(folder.sunk()? == content()[STANDS as usize..]);
    Ok(())
}

fn devices_as_streams(rig: &Rig) -> Verdict {
    let (folder, mut ring) = (place()?, rig.ring());
    for (device, bytes) in [("/dev/null", 0), ("/dev/zero", 10_000), ("/dev/full", 10_000)] {
        let (file, sink) = (File::open(device)?, folder.sink()?);
        let relay = Relay::new(&file, &sink).limit(10_000);
        assert_eq!(relay.run(&mut ring)?.bytes, bytes, "{device}");
        assert!(folder.sunk()? == vec![0; bytes as usize], "{device}");
    }
    // Pipes go on being lent, where they are.
    let (from, mut into) = pipe()?;
    into.write_all(&content()[..4096])?;
    let source = ring.attach(&from)?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a page");
    let lent = if rig.engine == Engine::Opcode { Engine::Opcode } else { Engine::Copy };
    assert_eq!(lease.origin(), lent);
    Ok(())
}
