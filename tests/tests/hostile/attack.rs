// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker: random requests on rings of every set-up.
//!
//! Memory of its own that the kernel may write to is one scratch area: an attacker attacks the
//! kernel, not itself.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use fastrand::Rng;
use io_uring::types::Fd;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode as ops, squeue};
use uring_getbuf_sys as sys;

use crate::request::{SCRATCH, SLOTS, Sqe, Target};
use crate::{Outcome, Tally, said};

const THREADS: u64 = 2;
/// The places of a file that is open for its path only,
const PATH_ONLY: usize = 6;
/// and of both ends of a TCP connection.
const NEAR: usize = 10;
const FAR: usize = 11;
/// About how many requests a ring is sent; then it is closed as it is.
const RING: u64 = 4_000;
/// Sizes of queues, and most requests of a system call.
const QUEUES: [u32; 2] = [16, 64];

/// The arguments: where the files are, a seed, how many requests to send, the numbers of the
/// opcodes or nothing, and whether allocations are to fail.
pub(crate) fn main(args: [&str; 6]) -> Outcome {
    let [folder, seed, requests, get_buf, put_buf, failing] = args;
    let number = |text: &str| text.parse::<u64>().map_err(said);
    let (seed, requests) = (number(seed)?, number(requests)?);
    let device = File::options().read(true).write(true).open("/dev/getbuf");
    let files = files(Path::new(folder)).map_err(said)?;
    let device = device.ok().map(IntoRawFd::into_raw_fd);
    let target = Target {
        get_buf: get_buf.parse().ok(),
        put_buf: put_buf.parse().ok(),
        bound: device.map(|device| bind(device, &files[..5])).transpose()?.unwrap_or_default(),
        files,
        device,
        connection: connection().map_err(said)?,
    };
    let failing = failing == "failing";
    // The parent may not be there to hear it.
    let _ = std::io::stdout().write_all(b"!");
    let _ = std::io::stdout().flush();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let target = target.clone();
            let share = requests / THREADS;
            thread::spawn(move || {
                if failing && fs::write("/proc/thread-self/make-it-fail", "1").is_err() {
                    panic!("allocations cannot be made to fail");
                }
                let seed = seed.wrapping_mul(31).wrapping_add(number);
                target.attack(&mut Rng::with_seed(seed), share)
            })
        })
        .collect();
    let mut tally = Tally::default();
    for thread in threads {
        tally += thread.join().map_err(|_| "a thread panicked")?;
    }
    println!("{} {}", tally.sent, tally.done);
    Ok(())
}

/// Descriptors of the device that know their source already. Binding is for files that can lend.
fn bind(device: RawFd, files: &[RawFd]) -> Outcome<Vec<RawFd>> {
    let mut ring = IoUring::new(4).map_err(said)?;
    let mut bound = Vec::new();
    for file in files {
        let mut payload = [0; 16];
        payload[..4].copy_from_slice(&file.to_ne_bytes());
        payload[7] = sys::GETBUF_ABI_VERSION as u8;
        let command = ops::UringCmd16::new(Fd(device), sys::GETBUF_CMD_BIND).cmd(payload).build();
        // SAFETY: it names no memory.
        unsafe { ring.submission().push(&command) }.map_err(said)?;
        ring.submit_and_wait(1).map_err(said)?;
        bound.extend(ring.completion().map(|answer| answer.result()).filter(|answer| *answer >= 0));
    }
    Ok(bound)
}

/// Both ends of a TCP connection, on which nothing waits.
fn connection() -> std::io::Result<[RawFd; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    for socket in [&near, &far] {
        socket.set_nonblocking(true)?;
    }
    Ok([near, far].map(IntoRawFd::into_raw_fd))
}

/// One of every kind, in the order that requests know. They stay open.
fn files(folder: &Path) -> std::io::Result<Vec<RawFd>> {
    let [near, far] = connection()?;
    let (one, other) = UnixStream::pair()?;
    let (from, to) = std::io::pipe()?;
    let special = |path: &Path, flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut files = vec![
        File::open(folder.join("sacred"))?.into_raw_fd(),
        File::open(folder.join("sacred"))?.into_raw_fd(),
        OpenOptions::new().read(true).write(true).open(folder.join("moving"))?.into_raw_fd(),
        File::open(folder.join("disk/moving"))?.into_raw_fd(),
        OpenOptions::new().write(true).open(folder.join("moving"))?.into_raw_fd(),
        special(folder, libc::O_DIRECTORY)?.into_raw_fd(),
        special(&folder.join("sacred"), libc::O_PATH)?.into_raw_fd(),
        File::open("/dev/zero")?.into_raw_fd(),
        File::options().read(true).write(true).open("/dev/null")?.into_raw_fd(),
        File::open("/proc/self/status")?.into_raw_fd(),
        near,
        far,
        one.into_raw_fd(),
        other.into_raw_fd(),
        from.into_raw_fd(),
        to.into_raw_fd(),
    ];
    files.push(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)?.into_raw_fd());
    Ok(files)
}

impl Target {
    fn attack(&self, rng: &mut Rng, requests: u64) -> Tally {
        let mut scratch = vec![0_u8; SCRATCH];
        let mut tally = Tally::default();
        let mut left = requests;
        while left > 0 {
            let share = rng.u64(1..=2 * RING).min(left);
            let size = *rng.choice(&QUEUES).unwrap_or(&16);
            // Some set-ups are not allowed together, or not to be had when memory is short.
            let done = if rng.u32(0..4) == 0 {
                let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
                set_up(&mut builder, size, rng)
                    .map(|ring| self.use_ring(ring, &mut scratch, rng, share))
            } else {
                let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
                set_up(&mut builder, size, rng)
                    .map(|ring| self.use_ring(ring, &mut scratch, rng, share))
            };
            let done = done.unwrap_or_default();
            tally += done;
            // No ring takes nothing for ever.
            left = left.saturating_sub(done.sent.max(1));
        }
        // What the kernel may still write to stays.
        mem::forget(scratch);
        tally
    }

    /// What the kernel takes as a ring's files: not what is open for its path only.
    ///
    /// A ring with a socket does not end on any kernel, also without leases, while a `SEND_ZC` of it
    /// waits for room at the other end of a connection to that socket: it waits for the network, and
    /// the socket for it. So rings have a connection of their own, whose other end is no target.
    fn registered(&self) -> Vec<RawFd> {
        let mut files = self.files.clone();
        (files[PATH_ONLY], files[NEAR], files[FAR]) = (-1, self.connection[0], -1);
        files
    }

    /// Takes what has arrived, so that sends do not all wait for room: their rings, once closed, keep
    /// the kernel busy until it is there.
    fn read_all(&self) {
        let mut bytes = [0; 16 << 10];
        for socket in [self.files[NEAR], self.files[FAR], self.connection[1]] {
            // SAFETY: it is open as long as the process; one that a request has shut is no less so.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            let _ = rustix::io::read(socket, &mut bytes);
        }
    }

    fn use_ring<S, C>(
        &self,
        mut ring: IoUring<S, C>,
        scratch: &mut [u8],
        rng: &mut Rng,
        requests: u64,
    ) -> Tally
    where
        S: squeue::EntryMarker,
        C: cqueue::EntryMarker + Into<cqueue::Entry>,
    {
        let (base, len) = (scratch.as_mut_ptr(), scratch.len());
        let vector = libc::iovec { iov_base: base.cast(), iov_len: len };
        let submitter = ring.submitter();
        let _ = submitter.register_buffers_sparse(SLOTS + 1);
        // SAFETY: the scratch area is never freed. The last slot is memory of the program's own.
        let _ = unsafe { submitter.register_buffers_update(SLOTS, &[vector], None) };
        let _ = submitter.register_files(&self.registered());
        let _ = submitter.register_enable_rings();
        // Another ring to which slots are cloned; who closes it first is chance.
        let mirror = IoUring::new(4).ok().filter(|_| rng.u32(0..4) == 0);
        let most = ring.submission().capacity();
        let (mut queued, mut tries) = (0, 0);
        let mut tally = Tally::default();
        while tries < requests {
            let batch = rng.usize(1..=most);
            let mut chain = Vec::new().into_iter();
            for _ in 0..batch {
                let sqe = chain.next().unwrap_or_else(|| {
                    if rng.u32(0..8) > 0 {
                        return self.request(rng, base as u64);
                    }
                    chain = self.chain(rng, base as u64).into_iter();
                    chain.next().unwrap_or_default()
                });
                // SAFETY: plain data of the same size, that only the kernel interprets; what the
                // kernel writes to is the scratch area, or nothing of this process.
                let entry = unsafe { mem::transmute::<Sqe, squeue::Entry>(sqe) };
                tries += 1;
                // SAFETY: as above.
                if unsafe { ring.submission().push(&S::from(entry)) }.is_err() {
                    // The kernel has not taken what is there: a thread of its own is late.
                    break;
                }
                queued += 1;
            }
            let timeout = Timespec::new().nsec(rng.u32(0..500_000));
            let args = SubmitArgs::new().timespec(&timeout);
            let _ = ring.submitter().submit_with_args(rng.usize(0..=batch), &args);
            for completion in ring.completion() {
                let completion: cqueue::Entry = completion.into();
                tally.done += u64::from(completion.result() >= 0);
            }
            if rng.bool() {
                self.read_all();
            }
            match rng.u32(0..60) {
                0 => {
                    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                    let slot = rng.u32(0..SLOTS);
                    // SAFETY: a null vector names no memory.
                    let _ =
                        unsafe { ring.submitter().register_buffers_update(slot, &[none], None) };
                }
                1 => {
                    let _ = ring.submitter().unregister_buffers();
                    let _ = ring.submitter().register_buffers_sparse(SLOTS + 1);
                }
                2 => {
                    let _ = ring.submitter().unregister_files();
                    let _ = ring.submitter().register_files(&self.registered());
                }
                3..6 => {
                    if let Some(mirror) = &mirror {
                        clone(ring.as_raw_fd(), mirror.as_raw_fd(), rng);
                    }
                }
                6 => {
                    if let Some(mirror) = &mirror {
                        clone(mirror.as_raw_fd(), ring.as_raw_fd(), rng);
                    }
                }
                _ => {}
            }
        }
        // What is left in the queue was not sent.
        tally.sent = queued - ring.submission().len() as u64;
        match rng.u32(0..8) {
            // Before the mirror is closed,
            0..4 => drop(ring),
            // after it, or when the process ends.
            4..7 => {}
            _ => mem::forget(ring),
        }
        tally
    }
}

/// Clones slots of one ring into another.
fn clone(from: RawFd, to: RawFd, rng: &mut Rng) {
    // struct io_uring_clone_buffers; IORING_REGISTER_DST_REPLACE is 2 (Linux 6.13).
    let (count, first) = (rng.u32(0..=SLOTS + 1), rng.u32(0..4));
    let mut clone = [from as u32, rng.u32(0..2) * 2, first, rng.u32(0..4), count, 0, 0, 0];
    if rng.u32(0..16) == 0 {
        clone[rng.usize(1..8)] = rng.u32(..);
    }
    // SAFETY: the kernel reads the structure, whose size is right, and nothing else.
    // IORING_REGISTER_CLONE_BUFFERS is 30 (Linux 6.12).
    let _ = unsafe { libc::syscall(libc::SYS_io_uring_register, to, 30, &raw const clone, 1) };
}

/// A ring of some kind.
fn set_up<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    builder: &mut Builder<S, C>,
    size: u32,
    rng: &mut Rng,
) -> std::io::Result<IoUring<S, C>> {
    match rng.u32(0..8) {
        0 => builder.setup_sqpoll(1),
        1 => builder.setup_iopoll(),
        2 | 3 => builder.setup_single_issuer().setup_defer_taskrun(),
        4 => builder.setup_coop_taskrun().setup_taskrun_flag(),
        5 => builder.setup_r_disabled(),
        _ => builder,
    };
    if rng.bool() {
        builder.setup_submit_all();
    }
    // A queue of completions that runs over.
    if rng.u32(0..4) == 0 {
        builder.setup_cqsize(size);
    }
    builder.build(size)
}
