// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a program may not break: files that are only ever read, sinks that hold what was written to
//! them and nothing else, and memory that no request names.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write, pipe};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::rc::Rc;

use getbuf_tests::Folder;
use rustix::fs::{MemfdFlags, memfd_create};
use uring_getbuf::STREAM;

/// Most bytes of a lease in these programs.
pub(crate) const BLOCK: u32 = 16 << 10;

/// Bytes that tell where they come from: the upper half of each names the source, which is never 0,
/// and the lower half its place there.
fn pattern(id: u8, range: Range<u64>) -> Vec<u8> {
    range.map(|offset| id << 4 | (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as u8).collect()
}

/// What the bytes of a lease have to be.
#[derive(Clone)]
pub(crate) enum Known {
    /// Those of a file of the world, from an offset on.
    File(Rc<[u8]>, u64),
    /// A stream has only one kind of byte.
    Stream(u8),
    /// These.
    Bytes(Rc<[u8]>),
    /// Nothing was ever put there.
    Zeroes,
}

impl fmt::Debug for Known {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(all, base) => {
                let id = all.first().map(|byte| byte >> 4);
                write!(f, "a file of {} bytes ({id:?}) from {base} on", all.len())
            }
            Self::Stream(byte) => write!(f, "a stream of {byte:#x}"),
            Self::Bytes(all) => write!(f, "{} bytes of memory", all.len()),
            Self::Zeroes => f.write_str("nothing"),
        }
    }
}

impl Known {
    /// Bytes `range` of the lease: what they have to be, as far as there can be any.
    pub(crate) fn bytes(&self, range: Range<u32>) -> Vec<u8> {
        let of = |all: &[u8], base: u64| {
            let place = |at: u32| {
                let place = base.saturating_add(u64::from(at)).try_into();
                place.map_or(all.len(), |place: usize| place.min(all.len()))
            };
            all[place(range.start)..place(range.end)].to_vec()
        };
        match self {
            Self::File(all, base) => of(all, *base),
            Self::Bytes(all) => of(all, 0),
            Self::Stream(byte) => vec![*byte; range.len()],
            Self::Zeroes => vec![0; range.len()],
        }
    }

    /// Ends the program if a look at the lease has seen other bytes.
    pub(crate) fn check(&self, start: u32, seen: &[u8], what: &str) {
        let end = start.saturating_add(seen.len() as u32);
        Tally::add("looked", seen.len());
        let want = self.bytes(start..end);
        if want != seen {
            let first = want.iter().zip(seen).position(|(want, seen)| want != seen);
            let near = first.map(|at| &seen[at..seen.len().min(at + 8)]);
            violated(format_args!(
                "{what}: {} bytes from {start} of {self:?} are not its own from {first:?} on: {near:x?}, \
                 and {} can be there",
                seen.len(),
                want.len()
            ));
        }
    }
}

/// Ends the process: a promise was broken. Nothing is dropped, which might hide it.
#[track_caller]
pub(crate) fn violated(what: impl fmt::Display) -> ! {
    println!("BROKEN: {what} ({})", Location::caller());
    std::process::exit(1);
}

/// A file that nothing may be written to, although it is open for writing.
pub(crate) struct Source {
    pub(crate) file: File,
    pub(crate) bytes: Rc<[u8]>,
}

impl Source {
    fn new(file: File, id: u8, len: u64) -> io::Result<Self> {
        let bytes = pattern(id, 0..len);
        file.write_all_at(&bytes, 0)?;
        Ok(Self { file, bytes: bytes.into() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn known(&self, offset: u64) -> Known {
        Known::File(Rc::clone(&self.bytes), offset)
    }
}

/// What all programs of a process share.
pub(crate) struct World {
    pub(crate) sources: Vec<Source>,
    _folder: Folder,
}

pub(crate) fn memory_file() -> File {
    memfd_create("adversary", MemfdFlags::CLOEXEC).expect("a file in memory").into()
}

impl World {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = Folder::new()?;
        let open =
            OpenOptions::new().read(true).write(true).create_new(true).open(folder.path("source"));
        let sources = [(open?, 70_001), (memory_file(), 4096), (memory_file(), 100_000)];
        let sources = sources.into_iter().chain([(memory_file(), 1), (memory_file(), 0)]);
        let sources = sources.zip(1..).map(|((file, len), id)| Source::new(file, id, len));
        Ok(Self { sources: sources.collect::<io::Result<_>>()?, _folder: folder })
    }

    /// Nothing has been written into a source.
    pub(crate) fn check(&self) {
        for (number, source) in self.sources.iter().enumerate() {
            let mut got = Vec::new();
            let mut len = [0; 4096];
            loop {
                match source.file.read_at(&mut len, got.len() as u64) {
                    Ok(0) => break,
                    Ok(bytes) => got.extend_from_slice(&len[..bytes]),
                    Err(error) => violated(format_args!("source {number}: {error}")),
                }
            }
            if got[..] != source.bytes[..] {
                violated(format_args!("source {number} was written to: {} bytes", got.len()));
            }
        }
    }
}

/// Numbers of what is not a file of the world. Those of its files are 1 to 5.
pub(crate) const PIPE: u8 = 6;
pub(crate) const SOCKET: u8 = 7;
pub(crate) const REGIONS: u8 = 8;
pub(crate) const PEER: u8 = 12;

/// A stream whose bytes are all alike.
pub(crate) struct Stream {
    pub(crate) near: OwnedFd,
    far: File,
    pub(crate) byte: u8,
}

impl Stream {
    pub(crate) fn pipe() -> io::Result<Self> {
        let (near, far) = pipe()?;
        Ok(Self { near: near.into(), far: OwnedFd::from(far).into(), byte: PIPE << 4 | 15 })
    }

    pub(crate) fn socket() -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        Ok(Self { near: near.into(), far: OwnedFd::from(far).into(), byte: SOCKET << 4 | 15 })
    }

    /// Takes what has come the other way.
    pub(crate) fn take(&mut self, mut look: impl FnMut(u8)) {
        let mut bytes = [0; 4096];
        let _ = rustix::io::ioctl_fionbio(&self.far, true);
        while let Ok(count @ 1..) = self.far.read(&mut bytes) {
            Tally::add("proxied", count);
            bytes[..count].iter().for_each(|byte| look(*byte));
        }
    }

    /// Has more to read, if there is room.
    pub(crate) fn feed(&mut self, bytes: usize) {
        let _ = rustix::io::ioctl_fionbio(&self.far, true);
        let _ = self.far.write(&vec![self.byte; bytes]);
    }
}

/// Where bytes go.
pub(crate) enum Kind {
    /// What has to be at each place, once something is: 0 where nothing was written.
    File(File, Vec<u8>),
    /// Which sources may have been written to it.
    Stream(OwnedFd, File, u16),
    Device(File),
}

pub(crate) struct Sink {
    pub(crate) kind: Kind,
}

impl Sink {
    pub(crate) fn file() -> Self {
        Self { kind: Kind::File(memory_file(), Vec::new()) }
    }

    pub(crate) fn stream(near: impl Into<OwnedFd>, far: impl Into<OwnedFd>) -> Self {
        Self { kind: Kind::Stream(near.into(), File::from(far.into()), 0) }
    }

    pub(crate) fn unix() -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        Ok(Self::stream(near, far))
    }

    pub(crate) fn tcp() -> io::Result<Self> {
        let (near, far): (TcpStream, TcpStream) = getbuf_tests::tcp()?;
        Ok(Self::stream(near, far))
    }

    pub(crate) fn pipe() -> io::Result<Self> {
        let (far, near) = pipe()?;
        Ok(Self::stream(near, far))
    }

    pub(crate) fn device(path: &str) -> io::Result<Self> {
        Ok(Self { kind: Kind::Device(OpenOptions::new().write(true).open(path)?) })
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File(..))
    }

    /// Says that these bytes may be written; where to.
    pub(crate) fn expect(&mut self, bytes: &[u8]) -> u64 {
        match &mut self.kind {
            Kind::File(_, want) => {
                // A gap, so that what is written too far is seen.
                let place = want.len() + 1;
                want.resize(place, 0);
                want.extend_from_slice(bytes);
                place as u64
            }
            Kind::Stream(_, _, from) => {
                for byte in bytes {
                    *from |= 1 << (byte >> 4);
                }
                STREAM
            }
            Kind::Device(_) => 0,
        }
    }

    /// Takes what has arrived, if it is a stream.
    pub(crate) fn drain(&mut self) {
        let Kind::Stream(_, far, from) = &mut self.kind else { return };
        let mut bytes = [0; 16 << 10];
        let _ = rustix::io::ioctl_fionbio(&*far, true);
        while let Ok(count @ 1..) = far.read(&mut bytes) {
            Tally::add("arrived", count);
            for byte in &bytes[..count] {
                if *from & 1 << (byte >> 4) == 0 {
                    violated(format_args!("a byte {byte:#x} that was never sent arrived"));
                }
            }
        }
    }

    /// It holds nothing that was not written to it.
    pub(crate) fn check(&mut self) {
        self.drain();
        let Kind::File(file, want) = &self.kind else { return };
        let mut got = vec![0; want.len() + BLOCK as usize];
        let mut len = 0;
        while let Ok(bytes @ 1..) = file.read_at(&mut got[len..], len as u64) {
            len += bytes;
        }
        let wrong = got[..len].iter().enumerate().position(|(place, byte)| {
            *byte != 0 && want.get(place).is_none_or(|want| want != byte)
        });
        Tally::add("arrived", got[..len].iter().filter(|byte| **byte != 0).count());
        if let Some(place) = wrong {
            let want = want.get(place);
            violated(format_args!(
                "byte {place} of a sink is {:#x}, and {want:x?} was written there",
                got[place]
            ));
        }
    }
}

thread_local! {
    static TALLY: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// What programs have come to: without it, nobody would see that they do nothing.
pub(crate) struct Tally;

impl Tally {
    /// Everything that is counted.
    pub(crate) const ALL: [&str; 10] = [
        "arrived",
        "cancelled",
        "chained",
        "fetched",
        "looked",
        "moved",
        "panicked",
        "proxied",
        "provided",
        "refused",
    ];

    pub(crate) fn add(what: &'static str, count: usize) {
        debug_assert!(Self::ALL.contains(&what), "{what} is not counted");
        TALLY.with_borrow_mut(|tally| *tally.entry(what).or_default() += count as u64);
    }

    /// The counts, and begins anew.
    pub(crate) fn take() -> BTreeMap<&'static str, u64> {
        TALLY.take()
    }
}

/// Memory that belongs to the program, and that nothing but the program writes to. Some of it takes
/// the place of memory that a ring has just given back.
#[derive(Default)]
pub(crate) struct Canaries {
    blocks: Vec<Vec<u8>>,
}

const CANARY: u8 = 0xc7;

impl Canaries {
    pub(crate) fn add(&mut self, bytes: usize) {
        if self.blocks.len() < 16 {
            self.blocks.push(vec![CANARY; bytes]);
        }
    }

    pub(crate) fn check(&self) {
        for block in &self.blocks {
            if let Some(place) = block.iter().position(|byte| *byte != CANARY) {
                violated(format_args!(
                    "byte {place} of {} bytes of the program's own memory is {:#x}",
                    block.len(),
                    block[place]
                ));
            }
        }
    }
}

/// A look into memory that has a guard on both sides.
pub(crate) fn guarded<E>(
    len: usize,
    look: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<Vec<u8>, E> {
    const GUARD: usize = 64;
    let mut memory = vec![CANARY; len + 2 * GUARD];
    let result = look(&mut memory[GUARD..GUARD + len]);
    let (before, rest) = memory.split_at(GUARD);
    let (inside, after) = rest.split_at(len);
    if before.iter().chain(after).any(|byte| *byte != CANARY) {
        violated("a look has written outside of what it was given");
    }
    let seen = result?;
    if seen > len {
        violated(format_args!("a look of {len} bytes has seen {seen}"));
    }
    Ok(inside[..seen].to_vec())
}

/// Where a provider's callbacks put what they were given to break, and what they may break.
pub(crate) type Shared<T> = Rc<RefCell<Vec<T>>>;

thread_local! {
    /// Panics that are made on purpose are not printed.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

const ON_PURPOSE: &str = "on purpose";

/// A panic of a callback, which the library has to stand.
pub(crate) fn on_purpose() -> ! {
    EXPECTED.set(true);
    panic!("{ON_PURPOSE}");
}

/// Ends the process at a panic that nobody expects.
pub(crate) fn end_at_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", Location::file);
        let text = text_of(info.payload());
        if !EXPECTED.replace(false) {
            print(info);
            violated(format_args!("a panic in {file}: {text}"));
        }
    }));
}

/// Calls what calls a callback that panics. Other panics go on.
pub(crate) fn surviving<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(payload) if text_of(&*payload) == ON_PURPOSE => {
            Tally::add("panicked", 1);
            None
        }
        Err(payload) => resume_unwind(payload),
    }
}

/// Calls what may panic where its arguments make no sense.
pub(crate) fn refusing<T>(call: impl FnOnce() -> T) -> Option<T> {
    EXPECTED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    EXPECTED.set(false);
    result.ok()
}

/// What a panic says.
fn text_of(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}
