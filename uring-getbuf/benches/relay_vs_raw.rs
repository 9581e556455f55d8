// SPDX-License-Identifier: MIT OR Apache-2.0
//! The copy engine's relay beside a loop written by hand on the `io-uring` crate, in one run.
//!
//! Both move the same file with the same requests: 64 KiB blocks, 32 in flight, `READ_FIXED`
//! linked to `WRITE_FIXED`, one completion each. What is compared is the cost of the library.
//!
//! ```text
//! cargo bench -p uring-getbuf --bench relay_vs_raw [-- [--only relay|raw] [SOURCE [SINK [ROUNDS]]]]
//! ```
//!
//! Rounds of the two alternate, and the medians are compared: processor time of the whole process,
//! user and system, worker threads included. On a machine whose clock counts instructions (QEMU
//! with `-icount shift=0`) a nanosecond is an instruction, and the figures are exact. With `--only`
//! one of the two runs alone, for a program that counts instructions from outside.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use uring_getbuf::relay::Relay;
use uring_getbuf::ring::Ring;
use uring_getbuf::{Engine, Pool};

const BLOCK: u32 = 64 << 10;
const DEPTH: u16 = 32;
const SIZE: u64 = 256 << 20;
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let only = args.iter().position(|arg| arg == "--only").map(|at| args.drain(at..at + 2).nth(1));
    let only = only.flatten();
    let folder = tempfile::tempdir()?;
    let source = match args.first() {
        Some(path) => File::open(path)?,
        None => {
            let path = folder.path().join("source");
            let mut file = File::create(&path)?;
            let block = vec![0x5a; 1 << 20];
            for _ in 0..SIZE >> 20 {
                file.write_all(&block)?;
            }
            File::open(&path)?
        }
    };
    let sink_path = args.get(1).map_or_else(|| folder.path().join("sink"), Into::into);
    let sink = OpenOptions::new().write(true).create(true).truncate(false).open(&sink_path)?;
    let rounds = args.get(2).map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let size = source.metadata()?.len();
    let blocks = size.div_ceil(u64::from(BLOCK));

    let mut ring = Ring::builder().engine(Engine::Copy).slots(DEPTH).block_size(BLOCK).build()?;
    let mut raw = Raw::new(&source, &sink)?;
    let by_relay = |ring: &mut Ring| -> Result<(), Box<dyn Error>> {
        assert_eq!(Relay::new(&source, &sink).run(ring)?.bytes, size);
        Ok(())
    };
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let mut timed = |which: usize, run: &mut dyn FnMut() -> Result<(), Box<dyn Error>>| {
            if only.as_deref().is_some_and(|only| only != ["raw", "relay"][which]) {
                return Ok(());
            }
            let before = processor_time();
            run()?;
            // The first round warms up.
            if round > 0 {
                times[which].push((processor_time() - before).as_nanos() as f64 / blocks as f64);
            }
            Ok::<_, Box<dyn Error>>(())
        };
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            match which {
                0 => timed(0, &mut || raw.copy(size))?,
                _ => timed(1, &mut || by_relay(&mut ring))?,
            }
        }
    }
    println!("{blocks} blocks of {BLOCK} bytes, {DEPTH} in flight, {rounds} rounds");
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).map(|median| (*median, times[0], times[times.len() - 1]))
    });
    for (name, median) in ["raw", "relay"].iter().zip(&medians) {
        if let Some((median, least, most)) = median {
            println!("{name:6} {median:9.0} ns processor time per block ({least:.0} to {most:.0})");
        }
    }
    if let [Some((raw, ..)), Some((relay, ..))] = medians {
        println!("ratio  {:9.4} relay / raw (medians)", relay / raw);
    }
    Ok(())
}

/// What a program would write that has no use for a library.
struct Raw {
    ring: IoUring,
    pool: Pool,
}

impl Raw {
    fn new(source: &File, sink: &File) -> Result<Self, Box<dyn Error>> {
        let ring = IoUring::builder()
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(128)?;
        let pool = Pool::new(DEPTH, BLOCK)?;
        let vector = libc::iovec { iov_base: pool.base().cast(), iov_len: pool.bytes() };
        // SAFETY: the pool lives as long as the ring, in the same structure.
        unsafe { ring.submitter().register_buffers(&[vector]) }?;
        ring.submitter().register_files(&[source.as_raw_fd(), sink.as_raw_fd()])?;
        Ok(Self { ring, pool })
    }

    fn copy(&mut self, size: u64) -> Result<(), Box<dyn Error>> {
        let mut free: Vec<u16> = (0..DEPTH).collect();
        let (mut next, mut moved) = (0, 0);
        while moved < size {
            while next < size {
                let Some(block) = free.pop() else { break };
                let len = u64::from(BLOCK).min(size - next) as u32;
                let memory = self.pool.base().wrapping_add(usize::from(block) * BLOCK as usize);
                let read = opcode::ReadFixed::new(Fixed(0), memory, len, 0)
                    .offset(next)
                    .build()
                    .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS);
                let write = opcode::WriteFixed::new(Fixed(1), memory, len, 0)
                    .offset(next)
                    .build()
                    .user_data(u64::from(block) | u64::from(len) << 16);
                // SAFETY: the block belongs to this request until its completion.
                unsafe { self.ring.submission().push_multiple(&[read, write]) }?;
                next += u64::from(len);
            }
            let running = usize::from(DEPTH) - free.len();
            self.ring.submit_and_wait(running.div_ceil(2))?;
            for completion in self.ring.completion() {
                let len = completion.user_data() >> 16;
                if i64::from(completion.result()) != len as i64 {
                    return Err(format!("a block gave {}", completion.result()).into());
                }
                moved += len;
                free.push(completion.user_data() as u16);
            }
        }
        Ok(())
    }
}

/// User and system time of all threads.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
