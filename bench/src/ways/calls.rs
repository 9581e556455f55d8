// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls of a thread that waits for each of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, copy_file_range, seek, sendfile};
use rustix::io::{Errno, pread, pwrite, read, write};
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee};

use super::{Call, Way};
use crate::cases::{Sink, Source};
use crate::ground::{Ground, Lane, PIPE};

pub(super) struct Calls {
    ground: Arc<Ground>,
    lanes: Vec<Lane>,
    call: Call,
    /// What splice(2) needs: the pipe that the bytes go through, and another one for their copies.
    pipes: [(OwnedFd, OwnedFd); 2],
    buffer: Vec<u8>,
    /// Where the sink stands, if it is a file.
    position: u64,
}

impl Calls {
    pub(super) fn new(ground: Arc<Ground>, call: Call) -> Result<Self> {
        let pipe = || -> Result<_> {
            let pipe = pipe_with(PipeFlags::CLOEXEC)?;
            // Where it is refused, more calls are needed.
            let _ = fcntl_setpipe_size(&pipe.1, PIPE);
            Ok(pipe)
        };
        let room = if call == Call::ReadWrite { ground.point.block as usize } else { 0 };
        Ok(Self {
            lanes: ground.lanes(),
            call,
            pipes: [pipe()?, pipe()?],
            buffer: vec![0; room],
            position: u64::MAX,
            ground,
        })
    }

    fn is_pipe(&self) -> bool {
        self.ground.case.source == Source::Pipe
    }

    /// Moves one block, however many calls that takes.
    fn block(&mut self, lane: Lane, offset: u64) -> Result<()> {
        let block = self.ground.point.block as usize;
        match self.call {
            Call::Sendfile => {
                for sink in lane.sink..lane.sink + usize::from(self.ground.point.sinks) {
                    self.sendfile(sink, offset, block)?;
                }
                Ok(())
            }
            Call::Splice if self.is_pipe() => {
                let (source, sink) = (&self.ground.source, &self.ground.sinks[lane.sink]);
                all(block, |done| {
                    splice(source, None, sink, None, block - done, SpliceFlags::empty())
                })
            }
            Call::Splice => self.splice(lane, offset, block),
            Call::CopyFileRange => {
                let (source, sink) = (&self.ground.source, &self.ground.sinks[lane.sink]);
                let (mut from, mut to) = (offset, offset);
                all(block, |done| {
                    copy_file_range(source, Some(&mut from), sink, Some(&mut to), block - done)
                })
            }
            Call::ReadWrite => self.read_write(lane, offset, block),
        }
    }

    fn sendfile(&mut self, sink: usize, offset: u64, block: usize) -> Result<()> {
        let ground = &*self.ground;
        let sink = &ground.sinks[sink];
        if ground.case.sink == Sink::File && self.position != offset {
            seek(sink, SeekFrom::Start(offset))?;
        }
        self.position = offset + block as u64;
        let mut from = offset;
        all(block, |done| {
            let from = (ground.case.source == Source::File).then_some(&mut from);
            sendfile(sink, &ground.source, from, block - done)
        })
    }

    fn splice(&self, lane: Lane, offset: u64, block: usize) -> Result<()> {
        let ground = &*self.ground;
        let [(out, into), (copies_out, copies_into)] = &self.pipes;
        let flags = SpliceFlags::empty();
        let mut from = offset;
        let mut moved = 0;
        while moved < block {
            let held = splice(&ground.source, Some(&mut from), into, None, block - moved, flags)?;
            ensure!(held > 0, "the source ended");
            let sinks = lane.sink..lane.sink + usize::from(ground.point.sinks);
            for sink in sinks.clone() {
                let last = sink + 1 == sinks.end;
                if !last {
                    let copied = tee(out, copies_into, held, flags)?;
                    ensure!(copied == held, "tee(2) took {copied} of {held} bytes");
                }
                let out = if last { out } else { copies_out };
                let mut to = offset + moved as u64;
                all(held, |done| {
                    let to = (ground.case.sink == Sink::File).then_some(&mut to);
                    splice(out, None, &ground.sinks[sink], to, held - done, flags)
                })?;
            }
            moved += held;
        }
        Ok(())
    }

    fn read_write(&mut self, lane: Lane, offset: u64, block: usize) -> Result<()> {
        let ground = &*self.ground;
        let buffer = &mut self.buffer[..];
        let pipe = ground.case.source == Source::Pipe;
        all(block, |done| {
            if pipe {
                read(&ground.source, &mut buffer[done..])
            } else {
                pread(&ground.source, &mut buffer[done..], offset + done as u64)
            }
        })?;
        for sink in &ground.sinks[lane.sink..lane.sink + usize::from(ground.point.sinks)] {
            all(block, |done| match ground.case.sink {
                Sink::Null => write(sink, &buffer[done..]),
                Sink::File => pwrite(sink, &buffer[done..], offset + done as u64),
                Sink::Tcp | Sink::Unix => send(sink, &buffer[done..], SendFlags::NOSIGNAL),
                // That is a look, and not one of these calls.
                Sink::Memory => Err(Errno::OPNOTSUPP),
            })?;
        }
        Ok(())
    }
}

/// Calls until everything is done.
fn all(len: usize, mut call: impl FnMut(usize) -> Result<usize, Errno>) -> Result<()> {
    let mut done = 0;
    while done < len {
        match call(done) {
            Ok(0) => None.context("nothing moved any more")?,
            Ok(bytes) => done += bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

impl Way for Calls {
    fn run(&mut self, blocks: u64) -> Result<()> {
        self.position = u64::MAX;
        for n in 0..blocks {
            for index in 0..self.lanes.len() {
                let lane = self.lanes[index];
                self.block(lane, lane.offset(n))?;
            }
        }
        Ok(())
    }
}
