// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look at the bytes of a lease: a range of it in the program's own memory.
//!
//! | engine | how | system calls |
//! |---|---|---|
//! | copy | the block is in the program's memory already | none |
//! | a command of the engine's | copies into a buffer of the ring's | one for each 4 KiB |
//! | else, memory of the kernel's | a write into a pipe, which is then read | two for each 64 KiB |
//!
//! Of what mainline offers for kernel memory a pipe costs least: it is written to without a worker
//! thread, which a memfd is not (tmpfs knows no `IOCB_NOWAIT`), and has no protocol, as a socket has.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::drive::Ring;
use crate::engine::Look;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::request::Target;
use crate::slots::consume::STREAM;
use crate::slots::lease::{Installed, Lease};

/// What a pipe holds, unless its user has too many of them.
const PIPE: usize = 64 << 10;

/// What a look at memory of the kernel's needs, made when it is first used.
#[derive(Debug)]
pub(super) enum Looker {
    Pipe {
        reads: OwnedFd,
        writes: OwnedFd,
    },
    /// What an engine's command copies into. It is not the caller's memory, which is borrowed only
    /// until an error returns, and the command might still be there.
    Scratch(Box<[u8]>),
}

impl Looker {
    fn pipe() -> Result<Self> {
        let (reads, writes) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| {
            let what = "making a pipe to copy out of a lease";
            Error::io(ErrorKind::Ring, &errno.into(), what)
        })?;
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
        let range = lease.look_range(offset, into.len())?;
        let into = &mut into[..range.len()];
        let mut done = 0;
        while done < into.len() {
            let (start, rest) = (range.start + done as u32, &mut into[done..]);
            match lease.look(start, rest) {
                Look::Copied(0) => break,
                Look::Copied(bytes) => done += bytes,
                how => match self.look(lease, start, rest, how)? {
                    0 => break,
                    bytes => done += bytes,
                },
            }
        }
        Ok(done)
    }

    /// Copies as many bytes of what the kernel has lent as one request can.
    fn look(
        &mut self,
        lease: &Lease<Installed>,
        start: u32,
        into: &mut [u8],
        how: Look,
    ) -> Result<usize> {
        let mut looker = match (self.looker.take(), &how) {
            (Some(looker), _) => looker,
            (None, Look::Command { most }) => Looker::Scratch(vec![0; *most as usize].into()),
            (None, _) => Looker::pipe()?,
        };
        let request = match &mut looker {
            Looker::Pipe { writes, .. } => {
                let piece = lease.piece(start, into.len().min(PIPE) as u32);
                Some(piece.write(Target::Fd(writes.as_raw_fd()), STREAM))
            }
            Looker::Scratch(scratch) => {
                let len = into.len().min(scratch.len()) as u32;
                lease.look_command(start, len, scratch.as_mut_ptr() as u64)
            }
        };
        let Some(request) = request else { return Ok(0) };
        let result = match self.ask(request) {
            Ok(result) => result,
            Err(error) => {
                // The request may still be there, and names what must not become something else.
                mem::forget(looker);
                return Err(error);
            }
        };
        let what = "copying out of a lease";
        let copied = Errno::check(result)
            .map(|bytes| (bytes as usize).min(into.len()))
            .map_err(|errno| Error::os(ErrorKind::Ring, errno, what));
        let read = copied.and_then(|copied| match &looker {
            Looker::Pipe { reads, .. } => read_exact(reads, &mut into[..copied])
                .map(|()| copied)
                .map_err(|errno| Error::io(ErrorKind::Ring, &errno.into(), what)),
            Looker::Scratch(scratch) => {
                into[..copied].copy_from_slice(&scratch[..copied]);
                Ok(copied)
            }
        });
        self.looker = Some(looker);
        read
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
