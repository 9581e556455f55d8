// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two ends of a move: what kind of file each is, and where it stands.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, SeekFrom, Stat, seek};
use rustix::io::Errno;
use rustix::net::SocketType;

use crate::error::{Error, ErrorKind, Result};
use crate::slots::consume::STREAM;

/// What offset and length of a direct read are multiples of, everywhere.
pub(super) const SECTOR: u32 = 4096;

/// No file is longer; larger offsets mean something else to the kernel.
pub(super) const MAX_OFFSET: u64 = i64::MAX as u64;

/// What a packet of a pipe has at most.
const PACKET: u32 = libc::PIPE_BUF as u32;

fn invalid<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidInput, what.into()))
}

fn stat(fd: BorrowedFd<'_>, what: &'static str) -> Result<Stat> {
    rustix::fs::fstat(fd).map_err(|errno| Error::io(ErrorKind::InvalidInput, &errno.into(), what))
}

fn flags(fd: BorrowedFd<'_>) -> OFlags {
    rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::empty())
}

/// Refuses an offset that no file has.
pub(super) fn check_offset(offset: u64) -> Result<()> {
    if offset <= MAX_OFFSET || offset == STREAM {
        return Ok(());
    }
    invalid(format!("offset {offset}: a file is addressed by at most {MAX_OFFSET} bytes"))
}

/// Refuses a socket of messages: they would be cut, and an empty one be taken for the end.
pub(super) fn check_socket(fd: BorrowedFd<'_>) -> Result<()> {
    match rustix::net::sockopt::socket_type(fd) {
        Ok(SocketType::STREAM) => Ok(()),
        Ok(_) => invalid(
            "the socket keeps messages apart: only one of type SOCK_STREAM can be moved from or to",
        ),
        Err(errno) => {
            let what = "looking at a socket";
            Err(Error::io(ErrorKind::InvalidInput, &errno.into(), what))
        }
    }
}

/// What kind of source it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceKind {
    /// Addressed by offset.
    pub(super) seekable: bool,
    /// Fetched ahead of what is consumed. Not so a file that does not tell its size: procfs and
    /// the like make such files up as they are read, and start anew for each offset that does not
    /// follow the last read.
    pub(super) ahead: bool,
    /// Where it says that it ends. It need not be true.
    pub(super) size: Option<u64>,
    /// Opened with `O_DIRECT`.
    pub(super) direct: bool,
    /// Fewest bytes that a fetch asks for, if the ring's blocks have room for them. A read of fewer
    /// would cut the packets of a pipe whose writer has `O_DIRECT`, which its reader cannot see.
    least: u32,
    /// A regular file of FUSE, of which the kernel's asynchronous reads are not those of `read(2)`.
    pub(super) aside: bool,
}

impl SourceKind {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let stat = stat(fd, "looking at the source")?;
        let direct = flags(fd).contains(OFlags::DIRECT);
        let stream = Self {
            seekable: false,
            ahead: false,
            size: None,
            direct: false,
            least: 1,
            aside: false,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if is_fuse(fd) => Ok(Self { aside: true, ..stream }),
            // Files of procfs and the like say 0 and have content all the same.
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).ok().filter(|size| *size > 0);
                Ok(Self { seekable: true, ahead: size.is_some(), size, direct, ..stream })
            }
            FileType::BlockDevice => Ok(Self { seekable: true, ahead: true, direct, ..stream }),
            FileType::Directory => invalid("the source is a directory"),
            FileType::Socket => check_socket(fd).map(|()| stream),
            FileType::Fifo => Ok(Self { least: PACKET, ..stream }),
            _ => Ok(stream),
        }
    }

    /// How many bytes to fetch at once, if that many are wanted and the ring's blocks have this size.
    pub(super) fn block_size(&self, wanted: u32, blocks: u32) -> u32 {
        match self.direct {
            true => (wanted / SECTOR * SECTOR).max(SECTOR),
            false => wanted.max(self.least.min(blocks)),
        }
    }
}

fn is_fuse(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == libc::FUSE_SUPER_MAGIC as u64)
}

/// What kind of sink it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinkKind {
    /// Written by offset, in any order.
    File,
    /// Written where it stands.
    Stream,
    /// A terminal or another device: written where it stands, and it may not be able to take kernel
    /// memory.
    Device,
    Socket,
}

impl SinkKind {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let stat = stat(fd, "looking at the sink")?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => {
                if flags(fd).contains(OFlags::APPEND) {
                    Self::Stream
                } else {
                    Self::File
                }
            }
            FileType::Socket => check_socket(fd).map(|()| Self::Socket)?,
            FileType::Directory => return invalid("the sink is a directory"),
            FileType::CharacterDevice => Self::Device,
            _ => Self::Stream,
        })
    }
}

/// Refuses to move a file into itself where it would read what it has written.
pub(super) fn check_apart(
    (source, from): (BorrowedFd<'_>, u64),
    (sink, to): (BorrowedFd<'_>, u64),
    limit: u64,
) -> Result<()> {
    let (one, other) = (stat(source, "looking at the source")?, stat(sink, "looking at the sink")?);
    let kind = FileType::from_raw_mode(one.st_mode);
    if kind != FileType::from_raw_mode(other.st_mode) || limit == 0 {
        return Ok(());
    }
    let same = match kind {
        FileType::RegularFile | FileType::Fifo => {
            (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
        }
        // A disk can have several names that are no links.
        FileType::BlockDevice => one.st_rdev == other.st_rdev,
        _ => false,
    };
    if !same {
        return Ok(());
    }
    if kind == FileType::Fifo {
        return invalid("the source and the sink are the same pipe: it would never end");
    }
    let at =
        |fd, offset| if offset == STREAM { seek(fd, SeekFrom::Current(0)) } else { Ok(offset) };
    // A block device has no size that `stat` tells: it counts as endless.
    let size = match kind {
        FileType::BlockDevice => MAX_OFFSET,
        _ => u64::try_from(one.st_size).unwrap_or(0),
    };
    let from = at(source, from).unwrap_or(0);
    let to = match flags(sink).contains(OFlags::APPEND) {
        true => size,
        false => at(sink, to).unwrap_or(0),
    };
    // What is written behind the source's begin makes it longer.
    let len = if to < from { limit.min(size.saturating_sub(from)) } else { limit };
    if to.abs_diff(from) >= len {
        return Ok(());
    }
    invalid(
        "the source and the sink are the same file, and what is read overlaps what is written: \
         set a limit, or other offsets",
    )
}

/// The position of a file, which others may share: ranges are taken from it, one after the other.
///
/// A position is moved first and the range that it was moved over is read or written by offset then.
/// Moving it is one step for all who share it; a request at the position is not, because io_uring
/// does not hold the position while the request runs (`io_kiocb_update_pos` in Linux 6.18).
#[derive(Debug)]
pub(super) struct Position<'a> {
    file: BorrowedFd<'a>,
    /// What was taken last, without a gap.
    run: Range<u64>,
}

impl<'a> Position<'a> {
    /// The position of a file that has one, if the offset asks for it.
    pub(super) fn of(file: BorrowedFd<'a>, offset: u64) -> Option<Self> {
        (offset == STREAM).then_some(Self { file, run: 0..0 })
    }

    /// Takes up to so many bytes: where they begin, and how many. `None`: the file can have none
    /// there.
    pub(super) fn take(&mut self, len: u32) -> rustix::io::Result<Option<(u64, u32)>> {
        let mut len = len;
        while len > 0 {
            match seek(self.file, SeekFrom::Current(len.into())) {
                Ok(end) => {
                    let start = end - u64::from(len);
                    if self.run.end != start || self.run.is_empty() {
                        self.run.start = start;
                    }
                    self.run.end = end;
                    return Ok(Some((start, len)));
                }
                // Beyond what the file can have.
                Err(Errno::INVAL | Errno::OVERFLOW) => len /= 2,
                Err(errno) => return Err(errno),
            }
        }
        Ok(None)
    }

    /// Gives back the last so many bytes that were taken, unless the position was moved since.
    pub(super) fn give_back_last(&mut self, bytes: u64) {
        self.give_back(self.run.end.saturating_sub(bytes));
    }

    /// Gives back what was taken from this offset on, unless the position was moved since.
    pub(super) fn give_back(&mut self, from: u64) {
        let from = from.max(self.run.start);
        if from < self.run.end
            && seek(self.file, SeekFrom::Current(0)).is_ok_and(|position| position == self.run.end)
            && seek(self.file, SeekFrom::Start(from)).is_ok()
        {
            self.run.end = from;
        }
    }
}

/// Where in a sink its bytes go.
#[derive(Debug)]
pub(super) enum At<'a> {
    /// From this offset on.
    Offset(u64),
    /// Where the sink stands when they are written; and what was taken from there and is not
    /// written yet.
    Position(Position<'a>, Range<u64>),
    /// The sink has no offsets.
    Stream,
}

impl<'a> At<'a> {
    pub(super) fn new(file: BorrowedFd<'a>, kind: SinkKind, offset: u64) -> Self {
        match Position::of(file, offset) {
            _ if kind != SinkKind::File => Self::Stream,
            Some(position) => Self::Position(position, 0..0),
            None => Self::Offset(offset),
        }
    }

    /// Where `len` bytes go that begin at `position` of what is moved, and how many of them fit
    /// there. `None`: not one, because no file is longer.
    pub(super) fn room(
        &mut self,
        position: u64,
        len: u32,
    ) -> rustix::io::Result<Option<(u64, u32)>> {
        let fits = |left: u64| left.min(len.into()) as u32;
        Ok(match self {
            Self::Stream => Some((STREAM, len)),
            Self::Offset(begin) => {
                let offset = begin.saturating_add(position);
                let fits = fits(MAX_OFFSET.saturating_sub(offset));
                (fits > 0).then_some((offset, fits))
            }
            Self::Position(file, ours) => {
                if ours.is_empty() {
                    let Some((start, len)) = file.take(len)? else { return Ok(None) };
                    *ours = start..start + u64::from(len);
                }
                Some((ours.start, fits(ours.end - ours.start)))
            }
        })
    }

    /// That many bytes are written.
    pub(super) fn took(&mut self, bytes: u32) {
        if let Self::Position(_, ours) = self {
            ours.start += u64::from(bytes);
        }
    }

    /// Nothing more is written: the position is where the last byte is.
    pub(super) fn end(&mut self) {
        if let Self::Position(file, ours) = self {
            file.give_back(ours.start);
        }
    }

    /// Whether blocks can be written in any order.
    pub(super) fn is_offset(&self) -> bool {
        matches!(self, Self::Offset(_))
    }

    /// Whether one write must have ended before the next one begins.
    pub(super) fn is_position(&self) -> bool {
        matches!(self, Self::Position(..))
    }
}

/// `O_DIRECT` of a sink, which has to go where what is written does not fit its sectors. It is set
/// again when this is dropped.
#[derive(Debug)]
pub(super) struct Direct<'a> {
    file: BorrowedFd<'a>,
    state: DirectState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectState {
    Never,
    Set,
    Cleared,
}

impl<'a> Direct<'a> {
    pub(super) fn of(file: BorrowedFd<'a>, kind: SinkKind) -> Self {
        // Of a pipe it means something else.
        let is_file = stat(file, "").is_ok_and(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            matches!(kind, FileType::RegularFile | FileType::BlockDevice)
        });
        let direct = is_file
            && matches!(kind, SinkKind::File | SinkKind::Stream)
            && flags(file).contains(OFlags::DIRECT);
        let mut direct =
            Self { file, state: if direct { DirectState::Set } else { DirectState::Never } };
        // Of an asynchronous direct write FUSE says that all of it is written, also where its server
        // took less (`fuse_direct_IO` in Linux 6.18).
        if direct.is_set() && is_fuse(file) {
            direct.clear();
        }
        direct
    }

    /// Whether a write that failed with `EINVAL` may go without.
    pub(super) fn is_set(&self) -> bool {
        self.state == DirectState::Set
    }

    /// Takes it away, as dd(1) does for what is no whole sector. Nothing may be in flight. Whether it
    /// was still there.
    pub(super) fn clear(&mut self) -> bool {
        let was_set = self.is_set();
        if was_set {
            self.state = DirectState::Cleared;
            let _ = rustix::fs::fcntl_setfl(self.file, flags(self.file) - OFlags::DIRECT);
        }
        was_set
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        if self.state == DirectState::Cleared {
            let _ = rustix::fs::fcntl_setfl(self.file, flags(self.file) | OFlags::DIRECT);
        }
    }
}
