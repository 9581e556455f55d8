// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is promised of memory that the kernel lends: tests for the engines that do not copy.
//!
//! They run in the test kernels, as root. On a kernel that lends nothing every one of them is
//! ignored, and the reason is printed. `GETBUF_TEST_ENGINE=opcode` insists.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode as ops};
use libtest_mimic::{Arguments, Failed, Trial};
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::opcode::{GetBuf, PutBuf};
use uring_getbuf::relay::Relay;
use uring_getbuf::slots::{Event, Outgoing, Slots};
use uring_getbuf::{Engine, Ring, STREAM, SendFlags, Support};

type Outcome = Result<(), Failed>;
type Test = fn() -> Outcome;

/// Where the patched kernel counts leases.
const COUNTS: &str = "/sys/kernel/debug/io_uring/leases";
/// Tells the executable that it is a child of a test, and of which.
const CHILD: &str = "GETBUF_TEST_CHILD";
/// What the source consists of where a test looks for it in memory, inverted.
const MARKER: [u8; 16] = *b"\xb8\x9a\x8b\x9d\x8a\x99\xdf\x92\x9e\x8d\x94\x9a\x8d\xde\xdf\x01";
const SLOTS: u16 = 16;
const BLOCK: u32 = 64 << 10;

fn main() {
    match std::env::var(CHILD).as_deref() {
        Ok("killed") => return killed_child(),
        Ok("scanned") => return scanned_child(),
        _ => {}
    }
    let support = Support::detect();
    let asked = std::env::var("GETBUF_TEST_ENGINE").ok();
    let works = support.engine(Engine::Opcode);
    if let (Some("opcode"), Err(reason)) = (asked.as_deref(), works) {
        eprintln!("GETBUF_TEST_ENGINE asks for the opcode engine: {reason}");
        std::process::exit(1);
    }
    let ignored = asked.as_deref().is_some_and(|asked| asked != "opcode") || works.is_err();
    if let Err(reason) = works {
        println!("ignored: the opcode engine does not work here: {reason}");
    }
    let tests: [(&str, Test); 15] = [
        ("fields_that_must_be_zero", fields_that_must_be_zero),
        ("slots_that_cannot_be_filled", slots_that_cannot_be_filled),
        ("slots_that_cannot_be_emptied", slots_that_cannot_be_emptied),
        ("files_that_cannot_lend", files_that_cannot_lend),
        ("a_lease_cannot_be_written_to", a_lease_cannot_be_written_to),
        ("nor_its_file_on_a_disk", nor_its_file_on_a_disk),
        ("nothing_past_the_end_of_the_file", nothing_past_the_end_of_the_file),
        ("a_short_fetch_breaks_a_soft_link", a_short_fetch_breaks_a_soft_link),
        ("replace_on_fetch", replace_on_fetch),
        ("emptied_by_an_update_of_the_table", emptied_by_an_update_of_the_table),
        ("a_lease_outlives_its_file", a_lease_outlives_its_file),
        ("a_file_that_is_cut_short", a_file_that_is_cut_short),
        ("released_while_it_is_sent", released_while_it_is_sent),
        ("killed_with_leases", killed_with_leases),
        ("no_mapping_holds_the_bytes", no_mapping_holds_the_bytes),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(format!("opcode::lent::{name}"), move || {
            test()?;
            no_leases_left()
        })
        .with_ignored_flag(ignored)
    });
    // The counts are the kernel's, so one test at a time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// A ring and slots, driven by hand.
struct Raw {
    uring: IoUring,
    slots: Slots,
    get_buf: u8,
    put_buf: u8,
}

impl Raw {
    fn new() -> Result<Self, Failed> {
        Self::with(|numbers, builder| builder.opcode(numbers.0, Some(numbers.1), 0, SLOTS))
    }

    fn with(
        build: impl FnOnce((u8, u8), uring_getbuf::slots::Builder) -> uring_getbuf::slots::Builder,
    ) -> Result<Self, Failed> {
        let support = Support::detect();
        let get_buf = support.get_buf_opcode().ok_or("no GET_BUF")?;
        let put_buf = support.put_buf_opcode().ok_or("no PUT_BUF")?;
        let uring = IoUring::builder().setup_submit_all().build(64)?;
        uring.submitter().register_buffers_sparse(u32::from(SLOTS))?;
        let slots = build((get_buf, put_buf), Slots::builder(&support)).build()?;
        Ok(Self { uring, slots, get_buf, put_buf })
    }

    /// Sends requests, and gives the results of those that post one, in their order.
    fn results(&mut self, entries: &[Entry], wait: usize) -> Vec<(u64, i32)> {
        for (index, entry) in entries.iter().enumerate() {
            let entry = entry.clone().user_data(index as u64);
            // SAFETY: the files and the memory that a test's request names live as long as it.
            unsafe { self.uring.submission().push(&entry) }.expect("the queue has room");
        }
        self.uring.submit_and_wait(wait).expect("io_uring_enter");
        self.uring.completion().map(|entry| (entry.user_data(), entry.result())).collect()
    }

    fn result(&mut self, entry: &Entry) -> i32 {
        self.results(std::slice::from_ref(entry), 1)[0].1
    }

    fn get(&self, file: &impl AsRawFd, len: u32, slot: u16) -> GetBuf {
        GetBuf::new(self.get_buf, Fd(file.as_raw_fd()), len, slot)
    }

    fn put(&self, slot: u16) -> Entry {
        PutBuf::new(self.put_buf, slot).build()
    }

    fn write(&self, file: &impl AsRawFd, from: u64, len: u32, slot: u16) -> Entry {
        ops::WriteFixed::new(Fd(file.as_raw_fd()), from as *const u8, len, slot)
            .offset(STREAM)
            .build()
    }

    fn read(&self, file: &impl AsRawFd, to: u64, len: u32, slot: u16) -> Entry {
        ops::ReadFixed::new(Fd(file.as_raw_fd()), to as *mut u8, len, slot).build()
    }

    /// Sends what the slots want sent, and takes events until none is left.
    fn events(&mut self, wait: usize) -> Vec<Event> {
        while let Some(outgoing) = self.slots.next_request() {
            if let Outgoing::Clear(clear) = outgoing {
                let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                let index = u32::from(clear.index());
                // SAFETY: a null vector names no memory.
                unsafe { self.uring.submitter().register_buffers_update(index, &[none], None) }
                    .expect("updating the table");
                clear.done();
                continue;
            }
            // SAFETY: the slots are those of this ring, and get every completion.
            unsafe { outgoing.push(&mut self.uring.submission()) }.expect("the queue has room");
        }
        self.uring.submit_and_wait(wait).expect("io_uring_enter");
        let slots = &self.slots;
        self.uring
            .completion()
            .filter_map(|entry| slots.complete(entry.user_data(), entry.result(), entry.flags()))
            .collect()
    }

    fn fetch(&mut self, file: &impl AsRawFd, offset: u64, len: u32) -> Lease<Installed> {
        let (lease, request) =
            self.slots.fetch(Fd(file.as_raw_fd()), offset, len).expect("a free slot");
        // SAFETY: the file outlives the fetch, which is waited for.
        unsafe { request.push(&mut self.uring.submission()) }.expect("the queue has room");
        self.events(1);
        lease.installed().expect("the file can lend")
    }
}

/// A file in the current folder, with bytes that tell where they are.
fn source(len: usize) -> Result<(File, Vec<u8>), Failed> {
    let bytes: Vec<u8> = (0..len).map(|at| (at / 7 % 251) as u8).collect();
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok((file, bytes))
}

fn check(what: &str, is: impl PartialEq<i32> + std::fmt::Debug, want: i32) -> Outcome {
    if is == want { Ok(()) } else { Err(format!("{what}: {is:?}, not {want}").into()) }
}

fn same(what: &str, is: &[u8], want: &[u8]) -> Outcome {
    if is == want {
        return Ok(());
    }
    let at = is.iter().zip(want).position(|(is, want)| is != want);
    let lengths = (is.len(), want.len());
    Err(format!("{what}: not the bytes of the file, from {at:?} on, lengths {lengths:?}").into())
}

/// The kernel's count of live leases.
fn leases() -> Result<u64, Failed> {
    if !Path::new(COUNTS).exists() {
        let _ = Command::new("mount").args(["-t", "debugfs", "none", "/sys/kernel/debug"]).status();
    }
    let text = fs::read_to_string(COUNTS).map_err(|error| format!("{COUNTS}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("leases "));
    Ok(line.ok_or("no count of leases")?.trim().parse()?)
}

/// A ring that was closed gives its leases back a little later.
fn no_leases_left() -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(10);
    while leases()? != 0 {
        if Instant::now() > deadline {
            return Err(format!("{} leases are left", leases()?).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn fields_that_must_be_zero() -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new()?;
    // Offsets in struct io_uring_sqe: ioprio, addr, rw_flags, splice_fd_in, addr3.
    for (name, at) in
        [("ioprio", 2), ("addr", 16), ("rw_flags", 31), ("file_index", 44), ("addr3", 48)]
    {
        let entry = with_byte(raw.get(&file, 4096, 0).build(), at);
        check(&format!("GET_BUF with {name}"), raw.result(&entry), -libc::EINVAL)?;
    }
    check("GET_BUF", raw.result(&raw.get(&file, 4096, 0).build()), 4096)?;
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

fn with_byte(entry: Entry, at: usize) -> Entry {
    // SAFETY: an `Entry` is 64 bytes of plain data.
    let mut bytes = unsafe { std::mem::transmute::<Entry, [u8; 64]>(entry) };
    bytes[at] |= 0x40;
    // SAFETY: likewise.
    unsafe { std::mem::transmute::<[u8; 64], Entry>(bytes) }
}

fn slots_that_cannot_be_filled() -> Outcome {
    let (file, _) = source(4096)?;
    let mut raw = Raw::new()?;
    check("past the table", raw.result(&raw.get(&file, 4096, SLOTS).build()), -libc::EFAULT)?;
    check("a free slot", raw.result(&raw.get(&file, 4096, 3).build()), 4096)?;
    check("a taken slot", raw.result(&raw.get(&file, 4096, 3).build()), -libc::EINVAL)?;
    check("leases", leases()? as i32, 1)?;
    check("the end of the file", raw.result(&raw.get(&file, 4096, 4).offset(4096).build()), 0)?;
    check(
        "an empty buffer is installed",
        raw.result(&raw.get(&file, 4096, 4).build()),
        -libc::EINVAL,
    )?;
    check("and released", raw.result(&raw.put(4)), 0)
}

fn slots_that_cannot_be_emptied() -> Outcome {
    let mut raw = Raw::new()?;
    check("an empty slot", raw.result(&raw.put(0)), -libc::EINVAL)?;
    check("past the table", raw.result(&raw.put(SLOTS)), -libc::EINVAL)?;
    let mut memory = vec![0_u8; 4096];
    let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory lives to the end of this function, and the ring is not used after it.
    unsafe { raw.uring.submitter().register_buffers_update(5, &[vector], None) }?;
    check("the program's own memory", raw.result(&raw.put(5)), -libc::EBUSY)
}

fn files_that_cannot_lend() -> Outcome {
    let mut raw = Raw::new()?;
    let (socket, _peer) = UnixStream::pair()?;
    let folder = File::open(".")?;
    let proc = File::open("/proc/self/status")?;
    let files: [(&str, &dyn AsRawFd, i32); 3] = [
        ("a socket", &socket, -524),
        ("a folder", &folder, -524),
        ("a file of procfs", &proc, -524),
    ];
    for (name, file, want) in files {
        let entry = GetBuf::new(raw.get_buf, Fd(file.as_raw_fd()), 64, 0).build();
        check(name, raw.result(&entry), want)?;
    }
    let path = tempfile::NamedTempFile::new()?;
    fs::write(path.path(), [1; 4096])?;
    let write_only = OpenOptions::new().write(true).open(path.path())?;
    check("not open for reading", raw.result(&raw.get(&write_only, 64, 0).build()), -libc::EBADF)
}

fn a_lease_cannot_be_written_to() -> Outcome {
    let (file, bytes) = source(1 << 20)?;
    let (other, _) = source(4096)?;
    other.write_all_at(&[0xff; 4096], 0)?;
    let mut raw = Raw::new()?;
    check("GET_BUF", raw.result(&raw.get(&file, BLOCK, 0).build()), BLOCK as i32)?;
    check("READ_FIXED", raw.result(&raw.read(&other, 0, 4096, 0)), -libc::EFAULT)?;
    let mut now = Vec::new();
    (&file).seek(SeekFrom::Start(0))?;
    (&file).read_to_end(&mut now)?;
    same("after READ_FIXED into the lease", &now, &bytes)
}

/// On a real file system, and looked at after it was mounted anew.
fn nor_its_file_on_a_disk() -> Outcome {
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
        let mut raw = Raw::new()?;
        check("GET_BUF", raw.result(&raw.get(&file, BLOCK, 0).build()), BLOCK as i32)?;
        check("READ_FIXED", raw.result(&raw.read(&other, 0, 4096, 0)), -libc::EFAULT)?;
        check("PUT_BUF", raw.result(&raw.put(0)), 0)?;
    }
    same("in the cache", &fs::read(&path)?, &bytes)?;
    no_leases_left()?;
    run("umount", &[&mount])?;
    mounted()?;
    let same = same("on the disk", &fs::read(&path)?, &bytes);
    run("umount", &[&mount])?;
    same
}

fn nothing_past_the_end_of_the_file() -> Outcome {
    let (file, bytes) = source(100)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new()?;
    check("GET_BUF", raw.result(&raw.get(&file, 4096, 0).build()), 100)?;
    check("more than there is", raw.result(&raw.write(&sink, 0, 101, 0)), -libc::EFAULT)?;
    check("behind it", raw.result(&raw.write(&sink, 100, 1, 0)), -libc::EFAULT)?;
    check("all of it", raw.result(&raw.write(&sink, 0, 100, 0)), 100)?;
    drop(sink);
    let mut got = Vec::new();
    peer.read_to_end(&mut got)?;
    same("what was written", &got, &bytes)
}

fn a_short_fetch_breaks_a_soft_link() -> Outcome {
    let (file, _) = source(100)?;
    let (sink, _peer) = UnixStream::pair()?;
    let mut raw = Raw::new()?;
    let requests = [
        raw.get(&file, 4096, 0).build().flags(Flags::IO_LINK),
        raw.write(&sink, 0, 4096, 0).flags(Flags::IO_LINK),
        raw.put(0),
    ];
    let results = raw.results(&requests, 3);
    if results != [(0, 100), (1, -libc::ECANCELED), (2, -libc::ECANCELED)] {
        return Err(format!("soft links: {results:?}").into());
    }
    check("the slot is still taken", raw.result(&raw.put(0)), 0)?;
    let requests = [
        raw.get(&file, 4096, 0).build().flags(Flags::IO_HARDLINK | Flags::SKIP_SUCCESS),
        raw.write(&sink, 0, 4096, 0).flags(Flags::IO_HARDLINK | Flags::SKIP_SUCCESS),
        raw.put(0),
    ];
    let results = raw.results(&requests, 3);
    if results != [(0, 100), (1, -libc::EFAULT), (2, 0)] {
        return Err(format!("hard links: {results:?}").into());
    }
    check("the slot is free", raw.result(&raw.put(0)), -libc::EINVAL)
}

fn replace_on_fetch() -> Outcome {
    let (file, bytes) = source(8192)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new()?;
    for page in [0, 1, 0] {
        let fetch = raw.get(&file, 4096, 0).offset(page * 4096).replace().build();
        check("GET_BUF, replacing", raw.result(&fetch), 4096)?;
        check("leases", leases()? as i32, 1)?;
        check("WRITE_FIXED", raw.result(&raw.write(&sink, 0, 4096, 0)), 4096)?;
        let mut got = [0; 4096];
        peer.read_exact(&mut got)?;
        same("the page", &got, &bytes[page as usize * 4096..][..4096])?;
    }
    let folder = File::open(".")?;
    check("one that fails", raw.result(&raw.get(&folder, 4096, 0).replace().build()), -524)?;
    check("keeps what there was", raw.result(&raw.write(&sink, 0, 4096, 0)), 4096)?;
    let mut memory = vec![0_u8; 4096];
    let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory lives to the end of this function, and the ring is not used after it.
    unsafe { raw.uring.submitter().register_buffers_update(5, &[vector], None) }?;
    let fetch = raw.get(&file, 4096, 5).replace().build();
    check("the program's own memory is not replaced", raw.result(&fetch), -libc::EINVAL)?;

    // And through the slots: nothing is sent to empty them until they are trimmed.
    drop(raw);
    no_leases_left()?;
    let mut raw = Raw::with(|numbers, builder| {
        builder.opcode(numbers.0, Some(numbers.1), 0, SLOTS).replace(true)
    })?;
    for _ in 0..3 {
        let lease = raw.fetch(&file, 0, 8192);
        drop(lease);
        check("requests to send", i32::from(raw.slots.has_requests()), 0)?;
    }
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))?;
    check("leases", leases()? as i32, 1)?;
    raw.slots.trim();
    raw.events(1);
    check("leases after trim", leases()? as i32, 0)?;
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))
}

/// As on a kernel that has only the RFC's request.
fn emptied_by_an_update_of_the_table() -> Outcome {
    let (file, bytes) = source(8192)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::with(|numbers, builder| builder.opcode(numbers.0, None, 0, SLOTS))?;
    for _ in 0..2 * SLOTS {
        let lease = raw.fetch(&file, 0, 8192);
        let request = lease.write(.., Fd(sink.as_raw_fd()), STREAM)?;
        // SAFETY: the sink outlives the request, which is waited for.
        unsafe { request.push(&mut raw.uring.submission()) }.map_err(|_| "no room")?;
        raw.events(1);
        drop(lease);
        raw.events(0);
        check("leases", leases()? as i32, 0)?;
        let mut got = [0; 8192];
        peer.read_exact(&mut got)?;
        same("what was written", &got, &bytes)?;
    }
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))
}

fn a_lease_outlives_its_file() -> Outcome {
    let folder = tempfile::tempdir_in(".")?;
    let path = folder.path().join("file");
    let bytes: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
    fs::write(&path, &bytes)?;
    let mut raw = Raw::new()?;
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
    check("leases", leases()? as i32, 0)
}

fn a_file_that_is_cut_short() -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let mut raw = Raw::new()?;
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

fn released_while_it_is_sent() -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_send_buffer_size(&sink, 4096)?;
    let mut raw = Raw::new()?;
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
    check("leases while the send waits", leases()? as i32, 1)?;
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS) - 1)?;
    let mut got = vec![0; BLOCK as usize];
    peer.read_exact(&mut got)?;
    raw.events(1);
    same("what was sent", &got, &bytes)?;
    check("free slots", raw.slots.free() as i32, i32::from(SLOTS))?;
    check("leases", leases()? as i32, 0)
}

/// A child of this executable.
fn child(which: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.env(CHILD, which).stdout(Stdio::piped());
    command
}

fn wait_for_line(child: &mut Child) -> Result<String, Failed> {
    let mut line = String::new();
    let output = child.stdout.as_mut().ok_or("no output")?;
    BufReader::new(output).read_line(&mut line)?;
    Ok(line)
}

fn killed_with_leases() -> Outcome {
    for _ in 0..10 {
        let mut child = child("killed").spawn()?;
        let line = wait_for_line(&mut child)?;
        let there = leases()?;
        child.kill()?;
        child.wait()?;
        if line != "ready\n" || there < 8 {
            return Err(format!("the child said {line:?}, with {there} leases").into());
        }
        no_leases_left()?;
    }
    Ok(())
}

/// Leases, some of them in use by sends and writes that cannot end, until it is killed.
fn killed_child() {
    let (file, _) = source(1 << 20).unwrap_or_else(|error| panic!("{error:?}"));
    let (sink, _peer) = UnixStream::pair().expect("a socket");
    let (_read, write) = rustix::pipe::pipe().expect("a pipe");
    let mut raw = Raw::new().unwrap_or_else(|error| panic!("{error:?}"));
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

/// The proof that nothing is copied to user space: a process that sends a file looks for the file's
/// bytes in all of its own memory, while leases are in flight and afterwards. The copy engine, in
/// whose pool they are found, shows that the search would find them.
fn no_mapping_holds_the_bytes() -> Outcome {
    let path = tempfile::NamedTempFile::new_in(".")?;
    let marker = MARKER.map(|byte| !byte);
    let bytes: Vec<u8> = marker.into_iter().cycle().take(3_000_001).collect();
    fs::write(path.path(), &bytes)?;
    for (engine, zero_copy, want) in
        [("opcode", "yes", "not found"), ("opcode", "no", "not found"), ("copy", "no", "found")]
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
                    window.iter().zip(MARKER).all(|(byte, inverted)| *byte == !inverted)
                };
                found += usize::from(page.windows(MARKER.len()).any(is_marker));
                page.fill(0);
            }
        }
    }
    found
}
