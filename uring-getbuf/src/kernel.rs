// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running kernel, as somebody sees it who looks what it can do: its name, its opcodes, and a small
//! ring on which it is asked.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, Probe};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};

use crate::memory::Patience;
use crate::request::Sqe;

/// The first release with a longer opcode table, and its `IORING_OP_LAST` (`linux/io_uring.h` of
/// each release).
const MAINLINE_LAST: [(Version, u8); 8] = [
    (Version(6, 1), 49),
    (Version(6, 7), 54),
    (Version(6, 8), 55),
    (Version(6, 9), 56),
    (Version(6, 11), 58),
    (Version(6, 15), 62),
    (Version(6, 16), 63),
    (Version(6, 19), 65),
];
/// The last release whose table is known.
const MAINLINE_NEWEST: Version = Version(7, 3);

/// A kernel's version, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// From "6.18.44-cloud" and the like.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// How many opcodes mainline of this version has, if that is known.
    pub(crate) fn mainline_last(self) -> Option<u8> {
        let since = |(since, _): &&(Self, u8)| !self.is_unknown() && *since <= self;
        MAINLINE_LAST.iter().rev().find(since).map(|(_, last)| *last)
    }

    /// Whether it is newer than every version whose table is known.
    pub(crate) fn is_unknown(self) -> bool {
        self > MAINLINE_NEWEST
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The kernel, and what it is asked with.
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) name: String,
    pub(crate) version: Version,
    /// How many opcodes `IORING_REGISTER_PROBE` claims. It says nothing about what they are.
    pub(crate) opcodes: u8,
    probe: Probe,
    ring: IoUring,
    eventfd: OwnedFd,
}

impl Kernel {
    /// Makes the ring. It is no larger than it has to be: what it takes may count against what is looked
    /// for.
    pub(crate) fn new(name: String) -> io::Result<Self> {
        let ring = Patience::attempt(|| IoUring::builder().setup_clamp().build(4))?;
        let file = || eventfd(0, EventfdFlags::CLOEXEC);
        // A look takes one descriptor more. Without it an engine would seem not to be there.
        let (eventfd, _) = (file()?, file()?);
        let mut probe = Probe::new();
        if ring.submitter().register_probe(&mut probe).is_err() {
            probe = Probe::new();
        }
        let opcodes = (0..=u8::MAX).rev().find(|op| probe.is_supported(*op)).map_or(0, |op| op + 1);
        let version = Version::parse(&name).unwrap_or(Version(0, 0));
        Ok(Self { name, version, opcodes, probe, ring, eventfd })
    }

    /// Whether it claims to know an opcode.
    pub(crate) fn has(&self, opcode: u8) -> bool {
        self.probe.is_supported(opcode)
    }

    /// A file that never lends its memory.
    pub(crate) fn never_lends(&self) -> Fd {
        Fd(self.eventfd.as_raw_fd())
    }

    /// Gives the ring a table of registered buffers with one empty slot.
    pub(crate) fn make_slot(&self) -> bool {
        self.ring.submitter().register_buffers_sparse(1).is_ok()
    }

    /// Sends one request and gives its result. `None`: the ring does not work.
    ///
    /// What the request names stays valid until this returns, which is when it has completed.
    pub(crate) fn ask(&mut self, request: Sqe) -> Option<i32> {
        // SAFETY: requests of engines' probes name files and memory that live in the probe that asks,
        // beyond this call, and this returns when the request has completed.
        if unsafe { self.ring.submission().push(&request.entry()) }.is_err() {
            return None;
        }
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        self.ring.completion().next().map(|completion| completion.result())
    }
}

/// Opens an engine's device.
pub(crate) fn open_device(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// What to do where there is no descriptor left.
pub(crate) const STARVED: &str =
    "no file descriptor is left for a ring: close files, or raise RLIMIT_NOFILE (ulimit -n)";

/// What bounds the memory of rings, and what to do about it.
pub(crate) fn memory_is_limited(memlock: Option<u64>) -> String {
    match memlock {
        Some(limit) => format!(
            "RLIMIT_MEMLOCK allows {limit} bytes for everything that this user pins, rings \
             included (ulimit -l)"
        ),
        None => "the memory is not there".into(),
    }
}

pub(crate) fn no_memory(memlock: Option<u64>) -> String {
    format!("not known: no memory for a ring to look with: {}", memory_is_limited(memlock))
}

/// Why there is no io_uring at all.
pub(crate) fn no_ring(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => format!("not known: {STARVED}: {error}"),
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring (it needs Linux 5.19 or newer with CONFIG_IO_URING), or a \
             sandbox hides it"
                .into()
        }
        Some(libc::EPERM | libc::EACCES) => {
            let setting = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
            let is = |value| setting("io_uring_disabled").is_ok_and(|text| text.trim() == value);
            if is("2") {
                "io_uring is switched off: kernel.io_uring_disabled is 2; an administrator can set \
                 it to 0 (sysctl)"
                    .into()
            } else if is("1") {
                let group = setting("io_uring_group").unwrap_or_default();
                let group = match group.trim() {
                    "" | "-1" => "a group that kernel.io_uring_group names".to_owned(),
                    number => format!("the group {number} (kernel.io_uring_group)"),
                };
                format!(
                    "io_uring is switched off for this user: kernel.io_uring_disabled is 1; an \
                     administrator can set it to 0 (sysctl), or let this program run in {group}"
                )
            } else {
                "io_uring is forbidden to this process, most likely by a seccomp filter of its \
                 container or service, which would have to allow io_uring_setup, io_uring_enter \
                 and io_uring_register"
                    .into()
            }
        }
        _ => format!("io_uring_setup: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_their_tables() {
        let last = |text: &str| Version::parse(text).unwrap().mainline_last();
        assert_eq!(Version::parse("6.18.44-fc-v657"), Some(Version(6, 18)));
        assert_eq!(Version::parse("7.3-rc1"), Some(Version(7, 3)));
        assert_eq!(Version::parse("linux"), None);
        assert_eq!(last("5.19.0"), None);
        assert_eq!(last("6.1.192"), Some(49));
        assert_eq!(last("6.7.0"), Some(54));
        assert_eq!(last("6.18.44"), Some(63));
        assert_eq!(last("7.3.4"), Some(65));
        assert_eq!(last("7.4.0"), None, "a table that nobody has read");
    }

    #[test]
    fn what_keeps_io_uring_away_is_named() {
        let reason = |errno| no_ring(&io::Error::from_raw_os_error(errno));
        assert!(reason(libc::ENOSYS).contains("5.19"));
        assert!(reason(libc::EPERM).contains("io_uring"));
        assert!(reason(libc::ENOMEM).contains("io_uring_setup"));
    }
}
