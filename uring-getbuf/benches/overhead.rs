// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the safe layer costs: user-space instructions and allocations for each lease (a fetch, one
//! use, its release), beside the same requests written by hand; and the size of its code.
//!
//! ```text
//! cargo bench -p uring-getbuf --bench overhead [-- NAME...]
//! cargo bench -p uring-getbuf --bench overhead -- --profile NAME DEPTH
//! cargo bench -p uring-getbuf --bench overhead -- --check
//! ```
//!
//! It needs valgrind, whose callgrind counts the instructions; what the kernel executes is not
//! among them. Each way is run for so many leases and for twice as many, so that what is done once
//! cancels out and the figures are exact. `--profile` leaves callgrind's file for
//! `callgrind_annotate`; `--check` fails where a lease costs more than it [may](MOST).
//!
//! Each program does what it would have to do if its requests completed in any order. Step by step,
//! that is to look at what kind of request has completed, and to keep for each block, in a table,
//! where its bytes go. The requests by hand take both from their `user_data`: the kind, and the
//! number of the block, which is all there is to a block. With leases the kind is the event's, and the
//! table is one by slot that has the leases as well: what it takes to put them there and to take them
//! out counts as the library's. A chain needs no table.
//!
//! With a ring, the source is /dev/zero and the sink /dev/null: both are served while they are
//! submitted, so every run takes the same path. The ways whose names begin with "alone" make no
//! system call: they are handed out the requests, and told completions that nobody sent. That is
//! how the opcode engine's share can be seen on a kernel that has no such engine.

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::mem;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, cqueue, opcode};
use uring_getbuf::chain::{Chain, ChainOutcome};
use uring_getbuf::consume::Consumer;
use uring_getbuf::lease::{Fetched, Installed, Lease};
use uring_getbuf::request::{GetBuf, PutBuf};
use uring_getbuf::ring::{Attached, Ring};
use uring_getbuf::slots::{Event, LeaseId, Outgoing, Slots};
use uring_getbuf::{Engine, Pool, Support};

type Outcome = Result<(), Box<dyn Error>>;

const BLOCK: u32 = 4096;
/// As the patches for Linux 7.3 number them.
const GET_BUF: u8 = 65;
const PUT_BUF: u8 = 66;
/// Places of the files in the tables of the rings that are not the library's.
const ZERO: Fixed = Fixed(0);
const NULL: Fixed = Fixed(1);

const DEPTHS: [u16; 2] = [1, 32];
const LEASES: u64 = 2048;

struct Way {
    name: &'static str,
    /// What it is compared with.
    base: Option<&'static str>,
    run: fn(u16, u64) -> Outcome,
}

const fn way(name: &'static str, base: Option<&'static str>, run: fn(u16, u64) -> Outcome) -> Way {
    Way { name, base, run }
}

const WAYS: [Way; 15] = [
    way("raw-steps", None, raw_steps),
    way("builders-steps", Some("raw-steps"), builders_steps),
    way("slots-steps", Some("raw-steps"), slots_steps),
    way("ring-steps", Some("raw-steps"), ring_steps),
    way("ring-blocking", Some("raw-steps"), ring_blocking),
    way("raw-chain", None, raw_chain),
    way("builders-chain", Some("raw-chain"), builders_chain),
    way("slots-chain", Some("raw-chain"), slots_chain),
    way("ring-chain", Some("raw-chain"), ring_chain),
    way("alone-builders-copy", None, alone_builders_copy),
    way("alone-steps-copy", Some("alone-builders-copy"), alone_steps_copy),
    way("alone-chain-copy", Some("alone-builders-copy"), alone_chain_copy),
    way("alone-builders-opcode", None, alone_builders_opcode),
    way("alone-steps-opcode", Some("alone-builders-opcode"), alone_steps_opcode),
    way("alone-chain-opcode", Some("alone-builders-opcode"), alone_chain_opcode),
];

/// How many instructions more than by hand a lease may take, with this many in flight. Nothing may
/// allocate.
const MOST: [(&str, f64); 4] =
    [("slots-steps", 780.0), ("ring-steps", 990.0), ("slots-chain", 560.0), ("ring-chain", 690.0)];
const MOST_DEPTH: u16 = 32;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: everything is the system's allocator's; counting needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Outcome {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        // What runs below valgrind.
        ["--run", name, depth, leases] => {
            (find(name)?.run)(depth.parse()?, leases.parse()?)?;
            println!("{}", ALLOCATIONS.load(Ordering::Relaxed));
            Ok(())
        }
        ["--profile", name, depth] => {
            let file = format!("callgrind.{name}.{depth}");
            let (instructions, _) = count(find(name)?, depth.parse()?, 20 * LEASES, &file)?;
            println!("{instructions} instructions for {} leases: see {file}", 20 * LEASES);
            Ok(())
        }
        ["--check"] => check_all(),
        ref names => compare(names),
    }
}

/// Fails if a lease costs more than it may.
fn check_all() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("callgrind");
    let file = file.to_str().ok_or("the temporary folder's name is not text")?;
    let mut failed = false;
    for (name, most) in MOST {
        let way = find(name)?;
        let base = find(way.base.ok_or("it is compared with nothing")?)?;
        let (instructions, allocations) = per_lease(way, MOST_DEPTH, file)?;
        let over = instructions - per_lease(base, MOST_DEPTH, file)?.0;
        let good = over <= most && allocations == 0.0;
        let verdict = if good { "ok" } else { "FAILED" };
        println!(
            "{name}: {over:.1} instructions more than {}, {allocations:.2} allocations; it may be \
             {most:.0} and none: {verdict}",
            base.name
        );
        failed |= !good;
    }
    if failed { Err("a lease costs more than it may".into()) } else { Ok(()) }
}

/// Says how much code of the library's there is in this program, as far as it is not inlined into
/// the program's own.
fn code_size() -> Outcome {
    let executable = std::env::current_exe()?;
    let symbols = Command::new("nm").args(["--print-size", "--demangle"]).arg(executable).output();
    let symbols = symbols.map_err(|error| format!("nm (is it installed?): {error}"))?;
    let mut sizes = [("uring_getbuf", 0), ("io_uring", 0)];
    for line in String::from_utf8_lossy(&symbols.stdout).lines() {
        let mut fields = line.splitn(4, ' ');
        let (Some(_), Some(size), Some("t" | "T"), Some(name)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let bytes = u64::from_str_radix(size, 16)?;
        for (krate, sum) in &mut sizes {
            let name = name.trim_start_matches('<');
            if name.strip_prefix(*krate).is_some_and(|rest| rest.starts_with("::")) {
                *sum += bytes;
            }
        }
    }
    for (krate, bytes) in sizes {
        println!("{bytes:6} bytes of code of {krate} in this program, besides what is inlined");
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Way, String> {
    WAYS.iter().find(|way| way.name == name).ok_or_else(|| {
        let names: Vec<_> = WAYS.iter().map(|way| way.name).collect();
        format!("there is no way {name}; there are {}", names.join(", "))
    })
}

fn compare(names: &[&str]) -> Outcome {
    let mut wanted = names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
    let all = wanted.is_empty();
    if all {
        wanted.extend(&WAYS);
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("callgrind");
    let file = file.to_str().ok_or("the temporary folder's name is not text")?;
    println!("user-space instructions and allocations per lease, over those of the base");
    println!(
        "{:23}{:>6}{:>9}{:>9}  {:22}{:>7}",
        "way", "depth", "instr.", "over", "base", "alloc."
    );
    let mut known = Vec::new();
    for way in wanted {
        for depth in DEPTHS {
            let (instructions, allocations) = per_lease(way, depth, file)?;
            known.push((way.name, depth, instructions));
            let base = |name| known.iter().find(|(n, d, _)| *n == name && *d == depth);
            let over = way.base.and_then(base).map(|(name, _, base)| (instructions - base, *name));
            let (over, base) =
                over.map_or_else(Default::default, |(over, name)| (format!("{over:+.1}"), name));
            println!(
                "{:23}{depth:6}{instructions:9.1}{over:>9}  {base:22}{allocations:7.2}",
                way.name
            );
        }
    }
    if all { code_size() } else { Ok(()) }
}

/// Instructions and allocations of a lease.
fn per_lease(way: &Way, depth: u16, file: &str) -> Result<(f64, f64), Box<dyn Error>> {
    let (once, twice) = (count(way, depth, LEASES, file)?, count(way, depth, 2 * LEASES, file)?);
    let per_lease = |once: u64, twice: u64| (twice as f64 - once as f64) / LEASES as f64;
    Ok((per_lease(once.0, twice.0), per_lease(once.1, twice.1)))
}

/// Runs this program below callgrind: instructions, and allocations.
fn count(way: &Way, depth: u16, leases: u64, file: &str) -> Result<(u64, u64), Box<dyn Error>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", &format!("--callgrind-out-file={file}")]);
    valgrind.arg(std::env::current_exe()?);
    valgrind.args(["--run", way.name, &depth.to_string(), &leases.to_string()]);
    let output =
        valgrind.output().map_err(|error| format!("valgrind (is it installed?): {error}"))?;
    if !output.status.success() {
        return Err(format!("{}: {}", way.name, String::from_utf8_lossy(&output.stderr)).into());
    }
    let text = fs::read_to_string(Path::new(file))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.ok_or("callgrind has counted nothing")?.parse()?;
    Ok((total, String::from_utf8(output.stdout)?.trim().parse()?))
}

/// `struct io_uring_sqe`, as far as these requests need it.
#[repr(C)]
#[derive(Default)]
struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    buf_index: u16,
    rest: [u16; 11],
}

impl Sqe {
    fn entry(self) -> Entry {
        // SAFETY: both are 64 bytes of plain data, and every pattern is a valid one.
        unsafe { mem::transmute::<Self, Entry>(self) }
    }
}

/// A ring with the same setup as the library's, its memory and its two files.
struct Bare {
    ring: IoUring,
    pool: Pool,
}

impl Bare {
    fn new(depth: u16) -> Result<Self, Box<dyn Error>> {
        let entries = (u32::from(depth) * 3).next_power_of_two().max(8);
        let ring = IoUring::builder()
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(entries * 4)
            .build(entries)?;
        let pool = Pool::new(depth, BLOCK)?;
        let vector = libc::iovec { iov_base: pool.base().cast(), iov_len: pool.bytes() };
        // SAFETY: the pool is dropped after the ring, and the kernel has pinned its pages.
        unsafe { ring.submitter().register_buffers(&[vector]) }?;
        let (zero, null) = (File::open("/dev/zero")?, File::create("/dev/null")?);
        ring.submitter().register_files(&[zero.as_raw_fd(), null.as_raw_fd()])?;
        Ok(Self { ring, pool })
    }

    fn block(pool: &Pool, index: u16) -> *mut u8 {
        pool.base().wrapping_add(usize::from(index) * BLOCK as usize)
    }
}

/// What has its address taken, to be shown, would have to have one each time.
const UNEXPECTED: &str = "this is not what was to come";

/// What a request by hand is, in its `user_data` above the number of its block.
const READ: u16 = 0;
const WRITE: u16 = 1;

const fn named(kind: u16, index: u16) -> u64 {
    (kind as u64) << 16 | index as u64
}

fn read_sqe(pool: &Pool, index: u16, off: u64, flags: Flags) -> Entry {
    let flags = (Flags::FIXED_FILE | flags).bits();
    let addr = Bare::block(pool, index) as u64;
    let user_data = named(READ, index);
    Sqe { opcode: 4, flags, fd: 0, off, addr, len: BLOCK, user_data, ..Sqe::default() }.entry()
}

fn write_sqe(pool: &Pool, index: u16, off: u64) -> Entry {
    let flags = Flags::FIXED_FILE.bits();
    let addr = Bare::block(pool, index) as u64;
    let user_data = named(WRITE, index);
    Sqe { opcode: 5, flags, fd: 1, off, addr, len: BLOCK, user_data, ..Sqe::default() }.entry()
}

fn read_built(pool: &Pool, index: u16, offset: u64, flags: Flags) -> Entry {
    opcode::ReadFixed::new(ZERO, Bare::block(pool, index), BLOCK, 0)
        .offset(offset)
        .build()
        .flags(flags)
        .user_data(named(READ, index))
}

fn write_built(pool: &Pool, index: u16, offset: u64) -> Entry {
    opcode::WriteFixed::new(NULL, Bare::block(pool, index), BLOCK, 0)
        .offset(offset)
        .build()
        .user_data(named(WRITE, index))
}

/// The block of a request that has gone as asked.
fn block_of(completion: &cqueue::Entry, kind: u16) -> Option<u16> {
    let name = completion.user_data();
    let good = (name >> 16) as u16 == kind && completion.result() == BLOCK as i32;
    good.then_some(name as u16)
}

fn steps(
    depth: u16,
    leases: u64,
    read: impl Fn(&Pool, u16, u64, Flags) -> Entry,
    write: impl Fn(&Pool, u16, u64) -> Entry,
) -> Outcome {
    let Bare { mut ring, pool } = Bare::new(depth)?;
    let (submitter, mut queue, mut completions) = ring.split();
    let mut offset = 0;
    // By block.
    let mut offsets = vec![0; depth.into()];
    for _ in 0..leases / u64::from(depth) {
        for index in 0..depth {
            // SAFETY: the block belongs to this request until it has completed.
            unsafe { queue.push(&read(&pool, index, offset, Flags::empty())) }?;
            offsets[usize::from(index)] = offset;
            offset += u64::from(BLOCK);
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            let index = block_of(&completion, READ).ok_or(UNEXPECTED)?;
            // SAFETY: as above.
            unsafe { queue.push(&write(&pool, index, offsets[usize::from(index)])) }?;
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            block_of(&completion, WRITE).ok_or(UNEXPECTED)?;
        }
    }
    Ok(())
}

fn chain(
    depth: u16,
    leases: u64,
    read: impl Fn(&Pool, u16, u64, Flags) -> Entry,
    write: impl Fn(&Pool, u16, u64) -> Entry,
) -> Outcome {
    let Bare { mut ring, pool } = Bare::new(depth)?;
    let (submitter, mut queue, mut completions) = ring.split();
    let flags = Flags::IO_LINK | Flags::SKIP_SUCCESS;
    for _ in 0..leases / u64::from(depth) {
        for index in 0..depth {
            // SAFETY: the block belongs to these requests until the second has completed.
            unsafe { queue.push(&read(&pool, index, 0, flags)) }?;
            // SAFETY: as above.
            unsafe { queue.push(&write(&pool, index, 0)) }?;
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            block_of(&completion, WRITE).ok_or(UNEXPECTED)?;
        }
    }
    Ok(())
}

fn raw_steps(depth: u16, leases: u64) -> Outcome {
    steps(depth, leases, read_sqe, write_sqe)
}

fn builders_steps(depth: u16, leases: u64) -> Outcome {
    steps(depth, leases, read_built, write_built)
}

fn raw_chain(depth: u16, leases: u64) -> Outcome {
    chain(depth, leases, read_sqe, write_sqe)
}

fn builders_chain(depth: u16, leases: u64) -> Outcome {
    chain(depth, leases, read_built, write_built)
}

/// The lease in a slot, and where its bytes go.
#[derive(Default)]
struct Held {
    fetched: Option<Lease<Fetched>>,
    installed: Option<Lease<Installed>>,
    offset: u64,
}

/// Leases by slot.
struct Table(Vec<Held>);

const MISSING: &str = "no such lease";

impl Table {
    fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| Held::default()).collect())
    }

    #[inline(always)]
    fn of(&mut self, lease: LeaseId) -> &mut Held {
        &mut self.0[usize::from(lease.slot())]
    }
}

fn slots_steps(depth: u16, leases: u64) -> Outcome {
    let Bare { mut ring, pool } = Bare::new(depth)?;
    let slots = Slots::builder(&Support::detect()).pool(pool, 0).build()?;
    let (submitter, mut queue, mut completions) = ring.split();
    let (mut table, mut offset) = (Table::new(depth), 0);
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            let (lease, request) = slots.fetch(ZERO, offset, BLOCK)?;
            // SAFETY: the ring's table has the pool and the files, and its completions go to the
            // slots.
            unsafe { request.push(&mut queue) }.map_err(|_| "full")?;
            let held = table.of(lease.id());
            (held.fetched, held.offset) = (Some(lease), offset);
            offset += u64::from(BLOCK);
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            let (name, result) = (completion.user_data(), completion.result());
            let event = slots.complete(name, result, completion.flags());
            let Some(Event::Fetched { lease, .. }) = event else {
                return Err(UNEXPECTED.into());
            };
            let held = table.of(lease);
            let lease = held.fetched.take().ok_or(MISSING)?.installed()?;
            let request = lease.write(.., NULL, held.offset)?;
            // SAFETY: as above.
            unsafe { request.push(&mut queue) }.map_err(|_| "full")?;
            held.installed = Some(lease);
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            let (name, result) = (completion.user_data(), completion.result());
            let event = slots.complete(name, result, completion.flags());
            let Some(Event::Used { id, result: Ok(BLOCK), .. }) = event else {
                return Err(UNEXPECTED.into());
            };
            drop(table.of(id.lease()).installed.take().ok_or(MISSING)?);
        }
        if slots.has_requests() {
            return Err("a lease of the copy engine needs no request to be released".into());
        }
    }
    Ok(())
}

fn slots_chain(depth: u16, leases: u64) -> Outcome {
    let Bare { mut ring, pool } = Bare::new(depth)?;
    let slots = Slots::builder(&Support::detect()).pool(pool, 0).build()?;
    let (submitter, mut queue, mut completions) = ring.split();
    let consumer = Consumer::Write { sink: NULL.into(), offset: 0 };
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            let (_, chain) = slots.chain(Chain::new(ZERO, 0, BLOCK, consumer))?;
            // SAFETY: as in `slots_steps`.
            unsafe { chain.push(&mut queue) }.map_err(|_| "full")?;
        }
        queue.sync();
        submitter.submit_and_wait(usize::from(depth))?;
        completions.sync();
        for completion in &mut completions {
            let (name, result) = (completion.user_data(), completion.result());
            let event = slots.complete(name, result, completion.flags());
            let Some(Event::Chained { outcome: ChainOutcome::Done(BLOCK), .. }) = event else {
                return Err(UNEXPECTED.into());
            };
        }
    }
    Ok(())
}

fn ring(depth: u16) -> Result<(Ring, Attached, Attached), Box<dyn Error>> {
    let mut ring =
        Ring::builder().engine(Engine::Copy).slots(depth).block_size(BLOCK).files(2).build()?;
    let zero = ring.attach(&File::open("/dev/zero")?)?;
    let null = ring.attach(&File::create("/dev/null")?)?;
    Ok((ring, zero, null))
}

fn ring_steps(depth: u16, leases: u64) -> Outcome {
    let (mut ring, zero, null) = ring(depth)?;
    let (mut table, mut offset) = (Table::new(depth), 0);
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            let lease = ring.fetch(&zero, offset, BLOCK)?;
            let held = table.of(lease.id());
            (held.fetched, held.offset) = (Some(lease), offset);
            offset += u64::from(BLOCK);
        }
        ring.wait(usize::from(depth))?;
        while let Some(event) = ring.next_event() {
            let Event::Fetched { lease, .. } = event else {
                return Err(UNEXPECTED.into());
            };
            let held = table.of(lease);
            let lease = held.fetched.take().ok_or(MISSING)?.installed()?;
            ring.write(&lease, .., &null, held.offset)?;
            held.installed = Some(lease);
        }
        ring.wait(usize::from(depth))?;
        while let Some(event) = ring.next_event() {
            let Event::Used { id, result: Ok(BLOCK), .. } = event else {
                return Err(UNEXPECTED.into());
            };
            drop(table.of(id.lease()).installed.take().ok_or(MISSING)?);
        }
    }
    Ok(())
}

/// As the first example of the documentation has it.
fn ring_blocking(depth: u16, leases: u64) -> Outcome {
    let (mut ring, zero, null) = ring(depth)?;
    for _ in 0..leases {
        let fetched = ring.fetch(&zero, 0, BLOCK)?;
        let lease = ring.wait_installed(fetched)?.ok_or("/dev/zero has an end")?;
        ring.write_all(&lease, &null, 0)?;
    }
    Ok(())
}

fn ring_chain(depth: u16, leases: u64) -> Outcome {
    let (mut ring, zero, null) = ring(depth)?;
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            ring.chain_write(&zero, 0, BLOCK, &null, 0)?;
        }
        ring.wait(usize::from(depth))?;
        while let Some(event) = ring.next_event() {
            let Event::Chained { outcome: ChainOutcome::Done(BLOCK), .. } = event else {
                return Err(UNEXPECTED.into());
            };
        }
    }
    Ok(())
}

/// What a queue would take, and a completion give back.
fn pass(entry: &Entry) -> u64 {
    black_box(entry);
    entry.get_user_data()
}

fn alone_builders_copy(depth: u16, leases: u64) -> Outcome {
    let pool = Pool::new(depth, BLOCK)?;
    for _ in 0..leases / u64::from(depth) {
        for index in 0..depth {
            black_box(pass(&read_built(&pool, index, 0, Flags::empty())));
        }
        for index in 0..depth {
            black_box(pass(&write_built(&pool, index, 0)));
        }
    }
    Ok(())
}

fn alone_builders_opcode(depth: u16, leases: u64) -> Outcome {
    for _ in 0..leases / u64::from(depth) {
        for index in 0..depth {
            let get = GetBuf::new(GET_BUF, ZERO, BLOCK, index).offset(0).build();
            black_box(pass(&get.user_data(u64::from(index))));
        }
        for index in 0..depth {
            let write = opcode::WriteFixed::new(NULL, std::ptr::null(), BLOCK, index).offset(0);
            black_box(pass(&write.build().user_data(1 << 32 | u64::from(index))));
        }
        for index in 0..depth {
            let put = PutBuf::new(PUT_BUF, index).build();
            black_box(pass(&put.user_data(2 << 32 | u64::from(index))));
        }
    }
    Ok(())
}

fn slots(depth: u16, opcode: bool) -> Result<Slots, Box<dyn Error>> {
    let builder = Slots::builder(&Support::detect());
    let builder = if opcode {
        builder.opcode(GET_BUF, Some(PUT_BUF), 0, depth)
    } else {
        builder.pool(Pool::new(depth, BLOCK)?, 0)
    };
    Ok(builder.build()?)
}

fn alone_steps(slots: &Slots, depth: u16, leases: u64) -> Outcome {
    let mut table = Table::new(depth);
    let mut sent = Vec::with_capacity(usize::from(depth));
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            let (lease, request) = slots.fetch(ZERO, 0, BLOCK)?;
            sent.push(pass(&request.into_entry()));
            let held = table.of(lease.id());
            held.fetched = Some(lease);
        }
        for name in sent.drain(..) {
            let event = slots.complete(name, BLOCK as i32, 0);
            let Some(Event::Fetched { lease, .. }) = event else {
                return Err(UNEXPECTED.into());
            };
            let held = table.of(lease);
            held.installed = Some(held.fetched.take().ok_or(MISSING)?.installed()?);
        }
        for lease in table.0.iter().flat_map(|held| &held.installed) {
            sent.push(pass(&lease.write(.., NULL, 0)?.into_entry()));
        }
        for name in sent.drain(..) {
            let event = slots.complete(name, BLOCK as i32, 0);
            let Some(Event::Used { id, .. }) = event else {
                return Err(UNEXPECTED.into());
            };
            drop(table.of(id.lease()).installed.take().ok_or(MISSING)?);
        }
        while let Some(request) = slots.next_request() {
            let Outgoing::Request(request) = request else {
                return Err("this is not the request that was to come".into());
            };
            sent.push(pass(&request.into_entry()));
        }
        for name in sent.drain(..) {
            let event = slots.complete(name, 0, 0);
            let Some(Event::Released { .. }) = event else {
                return Err(UNEXPECTED.into());
            };
        }
    }
    Ok(())
}

fn alone_chain(slots: &Slots, depth: u16, leases: u64) -> Outcome {
    let consumer = Consumer::Write { sink: NULL.into(), offset: 0 };
    let mut sent = Vec::with_capacity(usize::from(depth));
    // Of the last request comes the only completion: the release's, or else the consumer's.
    let two = slots.chain_len(&Chain::new(ZERO, 0, BLOCK, consumer)) == 2;
    let result = if two { BLOCK as i32 } else { 0 };
    for _ in 0..leases / u64::from(depth) {
        for _ in 0..depth {
            let (_, chain) = slots.chain(Chain::new(ZERO, 0, BLOCK, consumer))?;
            let mut name = 0;
            chain.into_entries().for_each(|entry| name = pass(&entry));
            sent.push(name);
        }
        for name in sent.drain(..) {
            let event = slots.complete(name, result, 0);
            let Some(Event::Chained { outcome: ChainOutcome::Done(BLOCK), .. }) = event else {
                return Err(UNEXPECTED.into());
            };
        }
    }
    Ok(())
}

fn alone_steps_copy(depth: u16, leases: u64) -> Outcome {
    alone_steps(&slots(depth, false)?, depth, leases)
}

fn alone_chain_copy(depth: u16, leases: u64) -> Outcome {
    alone_chain(&slots(depth, false)?, depth, leases)
}

fn alone_steps_opcode(depth: u16, leases: u64) -> Outcome {
    alone_steps(&slots(depth, true)?, depth, leases)
}

fn alone_chain_opcode(depth: u16, leases: u64) -> Outcome {
    alone_chain(&slots(depth, true)?, depth, leases)
}
