// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is promised of memory that the kernel lends: tests for the engines that do not copy.
//!
//! They run in the test kernels, as root, once for each engine. On a kernel that lends nothing every
//! one of them is ignored, and the reason is printed. `GETBUF_TEST_ENGINE=opcode` (`module`) insists.

mod attacks;
mod early;
mod linked;
mod raw;

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use io_uring::IoUring;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use libtest_mimic::{Arguments, Failed, Trial};
use uring_getbuf::relay::Relay;
use uring_getbuf::slots::Event;
use uring_getbuf::{Engine, Ring, STREAM, SendFlags, Support};

use crate::raw::{Lender, Raw};

pub(crate) type Outcome = Result<(), Failed>;
type Test = fn(Engine) -> Outcome;

/// Tells the executable that it is a child of a test, and of which.
const CHILD: &str = "GETBUF_TEST_CHILD";
/// What the source consists of where a test looks for it in memory, inverted.
const MARKER: [u8; 16] = *b"\xb8\x9a\x8b\x9d\x8a\x99\xdf\x92\x9e\x8d\x94\x9a\x8d\xde\xdf\x01";
pub(crate) const SLOTS: u16 = 16;
pub(crate) const BLOCK: u32 = 64 << 10;

fn main() {
    match std::env::var(CHILD).as_deref() {
        Ok("killed") => return killed_child(),
        Ok("scanned") => return scanned_child(),
        Ok("limited") => return limited_child(),
        Ok("nobody") => return attacks::nobody_child(),
        _ => {}
    }
    let support = Support::detect();
    let asked = std::env::var("GETBUF_TEST_ENGINE").ok();
    let mut trials = Vec::new();
    for engine in [Engine::Opcode, Engine::Module] {
        let works = support.engine(engine);
        let insisted = asked.as_deref() == Some(engine.name());
        if let Err(reason) = works {
            if insisted {
                eprintln!("GETBUF_TEST_ENGINE asks for the {engine} engine: {reason}");
                std::process::exit(1);
            }
            println!("ignored: the {engine} engine does not work here: {reason}");
        }
        let ignored = works.is_err() || (asked.is_some() && !insisted);
        let own = if engine == Engine::Opcode { OPCODE } else { attacks::TESTS };
        trials.extend(COMMON.iter().chain(own).map(|&(name, test)| {
            Trial::test(format!("{engine}::lent::{name}"), move || {
                test(engine)?;
                no_leases_left(engine)
            })
            .with_ignored_flag(ignored)
        }));
    }
    // The counts are the kernel's, so one test at a time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

/// What holds for every engine.
const COMMON: &[(&str, Test)] = &[
    ("slots_that_cannot_be_filled", slots_that_cannot_be_filled),
    ("slots_that_cannot_be_emptied", slots_that_cannot_be_emptied),
    ("files_that_cannot_lend", files_that_cannot_lend),
    ("a_lease_cannot_be_written_to", a_lease_cannot_be_written_to),
    ("nor_its_file_on_a_disk", nor_its_file_on_a_disk),
    ("nothing_past_the_end_of_the_file", nothing_past_the_end_of_the_file),
    ("a_short_fetch_breaks_a_soft_link", a_short_fetch_breaks_a_soft_link),
    ("a_lease_outlives_its_file", a_lease_outlives_its_file),
    ("a_clone_outlives_its_ring", a_clone_outlives_its_ring),
    ("a_file_that_is_cut_short", a_file_that_is_cut_short),
    ("pages_come_back", pages_come_back),
    ("a_block_device", a_block_device),
    ("released_while_it_is_sent", released_while_it_is_sent),
    ("killed_with_leases", killed_with_leases),
    ("charged_while_it_lives", charged_while_it_lives),
    ("no_mapping_holds_the_bytes", no_mapping_holds_the_bytes),
];

/// What is the request's own.
const OPCODE: &[(&str, Test)] = &[
    ("fields_that_must_be_zero", fields_that_must_be_zero),
    ("replace_on_fetch", replace_on_fetch),
    ("emptied_by_an_update_of_the_table", emptied_by_an_update_of_the_table),
    ("linked::it_goes_to_the_next_request", linked::it_goes_to_the_next_request),
    ("linked::every_consumer_takes_it", linked::every_consumer_takes_it),
    ("linked::a_short_fetch_stays_in_the_slot", linked::a_short_fetch_stays_in_the_slot),
    ("linked::an_error_breaks_the_link", linked::an_error_breaks_the_link),
    ("linked::nobody_to_hand_it_to", linked::nobody_to_hand_it_to),
    ("linked::by_workers", linked::by_workers),
    ("linked::both_sides_wait", linked::both_sides_wait),
    ("linked::it_ends_with_its_consumer", linked::it_ends_with_its_consumer),
    ("early::many_in_a_row", early::many_in_a_row),
    ("early::in_its_turn", early::in_its_turn),
    ("early::what_it_cannot_do_is_told", early::what_it_cannot_do_is_told),
    ("early::its_consumer_is_refused", early::its_consumer_is_refused),
    ("early::streams_lose_nothing", early::streams_lose_nothing),
];

/// A file in the current folder, with bytes that tell where they are.
pub(crate) fn source(len: usize) -> Result<(File, Vec<u8>), Failed> {
    let bytes: Vec<u8> = (0..len).map(|at| (at / 7 % 251) as u8).collect();
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok((file, bytes))
}

pub(crate) fn check(what: &str, is: impl PartialEq<i32> + std::fmt::Debug, want: i32) -> Outcome {
    if is == want { Ok(()) } else { Err(format!("{what}: {is:?}, not {want}").into()) }
}

pub(crate) fn same(what: &str, is: &[u8], want: &[u8]) -> Outcome {
    if is == want {
        return Ok(());
    }
    let at = is.iter().zip(want).position(|(is, want)| is != want);
    let lengths = (is.len(), want.len());
    Err(format!("{what}: not the bytes of the file, from {at:?} on, lengths {lengths:?}").into())
}

/// The kernel's count of live leases.
pub(crate) fn leases(engine: Engine) -> Result<u64, Failed> {
    let path = match engine {
        Engine::Module => "/sys/class/misc/getbuf/stats/leases",
        _ => "/sys/kernel/debug/io_uring/leases",
    };
    if !Path::new(path).exists() {
        let _ = Command::new("mount").args(["-t", "debugfs", "none", "/sys/kernel/debug"]).status();
    }
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let first = text.lines().next().unwrap_or_default();
    Ok(first.trim_start_matches("leases ").trim().parse()?)
}

/// A ring that was closed gives its leases back a little later.
pub(crate) fn no_leases_left(engine: Engine) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(10);
    while leases(engine)? != 0 {
        if Instant::now() > deadline {
            return Err(format!("{} leases are left", leases(engine)?).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What an engine says differently.
fn by(engine: Engine, opcode: i32, module: i32) -> i32 {
    if engine == Engine::Module { module } else { opcode }
}

fn fields_that_must_be_zero(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    // Offsets in struct io_uring_sqe: ioprio, addr, rw_flags, splice_fd_in, addr3.
    for (name, at) in
        [("ioprio", 2), ("addr", 16), ("rw_flags", 31), ("file_index", 44), ("addr3", 48)]
    {
        let entry = with_byte(raw.get(&file, 4096, 0), at);
        check(&format!("GET_BUF with {name}"), raw.result(&entry), -libc::EINVAL)?;
    }
    check("GET_BUF", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    for (name, at) in [
        ("ioprio", 2),
        ("off", 8),
        ("addr", 16),
        ("len", 24),
        ("rw_flags", 28),
        ("file_index", 44),
        ("addr3", 48),
    ] {
        let entry = with_byte(raw.put(0), at);
        check(&format!("PUT_BUF with {name}"), raw.result(&entry), -libc::EINVAL)?;
    }
    check("PUT_BUF", raw.result(&raw.put(0)), 0)
}

pub(crate) fn with_byte(entry: Entry, at: usize) -> Entry {
    let mut bytes = raw::to_bytes(entry);
    bytes[at] |= 0x40;
    raw::from_bytes(bytes)
}

fn slots_that_cannot_be_filled(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    let past = by(engine, -libc::EFAULT, -libc::EINVAL);
    let taken = by(engine, -libc::EINVAL, -libc::EBUSY);
    check("past the table", raw.result(&raw.get(&file, 4096, SLOTS)), past)?;
    check("far past the table", raw.result(&raw.get(&file, 4096, u16::MAX)), past)?;
    check("a free slot", raw.result(&raw.get(&file, 4096, 3)), 4096)?;
    check("a taken slot", raw.result(&raw.get(&file, 4096, 3)), taken)?;
    check("leases", leases(engine)? as i32, 1)?;
    check("the end of the file", raw.result(&raw.get_at(&file, 4096, 4096, 4)), 0)?;
    // Of the request, that is a lease of nothing.
    let again = by(engine, -libc::EINVAL, 4096);
    check("the slot after that", raw.result(&raw.get(&file, 4096, 4)), again)?;
    check("released", raw.result(&raw.put(4)), 0)
}

fn slots_that_cannot_be_emptied(engine: Engine) -> Outcome {
    let mut raw = Raw::new(engine)?;
    check("an empty slot", raw.result(&raw.put(0)), -libc::EINVAL)?;
    check("past the table", raw.result(&raw.put(SLOTS)), -libc::EINVAL)?;
    let mut memory = vec![0_u8; 4096];
    let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory lives to the end of this function, and the ring is not used after it.
    unsafe { raw.uring.submitter().register_buffers_update(5, &[vector], None) }?;
    check("the program's own memory", raw.result(&raw.put(5)), -libc::EBUSY)
}

fn files_that_cannot_lend(engine: Engine) -> Outcome {
    let mut raw = Raw::new(engine)?;
    let (socket, _peer) = UnixStream::pair()?;
    let folder = File::open(".")?;
    let proc = File::open("/proc/self/status")?;
    let files: [(&str, &dyn AsRawFd, i32); 3] = [
        ("a socket", &socket, -524),
        ("a folder", &folder, -524),
        ("a file of procfs", &proc, -524),
    ];
    for (name, file, want) in files {
        let entry = raw.get(file, 64, 0);
        check(name, raw.result(&entry), want)?;
    }
    let path = tempfile::NamedTempFile::new()?;
    fs::write(path.path(), [1; 4096])?;
    let write_only = OpenOptions::new().write(true).open(path.path())?;
    check("not open for reading", raw.result(&raw.get(&write_only, 64, 0)), -libc::EBADF)
}

fn a_lease_cannot_be_written_to(engine: Engine) -> Outcome {
    let (file, bytes) = source(1 << 20)?;
    let (other, _) = source(4096)?;
    other.write_all_at(&[0xff; 4096], 0)?;
    let mut raw = Raw::new(engine)?;
    check("GET_BUF", raw.result(&raw.get(&file, BLOCK, 0)), BLOCK as i32)?;
    check("READ_FIXED", raw.result(&raw.read(&other, 0, 4096, 0)), -libc::EFAULT)?;
    let mut now = Vec::new();
    (&file).seek(SeekFrom::Start(0))?;
    (&file).read_to_end(&mut now)?;
    same("after READ_FIXED into the lease", &now, &bytes)
}

/// On a real file system, and looked at after it was mounted anew.
fn nor_its_file_on_a_disk(engine: Engine) -> Outcome {
    let folder = tempfile::tempdir_in(".")?;
    let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
    fs::create_dir(&mount)?;
    File::create(&image)?.set_len(64 << 20)?;
    let run = |program: &str, arguments: &[&Path]| -> Outcome {
        let status = Command::new(program).args(arguments).status()?;
        if status.success() { Ok(()) } else { Err(format!("{program}: {status}").into()) }
    };
    run("mkfs.ext4", &[Path::new("-q"), &image])?;
    let mounted = || run("mount", &[Path::new("-o"), Path::new("loop"), &image, &mount]);
    mounted()?;
    let path = mount.join("file");
    let bytes: Vec<u8> = (0..300_001).map(|at| (at % 253) as u8).collect();
    fs::write(&path, &bytes)?;
    let (other, _) = source(4096)?;
    {
        let file = File::open(&path)?;
        let mut raw = Raw::new(engine)?;
        check("GET_BUF", raw.result(&raw.get(&file, BLOCK, 0)), BLOCK as i32)?;
        check("READ_FIXED", raw.result(&raw.read(&other, 0, 4096, 0)), -libc::EFAULT)?;
        check("PUT_BUF", raw.result(&raw.put(0)), 0)?;
    }
    same("in the cache", &fs::read(&path)?, &bytes)?;
    no_leases_left(engine)?;
    run("umount", &[&mount])?;
    mounted()?;
    let same = same("on the disk", &fs::read(&path)?, &bytes);
    run("umount", &[&mount])?;
    same
}

fn nothing_past_the_end_of_the_file(engine: Engine) -> Outcome {
    let (file, bytes) = source(100)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    check("GET_BUF", raw.result(&raw.get(&file, 4096, 0)), 100)?;
    check("more than there is", raw.result(&raw.write(&sink, 0, 101, 0)), -libc::EFAULT)?;
    check("behind it", raw.result(&raw.write(&sink, 100, 1, 0)), -libc::EFAULT)?;
    check("all of it", raw.result(&raw.write(&sink, 0, 100, 0)), 100)?;
    drop(sink);
    let mut got = Vec::new();
    peer.read_to_end(&mut got)?;
    same("what was written", &got, &bytes)
}

fn a_short_fetch_breaks_a_soft_link(engine: Engine) -> Outcome {
    let (file, _) = source(100)?;
    let (sink, _peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    let requests = [
        raw.get(&file, 4096, 0).flags(Flags::IO_LINK),
        raw.write(&sink, 0, 4096, 0).flags(Flags::IO_LINK),
        raw.put(0),
    ];
    let results = raw.results(&requests, 3);
    if results != [(0, 100), (1, -libc::ECANCELED), (2, -libc::ECANCELED)] {
        return Err(format!("soft links: {results:?}").into());
    }
    check("the slot is still taken", raw.result(&raw.put(0)), 0)?;
    let requests = [
        raw.get(&file, 4096, 0).flags(Flags::IO_HARDLINK | Flags::SKIP_SUCCESS),
        raw.write(&sink, 0, 4096, 0).flags(Flags::IO_HARDLINK | Flags::SKIP_SUCCESS),
        raw.put(0),
    ];
    let results = raw.results(&requests, 3);
    if results != [(0, 100), (1, -libc::EFAULT), (2, 0)] {
        return Err(format!("hard links: {results:?}").into());
    }
    check("the slot is free", raw.result(&raw.put(0)), -libc::EINVAL)
}

fn replace_on_fetch(engine: Engine) -> Outcome {
    let (file, bytes) = source(8192)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    for page in [0, 1, 0] {
        let fetch = raw.get_buf(&file, 4096, 0).offset(page * 4096).replace().build();
        check("GET_BUF, replacing", raw.result(&fetch), 4096)?;
        check("leases", leases(engine)? as i32, 1)?;
        check("WRITE_FIXED", raw.result(&raw.write(&sink, 0, 4096, 0)), 4096)?;
        let mut got = [0; 4096];
        peer.read_exact(&mut got)?;
        same("the page", &got, &bytes[page as usize * 4096..][..4096])?;
    }
    let folder = File::open(".")?;
    check("one that fails", raw.result(&raw.get_buf(&folder, 4096, 0).replace().build()), -524)?;
    check("keeps what there was", raw.result(&raw.write(&sink, 0, 4096, 0)), 4096)?;
    let mut memory = vec![0_u8; 4096];
    let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory lives to the end of this function, and the ring is not used after it.
    unsafe { raw.uring.submitter().register_buffers_update(5, &[vector], None) }?;
    let fetch = raw.get_buf(&file, 4096, 5).replace().build();
    check("the program's own memory is not replaced", raw.result(&fetch), -libc::EINVAL)?;
    drop(raw);
    no_leases_left(engine)
}

/// As on a kernel that has only the RFC's request.
fn emptied_by_an_update_of_the_table(engine: Engine) -> Outcome {
    let (file, bytes) = source(8192)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::with(engine, &IoUring::builder(), |lender, builder| match *lender {
        Lender::Opcode { get_buf, .. } => builder.opcode(get_buf, None, 0, SLOTS),
        Lender::Module { .. } => unreachable!("a test of the request's own"),
    })?;
    for _ in 0..2 * SLOTS {
        let lease = raw.fetch(&file, 0, 8192);
        let request = lease.write(.., Fd(sink.as_raw_fd()), STREAM)?;
        // SAFETY: the sink outlives the request, which is waited for.
        unsafe { request.push(&mut raw.uring.submission()) }.map_err(|_| "no room")?;
        raw.events(1);
        drop(lease);
        raw.events(0);
        check("leases", leases(engine)? as i32, 0)?;
        let mut got = [0; 8192];
        peer.read_exact(&mut got)?;
        same("what was written", &got, &bytes)?;
    }
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))
}

fn a_lease_outlives_its_file(engine: Engine) -> Outcome {
    let folder = tempfile::tempdir_in(".")?;
    let path = folder.path().join("file");
    let bytes: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
    fs::write(&path, &bytes)?;
    let mut raw = Raw::new(engine)?;
    let file = File::open(&path)?;
    let lease = raw.fetch(&file, 0, BLOCK);
    drop(file);
    fs::remove_file(&path)?;
    let mut sink = tempfile::tempfile()?;
    let request = lease.write(.., Fd(sink.as_raw_fd()), 0)?;
    // SAFETY: the sink outlives the request, which is waited for.
    unsafe { request.push(&mut raw.uring.submission()) }.map_err(|_| "no room")?;
    raw.events(1);
    let mut got = Vec::new();
    sink.read_to_end(&mut got)?;
    same("what the lease held", &got, &bytes)?;
    drop(lease);
    raw.events(1);
    // The worker that wrote has told so a little before it lets go.
    no_leases_left(engine)
}

/// Slots cloned to another ring (`IORING_REGISTER_CLONE_BUFFERS`, Linux 6.12) are leases as well.
fn a_clone_outlives_its_ring(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let mut other = Raw::new(engine)?;
    {
        let mut raw = Raw::new(engine)?;
        check("fetch", raw.result(&raw.get(&file, BLOCK, 3)), BLOCK as i32)?;
        // struct io_uring_clone_buffers: the ring, IORING_REGISTER_DST_REPLACE, and which slots.
        let clone = [raw.uring.as_raw_fd() as u32, 2, 3, 5, 1, 0, 0, 0];
        let (call, to) = (libc::SYS_io_uring_register, other.uring.as_raw_fd());
        // SAFETY: the kernel reads the structure. 30 is IORING_REGISTER_CLONE_BUFFERS.
        check("clone", unsafe { libc::syscall(call, to, 30, &raw const clone, 1) } as i32, 0)?;
        check("release", raw.result(&raw.put(3)), 0)?;
    }
    check("leases", leases(engine)? as i32, 1)?;
    let (mut reads, writes) = std::io::pipe()?;
    check("write", other.result(&other.write(&writes, 0, BLOCK, 5)), BLOCK as i32)?;
    let mut got = vec![0; BLOCK as usize];
    reads.read_exact(&mut got)?;
    same("what was cloned", &got, &bytes)?;
    check("release of the clone", other.result(&other.put(5)), 0)
}

fn a_file_that_is_cut_short(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let mut raw = Raw::new(engine)?;
    let lease = raw.fetch(&file, 0, BLOCK);
    file.set_len(1000)?;
    let mut sink = tempfile::tempfile()?;
    let request = lease.write(.., Fd(sink.as_raw_fd()), 0)?;
    // SAFETY: the sink outlives the request, which is waited for.
    unsafe { request.push(&mut raw.uring.submission()) }.map_err(|_| "no room")?;
    raw.events(1);
    let mut got = Vec::new();
    sink.read_to_end(&mut got)?;
    check("the lease keeps its length", got.len() as i32, BLOCK as i32)?;
    same("what is left of the file", &got[..1000], &bytes[..1000])?;
    let strange = got.iter().zip(&bytes).any(|(got, was)| got != was && *got != 0);
    if strange { Err("bytes that were never in the file".into()) } else { Ok(()) }
}

/// Its lock is taken for a fetch, and given back: what changes the size of its blocks waits for it.
fn a_block_device(engine: Engine) -> Outcome {
    const BLKBSZSET: libc::Ioctl = 0x4008_1271;
    let image = tempfile::NamedTempFile::new_in(".")?;
    let bytes: Vec<u8> = (0..BLOCK + 512).map(|at| (at % 249) as u8).collect();
    fs::write(image.path(), &bytes)?;
    let attach = Command::new("losetup").args(["--find", "--show"]).arg(image.path()).output()?;
    let device = String::from_utf8(attach.stdout)?;
    let device = Path::new(device.trim());
    let file = File::open(device).map_err(|error| format!("losetup: {error}"))?;
    // It is detached when it is closed.
    let detach = Command::new("losetup").arg("--detach").arg(device).status()?;
    check("losetup --detach", detach.code().unwrap_or(-1), 0)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    // Read by a worker, then from the cache, and at the end.
    for (offset, want) in [(0, BLOCK), (0, BLOCK), (BLOCK - 4096, 4608), (BLOCK + 512, 0)] {
        let fetched = raw.result(&raw.get_at(&file, offset.into(), BLOCK, 0));
        check(&format!("GET_BUF at {offset}"), fetched, want as i32)?;
        if want == 0 {
            break;
        }
        check("WRITE_FIXED", raw.result(&raw.write(&sink, 0, want, 0)), want as i32)?;
        check("PUT_BUF", raw.result(&raw.put(0)), 0)?;
        let mut got = vec![0; want as usize];
        peer.read_exact(&mut got)?;
        same("what was written", &got, &bytes[offset as usize..][..want as usize])?;
    }
    drop(raw);
    no_leases_left(engine)?;
    // Not what it is already.
    let size = 1024_usize;
    // SAFETY: the size is read from a word that lives until the call returns.
    check("BLKBSZSET", unsafe { libc::ioctl(file.as_raw_fd(), BLKBSZSET, &raw const size) }, 0)
}

/// When a lease is over, its pages are like any others of the cache, which can be dropped.
fn pages_come_back(engine: Engine) -> Outcome {
    let mount = attacks::Mount::new()?;
    let path = mount.path().join("file");
    fs::write(&path, vec![7; BLOCK as usize])?;
    let file = File::open(&path)?;
    file.sync_all()?;
    let mut raw = Raw::new(engine)?;
    check("GET_BUF", raw.result(&raw.get(&file, BLOCK, 0)), BLOCK as i32)?;
    check("cached pages, lent", cached_pages(&file)?, i32::try_from(BLOCK / 4096)?)?;
    check("PUT_BUF", raw.result(&raw.put(0)), 0)?;
    check("cached pages, given back", cached_pages(&file)?, 0)
}

/// How many of a file's first [`BLOCK`] bytes' pages stay in the cache when they are dropped.
fn cached_pages(file: &File) -> Result<i32, Failed> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let (len, any) = (BLOCK as usize, std::ptr::null_mut());
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    // SAFETY: a new mapping, wherever the kernel likes; it is not looked into.
    let map = unsafe { mmap(any, len, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
    let mut there = [0_u8; BLOCK as usize / 4096];
    // SAFETY: there is a byte for each page of the mapping.
    let told = unsafe { libc::mincore(map, len, there.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    // SAFETY: nobody uses it after this.
    unsafe { munmap(map, len) }?;
    if told != 0 {
        return Err(format!("mincore: {error}").into());
    }
    Ok(there.iter().map(|page| i32::from(page & 1)).sum())
}

fn released_while_it_is_sent(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_send_buffer_size(&sink, 4096)?;
    let mut raw = Raw::new(engine)?;
    let lease = raw.fetch(&file, 0, BLOCK);
    let request = lease.send(.., Fd(sink.as_raw_fd()), SendFlags::WAIT_ALL)?;
    // SAFETY: the sink outlives the request, which is waited for.
    unsafe { request.push(&mut raw.uring.submission()) }.map_err(|_| "no room")?;
    raw.events(0);
    drop(lease);
    let told = raw.events(1);
    check("events", told.len() as i32, 1)?;
    if !matches!(told[0], Event::Released { .. }) {
        return Err(format!("{told:?} while the send waits").into());
    }
    check("leases while the send waits", leases(engine)? as i32, 1)?;
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS) - 1)?;
    let mut got = vec![0; BLOCK as usize];
    peer.read_exact(&mut got)?;
    raw.events(1);
    same("what was sent", &got, &bytes)?;
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))?;
    check("leases", leases(engine)? as i32, 0)
}

/// A child of this executable.
pub(crate) fn child(which: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.env(CHILD, which).stdout(Stdio::piped());
    command
}

pub(crate) fn wait_for_line(child: &mut Child) -> Result<String, Failed> {
    let mut line = String::new();
    let output = child.stdout.as_mut().ok_or("no output")?;
    BufReader::new(output).read_line(&mut line)?;
    Ok(line)
}

fn killed_with_leases(engine: Engine) -> Outcome {
    for _ in 0..10 {
        let mut child = child("killed").env("ENGINE", engine.name()).spawn()?;
        let line = wait_for_line(&mut child)?;
        let there = leases(engine)?;
        child.kill()?;
        child.wait()?;
        if line != "ready\n" || there < 8 {
            return Err(format!("the child said {line:?}, with {there} leases").into());
        }
        no_leases_left(engine)?;
    }
    Ok(())
}

/// Leases, some of them in use by sends and writes that cannot end, until it is killed.
fn killed_child() {
    let (file, _) = source(1 << 20).unwrap_or_else(|error| panic!("{error:?}"));
    let (sink, _peer) = UnixStream::pair().expect("a socket");
    let (_read, write) = rustix::pipe::pipe().expect("a pipe");
    let engine = std::env::var("ENGINE").expect("the parent sets it").parse().expect("an engine");
    let mut raw = Raw::new(engine).unwrap_or_else(|error| panic!("{error:?}"));
    let leases: Vec<_> = (0..8).map(|at| raw.fetch(&file, at * 65536, BLOCK)).collect();
    let full: [&OwnedFd; 2] = [&OwnedFd::from(sink), &write];
    for lease in &leases {
        let send = lease.send(.., Fd(full[0].as_raw_fd()), SendFlags::WAIT_ALL).expect("a send");
        // SAFETY: the files live until the process is killed.
        unsafe { send.push(&mut raw.uring.submission()) }.expect("room");
        let write = lease.write(.., Fd(full[1].as_raw_fd()), STREAM).expect("a write");
        // SAFETY: likewise.
        unsafe { write.push(&mut raw.uring.submission()) }.expect("room");
    }
    raw.events(0);
    println!("ready");
    std::thread::sleep(Duration::from_secs(60));
}

/// `RLIMIT_MEMLOCK` counts the pages of leases, for as long as they live.
fn charged_while_it_lives(engine: Engine) -> Outcome {
    let mut child = child("limited").env("ENGINE", engine.name()).spawn()?;
    let line = wait_for_line(&mut child)?;
    child.wait()?;
    if line == "fine\n" { Ok(()) } else { Err(format!("the child: {line}").into()) }
}

fn limited_child() {
    let engine = std::env::var("ENGINE").expect("the parent sets it").parse().expect("an engine");
    match under_a_limit(engine) {
        Ok(()) => println!("fine"),
        Err(failed) => println!("{}", format!("{failed:?}").replace('\n', " ")),
    }
}

fn under_a_limit(engine: Engine) -> Outcome {
    const ALL: u32 = 32 * 4096;
    let (file, _) = source(1 << 20)?;
    let limit = libc::rlimit { rlim_cur: ALL.into(), rlim_max: ALL.into() };
    // SAFETY: the limits are read from a structure that lives until the call returns.
    check("setrlimit", unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0)?;
    // SAFETY: takes no memory; this process has one thread.
    check("setresuid", unsafe { libc::setresuid(65_534, 65_534, 65_534) }, 0)?;
    let mut raw = Raw::new(engine)?;
    let half = ALL / 2;
    let past = by(engine, -libc::EFAULT, -libc::EINVAL);
    let taken = by(engine, -libc::EINVAL, -libc::EBUSY);
    let refused = by(engine, -libc::ENOMEM, -libc::EDQUOT);
    for _ in 0..20 {
        check("no such slot", raw.result(&raw.get(&file, half, SLOTS)), past)?;
        check("a half", raw.result(&raw.get(&file, half, 0)), half as i32)?;
        check("slot taken", raw.result(&raw.get(&file, half, 0)), taken)?;
        check("too much", raw.result(&raw.get(&file, half + 1, 1)), refused)?;
        // Of a part of a page all is held: of two pages, if it spans them.
        check("too much", raw.result(&raw.get_at(&file, 4095, half, 1)), refused)?;
        check("the other half", raw.result(&raw.get(&file, half, 1)), half as i32)?;
        check("and nothing more", raw.result(&raw.get(&file, 1, 2)), refused)?;
        for slot in [0, 1] {
            check("release", raw.result(&raw.put(slot)), 0)?;
        }
        check("all", raw.result(&raw.get(&file, ALL, 0)), ALL as i32)?;
        check("release", raw.result(&raw.put(0)), 0)?;
    }
    Ok(())
}

/// The proof that nothing is copied to user space: a process that sends a file looks for the file's
/// bytes in all of its own memory, while leases are in flight and afterwards. The copy engine, in
/// whose pool they are found, shows that the search would find them.
fn no_mapping_holds_the_bytes(engine: Engine) -> Outcome {
    let path = tempfile::NamedTempFile::new_in(".")?;
    let marker = black_box(MARKER).map(|byte| !byte);
    let bytes: Vec<u8> = marker.into_iter().cycle().take(3_000_001).collect();
    fs::write(path.path(), &bytes)?;
    let name = engine.name();
    for (engine, zero_copy, want) in
        [(name, "yes", "not found"), (name, "no", "not found"), ("copy", "no", "found")]
    {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut child = child("scanned")
            .env("ENGINE", engine)
            .env("ZERO_COPY", zero_copy)
            .env("SOURCE", path.path())
            .env("SINK", listener.local_addr()?.to_string())
            .spawn()?;
        let mut got = Vec::new();
        listener.accept()?.0.read_to_end(&mut got)?;
        let line = wait_for_line(&mut child)?;
        child.wait()?;
        same(&format!("what {engine} sent"), &got, &bytes)?;
        if line.trim() != want {
            return Err(format!("{engine}, zero copy {zero_copy}: {line:?}").into());
        }
    }
    Ok(())
}

fn scanned_child() {
    let variable = |name| std::env::var(name).expect("the parent sets it");
    let engine = variable("ENGINE").parse().expect("an engine");
    let mut ring =
        Ring::builder().engine(engine).slots(8).block_size(BLOCK).build().expect("a ring");
    let source = File::open(variable("SOURCE")).expect("the source");
    let sink = TcpStream::connect(variable("SINK")).expect("the sink");
    let mut found = 0;
    let mut looks = 0;
    Relay::new(&source, &sink.as_fd())
        .zero_copy_send(variable("ZERO_COPY") == "yes")
        .on_progress(|_| {
            if looks < 3 {
                found += look();
                looks += 1;
            }
        })
        .run(&mut ring)
        .expect("the relay");
    found += look();
    println!("{}", if found == 0 && looks > 0 { "not found" } else { "found" });
}

/// How many pages of this process hold the marker.
fn look() -> usize {
    // Optimised code would have the inverse as a constant, and find that.
    let marker = black_box(MARKER);
    let memory = File::open("/proc/self/mem").expect("/proc/self/mem");
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let mut page = [0_u8; 4096];
    let mut found = 0;
    for line in maps.lines().filter(|line| !line.ends_with("[vsyscall]")) {
        let mut words = line.split([' ', '-']);
        let bounds: Vec<_> =
            words.by_ref().take(2).filter_map(|word| u64::from_str_radix(word, 16).ok()).collect();
        let (&[from, to], Some(true)) = (&bounds[..], words.next().map(|way| way.starts_with('r')))
        else {
            continue;
        };
        for at in (from..to).step_by(page.len()) {
            if memory.read_exact_at(&mut page, at).is_ok() {
                let is_marker = |window: &[u8]| {
                    window.iter().zip(marker).all(|(byte, inverted)| *byte == !inverted)
                };
                found += usize::from(page.windows(MARKER.len()).any(is_marker));
                page.fill(0);
            }
        }
    }
    found
}
