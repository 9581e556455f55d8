// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests by hand, with the `io-uring` crate: what a program would write that has no use for a
//! library.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use io_uring::opcode::{ReadFixed, Send, SendZc, WriteFixed};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, cqueue};
use uring_getbuf::opcode::{GetBuf, PutBuf};
use uring_getbuf::{Pool, Support};

use super::{End, Form, Use, Way, bare_ring, half};
use crate::cases::{Sink, Source};
use crate::ground::{Ground, Lane};

const SOURCE: Fixed = Fixed(0);

/// The numbers of the requests that lend memory.
#[derive(Clone, Copy, Debug)]
struct Lent {
    get_buf: u8,
    put_buf: u8,
    end: End,
}

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
    pool: Pool,
    ground: Arc<Ground>,
    flows: Vec<Flow>,
    form: Form,
    by: Use,
    lent: Option<Lent>,
}

/// In `user_data`, beside the flow: the fetch of a form with steps.
const FETCH: u64 = 1 << 32;

impl Raw {
    pub(super) fn new(ground: Arc<Ground>, form: Form, by: Use) -> Result<Self> {
        Self::build(ground, form, by, None)
    }

    pub(super) fn get_buf(ground: Arc<Ground>, support: &Support, end: End) -> Result<Self> {
        let get_buf = support.get_buf_opcode().context("this kernel has no GET_BUF")?;
        let put_buf = support.put_buf_opcode().context("this kernel has no PUT_BUF")?;
        if end == End::Linked && !support.features().linked_fetch {
            bail!("this kernel's GET_BUF does not hand its buffer over");
        }
        let lent = Lent { get_buf, put_buf, end };
        Self::build(ground, Form::Chain, Use::Write, Some(lent))
    }

    fn build(ground: Arc<Ground>, form: Form, by: Use, lent: Option<Lent>) -> Result<Self> {
        let lanes = ground.lanes();
        let ring = bare_ring(lanes.len() * 3 * usize::from(ground.point.sinks))?;
        let files = [&ground.source].into_iter().chain(&ground.sinks).map(AsRawFd::as_raw_fd);
        ring.submitter().register_files(&files.collect::<Vec<_>>())?;
        let pool = Pool::new(lanes.len() as u16, ground.point.block)?;
        if lent.is_some() {
            ring.submitter().register_buffers_sparse(lanes.len() as u32)?;
        } else {
            let vector = libc::iovec { iov_base: pool.base().cast(), iov_len: pool.bytes() };
            // SAFETY: the pool is dropped after the ring, and no request is in flight then: `run`
            // returns when all have completed.
            unsafe { ring.submitter().register_buffers(&[vector]) }?;
        }
        let flow = |lane| Flow { lane, done: 0, held: 0, part: 0, left: 0 };
        let flows = lanes.into_iter().map(flow).collect();
        Ok(Self { ring, pool, ground, flows, form, by, lent })
    }

    fn memory(&self, index: usize) -> *mut u8 {
        self.pool.base().wrapping_add(index * self.pool.block_size() as usize)
    }

    fn push(&mut self, entries: &[Entry]) -> Result<()> {
        // SAFETY: their files are registered, and their memory is the flow's block of the pool,
        // which belongs to them until they have completed.
        unsafe { self.ring.submission().push_multiple(entries) }.context("the queue is full")
    }

    fn consumer(&self, index: usize, sink: usize, len: u32, offset: u64) -> Entry {
        let (memory, fd) = (self.memory(index), Fixed(1 + sink as u32));
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        match self.by {
            Use::Write => {
                let to = if self.ground.case.sink == Sink::File { offset } else { u64::MAX };
                WriteFixed::new(fd, memory, len, 0).offset(to).build()
            }
            Use::Send => Send::new(fd, memory, len).flags(flags).build(),
            Use::SendZc => SendZc::new(fd, memory, len).buf_index(Some(0)).flags(flags).build(),
        }
        .user_data(index as u64)
    }

    /// Queues a flow's next block.
    fn next(&mut self, index: usize) -> Result<()> {
        let Flow { lane, done, part, .. } = self.flows[index];
        let (block, offset) = (self.ground.point.block, lane.offset(done));
        if let Some(lent) = self.lent {
            return self.lent(lent, index, offset);
        }
        let from = if self.ground.case.source == Source::File { offset } else { u64::MAX };
        let read = ReadFixed::new(SOURCE, self.memory(index), block - part, 0).offset(from).build();
        if self.form == Form::Steps {
            return self.push(&[read.user_data(FETCH | index as u64)]);
        }
        self.flows[index].left = 1;
        let read = read.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS).user_data(index as u64);
        self.push(&[read, self.consumer(index, lane.sink, block, offset)])
    }

    fn lent(&mut self, lent: Lent, index: usize, offset: u64) -> Result<()> {
        let (block, slot, name) = (self.ground.point.block, index as u16, index as u64);
        let quiet = Flags::IO_HARDLINK | Flags::SKIP_SUCCESS;
        let get = GetBuf::new(lent.get_buf, SOURCE, block, slot).offset(offset);
        let get = match lent.end {
            End::Put => get,
            End::Replaced => get.replace(),
            End::Linked => get.linked(),
        };
        let get = get.build().flags(quiet).user_data(name);
        let sink = Fixed(1 + self.flows[index].lane.sink as u32);
        let to = if self.ground.case.sink == Sink::File { offset } else { u64::MAX };
        let write = WriteFixed::new(sink, std::ptr::null(), block, slot).offset(to).build();
        self.flows[index].left = 1;
        match lent.end {
            End::Replaced | End::Linked => self.push(&[get, write.user_data(name)]),
            End::Put => {
                let put = PutBuf::new(lent.put_buf, slot).build().user_data(name);
                self.push(&[get, write.flags(quiet).user_data(name), put])
            }
        }
    }

    /// Queues the consumers of what a fetch has brought.
    fn consume(&mut self, index: usize, held: u32) -> Result<()> {
        let Flow { lane, done, .. } = self.flows[index];
        let sinks = self.ground.point.sinks;
        self.flows[index].held = held;
        self.flows[index].left = u32::from(sinks);
        for sink in lane.sink..lane.sink + usize::from(sinks) {
            self.push(&[self.consumer(index, sink, held, lane.offset(done))])?;
        }
        Ok(())
    }

    /// Whether the flow goes on with another request: it does not after its last block.
    fn complete(&mut self, completion: &cqueue::Entry, blocks: u64) -> Result<bool> {
        let result = completion.result();
        if result < 0 {
            return Err(std::io::Error::from_raw_os_error(-result).into());
        }
        let index = completion.user_data() as u32 as usize;
        if completion.user_data() & FETCH != 0 {
            ensure!(result > 0, "the source ended");
            self.consume(index, result as u32)?;
            return Ok(true);
        }
        let block = self.ground.point.block;
        let flow = &mut self.flows[index];
        if !cqueue::notif(completion.flags()) {
            let want = match (self.form, self.lent) {
                // The release's.
                (_, Some(Lent { end: End::Put, .. })) => 0,
                (Form::Chain, _) => block,
                (Form::Steps, _) => flow.held,
            };
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
            self.next(index)?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl Way for Raw {
    fn run(&mut self, blocks: u64) -> Result<()> {
        let mut running = self.flows.len();
        for index in 0..running {
            self.flows[index].done = 0;
            self.next(index)?;
        }
        while running > 0 {
            self.ring.submit_and_wait(half(running))?;
            while let Some(completion) = { self.ring.completion().next() } {
                if !self.complete(&completion, blocks)? {
                    running -= 1;
                }
            }
        }
        Ok(())
    }
}
