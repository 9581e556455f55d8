// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look at the bytes of a lease: a range of it in the program's own memory.
//!
//! | engine | how | system calls |
//! |---|---|---|
//! | copy | the block is in the program's memory already | none |
//! | module | the module's own command | one for each 4 KiB |
//! | opcode | a write into a pipe, which is then read | two for each 64 KiB |
//!
//! Of what mainline offers for kernel memory a pipe costs least: it is written to without a worker
//! thread, which a memfd is not (tmpfs knows no `IOCB_NOWAIT`), and has no protocol, as a socket has.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::squeue::Entry;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Ring;
use super::drive::LOOK;
use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::lease::{Installed, Lease};
use crate::opcode::{Target, module_copy_out};

/// What the module copies into. It is not the caller's memory, which is borrowed only until an
/// error returns, and the command might still be there.
const SCRATCH: usize = 4096;
/// What a pipe holds, unless its user has too many of them.
const PIPE: usize = 64 << 10;

/// What a look needs, made when it is first used.
#[derive(Debug)]
pub(super) enum Looker {
    Pipe { reads: OwnedFd, writes: OwnedFd },
    Scratch(Box<[u8; SCRATCH]>),
}

impl Looker {
    fn new(engine: Engine) -> Result<Self> {
        if engine == Engine::Module {
            return Ok(Self::Scratch(Box::new([0; SCRATCH])));
        }
        let failed = |errno: rustix::io::Errno| {
            let what = "making a pipe to copy out of a lease";
            Error::io(ErrorKind::Ring, &errno.into(), what)
        };
        let (reads, writes) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        Ok(Self::Pipe { reads, writes })
    }
}

impl Ring {
    /// Copies bytes of the lease, from `offset` on, into memory, for a look at them. How many that
    /// were: as many as `into` has room for, fewer where the lease ends sooner.
    ///
    /// It returns when the bytes are there. With the copy engine that takes no request. With the
    /// others it sends what is queued and waits for a request of its own, which runs at once and
    /// waits for nothing; what else completes meanwhile is left for
    /// [`next_event`](Self::next_event). The lease can be in use, and other requests can be in
    /// flight.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`](ErrorKind::OutOfRange) if the lease ends before `offset`,
    /// [`WrongRing`](ErrorKind::WrongRing), those of [`submit`](Self::submit), and
    /// [`Ring`](ErrorKind::Ring) if the kernel refuses (somebody has unregistered the ring's
    /// buffers, or no pipe can be made).
    pub fn copy_out(
        &mut self,
        lease: &Lease<Installed>,
        offset: u32,
        into: &mut [u8],
    ) -> Result<usize> {
        self.check(lease)?;
        if !lease.is_lent() {
            return lease.copy_out(offset, into);
        }
        let range = lease.look_range(offset, into.len())?;
        let into = &mut into[..range.len()];
        let mut done = 0;
        while done < into.len() {
            match self.look(lease, range.start + done as u32, &mut into[done..])? {
                0 => break,
                copied => done += copied,
            }
        }
        Ok(done)
    }

    /// Copies as many bytes of what the kernel has lent as one request can.
    fn look(&mut self, lease: &Lease<Installed>, start: u32, into: &mut [u8]) -> Result<usize> {
        let mut looker = match self.looker.take() {
            Some(looker) => looker,
            None => Looker::new(lease.engine())?,
        };
        let most = if matches!(looker, Looker::Pipe { .. }) { PIPE } else { SCRATCH };
        let len = into.len().min(most) as u32;
        let entry: Entry = match &mut looker {
            Looker::Pipe { writes, .. } => lease.look_entry(start, len, writes.as_raw_fd()),
            Looker::Scratch(scratch) => {
                let device = self.device.as_ref().map_or(Target::Fd(-1), Target::from);
                let to = scratch.as_mut_ptr() as u64;
                module_copy_out(device, lease.table_index(), start, to, len)
            }
        };
        let result = match self.ask(&entry, LOOK) {
            Ok(result) => result,
            Err(error) => {
                // The request may still be there, and names what must not become something else.
                mem::forget(looker);
                return Err(error);
            }
        };
        let copied = match Errno::check(result) {
            Ok(bytes) => (bytes as usize).min(len as usize),
            Err(errno) => {
                self.looker = Some(looker);
                let what = "copying out of a lease";
                return Err(Error::os(ErrorKind::Ring, errno, what));
            }
        };
        match &looker {
            Looker::Pipe { reads, .. } => {
                if let Err(errno) = read_exact(reads, &mut into[..copied]) {
                    let what = "copying out of a lease";
                    return Err(Error::io(ErrorKind::Ring, &errno.into(), what));
                }
            }
            Looker::Scratch(scratch) => into[..copied].copy_from_slice(&scratch[..copied]),
        }
        self.looker = Some(looker);
        Ok(copied)
    }
}

/// The bytes are there.
fn read_exact(pipe: &OwnedFd, mut into: &mut [u8]) -> rustix::io::Result<()> {
    while !into.is_empty() {
        match rustix::io::read(pipe, &mut *into) {
            Ok(0) => return Err(rustix::io::Errno::PIPE),
            Ok(bytes) => into = &mut into[bytes..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
