// SPDX-License-Identifier: MIT OR Apache-2.0
//! Providers in user space: the program's own memory as a source of leases.
//!
//! A buffer pool, an object cache or a database has its bytes in memory already. As a [`Provider`]
//! it lends them as the kernel's files do, under the same contract
//! ([`iou_get_buf_info`](sys::iou_get_buf_info) in, [`iou_buf_desc`](sys::iou_buf_desc) out), and
//! is told, once, when nobody uses them any more: a page that was sent with `SEND_ZC` may be
//! written to again when the network has it.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::cell::Cell;
//! use std::rc::Rc;
//! use uring_getbuf::provider::{Buffer, Provider, Region, Wanted};
//! use uring_getbuf::{Errno, Ring};
//!
//! /// One page, of which leases can be had.
//! #[derive(Debug)]
//! struct Page {
//!     memory: Region,
//!     lent: Cell<u32>,
//! }
//!
//! impl Provider for Page {
//!     fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
//!         let begin = wanted.offset().min(4096) as usize;
//!         let end = begin + wanted.len().min(4096 - begin);
//!         if begin < end {
//!             wanted.add(&self.memory, begin..end)?;
//!             self.lent.set(self.lent.get() + 1);
//!         }
//!         Ok(end - begin)
//!     }
//!
//!     fn release(&self, _: Buffer<'_>) {
//!         self.lent.set(self.lent.get() - 1);
//!     }
//! }
//!
//! # if !uring_getbuf::Support::detect().engine(uring_getbuf::Engine::Copy).is_ok() { return Ok(()) }
//! let mut ring = Ring::builder().regions(1).build()?;
//! let page = Rc::new(Page { memory: Region::new(4096)?, lent: Cell::new(0) });
//! page.memory.write(0, b"Hello");
//! ring.register_region(&page.memory)?;
//! let sink = ring.attach(&tempfile()?)?;
//! # fn tempfile() -> std::io::Result<std::fs::File> { std::fs::File::create("/dev/null") }
//! let provider: Rc<dyn Provider> = page.clone();
//! let lease = ring.fetch_provided(&provider, 0, 5)?.expect("there are five bytes");
//! ring.write_all(&lease, &sink, 0)?;
//! drop(lease);
//! assert_eq!(page.lent.get(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What it costs
//!
//! | memory | a lease costs |
//! |---|---|
//! | in a region that is registered with the ring | no system call |
//! | elsewhere ([`Wanted::add_raw`]) | its registration, and later the end of that: two system calls for each piece |
//!
//! # When a buffer is released
//!
//! When its lease has been let go and the last request that uses it has had its last completion; in
//! the call that takes this completion, or that lets the lease go. Also if a request failed or was
//! cancelled, and if the answer to the fetch was an error that named memory all the same. The ring
//! that is dropped cancels its requests and releases what they used. If one of them cannot be
//! cancelled (see [`ring`](crate::ring)), or a lease is forgotten, the buffer is never released,
//! rather than released while it is used.
//!
//! # Many pieces
//!
//! A lease may be made of up to [`MAX_PIECES`] pieces. A request takes bytes from one of them: one
//! that begins in a piece and would go beyond its end takes only the rest of it, as a short write
//! does. [`Ring::write_all`](crate::Ring::write_all), [`send_all`](crate::Ring::send_all) and
//! [`copy_out`](crate::Ring::copy_out) go on with the next.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use uring_getbuf_sys as sys;

use crate::error::{Errno, Error, ErrorKind, Result};
use crate::memory::Memory;

/// Most pieces that a lease of a provider's memory has.
pub const MAX_PIECES: usize = 16;

/// A region can be registered if it is no larger (`io_uring_register(2)`).
const MAX_REGION: usize = 1 << 30;

type Pieces = [Cell<sys::bio_vec>; MAX_PIECES];

/// A source of leases in user space. See the [module](self).
///
/// Implementing it takes no `unsafe`: memory in a [`Region`] cannot go away. An answer that
/// contradicts itself is an error of the fetch ([`ErrorKind::Provider`]).
pub trait Provider {
    /// Says which memory holds the bytes that are [wanted](Wanted), and how many there are: fewer
    /// than are wanted is a success, none is the end.
    ///
    /// # Errors
    ///
    /// Any; the fetch fails with it. Memory that the answer names all the same is
    /// [released](Self::release). `EAGAIN` where it would have to wait and
    /// [must not](Wanted::nowait).
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno>;

    /// Takes a buffer back that nobody uses any more. It is called once for each answer that named
    /// memory, and must not panic, as it may be called where a lease is dropped.
    fn release(&self, buffer: Buffer<'_>);
}

/// What a provider is asked for, and its answer as it is made.
pub struct Wanted<'a> {
    info: &'a mut sys::iou_get_buf_info,
    desc: &'a mut sys::iou_buf_desc,
    pieces: &'a Pieces,
    /// Whose memory the pieces are, so that it stays.
    regions: &'a mut [Option<Region>; MAX_PIECES],
}

impl Wanted<'_> {
    /// Where in the source, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.info.off as u64
    }

    /// Most bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.info.len as usize
    }

    /// Never: at least one byte is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it must not wait for anything (`IOU_GET_BUF_F_NOWAIT`).
    #[must_use]
    pub fn nowait(&self) -> bool {
        self.info.flags & sys::IOU_GET_BUF_F_NOWAIT != 0
    }

    /// How many more pieces the answer can have.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_PIECES.saturating_sub(self.desc.nr_bvecs as usize)
    }

    /// Adds bytes of a region to the answer.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty or not in the region, `ENOBUFS` if there is no room.
    pub fn add(&mut self, region: &Region, range: Range<usize>) -> Result<(), Errno> {
        if range.start >= range.end || range.end > region.len() {
            return Err(Errno::INVAL);
        }
        let place = self.desc.nr_bvecs as usize;
        self.push(region.0.at(range.start), range.end - range.start)?;
        self.regions[place] = Some(region.clone());
        Ok(())
    }

    /// Adds any memory of the program to the answer.
    ///
    /// # Safety
    ///
    /// Until [`Provider::release`] has been called for this answer, these bytes must stay allocated,
    /// readable and initialised, nobody may write to them, and no exclusive reference to any of them
    /// may be used: leases of them are looked at and sent. It is never called if the lease is
    /// forgotten, or the ring ends with requests that cannot be cancelled.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are no bytes or `base` is null, `ENOBUFS` if there is no room.
    pub unsafe fn add_raw(&mut self, base: *const u8, len: usize) -> Result<(), Errno> {
        if base.is_null() || len == 0 {
            return Err(Errno::INVAL);
        }
        self.push(base.cast_mut(), len)
    }

    fn push(&mut self, base: *mut u8, len: usize) -> Result<(), Errno> {
        let bv_len = u32::try_from(len).map_err(|_| Errno::INVAL)?;
        let place = self.pieces.get(self.desc.nr_bvecs as usize).ok_or(Errno::NOBUFS)?;
        place.set(sys::bio_vec { bv_page: base.cast(), bv_len, bv_offset: 0 });
        self.desc.nr_bvecs += 1;
        Ok(())
    }

    /// Attaches a number of the provider's own, which [`Buffer::key`] gives back. Default 0.
    pub fn set_key(&mut self, key: usize) {
        self.desc.priv_ = ptr::without_provenance_mut(key);
    }

    /// The question as the header has it, for a provider in C. Its `desc` is the answer.
    ///
    /// Who writes through it promises what [`add_raw`](Self::add_raw) asks for of all memory that it
    /// names, and keeps the contract of `getbuf_uapi.h`.
    #[must_use]
    pub fn as_raw(&mut self) -> *mut sys::iou_get_buf_info {
        self.desc.bvec = bvec(self.pieces);
        self.info.desc = self.desc;
        self.info
    }
}

impl fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").field("info", &self.info).field("desc", &self.desc).finish()
    }
}

/// The array as C has it. Through cells it may be written to by whoever has its address.
fn bvec(pieces: &Pieces) -> *mut sys::bio_vec {
    pieces.as_ptr().cast::<sys::bio_vec>().cast_mut()
}

/// A buffer that comes back: what was answered, piece for piece.
pub struct Buffer<'a> {
    desc: &'a mut sys::iou_buf_desc,
    pieces: &'a Pieces,
}

impl Buffer<'_> {
    /// What [`Wanted::set_key`] was given.
    #[must_use]
    pub fn key(&self) -> usize {
        self.desc.priv_.addr()
    }

    /// The pieces: address and length in bytes.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (*mut u8, usize)> + '_ {
        self.pieces[..self.desc.nr_bvecs as usize].iter().map(|piece| memory(piece.get()))
    }

    /// The answer as the header has it, for a provider in C.
    #[must_use]
    pub fn as_raw(&mut self) -> *mut sys::iou_buf_desc {
        self.desc.bvec = bvec(self.pieces);
        self.desc
    }
}

impl fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("desc", &self.desc).finish_non_exhaustive()
    }
}

fn memory(piece: sys::bio_vec) -> (*mut u8, usize) {
    (piece.bv_page.cast::<u8>().wrapping_add(piece.bv_offset as usize), piece.bv_len as usize)
}

/// Memory that leases can be made of without a registration for each: it is registered with a ring
/// once. Cheap to clone; the memory goes with the last clone, of which the ring has one.
///
/// It is never seen as a slice, because the kernel may read from it at any time.
#[derive(Clone, Debug)]
pub struct Region(Rc<Memory>);

impl Region {
    /// Maps new memory, all zeroes.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for none or more than 1 GiB, which is the most that
    /// can be registered at once; [`MemoryLimit`](ErrorKind::MemoryLimit).
    pub fn new(bytes: usize) -> Result<Self> {
        if bytes == 0 || bytes > MAX_REGION {
            let what = format!("a region of {bytes} bytes: it has 1 to {MAX_REGION} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let memory = Memory::new(bytes).map_err(|error| {
            let what = format!("mapping a region of {bytes} bytes");
            Error::io(ErrorKind::MemoryLimit, &error, what)
        })?;
        Ok(Self(Rc::new(memory)))
    }

    /// Takes memory that the program has already.
    ///
    /// # Safety
    ///
    /// Until every clone of this is gone, with the rings that it is registered with, these bytes must
    /// stay allocated, readable, writable and initialised, no reference to any of them may be used,
    /// and no other thread may write to them: safe code [reads](Self::read) and
    /// [writes](Self::write) them through this, and looks at leases of them.
    #[must_use]
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(Rc::new(unsafe { Memory::borrowed(base, len) }))
    }

    /// Its size in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is hardly ever empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Where it begins.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.0.base()
    }

    /// Copies bytes into it. What is lent now shows them.
    ///
    /// # Panics
    ///
    /// If they are not all in the region.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    /// Copies bytes out of it.
    ///
    /// # Panics
    ///
    /// If they are not all in the region.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.read(offset, into);
    }

    /// Whether these bytes are its own.
    pub(crate) fn holds(&self, base: *const u8, len: usize) -> bool {
        self.0.holds(base, len)
    }
}

/// An answer that has been looked at: at least one piece, and no more bytes than they hold.
pub(crate) struct Answer {
    pub(crate) len: u32,
    count: usize,
    pieces: Pieces,
    desc: sys::iou_buf_desc,
    regions: [Option<Region>; MAX_PIECES],
}

impl Answer {
    /// Asks a provider. `None`: there is nothing.
    pub(crate) fn of(
        provider: &dyn Provider,
        offset: u64,
        len: u32,
        nowait: bool,
    ) -> Result<Option<Self>> {
        let mut answer = Self {
            len: 0,
            count: 0,
            pieces: Default::default(),
            desc: sys::iou_buf_desc { max_bvecs: MAX_PIECES as u32, ..Default::default() },
            regions: [const { None }; MAX_PIECES],
        };
        let Self { pieces, desc, regions, .. } = &mut answer;
        let flags = if nowait { sys::IOU_GET_BUF_F_NOWAIT } else { 0 };
        let mut info = sys::iou_get_buf_info {
            off: offset as i64,
            len: u64::from(len) as _,
            flags,
            desc: ptr::null_mut(),
        };
        let given = provider.get_buf(&mut Wanted { info: &mut info, desc, pieces, regions });
        let named = answer.desc.nr_bvecs as usize;
        // More than there was room for are not looked at.
        answer.count = named.min(MAX_PIECES);
        let there: u64 = answer.pieces().map(|(_, len)| len as u64).sum();
        let lie = match given {
            Err(_) => None,
            Ok(_) if named > MAX_PIECES => {
                Some(format!("{named} pieces, and there was room for {MAX_PIECES}"))
            }
            Ok(bytes) if bytes as u64 > u64::from(len) => {
                Some(format!("{bytes} bytes, and {len} were wanted"))
            }
            Ok(bytes) if bytes as u64 > there => {
                Some(format!("{bytes} bytes in pieces that hold {there}"))
            }
            Ok(_) if answer.pieces().any(|(base, len)| base.is_null() || len == 0) => {
                Some("a piece that is nothing".into())
            }
            Ok(_) => None,
        };
        let refused = match (given, lie) {
            (Err(errno), _) => {
                Error::os(ErrorKind::Source, errno, "asking a provider for a buffer")
            }
            (_, Some(lie)) => {
                Error::new(ErrorKind::Provider, format!("the answer of a provider: {lie}"))
            }
            (Ok(0), None) => {
                answer.release(provider);
                return Ok(None);
            }
            (Ok(bytes), None) => {
                answer.len = bytes as u32;
                return Ok(Some(answer));
            }
        };
        answer.release(provider);
        Err(refused)
    }

    /// Address and length of each piece, in bytes.
    pub(crate) fn pieces(&self) -> impl ExactSizeIterator<Item = (*mut u8, usize)> + '_ {
        self.pieces[..self.count].iter().map(|piece| memory(piece.get()))
    }

    /// Address and length of one of them.
    pub(crate) fn piece(&self, piece: usize) -> (*mut u8, usize) {
        memory(self.pieces[piece].get())
    }

    /// Copies bytes of a piece, from `skip` on; how many there were for so much room.
    pub(crate) fn copy(&self, piece: usize, skip: usize, into: &mut [u8]) -> usize {
        let (base, there) = self.piece(piece);
        let len = into.len().min(there - skip);
        let (at, into) = (base.wrapping_add(skip), &mut into[..len]);
        match self.regions[piece].as_ref().filter(|region| region.holds(at, len)) {
            Some(region) => region.read(at.addr() - region.base().addr(), into),
            // SAFETY: the piece is one that `Wanted::add_raw` was called for, or that was written through
            // `Wanted::as_raw`. Both have the caller promise that its bytes are readable and initialised
            // until the provider has them back, which this answer has not given, and that no exclusive
            // reference to them is used, so `into` is elsewhere.
            None => unsafe { at.copy_to_nonoverlapping(into.as_mut_ptr(), len) },
        }
        len
    }

    /// Gives the buffer back, if there is one.
    pub(crate) fn release(&mut self, provider: &dyn Provider) {
        if self.count > 0 {
            self.desc.nr_bvecs = self.count as u32;
            let Self { desc, pieces, .. } = self;
            provider.release(Buffer { desc, pieces });
        }
    }
}
