// SPDX-License-Identifier: MIT OR Apache-2.0
//! The three ways to get a file's bytes into a slot, and what each of them sends to do it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};
use crate::opcode::{self, GetBuf, PutBuf, Sqe, Target};

/// How a buffer gets into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// The kernel's own request, `IORING_OP_GET_BUF`: a kernel with the project's patches.
    /// No copy.
    Opcode,
    /// The module `getbuf.ko` on an unmodified Linux 7.3 or newer. No copy.
    Module,
    /// `READ_FIXED` into memory registered once: any Linux with io_uring, 5.19 or newer. One
    /// copy, or none where the source was opened with `O_DIRECT`.
    Copy,
    /// Nothing gets there: it is the program's own memory, of a [provider](crate::provider). No
    /// engine of a ring, but what a lease of such memory says. No copy.
    Provider,
}

impl Engine {
    /// Every engine that a ring can have, the one that costs least first.
    pub const ALL: [Self; 3] = [Self::Opcode, Self::Module, Self::Copy];

    /// The name that the command line and the documentation use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opcode => "opcode",
            Self::Module => "module",
            Self::Copy => "copy",
            Self::Provider => "provider",
        }
    }

    /// Whether it lends memory of the kernel's.
    #[inline]
    pub(crate) const fn lends(self) -> bool {
        matches!(self, Self::Opcode | Self::Module)
    }

    /// How often this engine copies a byte between the source and the slot.
    #[must_use]
    pub const fn copies(self) -> u32 {
        match self {
            Self::Opcode | Self::Module | Self::Provider => 0,
            Self::Copy => 1,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|engine| engine.name() == name).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("no engine '{name}': there are opcode, module and copy"),
            )
        })
    }
}

/// What a fetch reads from: the file, and the name under which a lender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    file: Target,
    lent: Lent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lent {
    /// As the file itself, where the engine can.
    Itself,
    /// As a descriptor of `/dev/getbuf` that is bound to it.
    Bound(Target),
    /// It cannot lend its memory.
    Never,
}

impl Source {
    /// A file for which `bound` is a descriptor that `GETBUF_CMD_BIND` made. The module engine
    /// needs it where the file is a registered one, which has no number that the module could look
    /// up; without it such a file is read into the pool.
    #[must_use]
    pub fn bound(file: impl Into<Target>, bound: impl Into<Target>) -> Self {
        Self { file: file.into(), lent: Lent::Bound(bound.into()) }
    }

    /// A file that is always read into the pool.
    #[must_use]
    pub fn copied(file: impl Into<Target>) -> Self {
        Self { file: file.into(), lent: Lent::Never }
    }

    #[inline]
    pub(crate) const fn new(file: Target, lent: Lent) -> Self {
        Self { file, lent }
    }

    pub(crate) const fn file(self) -> Target {
        self.file
    }

    /// What a request of the lender names, if it can lend this file at all.
    #[inline]
    pub(crate) const fn lent_by(self, lender: Lender) -> Option<Target> {
        match (lender, self.lent, self.file) {
            (_, Lent::Never, _) | (Lender::Module { .. }, Lent::Itself, Target::Fixed(_)) => None,
            (Lender::Opcode { .. }, _, file) | (_, Lent::Itself, file) => Some(file),
            (_, Lent::Bound(bound), _) => Some(bound),
        }
    }
}

impl<T: Into<Target>> From<T> for Source {
    fn from(file: T) -> Self {
        Self { file: file.into(), lent: Lent::Itself }
    }
}

/// Where a buffer that was fetched goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Into its slot, which is free.
    Free,
    /// Into its slot, in the place of the lent buffer that is there.
    Taken,
    /// To the next request of the link; into its slot if the link breaks.
    Next,
}

/// What becomes of the buffer of a chain that goes as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The fetch hands it to the consumer, with which it goes. The slot stays empty.
    HandedOver,
    /// A third request empties the slot.
    Released,
    /// It stays in the slot.
    Left,
}

/// A kernel that lends its own memory, and how to ask it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lender {
    /// `put_buf` is not there on a kernel that has only the RFC's request.
    Opcode {
        get_buf: u8,
        put_buf: Option<u8>,
    },
    Module {
        device: Target,
    },
}

impl Lender {
    pub(crate) const fn engine(self) -> Engine {
        match self {
            Self::Opcode { .. } => Engine::Opcode,
            Self::Module { .. } => Engine::Module,
        }
    }

    /// Whether a fetch that found the end of the file leaves an empty buffer in the slot.
    pub(crate) const fn installs_empty(self) -> bool {
        matches!(self, Self::Opcode { .. })
    }

    /// `index` is the slot's index in the ring's table.
    #[inline(always)]
    pub(crate) fn fetch(self, source: Target, offset: u64, len: u32, index: u16, to: Place) -> Sqe {
        let replace = to == Place::Taken;
        match self {
            Self::Opcode { get_buf, .. } => {
                let get = GetBuf::new(get_buf, source, len, index).offset(offset);
                match to {
                    Place::Free => get,
                    Place::Taken => get.replace(),
                    Place::Next => get.linked(),
                }
                .sqe()
            }
            // See `Source`: a registered file is the device bound to it, a descriptor the file.
            Self::Module { device } => match source {
                Target::Fd(fd) => opcode::module_fetch(device, fd, offset, len, index, replace),
                Target::Fixed(_) => {
                    let bound = uring_getbuf_sys::GETBUF_FD_BOUND;
                    opcode::module_fetch(source, bound, offset, len, index, replace)
                }
            },
        }
    }

    /// The request that empties a slot. `None`: there is none, and the slot is emptied by an
    /// update of the table (`IORING_REGISTER_BUFFERS_UPDATE`).
    #[inline(always)]
    pub(crate) fn release(self, index: u16) -> Option<Sqe> {
        match self {
            Self::Opcode { put_buf, .. } => {
                put_buf.map(|put_buf| PutBuf::new(put_buf, index).sqe())
            }
            Self::Module { device } => Some(opcode::module_release(device, index)),
        }
    }

    /// Whether there is a request that releases.
    pub(crate) const fn can_release(self) -> bool {
        !matches!(self, Self::Opcode { put_buf: None, .. })
    }

    /// Whether a fetch can hand its buffer to the next request of the link, on a kernel that knows.
    pub(crate) const fn hands_over(self) -> bool {
        matches!(self, Self::Opcode { .. })
    }
}
