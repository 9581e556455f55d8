// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard streams, as the program was started with them.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec, fcntl_getfd};

use crate::end::End;
use crate::ends::{Named, failed};

/// A standard stream that is read from or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Input,
    Output,
}

/// Whether each was closed when the program started. Rust's runtime opens the null device in its
/// place before `main`, so that no other file gets its number.
static CLOSED: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Called by the C library before Rust's runtime has changed anything.
///
/// Nobody can tell afterwards: the person may have given the null device as well.
#[used]
// SAFETY: this section is a list of functions without a result, which the C library calls once, one
// after the other, before `main`. What they are called with may be ignored. It needs nothing of the
// runtime: it makes system calls and stores to atomics.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    for stream in [Stream::Input, Stream::Output] {
        let closed = fcntl_getfd(stream.descriptor()) == Err(Errno::BADF);
        CLOSED[stream as usize].store(closed, Relaxed);
    }
}

impl Stream {
    /// What messages call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Input => "standard input",
            Self::Output => "standard output",
        }
    }

    fn descriptor(self) -> BorrowedFd<'static> {
        match self {
            Self::Input => rustix::stdio::stdin(),
            Self::Output => rustix::stdio::stdout(),
        }
    }

    /// One end of a transfer, if it is open in this direction.
    pub(crate) fn open(self) -> Result<Named, End> {
        let file = self.is_usable().and_then(|()| {
            // Larger than those of the standard streams.
            fcntl_dupfd_cloexec(self.descriptor(), 3)
        });
        let file = file.map_err(|errno| failed(self.name(), errno))?;
        Ok(Named { name: self.name().into(), file, stream: Some(self) })
    }

    fn is_usable(self) -> rustix::io::Result<()> {
        if CLOSED[self as usize].load(Relaxed) {
            return Err(Errno::BADF);
        }
        let flags = fcntl_getfl(self.descriptor())?;
        let other_way = match self {
            Self::Input => OFlags::WRONLY,
            Self::Output => OFlags::RDONLY,
        };
        let is_path = flags.contains(OFlags::PATH);
        if is_path || flags & OFlags::ACCMODE == other_way { Err(Errno::BADF) } else { Ok(()) }
    }
}

/// Where a command prints its result. Unlike the one of `std`, it does not take a stream that
/// cannot be written to for one that nobody reads.
#[derive(Debug)]
pub(crate) struct Output(File);

impl Output {
    /// Fails before there is a result that nobody can get.
    pub(crate) fn open() -> Result<Self, End> {
        Stream::Output.open().map(|output| Self(output.file.into()))
    }

    pub(crate) fn print(mut self, text: &str) -> Result<(), End> {
        match self.0.write_all(text.as_bytes()) {
            Ok(()) => Ok(()),
            // Whoever reads it has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(End::quietly()),
            Err(error) => Err(failed(Stream::Output.name(), error)),
        }
    }
}
