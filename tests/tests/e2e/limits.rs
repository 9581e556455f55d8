// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ordinary user with limits: rings one after the other, many at once, and where little memory may
//! be locked or no thread may be made.
//!
//! Each case is a process of its own, and each process is a user of its own: what a user may lock is
//! counted over all of that user's processes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use getbuf_tests::{Folder, Rig, Stop, Verdict, fill, forget, pattern, skip, until_free};
use rustix::fs::{MemfdFlags, SealFlags};
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
    ("a_stopped_receiver_outlives_its_sender", a_stopped_receiver_outlives_its_sender),
    ("a_lease_keeps_memory_from_being_sealed", a_lease_keeps_memory_from_being_sealed),
    ("unbuffered_files_of_tmpfs", unbuffered_files_of_tmpfs),
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
        "sender" => sender(engine),
        "next_one" => next_one(engine),
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
    become_user(20_000 + std::process::id() % 40_000)
}

fn become_user(id: u32) -> Verdict {
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

/// Sends more than a receiver takes that does not read, and waits to be killed.
fn sender(engine: Engine) -> Verdict {
    let files = Files::new()?;
    lockable(USUAL)?;
    let (user, port) = told_by_parent()?;
    become_user(user)?;
    let mut ring = any(engine).slots(24).block_size(256 << 10).build()?;
    if !ring.support().features().send_zc {
        return skip("this kernel has no SEND_ZC");
    }
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    let (source, sink) = (ring.attach(&files.source)?, ring.attach(&socket)?);
    for _ in 0..24 {
        let fetched = ring.fetch(&source, 0, 256 << 10)?;
        let lease = ring.wait_installed(fetched)?.expect("a block");
        ring.send_zc(&lease, .., &sink, SendFlags::NONE)?;
    }
    ring.wait_timeout(24, Duration::from_millis(300))?;
    println!("sent");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Whether another process of that user may lock nearly all that a user may.
fn next_one(engine: Engine) -> Verdict {
    lockable(USUAL)?;
    become_user(told_by_parent()?.0)?;
    match any(engine).slots(30).block_size(256 << 10).build() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::MemoryLimit => skip("no"),
        Err(error) => Err(error.into()),
    }
}

/// A user and a port, from a line of the standard input.
fn told_by_parent() -> Result<(u32, u16), Stop> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let mut numbers = line.split_whitespace();
    let mut next = || numbers.next().expect("two numbers");
    Ok((next().parse()?, next().parse()?))
}

/// What a socket still has to send is memory of the leases: it counts for the user, also when the
/// process is gone, until the receiver has taken it or gone away.
fn a_stopped_receiver_outlives_its_sender(rig: &Rig) -> Verdict {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip("only root can be two processes of an ordinary user of its own");
    }
    let user = 20_000 + std::process::id() % 40_000;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let told = format!("{user} {}\n", listener.local_addr()?.port());
    let start = |what| -> Result<std::process::Child, Stop> {
        let mut command = crate::child::child(what, rig)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.as_mut().expect("a pipe").write_all(told.as_bytes())?;
        Ok(child)
    };
    let mut sender = start("sender")?;
    let mut line = String::new();
    BufReader::new(sender.stdout.as_mut().expect("a pipe")).read_line(&mut line)?;
    if line != "sent\n" {
        sender.wait()?;
        return skip(line);
    }
    let (receiver, _) = listener.accept()?;
    sender.kill()?;
    sender.wait()?;
    let fits = || -> Result<bool, Stop> {
        let output = start("next_one")?.wait_with_output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(77) => Ok(false),
            _ => Err(Stop::Fail(String::from_utf8_lossy(&output.stdout).into_owned())),
        }
    };
    std::thread::sleep(Duration::from_millis(300));
    assert!(!fits()?, "the receiver has not taken it");
    drop(receiver);
    let begin = Instant::now();
    while !fits()? {
        assert!(begin.elapsed() < Duration::from_secs(20), "the receiver is gone");
    }
    Ok(())
}

/// The memory of a file that is lent is in use: its owner cannot seal it against writes meanwhile.
fn a_lease_keeps_memory_from_being_sealed(rig: &Rig) -> Verdict {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("sealed", flags)?);
    file.write_all(&pattern(3, 8192))?;
    let mut ring = rig.ring();
    let source = ring.attach(&file)?;
    let fetched = ring.fetch(&source, 0, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a page");
    let seal = || rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE);
    if lease.origin() == Engine::Copy {
        assert_eq!(seal(), Ok(()));
        return Ok(());
    }
    assert_eq!(seal(), Err(rustix::io::Errno::BUSY));
    drop(lease);
    ring.submit()?;
    until_free(&mut ring, 4);
    // Some kernels look at pages for up to 150 ms until they are no longer in use.
    assert_eq!(seal(), Ok(()));
    // What is sealed is lent as ever.
    let fetched = ring.fetch(&source, 0, 4096)?;
    assert_eq!(ring.wait_installed(fetched)?.expect("a page").origin(), rig.engine);
    Ok(())
}

/// tmpfs has no other memory than the page cache, whatever a file is opened with.
fn unbuffered_files_of_tmpfs(rig: &Rig) -> Verdict {
    let content = pattern(5, 8192);
    let mut file = File::from(rustix::fs::memfd_create("unbuffered", MemfdFlags::CLOEXEC)?);
    file.write_all(&content)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(file) = File::options().read(true).custom_flags(libc::O_DIRECT).open(path) else {
        return skip("this kernel opens no file of tmpfs with O_DIRECT");
    };
    let mut ring = rig.ring();
    let source = ring.attach(&file)?;
    let fetched = ring.fetch(&source, 4096, 4096)?;
    let lease = ring.wait_installed(fetched)?.expect("a page");
    // The patches lend it, and the module refuses what was opened so.
    let lender = if rig.engine == Engine::Opcode { Engine::Opcode } else { Engine::Copy };
    assert_eq!(lease.origin(), lender);
    let mut got = vec![0; 4096];
    ring.copy_out(&lease, 0, &mut got)?;
    assert!(got == content[4096..]);
    Ok(())
}
