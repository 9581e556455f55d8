// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can this kernel do? Found out by behaviour, and without effect.
//!
//! A kernel cannot be asked for `GET_BUF` by number. `IORING_REGISTER_PROBE` counts opcodes, and
//! the RFC's 49 is `READ_MULTISHOT` on mainline since 6.7, so the probe calls 49 supported on every
//! kernel since. What tells them apart is the answer to a request on an eventfd, which can never
//! lend memory: `-524` (`ENOTSUPP`) where the number is `GET_BUF`, `-EINVAL` where it is not. The
//! request is sent without `IOSQE_BUFFER_SELECT`; so 49 is `-EINVAL` on every mainline kernel,
//! before any of its fields is looked at.
//!
//! Another number is tried only where the kernel's table is longer than that of the mainline
//! release it calls itself, and by no more than the requests that a `GET_BUF` tree adds. So no
//! request is ever sent whose meaning on a mainline kernel is something else.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode as ops};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use uring_getbuf_sys as sys;

use crate::engine::Engine;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::opcode::{self, GetBuf, PutBuf, Target};
use crate::pool::Patience;

/// The first release with a longer opcode table, and its `IORING_OP_LAST` (`linux/io_uring.h` of
/// each release).
const MAINLINE_LAST: [(Release, u8); 8] = [
    (Release(6, 1), 49),
    (Release(6, 7), 54),
    (Release(6, 8), 55),
    (Release(6, 9), 56),
    (Release(6, 11), 58),
    (Release(6, 15), 62),
    (Release(6, 16), 63),
    (Release(6, 19), 65),
];
/// The last release whose table is known.
const MAINLINE_NEWEST: Release = Release(7, 3);
/// Requests of a look that are in flight at once, and a few.
const LOOKS: u32 = 4;
/// `GET_BUF`, and `PUT_BUF` where there is one.
const MOST_EXTRA: u8 = 2;

/// A kernel release, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Release(u32, u32);

impl Release {
    /// From "6.18.44-cloud" and the like.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// How many opcodes mainline of this release has, if that is known.
    fn mainline_last(self) -> Option<u8> {
        let known = self <= MAINLINE_NEWEST;
        MAINLINE_LAST.iter().rev().find(|(since, _)| known && *since <= self).map(|(_, last)| *last)
    }
}

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
    opcode: Result<(u8, Option<u8>), String>,
    module: Result<u64, String>,
    copy: Result<(), String>,
    claimed_ops: u8,
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
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let release = Release::parse(&kernel).unwrap_or(Release(0, 0));
        let memlock = getrlimit(Resource::Memlock).current;
        let mut support = Self {
            opcode: Err(String::new()),
            module: Err(String::new()),
            copy: Err(String::new()),
            claimed_ops: 0,
            features: Features::default(),
            memlock,
            is_known: false,
            starved: None,
            kernel,
        };
        // No larger than it has to be: what it takes may count against what is looked for.
        let ring = Patience::attempt(|| IoUring::builder().setup_clamp().build(LOOKS));
        // A look takes up to two descriptors more. Without them an engine would seem not to be there.
        let file = || eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let tools = ring.and_then(|ring| Ok((ring, file()?, file()?)));
        let (mut ring, source) = match tools {
            Ok((ring, source, spare)) => {
                drop(spare);
                (ring, source)
            }
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::ENOMEM) => no_memory(memlock),
                    _ => no_ring(&error),
                };
                support.opcode = Err(reason.clone());
                support.module = Err(reason.clone());
                support.copy = Err(reason);
                support.starved =
                    error.raw_os_error().map(Errno::new).filter(|errno| errno.is_starved());
                return support;
            }
        };
        support.is_known = true;
        let mut probe = Probe::new();
        if ring.submitter().register_probe(&mut probe).is_err() {
            probe = Probe::new();
        }
        support.claimed_ops =
            (0..=u8::MAX).rev().find(|op| probe.is_supported(*op)).map_or(0, |op| op + 1);
        support.copy = if probe.is_supported(ops::Socket::CODE) {
            Ok(())
        } else {
            Err(format!("it needs Linux 5.19 or newer; this is {}", support.kernel))
        };
        support.features = Features {
            send_zc: probe.is_supported(ops::SendZc::CODE),
            writev_fixed: probe.is_supported(ops::WritevFixed::CODE),
            fixed_send: has_fixed_send(&mut ring),
            linked_fetch: false,
        };
        support.opcode =
            find_get_buf(&mut ring, &source, release, support.claimed_ops, &support.kernel);
        support.features.linked_fetch = support
            .get_buf_opcode()
            .is_some_and(|get_buf| is_get_buf(&mut ring, &source, get_buf, GetBuf::linked));
        support.module = find_module(&mut ring, release, &support.kernel);
        support
    }

    /// What slots need that never see a kernel: Miri runs those, and no ring.
    fn without_kernel() -> Self {
        let none = || "Miri has no kernel".to_owned();
        Self {
            kernel: String::new(),
            opcode: Err(none()),
            module: Err(none()),
            copy: Err(none()),
            claimed_ops: 0,
            features: Features {
                send_zc: true,
                writev_fixed: true,
                fixed_send: true,
                linked_fetch: false,
            },
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
        match engine {
            Engine::Opcode => self.opcode.as_ref().map(|_| ()),
            Engine::Module => self.module.as_ref().map(|_| ()),
            Engine::Copy => self.copy.as_ref().copied(),
            Engine::Provider => {
                return Err("a provider is no engine of a ring: ask it for a lease");
            }
        }
        .map_err(String::as_str)
    }

    /// As [`engine`](Self::engine), for a caller that will have no other.
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
    /// As [`require`](Self::require) if none does, with the copy engine's reason.
    pub fn best(&self) -> Result<Engine> {
        let works = Engine::ALL.into_iter().find(|engine| self.engine(*engine).is_ok());
        works.map_or_else(|| self.require(Engine::Copy).map(|()| Engine::Copy), Ok)
    }

    /// The number that this kernel gives to `GET_BUF`.
    #[must_use]
    pub fn get_buf_opcode(&self) -> Option<u8> {
        self.opcode.as_ref().ok().map(|(get_buf, _)| *get_buf)
    }

    /// The number that this kernel gives to `PUT_BUF`, if it has one: the RFC's has not, and
    /// slots are emptied by updates of the table there.
    #[must_use]
    pub fn put_buf_opcode(&self) -> Option<u8> {
        self.opcode.as_ref().ok().and_then(|(_, put_buf)| *put_buf)
    }

    /// Whether the module replaces what is in a slot; see
    /// [`slots::Builder::replace`](crate::slots::Builder::replace).
    #[must_use]
    pub fn module_replaces(&self) -> bool {
        let features = self.module.as_ref().copied().unwrap_or(0);
        features & u64::from(sys::GETBUF_FEAT_REPLACE) != 0
    }

    /// Whether the kernel could be asked. If not, [`features`](Self::features) says nothing.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// How many opcodes `IORING_REGISTER_PROBE` claims. It says nothing about what they are.
    #[must_use]
    pub fn claimed_opcodes(&self) -> u8 {
        self.claimed_ops
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

fn no_memory(memlock: Option<u64>) -> String {
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

/// Sends one request and gives its result. `None`: the ring does not work.
fn result_of(ring: &mut IoUring, entry: &Entry) -> Option<i32> {
    // SAFETY: every caller's request names either nothing, or memory and files that it keeps until
    // this function returns; it returns when the request has completed.
    if unsafe { ring.submission().push(entry) }.is_err() {
        return None;
    }
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    ring.completion().next().map(|completion| completion.result())
}

/// Whether a plain send takes a registered buffer. Descriptor -1 is looked up after the request is
/// checked: an old kernel refuses the flag, a new one the descriptor. Nothing is sent.
fn has_fixed_send(ring: &mut IoUring) -> bool {
    let entry = opcode::send_fixed(Target::Fd(-1), 0, 0, 0, 0).entry();
    result_of(ring, &entry) == Some(-libc::EBADF)
}

/// Whether a request with this number, on a file that never lends its memory, is answered as
/// `GET_BUF` is; with what `with` adds to it.
fn is_get_buf(
    ring: &mut IoUring,
    source: &OwnedFd,
    number: u8,
    with: impl FnOnce(GetBuf) -> GetBuf,
) -> bool {
    let entry = with(GetBuf::new(number, Fd(source.as_raw_fd()), 1, 0)).build();
    result_of(ring, &entry).map(Errno::check) == Some(Err(Errno::NOTSUPP))
}

fn find_get_buf(
    ring: &mut IoUring,
    source: &OwnedFd,
    release: Release,
    claimed: u8,
    kernel: &str,
) -> Result<(u8, Option<u8>), String> {
    let answers = |ring: &mut IoUring, number| is_get_buf(ring, source, number, |get| get);
    let extra = release
        .mainline_last()
        .filter(|last| (1..=MOST_EXTRA).contains(&claimed.saturating_sub(*last)));
    let rfc = sys::IORING_OP_GET_BUF_RFC as u8;
    let Some(get_buf) =
        [Some(rfc), extra].into_iter().flatten().find(|number| answers(ring, *number))
    else {
        let why = match release.mainline_last() {
            None if release > MAINLINE_NEWEST => format!(
                "Linux {}.{} is newer than the opcode tables that this library knows",
                release.0, release.1
            ),
            Some(last) if claimed == last => format!("all of its {last} requests are mainline's"),
            _ => format!("none of its {claimed} requests answers as GET_BUF does"),
        };
        let multishot = if release >= Release(6, 7) {
            " (49, the RFC's number, is READ_MULTISHOT here)"
        } else {
            ""
        };
        return Err(format!(
            "Linux {kernel} has no GET_BUF: {why}{multishot}; it takes a kernel with this \
             project's patches, see kernel/patches"
        ));
    };
    let put_buf = sys::put_buf_after(get_buf);
    Ok((get_buf, can_release(ring, get_buf, put_buf).then_some(put_buf)))
}

/// Whether `put_buf` empties a slot that `get_buf` has filled. Both happen on a ring and a file of
/// our own.
fn can_release(ring: &mut IoUring, get_buf: u8, put_buf: u8) -> bool {
    let Ok(file) = rustix::fs::memfd_create("getbuf-probe", MemfdFlags::CLOEXEC) else {
        return false;
    };
    if rustix::io::write(&file, b"x") != Ok(1)
        || ring.submitter().register_buffers_sparse(1).is_err()
    {
        return false;
    }
    let fetch = GetBuf::new(get_buf, Fd(file.as_raw_fd()), 1, 0).build();
    let release = PutBuf::new(put_buf, 0).build();
    let answers = [&fetch, &release, &release].map(|entry| result_of(ring, entry));
    answers == [Some(1), Some(0), Some(-libc::EINVAL)]
}

const DEVICE: &str = "/dev/getbuf";

pub(crate) fn open_device() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn find_module(ring: &mut IoUring, release: Release, kernel: &str) -> Result<u64, String> {
    let device = match open_device() {
        Ok(device) => device,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV) => {
            return Err(if release >= Release(7, 3) {
                format!(
                    "there is no {DEVICE}: build and load this project's module (make -C \
                     kernel/module && sudo insmod kernel/module/getbuf.ko; or DKMS, see its README)"
                )
            } else {
                format!("the module getbuf.ko needs Linux 7.3 or newer; this is {kernel}")
            });
        }
        Err(errno) => {
            let error = io::Error::from(errno);
            let hint = if errno == rustix::io::Errno::ACCESS {
                "; kernel/module/README.md says how to let more users than root have it"
            } else {
                ""
            };
            return Err(format!("{DEVICE} cannot be opened: {error}{hint}"));
        }
    };
    let mut query = sys::getbuf_query::default();
    let entry = opcode::module_query(Target::Fd(device.as_fd().as_raw_fd()), &raw mut query);
    match result_of(ring, &entry).map(Errno::check) {
        Some(Ok(_)) if query.version >= sys::GETBUF_ABI_VERSION => {
            if query.features & u64::from(sys::GETBUF_FEAT_BIND) != 0 {
                return Ok(query.features);
            }
            Err(format!("{DEVICE} cannot bind sources, which this library needs: update getbuf.ko"))
        }
        Some(Ok(_)) => Err(format!(
            "{DEVICE} speaks version {} of its interface and this library version {}: update \
             getbuf.ko",
            query.version,
            sys::GETBUF_ABI_VERSION
        )),
        Some(Err(errno)) => Err(format!("{DEVICE} is not this project's device: {errno}")),
        None => Err("the ring used for the query failed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_their_tables() {
        let last = |text: &str| Release::parse(text).unwrap().mainline_last();
        assert_eq!(Release::parse("6.18.44-fc-v657"), Some(Release(6, 18)));
        assert_eq!(Release::parse("7.3-rc1"), Some(Release(7, 3)));
        assert_eq!(Release::parse("linux"), None);
        assert_eq!(last("5.19.0"), None);
        assert_eq!(last("6.1.192"), Some(49));
        assert_eq!(last("6.7.0"), Some(54));
        assert_eq!(last("6.18.44"), Some(63));
        assert_eq!(last("7.3.4"), Some(65));
        assert_eq!(last("7.4.0"), None, "a table that nobody has read");
    }

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
        if Release::parse(support.kernel()).is_some_and(|release| release >= Release(6, 7)) {
            assert!(support.claimed_opcodes() > 49, "the kernel's probe claims 49");
            assert_ne!(support.get_buf_opcode(), Some(49));
        }
    }

    #[test]
    fn what_keeps_io_uring_away_is_named() {
        let reason = |errno| no_ring(&io::Error::from_raw_os_error(errno));
        assert!(reason(libc::ENOSYS).contains("5.19"));
        assert!(reason(libc::EPERM).contains("io_uring"));
        assert!(reason(libc::ENOMEM).contains("io_uring_setup"));
    }
}
