// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong, by kind, with the system's own error and what was being done.

use std::borrow::Cow;
use std::{fmt, io, thread};

use rustix::process::{Resource, getrlimit};

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an [`Error`], for a program that decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This kernel, or what confines this process, does not offer what was asked for.
    Unavailable,
    /// A parameter makes no sense, or is outside what the kernel takes.
    InvalidInput,
    /// Memory could not be allocated or pinned; the message names the limit.
    MemoryLimit,
    /// Every slot is taken. Release a lease, or process events, and try again.
    NoSlot,
    /// Every place for an attached file is taken.
    NoFile,
    /// Every place for a provider's memory is taken, or there is none.
    NoRegion,
    /// A provider's answer contradicts itself.
    Provider,
    /// The submission queue is full and the kernel takes nothing from it.
    QueueFull,
    /// The lease or the attached file belongs to another ring.
    WrongRing,
    /// A range lies outside the lease.
    OutOfRange,
    /// The lease is busy with a request of which there can be one at a time.
    Busy,
    /// Reading from the source failed.
    Source,
    /// Writing to the sink failed.
    Sink,
    /// A sink was slower than the caller allows, and was given up.
    Lagging,
    /// An inspector has refused the source.
    Refused,
    /// The transfer was cancelled.
    Cancelled,
    /// io_uring itself answered with an error.
    Ring,
}

/// An error of this crate: a kind, what was being done, and the system's error if there is one.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .0.doing, Cause(.0.os))]
// One word, so that the results of the hot paths travel in registers.
pub struct Error(Box<Content>);

#[derive(Debug)]
struct Content {
    kind: ErrorKind,
    os: Option<Errno>,
    doing: Cow<'static, str>,
}

impl Error {
    #[cold]
    pub(crate) fn new(kind: ErrorKind, doing: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Content { kind, os: None, doing: doing.into() }))
    }

    #[cold]
    pub(crate) fn os(kind: ErrorKind, errno: Errno, doing: impl Into<Cow<'static, str>>) -> Self {
        let mut doing = doing.into();
        // Nobody has cancelled a request for which the kernel had no thread; it says so all the same.
        if errno == Errno::CANCELED
            && let Some(why) = no_thread()
        {
            doing = format!("{doing}: {why}").into();
        }
        Self(Box::new(Content { kind, os: Some(errno), doing }))
    }

    #[cold]
    pub(crate) fn io(
        kind: ErrorKind,
        error: &io::Error,
        doing: impl Into<Cow<'static, str>>,
    ) -> Self {
        let os = error.raw_os_error().map(Errno);
        Self(Box::new(Content { kind, os, doing: doing.into() }))
    }

    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The system's error number (positive, as in `errno(3)`), where the system was the cause.
    ///
    /// 524 is the kernel-internal `ENOTSUPP`: the file cannot lend its memory.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.os.map(Errno::raw)
    }
}

/// Says what to do where no thread is to be had, which is found out by making one.
pub(crate) fn no_thread() -> Option<String> {
    let error = thread::Builder::new().stack_size(1 << 16).spawn(|| ()).err()?;
    if error.raw_os_error() != Some(libc::EAGAIN) {
        return None;
    }
    let limit = match getrlimit(Resource::Nproc).current {
        Some(limit) => limit.to_string(),
        None => "unlimited".into(),
    };
    Some(format!(
        "no thread is left, and io_uring takes some for what would block: RLIMIT_NPROC is {limit} for \
         all processes and threads of this user (ulimit -u), or the group of processes has a limit \
         (pids.max)"
    ))
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.0.os.map_or(io::ErrorKind::Other, |errno| io::Error::from(errno).kind());
        io::Error::new(kind, error)
    }
}

/// ": cause", or nothing.
struct Cause(Option<Errno>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |errno| write!(f, ": {errno}"))
    }
}

/// An error number of the kernel, as a completion carries it. Positive, as in `errno(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    pub(crate) const AGAIN: Self = Self(libc::EAGAIN);
    pub(crate) const CANCELED: Self = Self(libc::ECANCELED);
    pub(crate) const DQUOT: Self = Self(libc::EDQUOT);
    pub(crate) const FAULT: Self = Self(libc::EFAULT);
    pub(crate) const FBIG: Self = Self(libc::EFBIG);
    pub(crate) const INVAL: Self = Self(libc::EINVAL);
    pub(crate) const NOBUFS: Self = Self(libc::ENOBUFS);
    pub(crate) const INTR: Self = Self(libc::EINTR);
    pub(crate) const NOMEM: Self = Self(libc::ENOMEM);
    pub(crate) const NOTSUPP: Self = Self(uring_getbuf_sys::GETBUF_ENOTSUPP as i32);
    pub(crate) const OPNOTSUPP: Self = Self(libc::EOPNOTSUPP);

    /// The bytes of a completion's result, or its error.
    #[inline]
    pub(crate) const fn check(result: i32) -> std::result::Result<u32, Self> {
        if result < 0 { Err(Self(-result)) } else { Ok(result as u32) }
    }

    /// Whether there was no descriptor left, for this process or the whole system, or no memory.
    pub(crate) const fn is_starved(self) -> bool {
        matches!(self.0, libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    }

    /// An error with this number, which is positive; for what a provider answers.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        Self(errno)
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NOTSUPP => f.write_str("this kind of file cannot lend its memory (os error 524)"),
            Self(errno) => write!(f, "{}", io::Error::from_raw_os_error(errno)),
        }
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
