// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/dev/getbuf` against programs that mean no good, or do not know what they do.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode as ops};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use uring_getbuf::Engine;
use uring_getbuf_sys as sys;

use crate::raw::{Lender, Raw, command, fetch, header};
use crate::{
    BLOCK, Outcome, SLOTS, Test, check, child, leases, no_leases_left, same, source, wait_for_line,
    with_byte,
};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("reserved_fields", reserved_fields),
    ("unknown_commands", unknown_commands),
    ("descriptors", descriptors),
    ("nobody", nobody),
    ("lengths", lengths),
    ("offsets", offsets),
    ("replace_is_refused", replace_is_refused),
    ("query", query),
    ("copy_out", copy_out),
    ("bound", bound),
    ("holes_punched_under_a_lease", holes_punched_under_a_lease),
    ("files_that_change_meanwhile", files_that_change_meanwhile),
    ("from_a_disk", from_a_disk),
    ("busy", busy),
    ("rings_of_every_kind", rings_of_every_kind),
    ("a_ring_that_is_closed", a_ring_that_is_closed),
    ("fork_and_exec", fork_and_exec),
    ("huge_pages", huge_pages),
];

fn counter(name: &str) -> u64 {
    let path = Path::new("/sys/class/misc/getbuf/stats").join(name);
    let text = fs::read_to_string(path).expect("a counter of the module");
    text.trim().parse().expect("a number")
}

fn release(raw: &Raw, slot: u16) -> Entry {
    raw.put(slot)
}

fn bind(device: RawFd, source: RawFd) -> Entry {
    command(device, sys::GETBUF_CMD_BIND, 0, 0, [header(source, 0, 0, 1), 0])
}

fn bind_to(raw: &mut Raw, source: &impl AsRawFd) -> Result<OwnedFd, libtest_mimic::Failed> {
    let result = raw.result(&bind(raw.device(), source.as_raw_fd()));
    if result < 0 {
        return Err(format!("bind: {result}").into());
    }
    // SAFETY: the module has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// A copy-out: the slot is in the payload and in the field of registered buffers.
fn copy(raw: &Raw, slot: u16, offset: u64, to: u64, len: u32) -> Entry {
    let payload = [header(0, slot, 0, 1), offset];
    let entry = command(raw.device(), sys::GETBUF_CMD_COPY_OUT, to, len, payload);
    let mut bytes = crate::raw::to_bytes(entry);
    // IORING_URING_CMD_FIXED
    bytes[28] = 1;
    bytes[40..42].copy_from_slice(&slot.to_ne_bytes());
    crate::raw::from_bytes(bytes)
}

fn ask(raw: &Raw, answer: &mut sys::getbuf_query, len: u32, version: u8) -> Entry {
    let to = std::ptr::from_mut(answer) as u64;
    command(raw.device(), sys::GETBUF_CMD_QUERY, to, len, [header(0, 0, 0, version), 0])
}

fn reserved_fields(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    let fd = file.as_raw_fd();
    let mut buffer = [0_u8; 64];
    let mut answer = sys::getbuf_query::default();
    let to = buffer.as_mut_ptr() as u64;
    let size = size_of::<sys::getbuf_query>() as u32;
    // Offsets in struct io_uring_sqe that the command does not name, besides those of all.
    let all: &[usize] = &[2, 12, 29, 31, 41, 44, 47];
    let commands: [(&str, Entry, &[usize]); 5] = [
        ("fetch", fetch(raw.device(), fd, 0, 4096, 0), &[16, 23, 54]),
        ("release", release(&raw, 0), &[16, 24, 27, 48, 51, 54, 56, 63]),
        ("copy out", copy(&raw, 0, 0, to, 64), &[48, 51, 54]),
        ("query", ask(&raw, &mut answer, size, 1), &[48, 51, 52, 53, 54, 56, 63]),
        ("bind", bind(raw.device(), fd), &[16, 24, 27, 52, 53, 54, 56, 63]),
    ];
    check("a fetch, for what comes", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    for (name, entry, own) in commands {
        for &at in all.iter().chain(own) {
            let result = raw.result(&with_byte(entry.clone(), at));
            check(&format!("{name} with byte {at}"), result, -libc::EINVAL)?;
        }
    }
    check(
        "a slot that is not the one of the request",
        {
            let mut bytes = crate::raw::to_bytes(copy(&raw, 0, 0, to, 64));
            bytes[40] = 1;
            raw.result(&crate::raw::from_bytes(bytes))
        },
        -libc::EINVAL,
    )?;
    check("release", raw.result(&raw.put(0)), 0)?;

    // An SQE of 128 bytes has more of them.
    let mut long: IoUring<io_uring::squeue::Entry128> = IoUring::builder().build(4)?;
    long.submitter().register_buffers_sparse(1)?;
    for (extra, want) in [(0_u8, 4096), (1, -libc::EINVAL)] {
        let mut bytes = [0_u8; 128];
        bytes[..64].copy_from_slice(&crate::raw::to_bytes(fetch(raw.device(), fd, 0, 4096, 0)));
        bytes[127] = extra;
        // SAFETY: an `Entry128` is 128 bytes of plain data.
        let entry = unsafe { std::mem::transmute::<[u8; 128], io_uring::squeue::Entry128>(bytes) };
        // SAFETY: the file lives to the end of this function.
        unsafe { long.submission().push(&entry) }.expect("room");
        long.submit_and_wait(1)?;
        let result = long.completion().next().ok_or("no completion")?.result();
        check(&format!("SQE128 with {extra}"), result, want)?;
        drop(long);
        no_leases_left(engine)?;
        long = IoUring::builder().build(4)?;
        long.submitter().register_buffers_sparse(1)?;
    }
    Ok(())
}

fn unknown_commands(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    let (device, fd) = (raw.device(), file.as_raw_fd());
    for op in [0, 1, sys::GETBUF_CMD_FETCH - 1, sys::GETBUF_CMD_BIND + 1, u32::MAX] {
        let result = raw.result(&command(device, op, 0, 4096, [header(fd, 0, 0, 1), 0]));
        check(&format!("command {op:#x}"), result, -libc::EOPNOTSUPP)?;
    }
    for version in [0, 2, 255] {
        for op in [
            sys::GETBUF_CMD_FETCH,
            sys::GETBUF_CMD_RELEASE,
            sys::GETBUF_CMD_COPY_OUT,
            sys::GETBUF_CMD_BIND,
        ] {
            let result = raw.result(&command(device, op, 0, 0, [header(fd, 0, 0, version), 0]));
            check(&format!("{op:#x}, version {version}"), result, -libc::EPROTONOSUPPORT)?;
        }
    }
    for flags in [2, 4, 0x80, 0xff] {
        let payload = [header(fd, 0, flags, 1), 0];
        let result = raw.result(&command(device, sys::GETBUF_CMD_FETCH, 0, 4096, payload));
        check(&format!("flags {flags:#x}"), result, -libc::EINVAL)?;
    }
    // A registered buffer where none belongs.
    let mut bytes = crate::raw::to_bytes(raw.get(&file, 4096, 0));
    bytes[28] = 1;
    check("a fetch with a buffer", raw.result(&crate::raw::from_bytes(bytes)), -libc::EINVAL)?;
    // read(2), write(2) and their like have no meaning.
    let mut byte = [0];
    let read = rustix::io::read(rustix_fd(&raw), &mut byte);
    check("read(2)", read.map_or_else(rustix::io::Errno::raw_os_error, |_| 0), libc::EINVAL)
}

fn rustix_fd(raw: &Raw) -> impl AsFd + '_ {
    match &raw.lender {
        Lender::Module { device } => device.as_fd(),
        Lender::Opcode { .. } => unreachable!("tests of the module"),
    }
}

/// What cannot be read, and what has no page cache, with the error of each.
fn descriptors(engine: Engine) -> Outcome {
    let mut raw = Raw::new(engine)?;
    let path = tempfile::NamedTempFile::new_in(".")?;
    fs::write(path.path(), [1; 4096])?;
    let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::empty());
    let write_only = open(path.path(), OFlags::WRONLY)?;
    let path_only = open(path.path(), OFlags::PATH)?;
    let directory = open(Path::new("."), OFlags::RDONLY)?;
    let (socket, _peer) = UnixStream::pair()?;
    let (pipe, _write) = rustix::pipe::pipe()?;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty())?;
    let of_proc = File::open("/proc/self/status")?;
    let memory = File::open("/proc/self/mem")?;
    let of_sysfs = File::open("/sys/class/misc/getbuf/stats/leases")?;
    let null = File::open("/dev/null")?;
    let readable = File::open(path.path())?;
    let bound = bind_to(&mut raw, &readable)?;
    let other = IoUring::new(2)?;
    let (lends_not, not_open) = (-524, -libc::EBADF);
    let sources = [
        ("not open for reading", write_only.as_raw_fd(), not_open),
        ("O_PATH", path_only.as_raw_fd(), not_open),
        ("no descriptor", 9999, not_open),
        ("GETBUF_FD_BOUND, and not bound", -1, not_open),
        ("AT_FDCWD", libc::AT_FDCWD, not_open),
        ("the least number", i32::MIN, not_open),
        ("a directory", directory.as_raw_fd(), lends_not),
        ("a socket", socket.as_raw_fd(), lends_not),
        ("a pipe", pipe.as_raw_fd(), lends_not),
        ("an eventfd", event.as_raw_fd(), lends_not),
        ("a file of procfs", of_proc.as_raw_fd(), lends_not),
        ("the memory of a process", memory.as_raw_fd(), lends_not),
        ("a file of sysfs", of_sysfs.as_raw_fd(), lends_not),
        ("/dev/null", null.as_raw_fd(), lends_not),
        ("the device itself", raw.device(), lends_not),
        ("a bound descriptor", bound.as_raw_fd(), lends_not),
        ("the ring itself", raw.uring.as_raw_fd(), lends_not),
        ("another ring", other.as_raw_fd(), lends_not),
    ];
    let (of_source, of_access) = (counter("refused_source"), counter("refused_access"));
    for (name, fd, want) in sources {
        let entry = fetch(raw.device(), fd, 0, 4096, 0);
        check(&format!("fetch: {name}"), raw.result(&entry), want)?;
        check(&format!("{name}, on a worker"), raw.result(&entry.flags(Flags::ASYNC)), want)?;
        let entry = bind(raw.device(), fd);
        check(&format!("bind: {name}"), raw.result(&entry), want)?;
    }
    check("refused_source", (counter("refused_source") - of_source) as i32, 12 * 3)?;
    check("refused_access", (counter("refused_access") - of_access) as i32, 6 * 3)?;
    // Through a bound descriptor, none but its own source can be had.
    let entry = fetch(bound.as_raw_fd(), readable.as_raw_fd(), 0, 4096, 0);
    check("a source by number on a bound descriptor", raw.result(&entry), -libc::EINVAL)?;
    let secret = rustix_secret();
    if let Some(secret) = secret {
        let entry = fetch(raw.device(), secret.as_raw_fd(), 0, 4096, 0);
        check("memfd_secret", raw.result(&entry), lends_not)?;
    }
    Ok(())
}

/// Memory that even the kernel does not map, where there is such a thing.
fn rustix_secret() -> Option<OwnedFd> {
    // SAFETY: takes no memory.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the system call has just made this descriptor for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What somebody without privileges can reach, and how much memory he can hold.
fn nobody(engine: Engine) -> Outcome {
    let mut secret = tempfile::NamedTempFile::new_in(".")?;
    secret.write_all(&[7; 4096])?;
    // Twice: what the first one was charged for is not charged to the second.
    for _ in 0..2 {
        let mut child = child("nobody").env("SOURCE", secret.path()).spawn()?;
        let line = wait_for_line(&mut child)?;
        // With a lease that is alive.
        child.kill()?;
        child.wait()?;
        if line != "fine\n" {
            return Err(format!("the child: {line}").into());
        }
        no_leases_left(engine)?;
    }
    check("pinned_bytes", counter("pinned_bytes") as i32, 0)
}

pub(crate) fn nobody_child() {
    match as_nobody() {
        Ok(()) => println!("fine"),
        Err(failed) => println!("{}", format!("{failed:?}").replace('\n', " ")),
    }
    std::thread::sleep(Duration::from_secs(60));
}

fn as_nobody() -> Outcome {
    const PAGES: u64 = 32;
    let path = std::env::var("SOURCE")?;
    let write_only = OpenOptions::new().write(true).open(&path)?;
    let path_only = rustix::fs::open(&*path, OFlags::PATH, Mode::empty())?;
    let opened_before = File::open(&path)?;
    let own = source(1 << 20)?.0;
    let bytes = PAGES * 4096;
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the limits are read from a structure that lives until the call returns.
    check("setrlimit", unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0)?;
    // SAFETY: takes no memory; this process has one thread.
    check("setresuid", unsafe { libc::setresuid(65_534, 65_534, 65_534) }, 0)?;
    for (name, fd) in [("O_WRONLY", write_only.as_raw_fd()), ("O_PATH", path_only.as_raw_fd())] {
        let through = File::open(format!("/proc/self/fd/{fd}"));
        let error = through.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        check(&format!("opened again, {name}"), error, libc::EACCES)?;
    }
    let error = File::open(&path).err().and_then(|error| error.raw_os_error()).unwrap_or(0);
    check("opened by name", error, libc::EACCES)?;

    let mut raw = Raw::new(Engine::Module)?;
    check("O_WRONLY", raw.result(&raw.get(&write_only, 4096, 0)), -libc::EBADF)?;
    check("O_PATH", raw.result(&raw.get(&path_only, 4096, 0)), -libc::EBADF)?;
    // As read(2), what was opened before can still be read.
    check("what was opened", raw.result(&raw.get(&opened_before, 4096, 0)), 4096)?;
    check("release", raw.result(&raw.put(0)), 0)?;

    let mut answer = sys::getbuf_query::default();
    let size = size_of::<sys::getbuf_query>() as u32;
    check("query", raw.result(&ask(&raw, &mut answer, size, 1)), size as i32)?;
    check("the limit", answer.pinned_limit as i32, bytes as i32)?;
    let (half, all) = (bytes as u32 / 2, bytes as u32);
    // Nothing of what fails is charged.
    for _ in 0..20 {
        check("no such slot", raw.result(&raw.get(&own, all, SLOTS)), -libc::EINVAL)?;
        check("the end of the file", raw.result(&raw.get_at(&own, 1 << 20, 4096, 0)), 0)?;
        check("a lease", raw.result(&raw.get(&own, half, 0)), half as i32)?;
        check("slot taken", raw.result(&raw.get(&own, half, 0)), -libc::EBUSY)?;
        check("release", raw.result(&raw.put(0)), 0)?;
    }
    let refused = counter("refused_limit");
    check("more than may be held", raw.result(&raw.get(&own, all + 1, 0)), -libc::EDQUOT)?;
    check("half", raw.result(&raw.get(&own, half, 0)), half as i32)?;
    check("too much", raw.result(&raw.get(&own, half + 1, 1)), -libc::EDQUOT)?;
    // A part of a page holds all of it: of two pages, if it spans them.
    check("too much", raw.result(&raw.get_at(&own, 4095, half, 1)), -libc::EDQUOT)?;
    let mut second = Raw::new(Engine::Module)?;
    check("by another ring", second.result(&second.get(&own, all, 1)), -libc::EDQUOT)?;
    check("the other half", second.result(&second.get(&own, half, 1)), half as i32)?;
    check("and nothing more", raw.result(&raw.get(&own, 1, 1)), -libc::EDQUOT)?;
    check("refusals", (counter("refused_limit") - refused) as i32, 5)?;
    check("query", raw.result(&ask(&raw, &mut answer, size, 1)), size as i32)?;
    check("what this opening holds", answer.pinned as i32, half as i32)
}

fn lengths(engine: Engine) -> Outcome {
    let (file, bytes) = source(5 << 20)?;
    let mut raw = Raw::new(engine)?;
    let mut answer = sys::getbuf_query::default();
    let size = size_of::<sys::getbuf_query>() as u32;
    check("query", raw.result(&ask(&raw, &mut answer, size, 1)), size as i32)?;
    let most = answer.max_fetch as i32;
    check("nothing", raw.result(&raw.get(&file, 0, 0)), 0)?;
    check("leases", leases(engine)? as i32, 0)?;
    for len in [u32::MAX, 1 << 31, i32::MAX as u32, most as u32 + 1] {
        check(&format!("{len} bytes"), raw.result(&raw.get(&file, len, 0)), most)?;
        check("release", raw.result(&raw.put(0)), 0)?;
    }
    let rest = (5 << 20) - 4097;
    let len = raw.result(&raw.get_at(&file, 4097, u32::MAX, 0));
    check("up to the end", len, most.min(rest))?;
    let mut sink = tempfile::tempfile()?;
    check("all of that", raw.result(&raw.write(&sink, 0, len as u32, 0)), len)?;
    let mut got = Vec::new();
    std::io::Seek::rewind(&mut sink)?;
    sink.read_to_end(&mut got)?;
    same("what was written", &got, &bytes[4097..][..len as usize])?;
    for (from, len) in [(0, u32::MAX), (u64::MAX, 1), (u64::MAX - 4095, 4096), (1 << 32, 1)] {
        let result = raw.result(&raw.write(&sink, from, len, 0));
        check(&format!("{len} bytes of the lease from {from}"), result, -libc::EFAULT)?;
    }
    check("release", raw.result(&raw.put(0)), 0)
}

fn offsets(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    let most = i64::MAX as u64;
    for (offset, len, want) in [
        (4095, 4096, 1),
        (4096, 4096, 0),
        (1 << 62, u32::MAX, 0),
        (most - 4096, 4096, 0),
        (most - 4095, 4096, -libc::EINVAL),
        (most, 4096, -libc::EINVAL),
        (most, u32::MAX, -libc::EINVAL),
        (1 << 63, 1, -libc::EINVAL),
        (u64::MAX - 4095, 4096, -libc::EINVAL),
        (u64::MAX, 0, -libc::EINVAL),
        (u64::MAX, u32::MAX, -libc::EINVAL),
    ] {
        let result = raw.result(&raw.get_at(&file, offset, len, 0));
        check(&format!("{len} bytes at {offset:#x}"), result, want)?;
        if want > 0 {
            check("release", raw.result(&raw.put(0)), 0)?;
        }
    }
    check("the slot is free", raw.result(&raw.put(0)), -libc::EINVAL)
}

fn replace_is_refused(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    let payload = [header(file.as_raw_fd(), 0, sys::GETBUF_FETCH_REPLACE as u8, 1), 0];
    let entry = command(raw.device(), sys::GETBUF_CMD_FETCH, 0, 4096, payload);
    check("a free slot", raw.result(&entry), -libc::EINVAL)?;
    check("a fetch", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    check("a taken slot", raw.result(&entry), -libc::EINVAL)
}

fn query(engine: Engine) -> Outcome {
    let (file, _) = source(8192)?;
    let mut raw = Raw::new(engine)?;
    check("a fetch", raw.result(&raw.get_at(&file, 1, 4096, 0)), 4096)?;
    for version in [0, 1, 255] {
        let mut answer = sys::getbuf_query::default();
        let size = size_of::<sys::getbuf_query>() as u32;
        check("query", raw.result(&ask(&raw, &mut answer, size, version)), size as i32)?;
        check("size", answer.size as i32, size as i32)?;
        check("version", answer.version as i32, 1)?;
        check("features", answer.features as i32, 3)?;
        check("pinned, two pages", answer.pinned as i32, 8192)?;
        check("reserved", i32::from(answer.reserved != [0; 3]), 0)?;
    }
    // An older program knows less of it, a newer one more.
    let mut bytes = [0xaa_u8; 128];
    let to = bytes.as_mut_ptr() as u64;
    for (len, filled) in [(0, 0), (4, 4), (127, 64)] {
        let payload = [header(0, 0, 0, 1), 0];
        let entry = command(raw.device(), sys::GETBUF_CMD_QUERY, to, len, payload);
        check(&format!("query of {len}"), raw.result(&entry), filled)?;
        check("what is behind it", i32::from(bytes[filled as usize]), 0xaa)?;
    }
    let payload = [header(0, 0, 0, 1), 0];
    let entry = command(raw.device(), sys::GETBUF_CMD_QUERY, 4096, 64, payload);
    check("to nowhere", raw.result(&entry), -libc::EFAULT)
}

fn copy_out(engine: Engine) -> Outcome {
    let (file, bytes) = source(300_000)?;
    let mut raw = Raw::new(engine)?;
    let mut got = vec![0_u8; 300_000];
    let to = got.as_mut_ptr() as u64;
    check("an empty slot", raw.result(&copy(&raw, 0, 0, to, 1)), -libc::EINVAL)?;
    check("past the table", raw.result(&copy(&raw, SLOTS, 0, to, 1)), -libc::EINVAL)?;
    let len = raw.result(&raw.get_at(&file, 4000, 200_000, 0));
    check("a fetch", len, 200_000)?;
    let whole = &bytes[4000..204_000];
    for (offset, asked) in [
        (0, 1),
        (0, 200_000),
        (95, 1),
        (96, 4097),
        (4191, 2),
        (199_999, 1),
        (199_999, 9),
        (0, u32::MAX),
    ] {
        got.fill(0xee);
        let want = asked.min(200_000 - offset as u32) as usize;
        let result = raw.result(&copy(&raw, 0, offset, to, asked));
        check(&format!("{asked} bytes from {offset}"), result, want as i32)?;
        same("what was copied", &got[..want], &whole[offset as usize..][..want])?;
        check("and no more", i32::from(got[want]), 0xee)?;
    }
    for offset in [200_000, 1 << 32, i64::MAX as u64, u64::MAX] {
        check("behind it", raw.result(&copy(&raw, 0, offset, to, 1)), 0)?;
    }
    check("nothing", raw.result(&copy(&raw, 0, 0, to, 0)), 0)?;
    check("to nowhere", raw.result(&copy(&raw, 0, 0, 4096, 64)), -libc::EFAULT)?;
    let kernel = 0xffff_8000_0000_0000;
    check("to the kernel", raw.result(&copy(&raw, 0, 0, kernel, 64)), -libc::EFAULT)?;
    // Over the end of a mapping: what fits.
    let writable = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
    let (private, any) = (rustix::mm::MapFlags::PRIVATE, std::ptr::null_mut());
    // SAFETY: a new mapping, wherever the kernel likes.
    let map = unsafe { rustix::mm::mmap_anonymous(any, 8192, writable, private) }?;
    // SAFETY: its second half.
    unsafe { rustix::mm::munmap(map.wrapping_byte_add(4096), 4096) }?;
    let result = raw.result(&copy(&raw, 0, 0, map as u64 + 4000, 200));
    // SAFETY: its first half.
    unsafe { rustix::mm::munmap(map, 4096) }?;
    check("over the end of a mapping", i32::from(result == 96 || result == -libc::EFAULT), 1)?;
    // The program's own memory is not the kernel's.
    let vector = libc::iovec { iov_base: got.as_mut_ptr().cast(), iov_len: 4096 };
    // SAFETY: the memory lives to the end of this function, and the ring is not used after it.
    unsafe { raw.uring.submitter().register_buffers_update(5, &[vector], None) }?;
    check("the program's own memory", raw.result(&copy(&raw, 5, 0, to, 1)), -libc::EINVAL)?;
    let without = with_flags(copy(&raw, 0, 0, to, 1), 0);
    check("without IORING_URING_CMD_FIXED", raw.result(&without), -libc::EINVAL)
}

fn with_flags(entry: Entry, flags: u8) -> Entry {
    let mut bytes = crate::raw::to_bytes(entry);
    bytes[28] = flags;
    crate::raw::from_bytes(bytes)
}

fn bound(engine: Engine) -> Outcome {
    let path = tempfile::NamedTempFile::new_in(".")?;
    let bytes: Vec<u8> = (0..BLOCK).map(|at| (at % 241) as u8).collect();
    fs::write(path.path(), &bytes)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    let file = File::open(path.path())?;
    let bound = bind_to(&mut raw, &file)?;
    let flags = rustix::io::fcntl_getfd(&bound)?;
    check("close-on-exec", i32::from(flags.contains(rustix::io::FdFlags::CLOEXEC)), 1)?;
    drop(file);
    let entry = fetch(bound.as_raw_fd(), sys::GETBUF_FD_BOUND, 100, 1000, 0);
    check("a fetch", raw.result(&entry), 1000)?;
    check(
        "on a worker",
        raw.result(&fetch(bound.as_raw_fd(), -1, 1100, 1000, 1).flags(Flags::ASYNC)),
        1000,
    )?;
    for slot in [0, 1] {
        check("a write", raw.result(&raw.write(&sink, 0, 1000, slot)), 1000)?;
    }
    let mut got = [0; 2000];
    peer.read_exact(&mut got)?;
    same("what was written", &got, &bytes[100..2100])?;
    // It cannot be opened again, nor read.
    let again = File::open(format!("/proc/self/fd/{}", bound.as_raw_fd()));
    check("opened again", i32::from(again.is_err()), 1)?;
    check("read(2)", i32::from(rustix::io::read(&bound, &mut [0; 16]).is_err()), 1)?;
    // Neither it nor the device is needed by what is leased.
    let device = raw.device();
    drop(bound);
    let mut other = Raw::new(engine)?;
    check("a lease through another device", other.result(&other.get(&path, 4096, 0)), 4096)?;
    let entry = command(device, sys::GETBUF_CMD_RELEASE, 0, 0, [header(0, 0, 0, 1), 0]);
    check("released through this one", other.result(&entry), 0)?;
    check("leases", leases(engine)? as i32, 2)
}

/// As with sendfile(2): what is punched out reads as it was, or as zeros.
fn holes_punched_under_a_lease(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let mut raw = Raw::new(engine)?;
    check("a fetch", raw.result(&raw.get(&file, BLOCK, 0)), BLOCK as i32)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 4096, 5 * 4096 + 100)?;
    let mut now = vec![1; BLOCK as usize];
    file.read_exact_at(&mut now, 0)?;
    let hole = 4096..6 * 4096 + 100;
    check("the hole", i32::from(now[hole.clone()].iter().any(|byte| *byte != 0)), 0)?;
    let mut got = vec![0; BLOCK as usize];
    let entry = copy(&raw, 0, 0, got.as_mut_ptr() as u64, BLOCK);
    check("the lease", raw.result(&entry), BLOCK as i32)?;
    same("before the hole", &got[..hole.start], &bytes[..hole.start])?;
    same("after the hole", &got[hole.end..], &bytes[hole.end..])?;
    let strange = hole.into_iter().any(|at| got[at] != bytes[at] && got[at] != 0);
    check("bytes that were never there", i32::from(strange), 0)?;
    // The file is whole: what is written into the hole does not reach the lease, or does; nothing
    // else is hit.
    file.write_all_at(&[0xab; 4096], 8192)?;
    check("release", raw.result(&raw.put(0)), 0)?;
    file.read_exact_at(&mut now, 0)?;
    check("the file", i32::from(now[8192] == 0xab && now[12288] == 0 && now[0] == bytes[0]), 1)
}

/// One thread cuts a file, punches holes into it and writes it anew, while another one fetches: no
/// byte is seen that was never in the file.
fn files_that_change_meanwhile(engine: Engine) -> Outcome {
    const LEN: usize = 40 * 4096 + 123;
    let (file, bytes) = source(LEN)?;
    let stop = AtomicBool::new(false);
    let mut raw = Raw::new(engine)?;
    std::thread::scope(|scope| -> Outcome {
        let changer = scope.spawn(|| -> std::io::Result<()> {
            let mut state = 1_u32;
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % LEN;
                match state >> 30 {
                    0 => file.set_len(at as u64)?,
                    1 => {
                        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        fallocate(&file, punch, at as u64, 10_000)?;
                    }
                    _ => file.write_all_at(&bytes[at..], at as u64)?,
                }
            }
            Ok(())
        });
        let mut seen = || -> Outcome {
            let mut got = vec![0; LEN];
            let end = Instant::now() + Duration::from_secs(2);
            let mut at = 0;
            while Instant::now() < end {
                at = (at + 7919) % LEN;
                let len = raw.result(&raw.get_at(&file, at as u64, LEN as u32, 0));
                if len == 0 {
                    continue;
                }
                check("a fetch", i32::from(len > 0 && len as usize <= LEN - at), 1)?;
                let entry = copy(&raw, 0, 0, got.as_mut_ptr() as u64, len as u32);
                check("copy out", raw.result(&entry), len)?;
                check("release", raw.result(&raw.put(0)), 0)?;
                let pairs = got[..len as usize].iter().zip(&bytes[at..]);
                let strange = pairs.clone().position(|(got, was)| got != was && *got != 0);
                if let Some(strange) = strange {
                    return Err(format!("byte {} was never in the file", at + strange).into());
                }
            }
            Ok(())
        };
        let seen = seen();
        stop.store(true, Ordering::Relaxed);
        changer.join().map_err(|_| "the other thread panicked")??;
        seen
    })
}

/// A file system of its own, in a loop device, gone with this.
pub(crate) struct Mount(tempfile::TempDir);

impl Mount {
    pub(crate) fn new() -> Result<Self, libtest_mimic::Failed> {
        let folder = tempfile::tempdir_in(".")?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(64 << 20)?;
        fs::create_dir(folder.path().join("mount"))?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let mount = Self(folder);
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount.path()))?;
        Ok(mount)
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mount")
    }

    fn unmount(&self) -> rustix::io::Result<()> {
        rustix_unmount(&self.path())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn rustix_unmount(path: &Path) -> rustix::io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero byte");
    // SAFETY: the path lives until the call returns.
    match unsafe { libc::umount2(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
            .unwrap_or(rustix::io::Errno::IO)),
    }
}

fn run(command: &mut Command) -> Outcome {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// What is not cached is read by a worker, holes and all.
fn from_a_disk(engine: Engine) -> Outcome {
    let mount = Mount::new()?;
    let path = mount.path().join("file");
    let mut bytes: Vec<u8> = (0..500_001).map(|at| (at % 239) as u8).collect();
    fs::write(&path, &bytes)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 40_960, 81_920)?;
    bytes[40_960..122_880].fill(0);
    let mut raw = Raw::new(engine)?;
    let retries = counter("retries");
    let mut got = vec![0; bytes.len()];
    for asynchronous in [false, true, false] {
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let mut at = 0;
        while at < bytes.len() {
            let entry = raw.get_at(&file, at as u64, 1 << 20, 0);
            let entry = if asynchronous { entry.flags(Flags::ASYNC) } else { entry };
            let len = raw.result(&entry);
            check(&format!("a fetch at {at}"), i32::from(len > 0), 1)?;
            let to = got[at..].as_mut_ptr() as u64;
            check("copy out", raw.result(&copy(&raw, 0, 0, to, len as u32)), len)?;
            check("release", raw.result(&raw.put(0)), 0)?;
            at += len as usize;
        }
        same("the file", &got, &bytes)?;
        got.fill(0xee);
    }
    check("workers", i32::from(counter("retries") > retries), 1)?;
    // O_DIRECT, now and later.
    let direct = OpenOptions::new().read(true).custom(libc::O_DIRECT).open(&path)?;
    check("O_DIRECT", raw.result(&raw.get(&direct, 4096, 0)), -524)?;
    let bound = bind_to(&mut raw, &file)?;
    rustix::fs::fcntl_setfl(&file, OFlags::DIRECT)?;
    let entry = fetch(bound.as_raw_fd(), -1, 0, 4096, 0);
    check("O_DIRECT, since", raw.result(&entry), -524)
}

trait Custom {
    fn custom(&mut self, flags: i32) -> &mut Self;
}

impl Custom for OpenOptions {
    fn custom(&mut self, flags: i32) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, flags)
    }
}

fn unload() -> i32 {
    // SAFETY: the name lives until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_delete_module, c"getbuf".as_ptr(), libc::O_NONBLOCK) };
    if result == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
}

/// Neither the module nor a file system goes while it is needed; a lease needs the one and not the
/// other.
fn busy(engine: Engine) -> Outcome {
    let mount = Mount::new()?;
    let path = mount.path().join("file");
    let bytes: Vec<u8> = (0..BLOCK).map(|at| (at % 233) as u8).collect();
    fs::write(&path, &bytes)?;
    let file = File::open(&path)?;
    let mut raw = Raw::new(engine)?;
    let bound = bind_to(&mut raw, &file)?;
    drop(file);
    check("a fetch", raw.result(&fetch(bound.as_raw_fd(), -1, 0, BLOCK, 0)), BLOCK as i32)?;
    let busy = |result: rustix::io::Result<()>| result.err().map(rustix::io::Errno::raw_os_error);
    check("umount, with a bound descriptor", busy(mount.unmount()).unwrap_or(0), libc::EBUSY)?;
    check("rmmod, with the device open", unload(), libc::EWOULDBLOCK)?;
    drop(bound);
    let Raw { mut uring, slots, lender } = raw;
    drop((lender, slots));
    // The descriptors are closed a little later.
    std::thread::sleep(Duration::from_millis(100));
    check("rmmod, with a lease and nothing open", unload(), libc::EWOULDBLOCK)?;
    check("umount, with a lease", busy(mount.unmount()).unwrap_or(0), 0)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let fd = io_uring::types::Fd(sink.as_raw_fd());
    let entry = ops::WriteFixed::new(fd, std::ptr::null(), 4096, 0).build();
    // SAFETY: the sink lives to the end of this function.
    unsafe { uring.submission().push(&entry) }.expect("room");
    uring.submit_and_wait(1)?;
    let written = uring.completion().next().ok_or("no completion")?.result();
    check("what is leased can still be sent", written, 4096)?;
    let mut got = [0; 4096];
    peer.read_exact(&mut got)?;
    same("what was written", &got, &bytes[..4096])
}

/// SQPOLL, IOPOLL and the rest: right, or refused.
fn rings_of_every_kind(engine: Engine) -> Outcome {
    let (file, bytes) = source(8192)?;
    let plain = IoUring::builder();
    let kinds = [
        ("SQPOLL", plain.clone().setup_sqpoll(50).clone()),
        ("IOPOLL", plain.clone().setup_iopoll().clone()),
        ("SQPOLL and IOPOLL", plain.clone().setup_sqpoll(50).setup_iopoll().clone()),
        ("DEFER_TASKRUN", plain.clone().setup_single_issuer().setup_defer_taskrun().clone()),
        ("COOP_TASKRUN", plain.clone().setup_coop_taskrun().clone()),
    ];
    for (name, kind) in kinds {
        let iopoll = name.contains("IOPOLL");
        let mut raw = Raw::with(engine, &kind, Lender::lend)?;
        let mut got = vec![0; 4096];
        for flags in [Flags::empty(), Flags::ASYNC] {
            let entry = raw.get_at(&file, 100, 4096, 0).flags(flags);
            check(&format!("{name}: fetch"), raw.result(&entry), 4096)?;
            let entry = copy(&raw, 0, 0, got.as_mut_ptr() as u64, 4096);
            check(&format!("{name}: copy out"), raw.result(&entry), 4096)?;
            same(name, &got, &bytes[100..4196])?;
            check(&format!("{name}: release"), raw.result(&raw.put(0)), 0)?;
        }
        if iopoll {
            continue;
        }
        let sink = tempfile::tempfile()?;
        let hidden = Flags::IO_HARDLINK | Flags::SKIP_SUCCESS;
        let chain = [
            raw.get(&file, 4096, 3).flags(hidden),
            raw.write(&sink, 0, 4096, 3).flags(hidden),
            raw.put(3),
        ];
        let results = raw.results(&chain, 1);
        if results != [(2, 0)] {
            return Err(format!("{name}: chain: {results:?}").into());
        }
        // Left behind, with the ring.
        check(&format!("{name}: fetch"), raw.result(&raw.get(&file, 4096, 1)), 4096)?;
    }
    Ok(())
}

fn a_ring_that_is_closed(engine: Engine) -> Outcome {
    let (file, _) = source(1 << 20)?;
    let mut raw = Raw::new(engine)?;
    for slot in 0..SLOTS {
        check("a fetch", raw.result(&raw.get(&file, BLOCK, slot)), BLOCK as i32)?;
    }
    check("leases", leases(engine)? as i32, i32::from(SLOTS))?;
    // The table, with the ring alive: and the device answers after that.
    raw.uring.submitter().unregister_buffers()?;
    check("leases without the table", leases(engine)? as i32, 0)?;
    check("a fetch without a table", raw.result(&raw.get(&file, BLOCK, 0)), -libc::EINVAL)?;
    raw.uring.submitter().register_buffers_sparse(4)?;
    check("a fetch", raw.result(&raw.get(&file, BLOCK, 3)), BLOCK as i32)?;
    // The ring, with the device alive.
    let Raw { uring, lender, slots } = raw;
    drop((uring, slots));
    no_leases_left(engine)?;
    drop(lender);
    Ok(())
}

fn fork_and_exec(engine: Engine) -> Outcome {
    let (file, bytes) = source(4096)?;
    let mut raw = Raw::new(engine)?;
    check("a fetch", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    // A process that has all of the descriptors, until it is told to become another program.
    let (mut gate_out, gate_in) = rustix::pipe::pipe().map(|(a, b)| (File::from(a), b))?;
    // SAFETY: the child calls only what a child of a process with threads may.
    let child = unsafe { libc::fork() };
    if child == 0 {
        become_another(gate_out.as_raw_fd(), gate_in.as_raw_fd());
    }
    let ended = Reaped(child);
    let mut got = vec![0; 4096];
    let entry = copy(&raw, 0, 0, got.as_mut_ptr() as u64, 4096);
    check("the parent's lease", raw.result(&entry), 4096)?;
    same("what it holds", &got, &bytes)?;
    drop(raw);
    std::thread::sleep(Duration::from_millis(100));
    check("the child has the ring", leases(engine)? as i32, 1)?;
    drop(gate_in);
    no_leases_left(engine)?;
    let _ = gate_out.read(&mut []);
    drop(ended);
    // And a child that is made the usual way has nothing of it.
    let mut raw = Raw::new(engine)?;
    check("a fetch", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    let mut sleeper = Command::new("sleep").arg("60").process_group(0).spawn()?;
    drop(raw);
    let gone = no_leases_left(engine);
    sleeper.kill()?;
    sleeper.wait()?;
    gone
}

/// Waits for the end of the pipe, and becomes `sleep`.
fn become_another(gate_out: RawFd, gate_in: RawFd) -> ! {
    let program = c"/bin/sleep".as_ptr();
    let mut byte = [0];
    // SAFETY: the parent has it, too; nobody here uses it after this.
    unsafe { libc::close(gate_in) };
    // SAFETY: the buffer has room for the byte.
    unsafe { libc::read(gate_out, byte.as_mut_ptr().cast(), 1) };
    // SAFETY: the arguments are constants and end with a null.
    unsafe { libc::execl(program, program, c"60".as_ptr(), std::ptr::null::<libc::c_char>()) };
    // SAFETY: takes no memory.
    unsafe { libc::_exit(127) }
}

/// A child process, that does not outlive this.
struct Reaped(libc::pid_t);

impl Drop for Reaped {
    fn drop(&mut self) {
        // SAFETY: takes no memory. The child is ours and has not been waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: the status is not asked for.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// A page of hugetlbfs that is there is lent; a hole is not.
fn huge_pages(engine: Engine) -> Outcome {
    // SAFETY: the name lives until the call returns.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB) };
    let pool = "/proc/sys/vm/nr_hugepages";
    if fd < 0 || fs::write(pool, "2").is_err() {
        println!("not tested: this kernel has no huge pages");
        return Ok(());
    }
    // SAFETY: the system call has just made this descriptor for us.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let size = 2 << 20;
    file.set_len(2 * size)?;
    let writable = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
    let (shared, any) = (rustix::mm::MapFlags::SHARED, std::ptr::null_mut());
    // SAFETY: a new mapping, wherever the kernel likes.
    let map = unsafe { rustix::mm::mmap(any, size as usize, writable, shared, &file, 0) }?;
    // SAFETY: the mapping has that many bytes, and nobody else knows it.
    unsafe { std::ptr::write_bytes(map.cast::<u8>(), 0x5c, size as usize) };
    // SAFETY: nobody uses it after this.
    unsafe { rustix::mm::munmap(map, size as usize) }?;
    let mut raw = Raw::new(engine)?;
    check("a page", raw.result(&raw.get_at(&file, 4097, 1 << 20, 0)), 1 << 20)?;
    let mut got = vec![0; 1 << 20];
    let entry = copy(&raw, 0, 0, got.as_mut_ptr() as u64, 1 << 20);
    check("copy out", raw.result(&entry), 1 << 20)?;
    same("its bytes", &got, &vec![0x5c; 1 << 20])?;
    check("up to the hole", raw.result(&raw.get_at(&file, size - 4096, 1 << 20, 1)), 4096)?;
    check("the hole", raw.result(&raw.get_at(&file, size, 4096, 2)), -524)?;
    drop(file);
    for slot in [0, 1] {
        check("release", raw.result(&raw.put(slot)), 0)?;
    }
    fs::write(pool, "0")?;
    Ok(())
}
