// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can this kernel do? Found out by behaviour, and without effect: each engine looks for itself.

use std::fmt;

use io_uring::opcode as ops;
use rustix::process::{Resource, getrlimit};

use crate::engine::{Engine, Found};
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::kernel::{Kernel, STARVED, no_memory, no_ring};
use crate::request::{Piece, Target};

/// What not every kernel has, around a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// `SEND_ZC` (Linux 6.0).
    pub send_zc: bool,
    /// `WRITEV_FIXED` (Linux 6.15). Without it the copy engine uses `WRITEV`.
    pub writev_fixed: bool,
    /// Plain `SEND` from a registered buffer (Linux 7.2). Without it the copy engine sends from
    /// the pool's address.
    pub fixed_send: bool,
    /// A fetch that hands its buffer to the next request of the link (`IORING_GET_BUF_LINKED`, this
    /// project's patches). Without it a chain ends with a release of its slot.
    pub linked_fetch: bool,
}

impl Features {
    pub(crate) fn need_send_zc(self) -> Result<()> {
        if self.send_zc {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "SEND_ZC needs Linux 6.0 or newer: use a plain send",
        ))
    }
}

/// What the running kernel offers. See the [module](self).
#[derive(Clone, Debug)]
pub struct Support {
    kernel: String,
    /// In the order of [`Engine::ALL`].
    engines: [Result<Found, String>; Engine::ALL.len()],
    opcodes: u8,
    features: Features,
    memlock: Option<u64>,
    is_known: bool,
    /// There was no descriptor, or no memory, left to look with.
    starved: Option<Errno>,
}

impl Support {
    /// Finds out, in a few system calls on files of its own. Never fails: what is not there is
    /// there with its reason.
    #[must_use]
    pub fn detect() -> Self {
        if cfg!(miri) {
            return Self::without_kernel();
        }
        let name = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut support = Self {
            kernel: name.clone(),
            engines: Engine::ALL.map(|_| Err(String::new())),
            opcodes: 0,
            features: Features::default(),
            memlock: getrlimit(Resource::Memlock).current,
            is_known: false,
            starved: None,
        };
        let mut kernel = match Kernel::new(name) {
            Ok(kernel) => kernel,
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::ENOMEM) => no_memory(support.memlock),
                    _ => no_ring(&error),
                };
                support.engines = Engine::ALL.map(|_| Err(reason.clone()));
                let errno = error.raw_os_error().map(Errno::new);
                support.starved = errno.filter(|errno| errno.is_starved());
                return support;
            }
        };
        support.is_known = true;
        support.opcodes = kernel.opcodes;
        support.engines = Engine::ALL.map(|engine| engine.probe(&mut kernel));
        support.features = Features {
            send_zc: kernel.has(ops::SendZc::CODE),
            writev_fixed: kernel.has(ops::WritevFixed::CODE),
            fixed_send: has_fixed_send(&mut kernel),
            linked_fetch: support.engines.iter().flatten().any(|found| found.links),
        };
        support
    }

    /// What slots need that never see a kernel: Miri runs those, and no ring.
    fn without_kernel() -> Self {
        let features =
            Features { send_zc: true, writev_fixed: true, fixed_send: true, linked_fetch: false };
        Self {
            kernel: String::new(),
            engines: Engine::ALL.map(|_| Err("Miri has no kernel".to_owned())),
            opcodes: 0,
            features,
            memlock: None,
            is_known: true,
            starved: None,
        }
    }

    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Whether an engine works here; if not, why, and what to do about it.
    ///
    /// # Errors
    ///
    /// The reason, in words for a person.
    pub fn engine(&self, engine: Engine) -> Result<(), &str> {
        self.found(engine).map(|_| ())
    }

    /// What its probe has found out about an engine.
    pub(crate) fn found(&self, engine: Engine) -> Result<Found, &str> {
        let place = Engine::ALL.iter().position(|other| *other == engine);
        self.engines[place.expect("they are all there")].as_ref().copied().map_err(String::as_str)
    }

    /// Whether an engine works here, for a caller that will have no other.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable), with the reason; [`Ring`](ErrorKind::Ring) with
    /// `EMFILE` or `ENFILE` if there was no descriptor left to look with, and
    /// [`MemoryLimit`](ErrorKind::MemoryLimit) if there was no memory, which says nothing about the
    /// engine.
    pub fn require(&self, engine: Engine) -> Result<()> {
        if let Some(errno) = self.starved {
            return Err(match errno {
                Errno::NOMEM => Error::os(ErrorKind::MemoryLimit, errno, no_memory(self.memlock)),
                _ => Error::os(ErrorKind::Ring, errno, STARVED),
            });
        }
        self.engine(engine).map_err(|reason| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the {engine} engine does not work here: {reason}"),
            )
        })
    }

    /// The engine that costs least of those that work here.
    ///
    /// # Errors
    ///
    /// Those of [`require`](Self::require) if none does, with the copy engine's reason.
    pub fn best(&self) -> Result<Engine> {
        let works = Engine::ALL.into_iter().find(|engine| self.engine(*engine).is_ok());
        works.map_or_else(|| self.require(Engine::Copy).map(|()| Engine::Copy), Ok)
    }

    /// The number that this kernel gives to `GET_BUF`.
    #[must_use]
    pub fn get_buf_opcode(&self) -> Option<u8> {
        self.requests().map(|(get_buf, _)| get_buf)
    }

    /// The number that this kernel gives to `PUT_BUF`, if it has one: the RFC's has not, and
    /// slots are emptied by updates of the table there.
    #[must_use]
    pub fn put_buf_opcode(&self) -> Option<u8> {
        self.requests().and_then(|(_, put_buf)| put_buf)
    }

    fn requests(&self) -> Option<(u8, Option<u8>)> {
        self.engines.iter().flatten().find_map(|found| found.opcodes)
    }

    /// Whether the kernel could be asked. If not, [`features`](Self::features) says nothing.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// How many opcodes `IORING_REGISTER_PROBE` claims. It says nothing about what they are.
    #[must_use]
    pub fn claimed_opcodes(&self) -> u8 {
        self.opcodes
    }

    /// Consumers that this kernel has.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// `RLIMIT_MEMLOCK` in bytes, which bounds the memory of the copy engine's pool for a process
    /// without `CAP_IPC_LOCK`. `None`: no limit.
    #[must_use]
    pub fn memlock_limit(&self) -> Option<u64> {
        self.memlock
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.kernel)?;
        for engine in Engine::ALL {
            match self.engine(engine) {
                Ok(()) => write!(f, "\n{engine:8}yes")?,
                Err(reason) if self.starved.is_some() => write!(f, "\n{engine:8}{reason}")?,
                Err(reason) => write!(f, "\n{engine:8}no: {reason}")?,
            }
        }
        Ok(())
    }
}

/// Whether a plain send takes a registered buffer. Descriptor -1 is looked up after the request is
/// checked: an old kernel refuses the flag, a new one the descriptor. Nothing is sent.
fn has_fixed_send(kernel: &mut Kernel) -> bool {
    let nothing = Piece { addr: 0, len: 0, index: 0 };
    kernel.ask(nothing.send(Target::Fd(-1), 0)) == Some(-libc::EBADF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Version;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no kernel")]
    fn every_reason_is_a_sentence_and_something_works() {
        let support = Support::detect();
        for engine in Engine::ALL {
            if let Err(reason) = support.engine(engine) {
                assert!(reason.len() > 20, "{engine}: {reason}");
                let error = support.require(engine).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.to_string().contains(reason));
            }
        }
        assert!(support.best().is_ok(), "{support}");
    }

    #[test]
    fn read_multishot_is_not_taken_for_get_buf() {
        let support = Support::detect();
        if Version::parse(support.kernel()).is_some_and(|release| release >= Version(6, 7)) {
            assert!(support.claimed_opcodes() > 49, "the kernel's probe claims 49");
            assert_ne!(support.get_buf_opcode(), Some(49));
        }
    }
}
