// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of a program: sources whose every byte is known, and sinks whose every byte can be
//! looked at.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use getbuf_tests::Folder;
use uring_getbuf::STREAM;
use uring_getbuf::ring::{Attached, Ring};

pub(crate) const SOURCES: usize = 5;
/// Their lengths: edges of pages and of blocks, and 0.
const LENGTHS: [u64; SOURCES] = [0, 1, 4096, 70_001, 1 << 20];
/// A file of sinks is begun anew when it has become so long.
const LONG: u64 = 64 << 20;

/// Bytes of a source. Made once: where a machine is emulated, that is dear.
fn bytes(source: usize, offset: u64, len: u32) -> &'static [u8] {
    static ALL: LazyLock<[Vec<u8>; SOURCES]> = LazyLock::new(|| {
        std::array::from_fn(|source| {
            (0..LENGTHS[source])
                .map(|offset| {
                    let mixed =
                        (offset ^ (source as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    (mixed >> 56) as u8
                })
                .collect()
        })
    });
    &ALL[source][offset as usize..][..len as usize]
}

pub(crate) struct Source {
    file: File,
    pub(crate) len: u64,
    pub(crate) attached: Option<Attached>,
}

/// What becomes of bytes that are written.
pub(crate) enum Kind {
    /// They can be read again.
    File(File),
    /// They come out at the other end.
    Pipe(OwnedFd, io::PipeReader),
    Socket(OwnedFd, UnixStream),
    /// They are taken, and nobody knows where.
    Null(File),
    /// `ENOSPC`.
    Full(File),
    /// `EBADF`: it is open for reading only.
    Closed(File),
}

pub(crate) struct Sink {
    pub(crate) kind: Kind,
    /// Where the next bytes go in a file: no two requests share a byte.
    next: u64,
    /// Requests in flight.
    pub(crate) busy: u32,
    pub(crate) attached: Option<Attached>,
}

impl Sink {
    fn new(kind: Kind) -> Self {
        Self { kind, next: 0, busy: 0, attached: None }
    }

    /// One request at a time: what is behind another has no place of its own.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Pipe(..) | Kind::Socket(..))
    }

    pub(crate) fn is_socket(&self) -> bool {
        matches!(self.kind, Kind::Socket(..))
    }

    /// Where to write so many bytes.
    pub(crate) fn place(&mut self, len: u32) -> io::Result<u64> {
        match &self.kind {
            Kind::File(file) => {
                if self.next > LONG && self.busy == 0 {
                    file.set_len(0)?;
                    self.next = 0;
                }
                let place = self.next;
                self.next += u64::from(len) + 1;
                Ok(place)
            }
            Kind::Null(_) | Kind::Full(_) | Kind::Closed(_) => Ok(0),
            Kind::Pipe(..) | Kind::Socket(..) => Ok(STREAM),
        }
    }

    /// Whether every request fails here.
    pub(crate) fn fails(&self) -> bool {
        matches!(self.kind, Kind::Full(_) | Kind::Closed(_))
    }

    /// Whether this is the error that it fails with.
    pub(crate) fn fails_with(&self, errno: i32) -> bool {
        match self.kind {
            // This device only knows write(2), which takes no memory of the kernel.
            Kind::Full(_) => matches!(errno, libc::ENOSPC | libc::EFAULT),
            Kind::Closed(_) => errno == libc::EBADF,
            _ => false,
        }
    }

    /// That bytes of a source are what has arrived, and nothing behind them.
    pub(crate) fn check(
        &mut self,
        place: u64,
        source: usize,
        offset: u64,
        len: u32,
    ) -> Result<(), String> {
        let want = bytes(source, offset, len);
        let mut got = vec![0; len as usize];
        let read = match &mut self.kind {
            Kind::File(file) => file.read_exact_at(&mut got, place),
            Kind::Pipe(_, from) => from.read_exact(&mut got),
            Kind::Socket(_, from) => from.read_exact(&mut got),
            Kind::Null(_) => return Ok(()),
            Kind::Full(_) | Kind::Closed(_) => return Err("a sink took what it cannot".into()),
        };
        read.map_err(|error| format!("{len} bytes of a sink: {error}"))?;
        if got == want {
            return Ok(());
        }
        let first = got.iter().zip(want).position(|(got, want)| got != want);
        Err(format!("source {source} from {offset}, {len} bytes: wrong from byte {first:?}"))
    }

    /// What a stream holds that nobody asked for: part of a request that was cancelled.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let mut dropped = [0; 65_536];
        match &mut self.kind {
            Kind::Pipe(_, from) => {
                while rustix::io::ioctl_fionread(&*from)? > 0 {
                    let _ = from.read(&mut dropped)?;
                }
            }
            Kind::Socket(_, from) => {
                while rustix::io::ioctl_fionread(&*from)? > 0 {
                    let _ = from.read(&mut dropped)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) sources: Vec<Source>,
    pub(crate) sinks: Vec<Sink>,
    folder: Folder,
}

impl World {
    pub(crate) fn new() -> io::Result<Self> {
        let folder = Folder::new()?;
        let mut sources = Vec::new();
        for (number, len) in LENGTHS.into_iter().enumerate() {
            let path = folder.path(&format!("source{number}"));
            File::create(&path)?.write_all(bytes(number, 0, len as u32))?;
            sources.push(Source { file: File::open(path)?, len, attached: None });
        }
        let file = |name: &str| {
            OpenOptions::new().read(true).write(true).create_new(true).open(folder.path(name))
        };
        let device = |path| OpenOptions::new().write(true).open(path);
        let (from, to) = pipe()?;
        let (near, far) = UnixStream::pair()?;
        let sinks = [
            Kind::File(file("sink0")?),
            Kind::File(file("sink1")?),
            Kind::Pipe(to.into(), from),
            Kind::Socket(near.into(), far),
            Kind::Null(device("/dev/null")?),
            Kind::Full(device("/dev/full")?),
            Kind::Closed(File::open(folder.path("source3"))?),
        ];
        Ok(Self { sources, sinks: sinks.into_iter().map(Sink::new).collect(), folder })
    }

    pub(crate) fn attach_source(
        &mut self,
        ring: &mut Ring,
        number: usize,
    ) -> uring_getbuf::Result<()> {
        let source = &mut self.sources[number];
        if source.attached.is_none() {
            source.attached = Some(ring.attach(&source.file)?);
        }
        Ok(())
    }

    pub(crate) fn attach_sink(
        &mut self,
        ring: &mut Ring,
        number: usize,
    ) -> uring_getbuf::Result<()> {
        let sink = &mut self.sinks[number];
        if sink.attached.is_none() {
            sink.attached = Some(match &sink.kind {
                Kind::File(file) | Kind::Null(file) | Kind::Full(file) | Kind::Closed(file) => {
                    ring.attach(file)?
                }
                Kind::Pipe(to, _) | Kind::Socket(to, _) => ring.attach(to)?,
            });
        }
        Ok(())
    }

    /// A copy of a source, for a relay to make and to be compared.
    pub(crate) fn relay_ends(&self, number: usize) -> io::Result<(&File, File)> {
        let path = self.folder.path("relayed");
        let to =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok((&self.sources[number].file, to))
    }

    /// That a file has the first bytes of a source, and nothing else.
    pub(crate) fn check_file(&self, file: &File, number: usize, len: u32) -> Result<(), String> {
        let mut got = vec![0; len as usize];
        file.read_exact_at(&mut got, 0).map_err(|error| format!("a relay: {error}"))?;
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        if got == bytes(number, 0, len) && size == u64::from(len) {
            return Ok(());
        }
        Err(format!("a relay of {len} bytes of source {number} went wrong"))
    }

    /// That nothing has changed a source.
    pub(crate) fn check_sources(&self) -> Result<(), String> {
        for (number, source) in self.sources.iter().enumerate() {
            let mut got = vec![0; source.len as usize];
            let read = source.file.read_exact_at(&mut got, 0);
            read.map_err(|error| format!("source {number}: {error}"))?;
            if got != bytes(number, 0, source.len as u32) {
                return Err(format!("source {number} has changed"));
            }
        }
        Ok(())
    }
}
