// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that is lent, by hand: `GET_BUF`, `WRITE_FIXED`, and what gives it back.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Error, Result, anyhow, bail};
use io_uring::IoUring;
use io_uring::opcode::WriteFixed;
use io_uring::squeue::Flags;
use io_uring::types::Fixed;
use uring_getbuf::Support;
use uring_getbuf::request::{GetBuf, PutBuf};

use super::hand::{self, Hand};
use super::{End, Way, half};
use crate::cases::Sink;
use crate::ground::{Ground, Lane};

/// A flow: where it is, and how many blocks are done.
#[derive(Clone, Copy, Debug)]
struct Flow {
    lane: Lane,
    done: u64,
}

/// What the requests of all blocks have in common.
#[derive(Clone, Copy, Debug)]
struct Common {
    get_buf: u8,
    put_buf: u8,
    block: u32,
}

impl Common {
    /// Queues a block. `then`: what the fetch does beside; `put`: whether a request gives the memory back.
    #[inline(always)]
    fn push(
        self,
        hand: &mut Hand<'_>,
        index: usize,
        flow: Flow,
        then: impl Fn(GetBuf) -> GetBuf,
        put: bool,
    ) -> Result<()> {
        let (offset, slot, name) = (flow.lane.offset(flow.done), index as u16, index as u64);
        let quiet = Flags::IO_HARDLINK | Flags::SKIP_SUCCESS;
        let get = then(GetBuf::new(self.get_buf, Fixed(0), self.block, slot).offset(offset));
        // SAFETY: the files are registered, and the slot is the flow's own.
        unsafe { hand.push(&get.build().flags(quiet).user_data(name)) }?;
        let sink = Fixed(1 + flow.lane.sink as u32);
        let write =
            WriteFixed::new(sink, std::ptr::null(), self.block, slot).offset(offset).build();
        let flags = if put { quiet } else { Flags::empty() };
        // SAFETY: as above.
        unsafe { hand.push(&write.flags(flags).user_data(name)) }?;
        if put {
            // SAFETY: as above.
            unsafe { hand.push(&PutBuf::new(self.put_buf, slot).build().user_data(name)) }?;
        }
        Ok(())
    }
}

pub(super) struct Lent {
    ring: IoUring,
    /// Owns the files.
    _ground: Arc<Ground>,
    flows: Vec<Flow>,
    common: Common,
    end: End,
    /// The kernel serves all of it while it is submitted.
    at_once: bool,
}

impl Lent {
    pub(super) fn new(ground: Arc<Ground>, support: &Support, end: End) -> Result<Self> {
        let get_buf = support.get_buf_opcode().context("this kernel has no GET_BUF")?;
        let put_buf = support.put_buf_opcode().context("this kernel has no PUT_BUF")?;
        if end == End::Linked && !support.features().linked_fetch {
            bail!("this kernel's GET_BUF does not hand its buffer over");
        }
        let lanes = ground.lanes();
        let ring = hand::ring(lanes.len() * 3)?;
        let files = [&ground.source].into_iter().chain(&ground.sinks).map(AsRawFd::as_raw_fd);
        ring.submitter().register_files(&files.collect::<Vec<_>>())?;
        ring.submitter().register_buffers_sparse(lanes.len() as u32)?;
        Ok(Self {
            ring,
            flows: lanes.into_iter().map(|lane| Flow { lane, done: 0 }).collect(),
            common: Common { get_buf, put_buf, block: ground.point.block },
            end,
            at_once: ground.case.sink == Sink::Null,
            _ground: ground,
        })
    }

    /// Each end has code of its own.
    #[inline(always)]
    fn go(&mut self, blocks: u64, then: impl Fn(GetBuf) -> GetBuf + Copy, put: bool) -> Result<()> {
        let common = self.common;
        // What the one completion says.
        let result = if put { 0 } else { common.block as i32 };
        let mut hand = Hand::new(&mut self.ring);
        let mut running = self.flows.len();
        for (index, flow) in self.flows.iter_mut().enumerate() {
            flow.done = 0;
            common.push(&mut hand, index, *flow, then, put)?;
        }
        while running > 0 {
            if self.at_once {
                hand.submit_or_wait()?;
            } else {
                hand.wait(half(running))?;
            }
            while let Some(completion) = hand.next() {
                if completion.result() != result {
                    return Err(unexpected(completion.result()));
                }
                let index = completion.user_data() as usize;
                let flow = &mut self.flows[index];
                flow.done += 1;
                if flow.done < blocks {
                    common.push(&mut hand, index, *flow, then, put)?;
                } else {
                    running -= 1;
                }
            }
        }
        Ok(())
    }
}

impl Way for Lent {
    fn run(&mut self, blocks: u64) -> Result<()> {
        match self.end {
            End::Put => self.go(blocks, |get| get, true),
            End::Replaced => self.go(blocks, GetBuf::replace, false),
            End::Linked => self.go(blocks, GetBuf::linked, false),
        }
    }
}

#[cold]
fn unexpected(result: i32) -> Error {
    if result < 0 {
        return std::io::Error::from_raw_os_error(-result).into();
    }
    anyhow!("a request came to {result}")
}
