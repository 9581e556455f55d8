// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ordinary user with limits: rings one after the other, many at once, and where little memory may
//! be locked or no thread may be made.
//!
//! Each case is a process of its own, and each process is a user of its own: what a user may lock is
//! counted over all of that user's processes.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use getbuf_tests::{Folder, Stop, Verdict, fill, forget, pattern, skip};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uring_getbuf::engine::Engine;
use uring_getbuf::probe::Support;
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::{Builder, Ring, Setup};
use uring_getbuf::{ErrorKind, STREAM, SendFlags};

use crate::Case;
use crate::child::run;

pub(crate) const CASES: &[Case] = &[
    ("rings_in_a_row", |rig| run("rings_in_a_row", rig)),
    ("busy_rings_in_a_row", |rig| run("busy_rings_in_a_row", rig)),
    ("rings_at_once", |rig| run("rings_at_once", rig)),
    ("little_memory", |rig| run("little_memory", rig)),
    ("every_small_limit", |rig| run("every_small_limit", rig)),
    ("no_memory_to_look_with", |rig| run("no_memory_to_look_with", rig)),
    ("no_thread_to_be_had", |rig| run("no_thread_to_be_had", rig)),
];

/// A child's part.
pub(crate) fn child(what: &str, engine: Engine) -> Verdict {
    match what {
        "rings_in_a_row" => rings_in_a_row(engine),
        "busy_rings_in_a_row" => busy_rings_in_a_row(engine),
        "rings_at_once" => rings_at_once(engine),
        "little_memory" => little_memory(engine),
        "every_small_limit" => every_small_limit(engine),
        "no_memory_to_look_with" => no_memory_to_look_with(engine),
        "no_thread_to_be_had" => no_thread_to_be_had(engine),
        _ => Err(Stop::Fail(format!("no child {what}"))),
    }
}

/// What most systems allow.
const USUAL: u64 = 8 << 20;
/// What older ones allow.
const LITTLE: u64 = 64 << 10;

fn lockable(bytes: u64) -> Verdict {
    let limit = Rlimit { current: Some(bytes), maximum: getrlimit(Resource::Memlock).maximum };
    setrlimit(Resource::Memlock, limit).or_else(|_| skip("RLIMIT_MEMLOCK cannot be set"))
}

/// Becomes a user whom no other process has, without the privilege to go beyond limits.
pub(crate) fn be_an_ordinary_user() -> Verdict {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let id = 20_000 + std::process::id() % 40_000;
    // SAFETY: takes no memory; this process has one thread.
    if unsafe { libc::setresuid(id, id, id) } != 0 {
        return skip("root cannot become somebody without CAP_IPC_LOCK here");
    }
    Ok(())
}

/// Without numbers.
fn any(engine: Engine) -> Builder {
    Ring::builder().engine(engine)
}

/// A file with content, and one for it, that were opened while that was allowed.
struct Files {
    folder: Folder,
    content: Vec<u8>,
    source: File,
    sink: File,
}

impl Files {
    fn new() -> Result<Self, Stop> {
        let (folder, content) = (Folder::new()?, pattern(31, 300_000));
        let (source, sink) = (folder.source(&content)?, folder.sink()?);
        // The ordinary user takes them away.
        for path in [&folder.path("."), &folder.path("source"), &folder.path("sink")] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, mode)?;
        }
        Ok(Self { folder, content, source, sink })
    }

    /// Moves the content through the ring.
    fn copy(&self, ring: &mut Ring) -> Verdict {
        self.sink.set_len(0)?;
        let report = Relay::new(&self.source, &self.sink).run(ring)?;
        assert_eq!(report.bytes, self.content.len() as u64);
        assert!(self.folder.sunk()? == self.content);
        Ok(())
    }
}

/// A ring that is closed gives back at once what it has pinned: the next one finds it.
fn rings_in_a_row(engine: Engine) -> Verdict {
    lockable(USUAL)?;
    be_an_ordinary_user()?;
    for round in 0..50 {
        let ring = any(engine).build().map_err(|error| Stop::Fail(format!("{round}: {error}")))?;
        assert_eq!((ring.capacity(), ring.block_size()), (32, 128 << 10), "{round}");
    }
    // Nearly all of the limit.
    for round in 0..50 {
        let ring = any(engine).slots(31).block_size(256 << 10).build();
        ring.map_err(|error| Stop::Fail(format!("large, {round}: {error}")))?;
    }
    for (round, setup) in crate::SETUPS.iter().cycle().take(15).enumerate() {
        let ring = any(engine).setup(setup.1).slots(16).block_size(256 << 10).build();
        ring.map_err(|error| Stop::Fail(format!("{}, {round}: {error}", setup.0)))?;
    }
    Ok(())
}

/// Rings that are dropped while their requests wait for peers, with leases that are kept and lost.
fn busy_rings_in_a_row(engine: Engine) -> Verdict {
    let files = Files::new()?;
    lockable(USUAL)?;
    be_an_ordinary_user()?;
    for round in 0..12 {
        let ring = any(engine).slots(24).block_size(256 << 10).build();
        let mut ring = ring.map_err(|error| Stop::Fail(format!("{round}: {error}")))?;
        let source = ring.attach(&files.source)?;
        let lease = |ring: &mut Ring| {
            let fetched = ring.fetch(&source, 0, 256 << 10)?;
            ring.wait_installed(fetched)
        };
        let (kept, lost) = (lease(&mut ring)?.expect("a block"), lease(&mut ring)?);
        forget(lost);
        let (near, _far) = UnixStream::pair()?;
        fill(&near)?;
        let (empty, _writer) = pipe()?;
        let (socket, silent) = (ring.attach(&near)?, ring.attach(&empty)?);
        let _ = ring.send(&kept, .., &socket, SendFlags::WAIT_ALL)?;
        let waiting = ring.fetch(&silent, STREAM, 4096)?;
        ring.submit()?;
        let begin = Instant::now();
        drop(ring);
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
        drop((kept, waiting));
    }
    Ok(())
}

/// Where nobody asks for numbers, each ring leaves something to the next one.
fn rings_at_once(engine: Engine) -> Verdict {
    let files = Files::new()?;
    lockable(USUAL)?;
    be_an_ordinary_user()?;
    let mut rings = Vec::new();
    for round in 0..6 {
        let ring = any(engine).build();
        rings.push(ring.map_err(|error| Stop::Fail(format!("{round}: {error}")))?);
    }
    for ring in &mut rings {
        files.copy(ring)?;
    }
    // And then there is room again.
    drop(rings);
    let ring = any(engine).build()?;
    assert_eq!((ring.capacity(), ring.block_size()), (32, 128 << 10));
    Ok(())
}

fn little_memory(engine: Engine) -> Verdict {
    let files = Files::new()?;
    lockable(LITTLE)?;
    be_an_ordinary_user()?;
    for setup in crate::SETUPS {
        let ring = any(engine).setup(setup.1).build();
        let mut ring = ring.map_err(|error| Stop::Fail(format!("{}: {error}", setup.0)))?;
        assert!(ring.capacity() >= 2, "{}", ring.capacity());
        files.copy(&mut ring)?;
    }
    // One of the numbers is the caller's.
    let ring = any(engine).slots(3).build()?;
    assert_eq!(ring.capacity(), 3);
    drop(ring);
    let ring = any(engine).block_size(8192).build()?;
    assert_eq!(ring.block_size(), 8192);
    drop(ring);
    // Both are.
    let error = any(engine).slots(5).block_size(16 << 10).build().expect_err("more than all");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::MemoryLimit, "{text}");
    for word in ["RLIMIT_MEMLOCK", "65536", "ulimit -l", "at most "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let number = text.split("at most ").nth(1).and_then(|rest| rest.split(' ').next());
    let number: u16 = number.and_then(|number| number.parse().ok()).expect("a number");
    assert!((1..5).contains(&number), "{text}");
    let mut ring = any(engine).slots(number).block_size(16 << 10).build()?;
    files.copy(&mut ring)?;
    // The queues are what does not fit, and the caller's number.
    drop(ring);
    if counts_queues()? {
        let error = any(engine).entries(4096).build().expect_err("queues of 300 KiB");
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::MemoryLimit, "{text}");
        assert!(text.contains("RLIMIT_MEMLOCK") && text.contains("65536"), "{text}");
    }
    Ok(())
}

/// Whether this kernel counts what a ring's queues take.
fn counts_queues() -> Result<bool, Stop> {
    let before = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    lockable(0)?;
    let counts = io_uring::IoUring::new(8).is_err();
    lockable(before)?;
    Ok(counts)
}

/// From nothing on: it works, or the limit is what is told, with its value.
fn every_small_limit(engine: Engine) -> Verdict {
    let files = Files::new()?;
    be_an_ordinary_user()?;
    let mut smallest = None;
    for pages in 0..12 {
        let limit = pages * 4096;
        lockable(limit)?;
        match any(engine).files(4).build() {
            Ok(mut ring) => {
                smallest.get_or_insert(limit);
                files.copy(&mut ring)?;
            }
            Err(error) => {
                let text = error.to_string();
                assert_eq!(smallest, None, "{limit}: {text}");
                assert_eq!(error.kind(), ErrorKind::MemoryLimit, "{limit}: {text}");
                assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{limit}: {text}");
                assert!(text.contains(&format!("RLIMIT_MEMLOCK allows {limit} bytes")), "{text}");
                assert!(!text.contains("does not work here"), "{text}");
            }
        }
    }
    // Two pages of queues, where the kernel counts them, and one of the pool.
    let smallest = smallest.expect("one of them is enough");
    assert!(smallest <= 3 * 4096, "{smallest}");
    Ok(())
}

/// A look for which there is no memory finds nothing out, and says so.
fn no_memory_to_look_with(engine: Engine) -> Verdict {
    be_an_ordinary_user()?;
    if !counts_queues()? {
        return skip("this kernel does not count a ring's queues");
    }
    lockable(0)?;
    let support = Support::detect();
    assert!(!support.is_known());
    for engine in Engine::ALL {
        let reason = support.engine(engine).expect_err("nothing to look with");
        assert!(reason.contains("not known") && reason.contains("RLIMIT_MEMLOCK"), "{reason}");
    }
    for error in [support.require(engine).err(), support.best().err(), any(engine).build().err()] {
        let error = error.expect("no memory");
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::MemoryLimit, "{text}");
        assert!(text.contains("RLIMIT_MEMLOCK allows 0 bytes"), "{text}");
        assert!(!text.contains("does not work"), "{text}");
    }
    lockable(LITTLE)?;
    let support = Support::detect();
    assert!(support.is_known() && support.engine(engine).is_ok(), "{support}");
    Ok(())
}

/// What the kernel serves on a thread is told to fail for want of one.
fn no_thread_to_be_had(engine: Engine) -> Verdict {
    const SLOW: &str = "/proc/self/status";
    let files = Files::new()?;
    be_an_ordinary_user()?;
    let before = getrlimit(Resource::Nproc);
    setrlimit(Resource::Nproc, Rlimit { current: Some(1), ..before })?;
    let setup = Setup::SqPoll { idle: Duration::from_millis(50) };
    let error = any(engine).setup(setup).build().expect_err("it takes a thread");
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
    assert!(error.to_string().contains("RLIMIT_NPROC"), "{error}");

    let mut ring = any(engine).build()?;
    let told = |error: uring_getbuf::Error| {
        let text = error.to_string();
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{text}");
        assert!(text.contains("RLIMIT_NPROC is 1") && text.contains("ulimit -u"), "{text}");
    };
    // A file that cannot be asked to answer at once.
    let slow = ring.attach(&File::open(SLOW)?)?;
    let fetched = ring.fetch(&slow, 0, 4096)?;
    told(ring.wait_installed(fetched).expect_err("no thread"));
    told(Relay::new(&File::open(SLOW)?, &files.sink).run(&mut ring).expect_err("no thread").error);
    // What takes none goes on.
    let ((from, mut into), (mut out, to)) = (pipe()?, pipe()?);
    let (source, sink) = (ring.attach(&from)?, ring.attach(&to)?);
    into.write_all(b"content")?;
    let fetched = ring.fetch(&source, STREAM, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a block");
    ring.write_all(&lease, &sink, STREAM)?;
    let mut got = [0; 7];
    out.read_exact(&mut got)?;
    assert_eq!(&got, b"content");
    drop((lease, source, sink));

    // What the program has cancelled itself is not put down to it.
    setrlimit(Resource::Nproc, before)?;
    let (empty, _writer) = pipe()?;
    let silent = ring.attach(&empty)?;
    let fetched = ring.fetch(&silent, STREAM, 4096)?;
    ring.cancel_fetch(&fetched)?;
    let error = ring.wait_installed(fetched).expect_err("it is cancelled");
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
    assert!(!error.to_string().contains("RLIMIT_NPROC"), "{error}");
    Ok(())
}
