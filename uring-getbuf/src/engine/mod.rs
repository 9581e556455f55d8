// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways to get a file's bytes into a slot: a room for each engine, with the same functions in each.
//!
//! An engine's file answers, as functions or as its `Room`:
//!
//! | function | what it answers |
//! |---|---|
//! | `probe` | does it work here, and if not, why, and what would help |
//! | `NEEDS` | which places of the ring's tables it takes |
//! | `room` | the engine at work on a table of slots |
//! | `attach` | the request that binds a source to it, if sources are bound |
//! | `Room::serves` | is a fetch for this engine |
//! | `Room::fetch` | the request that fills a slot |
//! | `Room::piece` | where byte n of a lease is |
//! | `Room::release` | what empties a slot |
//! | `Room::traits` | how its slots and chains end, what its memory is |
//! | `Room::classify` | what its errors mean |
//! | `Room::look` | how the bytes get into the program's memory |
//!
//! Nothing outside this folder asks which engine it is: an engine more is a file here, a row in
//! `engines!`, a constant in C, and a row in the README.

pub(crate) mod copy;
mod module;
mod opcode;
pub(crate) mod provided;

use std::fmt;
use std::str::FromStr;

use crate::error::{Errno, Error, ErrorKind, Result};
use crate::kernel::Kernel;
use crate::request::{Piece, Sqe, Target};

/// Declares the engines: what a ring can have, and what a lease can come from.
macro_rules! engines {
    ($($(#[doc = $doc:literal])+ $name:ident, $module:ident, $copies:literal;)+) => {
        /// How a ring gets the bytes of a file into a slot.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Engine {
            $($(#[doc = $doc])+ $name,)+
        }

        /// What the memory of a lease is, and so who served its fetch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Origin {
            $($(#[doc = $doc])+ $name,)+
            /// Nobody fetched it: it is the program's own memory, of a
            /// [provider](crate::provider). No copy.
            Provided,
        }

        impl Engine {
            /// Every engine that a ring can have, the one that costs least first.
            pub const ALL: [Self; [$(Self::$name),+].len()] = [$(Self::$name),+];

            /// The name that the command line and the documentation use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($module),)+ }
            }

            /// Looks whether it works here. In words for a person if it does not.
            pub(crate) fn probe(self, kernel: &mut Kernel) -> Result<Found, String> {
                match self { $(Self::$name => $module::probe(kernel),)+ }
            }

            pub(crate) const fn needs(self) -> Needs {
                match self { $(Self::$name => $module::NEEDS,)+ }
            }

            /// The engine at work on slots that begin at `first` of the ring's table.
            pub(crate) fn room(self, found: Found, device: Option<Target>, first: u16) -> Option<Box<dyn Room>> {
                match self { $(Self::$name => $module::room(found, device, first),)+ }
            }

            /// The request whose result is the descriptor that a source is bound to.
            pub(crate) fn attach(self, device: Target, source: i32) -> Option<Sqe> {
                match self { $(Self::$name => $module::attach(device, source),)+ }
            }
        }

        impl Origin {
            /// The name that the command line and the documentation use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($module),)+
                    Self::Provided => "provided",
                }
            }

            /// How often a byte was copied on its way from the source into the slot.
            #[must_use]
            pub const fn copies(self) -> u32 {
                match self {
                    $(Self::$name => $copies,)+
                    Self::Provided => 0,
                }
            }

            /// The engine that serves such leases, if it is one of a ring's.
            pub(crate) const fn engine(self) -> Option<Engine> {
                match self {
                    $(Self::$name => Some(Engine::$name),)+
                    Self::Provided => None,
                }
            }
        }

        impl From<Engine> for Origin {
            fn from(engine: Engine) -> Self {
                match engine { $(Engine::$name => Self::$name,)+ }
            }
        }
    };
}

engines! {
    /// The kernel's own request, `IORING_OP_GET_BUF`: a kernel with the project's patches.
    /// No copy.
    Opcode, opcode, 0;
    /// The module `getbuf.ko` on an unmodified Linux 7.3 or newer. No copy.
    Module, module, 0;
    /// `READ_FIXED` into memory registered once: any Linux with io_uring, 5.19 or newer. One
    /// copy, or none where the source was opened with `O_DIRECT`.
    Copy, copy, 1;
}

/// A lease that this engine served.
impl PartialEq<Engine> for Origin {
    fn eq(&self, engine: &Engine) -> bool {
        *self == Self::from(*engine)
    }
}

impl Engine {
    /// How often this engine copies a byte between the source and the slot.
    #[must_use]
    pub fn copies(self) -> u32 {
        Origin::from(self).copies()
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|engine| engine.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            let (last, others) = names.split_last().expect("there are engines");
            let what = format!("no engine '{name}': there are {} and {last}", others.join(", "));
            Error::new(ErrorKind::InvalidInput, what)
        })
    }
}

/// What a probe has found out about an engine that works.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// The numbers of its requests, if it has any of its own: that which fetches, and, on kernels
    /// that have it, that which releases.
    pub(crate) opcodes: Option<(u8, Option<u8>)>,
    /// Whether a fetch can hand its buffer to the next request of the link.
    pub(crate) links: bool,
}

/// Which places of the ring's tables an engine takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Each slot has a place of its own in the table of registered buffers.
    pub(crate) slots: bool,
    /// The device that takes the engine's commands, and has a place in the table of files. Each
    /// source may have a second place there, to which it is bound.
    pub(crate) device: Option<&'static str>,
}

/// What a fetch reads from: the file, and the name under which an engine that lends knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    file: Target,
    lent: Lent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    /// As the file itself, where the engine can.
    Itself,
    /// As a descriptor that is bound to it.
    Bound(Target),
    /// It cannot lend its memory, or is not asked to.
    Never,
}

impl Source {
    /// A file for which `bound` is a descriptor that `GETBUF_CMD_BIND` made.
    ///
    /// The module engine needs it where the file is a registered one, which has no number that the
    /// module could look up; without it such a file is read into the pool.
    #[must_use]
    pub fn bound(file: impl Into<Target>, bound: impl Into<Target>) -> Self {
        Self { file: file.into(), lent: Lent::Bound(bound.into()) }
    }

    /// A file that is always read into the pool.
    #[must_use]
    pub fn copied(file: impl Into<Target>) -> Self {
        Self { file: file.into(), lent: Lent::Never }
    }
}

impl<T: Into<Target>> From<T> for Source {
    fn from(file: T) -> Self {
        Self { file: file.into(), lent: Lent::Itself }
    }
}

/// What a request is to fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) source: Source,
    /// In the source, in bytes; `u64::MAX`: where it stands.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// The buffer goes to the next request of the link; into its slot only if the link breaks.
    pub(crate) linked: bool,
}

impl Fetch {
    /// Whether an engine may ask the file to lend its memory.
    ///
    /// Not at an offset that `read(2)` refuses, because files that know no offsets would not: a pipe
    /// would lend what it has.
    #[inline]
    fn may_be_lent(&self) -> bool {
        let end = self.offset.checked_add(self.len.into());
        let is_refused = self.offset != u64::MAX && end.is_none_or(|end| end > i64::MAX as u64);
        self.source.lent != Lent::Never && !is_refused
    }
}

/// How a slot of an engine's comes to be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// Nothing is in it that somebody else has to have back.
    AtOnce,
    /// By what [`Room::release`] says, also while requests use the buffer.
    ByRequest,
    /// The program gets its memory back when no request uses it any more.
    WhenUnused,
}

/// What empties a slot that is [emptied by request](Emptied::ByRequest).
#[derive(Debug)]
pub(crate) enum Release {
    Request(Sqe),
    /// An update of the ring's table of registered buffers, at this index.
    Update(u16),
}

/// How a chain that goes as asked ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The fetch hands the buffer to the consumer, with which it goes. The slot stays empty.
    HandedOver,
    /// A third request empties the slot.
    Released,
    /// It stays in the slot, from where it is emptied like that of a lease.
    Left,
}

/// What somebody who moves bytes should know of an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    /// It is memory of the kernel's: not every sink takes it (`EFAULT`), looks at it take a request,
    /// and sends of it without a copy pay.
    pub(crate) lent: bool,
    pub(crate) emptied: Emptied,
    pub(crate) ending: Ending,
    /// A fetch that finds the end of the file leaves an empty buffer in its slot.
    pub(crate) installs_empty: bool,
}

/// What an error of a fetch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The source has failed.
    Failed,
    /// The engine cannot serve this source, or not like this: another one may.
    NotThisFile,
    /// More memory would be pinned than may be: one that has its memory already may serve it.
    Limit,
}

/// How the bytes of a slot get into the program's memory.
#[derive(Debug)]
pub(crate) enum Look {
    /// So many were copied.
    Copied(usize),
    /// A write of them into a pipe, which is then read.
    Pipe,
    /// A command of the engine's device, which copies this many at most: see [`Room::look_command`].
    Command { most: u32 },
}

/// An engine at work on a table of slots.
pub(crate) trait Room: fmt::Debug {
    fn origin(&self) -> Origin;

    fn traits(&self) -> Traits;

    /// Whether a fetch is for this engine.
    fn serves(&self, what: &Fetch) -> bool;

    /// The request of a fetch that [it serves](Self::serves), into a slot.
    fn fetch(&self, slot: u16, what: &Fetch) -> Sqe;

    /// Where bytes of a slot are, from `start` on; at least one of them, `len` at most.
    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece;

    /// What empties a slot. Only asked where it is [emptied by request](Emptied::ByRequest).
    fn release(&self, slot: u16) -> Release {
        Release::Update(slot)
    }

    /// What an error of a fetch from this offset means.
    fn classify(&self, _errno: Errno, _offset: u64) -> Refusal {
        Refusal::Failed
    }

    /// Copies bytes of a slot, from `start` on, if that takes no request.
    fn look(&self, slot: u16, start: u32, into: &mut [u8]) -> Look;

    /// The command that copies `len` bytes to an address of the program's.
    fn look_command(&self, _slot: u16, _start: u32, _len: u32, _to: u64) -> Option<Sqe> {
        None
    }
}

/// What lenders refuse that another engine may serve.
fn refused_by_lender(errno: Errno, offset: u64) -> Refusal {
    match errno {
        Errno::NOTSUPP => Refusal::NotThisFile,
        // Only a file that has no offsets takes one that is negative to the kernel.
        Errno::INVAL if offset > i64::MAX as u64 => Refusal::NotThisFile,
        Errno::NOMEM | Errno::DQUOT => Refusal::Limit,
        _ => Refusal::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: u64 = i64::MAX as u64;

    #[test]
    fn what_read_refuses_is_not_asked_of_a_lender() {
        let file = Target::Fd(3);
        let may = |source: Source, offset, len| {
            Fetch { source, offset, len, linked: false }.may_be_lent()
        };
        // Offset and length, and whether they can be lent.
        for (offset, len, yes) in [
            (0, 1, true),
            (LAST - 1, 1, true),
            (LAST, 0, true),
            (LAST, 1, false),
            (LAST + 1, 1, false),
            (u64::MAX - 1, 1, false),
            (u64::MAX - 1, 4096, false),
            // Where it stands.
            (u64::MAX, 4096, true),
        ] {
            assert_eq!(may(file.into(), offset, len), yes, "{len} at {offset}");
            assert_eq!(may(Source::bound(file, Target::Fixed(1)), offset, len), yes);
            assert!(!may(Source::copied(file), offset, len));
        }
    }

    #[test]
    fn what_a_lender_refuses_another_engine_may_serve() {
        for (errno, offset, refusal) in [
            (Errno::NOTSUPP, 0, Refusal::NotThisFile),
            (Errno::NOTSUPP, u64::MAX, Refusal::NotThisFile),
            (Errno::NOMEM, 0, Refusal::Limit),
            (Errno::DQUOT, 0, Refusal::Limit),
            (Errno::INVAL, 0, Refusal::Failed),
            (Errno::INVAL, LAST, Refusal::Failed),
            // A regular file or a device as a stream.
            (Errno::INVAL, u64::MAX, Refusal::NotThisFile),
            (Errno::CANCELED, u64::MAX, Refusal::Failed),
            (Errno::FAULT, 0, Refusal::Failed),
        ] {
            assert_eq!(refused_by_lender(errno, offset), refusal, "{errno} at {offset}");
        }
    }

    #[test]
    fn names_are_those_of_the_files() {
        assert_eq!(Engine::ALL.map(Engine::name), ["opcode", "module", "copy"]);
        for engine in Engine::ALL {
            assert_eq!(engine.name().parse::<Engine>().ok(), Some(engine));
            let origin = Origin::from(engine);
            assert_eq!((origin.engine(), origin.name()), (Some(engine), engine.name()));
            assert!(origin == engine && origin != Origin::Provided);
        }
        assert_eq!(Origin::Provided.engine(), None);
        let error = "splice".parse::<Engine>().expect_err("there is none").to_string();
        assert!(Engine::ALL.iter().all(|engine| error.contains(engine.name())), "{error}");
    }
}
