// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker: random requests, most of them nearly right, so that they get far.
//!
//! Memory of its own that the kernel may write to is one scratch area: an attacker attacks the
//! kernel, not itself.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use fastrand::Rng;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode as ops, squeue};
use uring_getbuf::Support;
use uring_getbuf_sys as sys;

use crate::{Outcome, said};

const THREADS: u64 = 2;
const SLOTS: u32 = 16;
/// Requests of one ring; then it is closed as it is.
const RING: u64 = 1_500;
const BATCH: usize = 24;
const SCRATCH: usize = 1 << 16;

/// A request as the kernel reads it.
type Sqe = [u64; 8];

/// What every thread needs.
#[derive(Clone)]
struct Target {
    get_buf: Option<u8>,
    put_buf: Option<u8>,
    files: Vec<RawFd>,
    device: Option<RawFd>,
}

pub(crate) fn main(folder: &str, seed: &str, requests: &str, failing: &str) -> Outcome {
    let number = |text: &str| text.parse::<u64>().map_err(said);
    let (seed, requests) = (number(seed)?, number(requests)?);
    let support = Support::detect();
    let target = Target {
        get_buf: support.get_buf_opcode(),
        put_buf: support.put_buf_opcode(),
        files: files(Path::new(folder)).map_err(said)?,
        device: File::options()
            .read(true)
            .write(true)
            .open("/dev/getbuf")
            .ok()
            .map(IntoRawFd::into_raw_fd),
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
                target
                    .attack(&mut Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number)), share);
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")?;
    }
    Ok(())
}

/// One of every kind. They stay open.
fn files(folder: &Path) -> std::io::Result<Vec<RawFd>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    let (one, other) = UnixStream::pair()?;
    let (from, to) = std::io::pipe()?;
    for socket in [&near, &far] {
        socket.set_nonblocking(true)?;
    }
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
        near.into_raw_fd(),
        far.into_raw_fd(),
        one.into_raw_fd(),
        other.into_raw_fd(),
        from.into_raw_fd(),
        to.into_raw_fd(),
    ];
    files.push(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)?.into_raw_fd());
    Ok(files)
}

impl Target {
    fn attack(&self, rng: &mut Rng, mut requests: u64) {
        let mut scratch = vec![0_u8; SCRATCH];
        while requests > 0 {
            let share = RING.min(requests);
            requests -= share;
            // Some set-ups are not allowed together, or not to be had when memory is short.
            if rng.u32(0..4) == 0 {
                let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
                if let Ok(ring) = set_up(&mut builder, rng) {
                    self.use_ring(ring, &mut scratch, rng, share);
                }
            } else {
                let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
                if let Ok(ring) = set_up(&mut builder, rng) {
                    self.use_ring(ring, &mut scratch, rng, share);
                }
            }
        }
        // What the kernel may still write to stays.
        mem::forget(scratch);
    }

    fn use_ring<S, C>(
        &self,
        mut ring: IoUring<S, C>,
        scratch: &mut [u8],
        rng: &mut Rng,
        mut requests: u64,
    ) where
        S: squeue::EntryMarker,
        C: cqueue::EntryMarker,
    {
        let (base, len) = (scratch.as_mut_ptr(), scratch.len());
        let vector = libc::iovec { iov_base: base.cast(), iov_len: len };
        let submitter = ring.submitter();
        let _ = submitter.register_buffers_sparse(SLOTS + 1);
        // SAFETY: the scratch area is never freed. The last slot is memory of the program's own.
        let _ = unsafe { submitter.register_buffers_update(SLOTS, &[vector], None) };
        let _ = submitter.register_files(&self.files);
        let _ = submitter.register_enable_rings();
        // Another ring to which slots are cloned; who closes it first is chance.
        let mirror = IoUring::new(4).ok().filter(|_| rng.u32(0..4) == 0);
        while requests > 0 {
            let batch = rng.usize(1..=BATCH);
            requests = requests.saturating_sub(batch as u64);
            for number in 0..batch {
                let sqe = self.request(rng, base as u64, number as u64);
                // SAFETY: plain data of the same size, that only the kernel interprets; what the
                // kernel writes to is the scratch area, or nothing of this process.
                let entry = unsafe { mem::transmute::<Sqe, squeue::Entry>(sqe) };
                // SAFETY: as above.
                let _ = unsafe { ring.submission().push(&S::from(entry)) };
            }
            let timeout = Timespec::new().nsec(rng.u32(0..500_000));
            let args = SubmitArgs::new().timespec(&timeout);
            let _ = ring.submitter().submit_with_args(rng.usize(0..=batch), &args);
            while ring.completion().next().is_some() {}
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
                    let _ = ring.submitter().register_files(&self.files);
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
        if rng.bool() {
            drop(ring);
        }
    }

    /// A file, by number: right, wrong, or none.
    fn file(&self, rng: &mut Rng, fixed: bool) -> i32 {
        let place = rng.usize(0..self.files.len());
        match rng.u32(0..16) {
            0 => -1,
            1 => rng.i32(..),
            // The first ones can lend.
            2..10 if fixed => rng.i32(0..5),
            2..10 => self.files[rng.usize(0..5)],
            _ if fixed => place as i32,
            _ => self.files[place],
        }
    }

    fn request(&self, rng: &mut Rng, scratch: u64, name: u64) -> Sqe {
        let code = self.code(rng);
        let mut flags = 0;
        for (bit, odds) in [(0, 2), (1, 20), (2, 4), (3, 6), (4, 12), (6, 4)] {
            if rng.u32(0..odds) == 0 {
                flags |= 1_u64 << bit;
            }
        }
        let mut file = self.file(rng, flags & 1 != 0);
        let slot = if rng.u32(0..12) == 0 { rng.u32(0..1 << 16) } else { rng.u32(0..=SLOTS) };
        let mut sqe = [0; 8];
        sqe[1] = offset(rng);
        sqe[3] = u64::from(length(rng));
        sqe[5] = u64::from(slot);
        match code {
            ops::UringCmd16::CODE => {
                if let Some(device) = self.device
                    && rng.u32(0..8) > 0
                {
                    (file, flags) = (device, flags & !1);
                }
                self.command(rng, &mut sqe, scratch);
            }
            // From or to a slot: what is there counts from 0.
            ops::ReadFixed::CODE | ops::WriteFixed::CODE | ops::Send::CODE | ops::SendZc::CODE => {
                sqe[2] = if slot == SLOTS { scratch } else { u64::from(rng.u32(0..8192)) };
                if code == ops::Send::CODE || code == ops::SendZc::CODE {
                    // With IORING_RECVSEND_FIXED_BUF and MSG_DONTWAIT | MSG_NOSIGNAL.
                    sqe[0] |= 4 << 16;
                    sqe[1] = 0;
                    sqe[3] |= 0x4040 << 32;
                }
            }
            ops::AsyncCancel::CODE => (sqe[1], sqe[2], sqe[3]) = (0, rng.u64(0..BATCH as u64), 0),
            ops::Splice::CODE => sqe[2] = u64::MAX,
            ops::PollAdd::CODE => (sqe[1], sqe[3]) = (0, 1 << 32),
            _ => {}
        }
        // One of the fields that must be zero.
        if rng.u32(0..24) == 0 {
            sqe[rng.usize(5..8)] ^= rng.u64(..) & !0xffff;
        }
        if rng.u32(0..24) == 0 {
            sqe[3] |= u64::from(rng.u32(..)) << 32;
        } else if Some(code) == self.get_buf && rng.bool() {
            // IORING_GET_BUF_REPLACE.
            sqe[3] |= 1 << 32;
        }
        sqe[0] |= u64::from(code) | flags << 8 | u64::from(file as u32) << 32;
        sqe[4] = name;
        sqe
    }

    fn code(&self, rng: &mut Rng) -> u8 {
        let lend = |code: Option<u8>, otherwise| code.unwrap_or(otherwise);
        let command = ops::UringCmd16::CODE;
        match rng.u32(0..100) {
            0..30 => lend(self.get_buf, command),
            30..40 => lend(self.put_buf, command),
            40..60 if self.device.is_some() => command,
            40..72 => ops::WriteFixed::CODE,
            72..80 => ops::ReadFixed::CODE,
            80..84 => ops::Send::CODE,
            84..90 => ops::SendZc::CODE,
            90..92 => ops::Nop::CODE,
            92..94 => ops::PollAdd::CODE,
            94..97 => ops::AsyncCancel::CODE,
            97..99 => command,
            _ => ops::Splice::CODE,
        }
    }

    /// A command of `/dev/getbuf`.
    fn command(&self, rng: &mut Rng, sqe: &mut Sqe, scratch: u64) {
        let commands = [
            sys::GETBUF_CMD_FETCH,
            sys::GETBUF_CMD_FETCH,
            sys::GETBUF_CMD_FETCH,
            sys::GETBUF_CMD_RELEASE,
            sys::GETBUF_CMD_RELEASE,
            sys::GETBUF_CMD_COPY_OUT,
            sys::GETBUF_CMD_QUERY,
        ];
        let code =
            if rng.u32(0..16) == 0 { rng.u32(..) } else { *rng.choice(&commands).unwrap_or(&0) };
        let slot = u64::from(rng.u32(0..SLOTS + 2));
        let flags = u64::from(rng.u8(..) & if rng.u32(0..16) == 0 { 0xff } else { 1 });
        let version =
            if rng.u32(0..24) == 0 { rng.u64(0..256) } else { u64::from(sys::GETBUF_ABI_VERSION) };
        let fd = self.file(rng, false);
        let first = if code == sys::GETBUF_CMD_FETCH { fd as u32 } else { rng.u32(0..2) };
        (sqe[1], sqe[5]) = (u64::from(code), 0);
        if code == sys::GETBUF_CMD_COPY_OUT || code == sys::GETBUF_CMD_QUERY {
            sqe[2] = if rng.u32(0..8) == 0 { 1 } else { scratch };
            sqe[3] = u64::from(rng.u32(0..SCRATCH as u32));
        }
        sqe[6] = u64::from(first) | slot << 32 | flags << 48 | version << 56;
        sqe[7] = offset(rng);
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

/// Where in a file.
fn offset(rng: &mut Rng) -> u64 {
    match rng.u32(0..16) {
        0 => u64::MAX,
        1 => i64::MAX as u64 - rng.u64(0..8192),
        2 => rng.u64(..),
        3..10 => rng.u64(0..64) * 4096,
        _ => rng.u64(0..1 << 18),
    }
}

fn length(rng: &mut Rng) -> u32 {
    match rng.u32(0..16) {
        0 => 0,
        1 => u32::MAX - rng.u32(0..2),
        2 => rng.u32(..),
        3..10 => 4096,
        _ => rng.u32(1..1 << 17),
    }
}

/// A ring of some kind.
fn set_up<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    builder: &mut Builder<S, C>,
    rng: &mut Rng,
) -> std::io::Result<IoUring<S, C>> {
    match rng.u32(0..8) {
        0 => builder.setup_sqpoll(5),
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
        builder.setup_cqsize(32);
    }
    builder.build(32)
}
