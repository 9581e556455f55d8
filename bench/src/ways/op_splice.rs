// SPDX-License-Identifier: MIT OR Apache-2.0
//! `IORING_OP_SPLICE`: into a pipe and, linked, out of it; a pipe for each request in flight.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use io_uring::opcode::Splice;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, cqueue};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::hand::{self, Hand};
use super::{Way, half};
use crate::cases::{Sink, Source};
use crate::ground::{Ground, Lane};

pub(super) struct OpSplice {
    ring: IoUring,
    moves: Moves,
}

/// What is moved.
struct Moves {
    ground: Arc<Ground>,
    lanes: Vec<Lane>,
    pipes: Vec<(OwnedFd, OwnedFd)>,
    done: Vec<u64>,
    /// Bytes of the current block: a pipe may give less than was asked for.
    part: u32,
}

impl OpSplice {
    pub(super) fn new(ground: Arc<Ground>) -> Result<Self> {
        let lanes = ground.lanes();
        let ring = hand::ring(lanes.len() * 2)?;
        let files = [&ground.source].into_iter().chain(&ground.sinks).map(AsRawFd::as_raw_fd);
        ring.submitter().register_files(&files.collect::<Vec<_>>())?;
        let block = ground.point.block as usize;
        let pipe = |_| -> Result<_> {
            let pipe = pipe_with(PipeFlags::CLOEXEC)?;
            if block > 64 << 10 {
                // A link ends where a request takes less than all.
                fcntl_setpipe_size(&pipe.1, block)
                    .with_context(|| format!("a pipe with room for {block} bytes"))?;
            }
            Ok(pipe)
        };
        let count = if ground.case.source == Source::Pipe { 0 } else { lanes.len() };
        let pipes = (0..count).map(pipe).collect::<Result<Vec<_>>>()?;
        let done = vec![0; lanes.len()];
        Ok(Self { ring, moves: Moves { ground, lanes, pipes, done, part: 0 } })
    }
}

impl Moves {
    fn push(&self, hand: &mut Hand<'_>, index: usize) -> Result<()> {
        let lane = self.lanes[index];
        let offset = lane.offset(self.done[index]);
        let block = self.ground.point.block;
        let to = if self.ground.case.sink == Sink::File { offset as i64 } else { -1 };
        let sink = Fixed(1 + lane.sink as u32);
        let mut push = |entry: &Entry| {
            // SAFETY: its files are registered, or pipes that live as long as the ring; it names
            // no memory.
            unsafe { hand.push(entry) }
        };
        let Some((out, into)) = self.pipes.get(index) else {
            let entry = Splice::new(Fixed(0), -1, sink, to, block - self.part).build();
            return push(&entry.user_data(index as u64));
        };
        let fill = Splice::new(Fixed(0), offset as i64, Fd(into.as_raw_fd()), -1, block).build();
        push(&fill.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS).user_data(index as u64))?;
        let drain = Splice::new(Fd(out.as_raw_fd()), -1, sink, to, block).build();
        push(&drain.user_data(index as u64))
    }

    /// Whether the lane's block is done.
    fn complete(&mut self, completion: &cqueue::Entry) -> Result<bool> {
        let (block, result) = (self.ground.point.block, completion.result());
        if result < 0 {
            return Err(std::io::Error::from_raw_os_error(-result).into());
        }
        if self.pipes.is_empty() {
            self.part += result as u32;
            ensure!(result > 0, "the source ended");
        } else {
            ensure!(result as u32 == block, "OP_SPLICE moved {result} of {block} bytes");
            self.part = block;
        }
        Ok(self.part == block)
    }
}

impl Way for OpSplice {
    fn run(&mut self, blocks: u64) -> Result<()> {
        let Self { ring, moves } = self;
        let mut hand = Hand::new(ring);
        let mut running = moves.lanes.len();
        for index in 0..running {
            moves.done[index] = 0;
            moves.push(&mut hand, index)?;
        }
        while running > 0 {
            hand.wait(half(running))?;
            while let Some(completion) = hand.next() {
                let index = completion.user_data() as usize;
                if moves.complete(&completion)? {
                    moves.part = 0;
                    moves.done[index] += 1;
                }
                if moves.done[index] < blocks {
                    moves.push(&mut hand, index)?;
                } else {
                    running -= 1;
                }
            }
        }
        Ok(())
    }
}
