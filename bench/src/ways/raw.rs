// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies by hand: `READ_FIXED`, and what takes the bytes.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Result, ensure};
use io_uring::opcode::{ReadFixed, Send, SendZc, WriteFixed};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, cqueue};
use uring_getbuf::Pool;

use super::hand::{self, Hand};
use super::{Form, Use, Way, half};
use crate::cases::Source;
use crate::ground::{Ground, Lane};

const SOURCE: Fixed = Fixed(0);

#[derive(Debug)]
struct Flow {
    lane: Lane,
    done: u64,
    /// Bytes that the current fetch has brought; and that those before it had of the same block.
    held: u32,
    part: u32,
    /// Completions to come before the memory is free.
    left: u32,
}

pub(super) struct Raw {
    ring: IoUring,
    moves: Moves,
}

/// What is moved, and how.
struct Moves {
    pool: Pool,
    ground: Arc<Ground>,
    flows: Vec<Flow>,
    form: Form,
    by: Use,
}

/// In `user_data`, beside the flow: the fetch of a form with steps.
const FETCH: u64 = 1 << 32;

impl Raw {
    pub(super) fn new(ground: Arc<Ground>, form: Form, by: Use) -> Result<Self> {
        let lanes = ground.lanes();
        let ring = hand::ring(lanes.len() * 3 * usize::from(ground.point.sinks))?;
        let files = [&ground.source].into_iter().chain(&ground.sinks).map(AsRawFd::as_raw_fd);
        ring.submitter().register_files(&files.collect::<Vec<_>>())?;
        let pool = Pool::new(lanes.len() as u16, ground.point.block)?;
        let vector = libc::iovec { iov_base: pool.base().cast(), iov_len: pool.bytes() };
        // SAFETY: the pool is dropped after the ring, and no request is in flight then: `run`
        // returns when all have completed.
        unsafe { ring.submitter().register_buffers(&[vector]) }?;
        let flow = |lane| Flow { lane, done: 0, held: 0, part: 0, left: 0 };
        let flows = lanes.into_iter().map(flow).collect();
        Ok(Self { ring, moves: Moves { pool, ground, flows, form, by } })
    }
}

impl Moves {
    fn memory(&self, index: usize) -> *mut u8 {
        self.pool.base().wrapping_add(index * self.pool.block_size() as usize)
    }

    /// Queues a request of the flow's.
    fn push(hand: &mut Hand<'_>, entry: &Entry) -> Result<()> {
        // SAFETY: its files are registered, and its memory is the flow's block of the pool, which
        // belongs to it until it has completed.
        unsafe { hand.push(entry) }
    }

    fn consumer(&self, index: usize, sink: usize, len: u32, offset: u64) -> Entry {
        let (memory, fd) = (self.memory(index), Fixed(1 + sink as u32));
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        match self.by {
            Use::Write => {
                let to = if self.ground.case.sink.is_socket() { u64::MAX } else { offset };
                WriteFixed::new(fd, memory, len, 0).offset(to).build()
            }
            Use::Send => Send::new(fd, memory, len).flags(flags).build(),
            Use::SendZc => SendZc::new(fd, memory, len).buf_index(Some(0)).flags(flags).build(),
        }
        .user_data(index as u64)
    }

    /// Queues a flow's next block.
    fn next(&mut self, hand: &mut Hand<'_>, index: usize) -> Result<()> {
        let Flow { lane, done, part, .. } = self.flows[index];
        let (block, offset) = (self.ground.point.block, lane.offset(done));
        let from = if self.ground.case.source == Source::File { offset } else { u64::MAX };
        let read = ReadFixed::new(SOURCE, self.memory(index), block - part, 0).offset(from).build();
        if self.form == Form::Steps {
            return Self::push(hand, &read.user_data(FETCH | index as u64));
        }
        self.flows[index].left = 1;
        let read = read.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS).user_data(index as u64);
        Self::push(hand, &read)?;
        Self::push(hand, &self.consumer(index, lane.sink, block, offset))
    }

    /// Queues the consumers of what a fetch has brought.
    fn consume(&mut self, hand: &mut Hand<'_>, index: usize, held: u32) -> Result<()> {
        let Flow { lane, done, .. } = self.flows[index];
        let sinks = self.ground.point.sinks;
        self.flows[index].held = held;
        self.flows[index].left = u32::from(sinks);
        for sink in lane.sink..lane.sink + usize::from(sinks) {
            Self::push(hand, &self.consumer(index, sink, held, lane.offset(done)))?;
        }
        Ok(())
    }

    /// Whether the flow goes on with another request: it does not after its last block.
    fn complete(
        &mut self,
        hand: &mut Hand<'_>,
        completion: &cqueue::Entry,
        blocks: u64,
    ) -> Result<bool> {
        let result = completion.result();
        if result < 0 {
            return Err(std::io::Error::from_raw_os_error(-result).into());
        }
        let index = completion.user_data() as u32 as usize;
        if completion.user_data() & FETCH != 0 {
            ensure!(result > 0, "the source ended");
            self.consume(hand, index, result as u32)?;
            return Ok(true);
        }
        let block = self.ground.point.block;
        let flow = &mut self.flows[index];
        if !cqueue::notif(completion.flags()) {
            let want = if self.form == Form::Chain { block } else { flow.held };
            ensure!(result as u32 == want, "a request came to {result}");
            if cqueue::more(completion.flags()) {
                // The network still has the memory.
                return Ok(true);
            }
        }
        flow.left -= 1;
        if flow.left > 0 {
            return Ok(true);
        }
        flow.part += if self.form == Form::Chain { block } else { flow.held };
        if flow.part == block {
            flow.part = 0;
            flow.done += 1;
        }
        if flow.done < blocks {
            self.next(hand, index)?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl Way for Raw {
    fn run(&mut self, blocks: u64) -> Result<()> {
        let Self { ring, moves } = self;
        let mut hand = Hand::new(ring);
        let mut running = moves.flows.len();
        for index in 0..running {
            moves.flows[index].done = 0;
            moves.next(&mut hand, index)?;
        }
        while running > 0 {
            hand.wait(half(running))?;
            while let Some(completion) = hand.next() {
                if !moves.complete(&mut hand, &completion, blocks)? {
                    running -= 1;
                }
            }
        }
        Ok(())
    }
}
