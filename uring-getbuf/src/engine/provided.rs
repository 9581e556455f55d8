// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory of providers: which pieces a slot has, where they are registered, and their return.
//!
//! It is no engine of a ring. A provider is asked directly, and its lease is ready at once.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;

use super::{Emptied, Ending, Fetch, Look, Origin, Room, Traits};
use crate::error::{Error, ErrorKind, Result};
use crate::provider::{Answer, MAX_PIECES, Provider, Region};
use crate::request::{Piece, Sqe};

/// One slot's buffer.
pub(crate) struct Lent {
    provider: Rc<dyn Provider>,
    answer: Answer,
    /// Where each piece is registered,
    entries: [u16; MAX_PIECES],
    /// and which of these entries are for this buffer only, as bits.
    own: u32,
}

impl Lent {
    pub(crate) fn len(&self) -> u32 {
        self.answer.len
    }
}

/// What slots know of providers.
pub(crate) struct Provided {
    slots: Box<[RefCell<Option<Lent>>]>,
    regions: RefCell<Vec<(Region, u16)>>,
    /// Entries of the ring's table that hold nothing,
    spare: RefCell<Vec<u16>>,
    /// and those that are still to be emptied.
    vacated: RefCell<Vec<u16>>,
}

impl Provided {
    /// `first`, `count`: the part of the ring's table that is for providers' memory.
    pub(crate) fn new(slots: u16, first: u16, count: u16) -> Self {
        Self {
            slots: (0..slots).map(|_| RefCell::new(None)).collect(),
            regions: RefCell::new(Vec::with_capacity(count.into())),
            spare: RefCell::new((first..first + count).rev().collect()),
            vacated: RefCell::new(Vec::with_capacity(count.into())),
        }
    }

    /// Registers memory under an entry of the ring's table that holds nothing.
    fn register(
        &self,
        (base, len): (*mut u8, usize),
        register: &mut impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<u16> {
        let entry = self.spare.borrow_mut().pop().ok_or_else(|| {
            let what = "every place for a provider's memory is taken: build the ring with more \
                        regions, or let leases go";
            Error::new(ErrorKind::NoRegion, what)
        })?;
        register(entry, base, len).map(|()| entry).map_err(|error| {
            self.emptied(entry);
            refused(&error, len)
        })
    }

    /// Registers a region, whose memory costs leases no registration from then on.
    pub(crate) fn add_region(
        &self,
        region: &Region,
        mut register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<()> {
        let entry = self.register((region.base(), region.len()), &mut register)?;
        self.regions.borrow_mut().push((region.clone(), entry));
        Ok(())
    }

    /// Asks a provider, and sees to it that each piece of its answer is registered. `None`: it has
    /// nothing there.
    pub(crate) fn ask(
        &self,
        provider: &Rc<dyn Provider>,
        (offset, len): (u64, u32),
        nowait: bool,
        mut register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Option<Lent>> {
        let Some(answer) = Answer::of(&**provider, offset, len, nowait)? else { return Ok(None) };
        let mut lent =
            Lent { provider: Rc::clone(provider), answer, entries: [0; MAX_PIECES], own: 0 };
        let count = lent.answer.pieces().len();
        for index in 0..count {
            let memory = lent.answer.piece(index);
            let known = |(region, entry): &(Region, u16)| {
                region.holds(memory.0, memory.1).then_some(*entry)
            };
            let known = self.regions.borrow().iter().find_map(known);
            match known.map_or_else(|| self.register(memory, &mut register), Ok) {
                Ok(entry) => lent.entries[index] = entry,
                Err(error) => {
                    self.give_back(lent);
                    return Err(error);
                }
            }
            lent.own |= u32::from(known.is_none()) << index;
        }
        Ok(Some(lent))
    }

    /// Gives a buffer to a slot.
    pub(crate) fn put(&self, slot: u16, lent: Lent) {
        *self.slots[usize::from(slot)].borrow_mut() = Some(lent);
    }

    /// Gives the buffer of a slot back, if it has one. The provider is told, and that last: it may
    /// let leases go.
    pub(crate) fn put_back(&self, slot: u16) {
        let lent = self.slots[usize::from(slot)].borrow_mut().take();
        if let Some(lent) = lent {
            self.give_back(lent);
        }
    }

    /// Gives a buffer back that no slot has.
    pub(crate) fn give_back(&self, mut lent: Lent) {
        for (index, entry) in lent.entries.iter().enumerate() {
            if lent.own & 1 << index != 0 {
                self.vacate(*entry);
            }
        }
        lent.answer.release(&*lent.provider);
    }

    /// An entry is to be emptied.
    pub(crate) fn vacate(&self, entry: u16) {
        self.vacated.borrow_mut().push(entry);
    }

    /// An entry holds nothing any more.
    pub(crate) fn emptied(&self, entry: u16) {
        self.spare.borrow_mut().push(entry);
    }

    pub(crate) fn has_vacated(&self) -> bool {
        !self.vacated.borrow().is_empty()
    }

    pub(crate) fn next_vacated(&self) -> Option<u16> {
        self.vacated.borrow_mut().pop()
    }

    /// The piece in which a byte of a slot is, and how far it is from its start there.
    fn with<T>(&self, slot: u16, start: u32, with: impl FnOnce(&Lent, usize, usize) -> T) -> T {
        let lent = self.slots[usize::from(slot)].borrow();
        let lent = lent.as_ref().expect("a lease of a provider has a buffer");
        let mut skip = start as usize;
        for (piece, (_, len)) in lent.answer.pieces().enumerate() {
            if skip < len {
                return with(lent, piece, skip);
            }
            skip -= len;
        }
        unreachable!("the pieces hold what the lease has")
    }
}

impl Room for Rc<Provided> {
    fn origin(&self) -> Origin {
        Origin::Provided
    }

    fn traits(&self) -> Traits {
        Traits {
            lent: false,
            emptied: Emptied::WhenUnused,
            ending: Ending::Left,
            installs_empty: false,
        }
    }

    fn serves(&self, _: &Fetch) -> bool {
        false
    }

    fn fetch(&self, _: u16, _: &Fetch) -> Sqe {
        Sqe::default()
    }

    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        self.with(slot, start, |lent, piece, skip| {
            let (base, there) = lent.answer.piece(piece);
            Piece {
                addr: base.wrapping_add(skip) as u64,
                len: len.min(u32::try_from(there - skip).unwrap_or(u32::MAX)),
                index: lent.entries[piece],
            }
        })
    }

    fn look(&self, slot: u16, start: u32, into: &mut [u8]) -> Look {
        self.with(slot, start, |lent, piece, skip| {
            Look::Copied(lent.answer.copy(piece, skip, into))
        })
    }
}

impl fmt::Debug for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.borrow().len();
        f.debug_struct("Provided").field("regions", &regions).finish_non_exhaustive()
    }
}

/// What it means that memory could not be registered.
#[cold]
fn refused(error: &io::Error, len: usize) -> Error {
    let what = format!("registering {len} bytes of a provider's memory");
    if error.raw_os_error() == Some(libc::ENOMEM) {
        let what = format!("{what} (RLIMIT_MEMLOCK bounds how much can be pinned)");
        return Error::io(ErrorKind::MemoryLimit, error, what);
    }
    Error::io(ErrorKind::Ring, error, what)
}
