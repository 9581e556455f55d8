// SPDX-License-Identifier: MIT OR Apache-2.0
//! A source that `read(2)` alone reads rightly, read on a thread of its own.
//!
//! Of a FUSE file with `direct_io` the kernel serves an asynchronous read by the size that the file
//! says it has, and counts what its server did not give (`fuse_direct_IO` in Linux 6.18). A program
//! cannot tell which files those are. So the thread reads any file of FUSE, and passes the bytes on
//! through a pair of sockets; the relay fetches from there, as from any stream.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use rustix::io::{Errno, fcntl_dupfd_cloexec, pread, read};
use rustix::net::{SendFlags, send};

use crate::error::{self, Error, ErrorKind, Result};
use crate::slots::consume::STREAM;

/// Most bytes that are read at once.
const PIECE: usize = 128 << 10;
/// Where the memory for them begins, for files that were opened with `O_DIRECT`.
const ALIGNMENT: usize = 4096;

/// A thread that reads. It ends when nobody takes what it has read; a read that its server does not
/// answer is not waited for.
pub(super) struct Aside {
    stream: UnixStream,
    /// Why it ended, if not at the end of the file.
    failed: Arc<AtomicI32>,
}

impl Aside {
    /// Begins to read up to `limit` bytes.
    pub(super) fn start(source: BorrowedFd<'_>, offset: u64, limit: u64) -> Result<Self> {
        let failed = |error: &io::Error| {
            let what = "starting a thread to read a file of FUSE";
            Error::io(ErrorKind::Ring, error, what)
        };
        let file = fcntl_dupfd_cloexec(source, 3).map_err(|errno| failed(&errno.into()))?;
        let (stream, to) = UnixStream::pair().map_err(|error| failed(&error))?;
        let errno = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&errno);
        let run = move || {
            if let Err(errno) = pass_on(&file, offset, limit, &to) {
                told.store(errno.raw_os_error(), Ordering::Release);
            }
        };
        let named = thread::Builder::new().name("getbuf-read".into());
        named.spawn(run).map_err(|error| failed(&error))?;
        Ok(Self { stream, failed: errno })
    }

    /// Why reading ended, once the stream has.
    pub(super) fn error(&self) -> Option<error::Errno> {
        match self.failed.load(Ordering::Acquire) {
            0 => None,
            errno => Some(error::Errno::new(errno)),
        }
    }
}

impl AsFd for Aside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads until the end of the file, or until nobody listens.
fn pass_on(file: &OwnedFd, offset: u64, limit: u64, to: &UnixStream) -> rustix::io::Result<()> {
    let mut memory = vec![0; PIECE + ALIGNMENT];
    let begin = memory.as_ptr().align_offset(ALIGNMENT);
    let memory = &mut memory[begin..begin + PIECE];
    let (mut done, mut at_position) = (0, offset == STREAM);
    while done < limit {
        let len = (limit - done).min(PIECE as u64) as usize;
        let memory = &mut memory[..len];
        let got = match at_position {
            true => read(file, &mut *memory),
            false => pread(file, &mut *memory, offset + done),
        };
        let got = match got {
            Ok(0) => break,
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            // It has no offsets; where it begins it can be read all the same.
            Err(Errno::SPIPE) if !at_position && offset + done == 0 => {
                at_position = true;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        let mut rest = &memory[..got];
        while !rest.is_empty() {
            match send(to, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR) => {}
                // Nobody listens.
                Err(_) => return Ok(()),
            }
        }
        done += got as u64;
    }
    Ok(())
}
