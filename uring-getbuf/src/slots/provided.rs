// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots that hold a provider's memory: which pieces, where they are registered, and their return.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use uring_getbuf_sys::bio_vec;

use crate::consume::Piece;
use crate::error::{Error, ErrorKind, Result};
use crate::provider::{Answer, MAX_PIECES, Provider, Region};

/// One slot's buffer.
struct Place {
    provider: Rc<dyn Provider>,
    answer: Answer,
    /// Where each piece is registered,
    entries: [u16; MAX_PIECES],
    /// and which of these entries are for this buffer only, as bits.
    own: u32,
}

/// What slots know of providers.
pub(super) struct Provided {
    places: Box<[RefCell<Option<Place>>]>,
    regions: RefCell<Vec<(Region, u16)>>,
    /// Entries of the ring's table that hold nothing.
    spare: RefCell<Vec<u16>>,
    /// Entries that are still to be emptied.
    vacated: RefCell<Vec<u16>>,
    any_vacated: Cell<bool>,
}

impl Provided {
    /// `first`, `count`: the part of the ring's table that is for regions.
    pub(super) fn new(slots: u16, first: u16, count: u16) -> Self {
        Self {
            places: (0..slots).map(|_| RefCell::new(None)).collect(),
            regions: RefCell::new(Vec::with_capacity(count.into())),
            spare: RefCell::new((first..first + count).rev().collect()),
            vacated: RefCell::new(Vec::with_capacity(count.into())),
            any_vacated: Cell::new(false),
        }
    }

    pub(super) fn take_entry(&self) -> Result<u16> {
        self.spare.borrow_mut().pop().ok_or_else(|| {
            let what = "every place for a provider's memory is taken: build the ring with more \
                        regions, or let leases go";
            Error::new(ErrorKind::NoRegion, what)
        })
    }

    pub(super) fn return_entry(&self, entry: u16) {
        self.spare.borrow_mut().push(entry);
    }

    pub(super) fn add_region(&self, region: &Region, entry: u16) {
        self.regions.borrow_mut().push((region.clone(), entry));
    }

    /// Puts an answer into a slot's place, after it was seen to that each piece is registered.
    /// `register` is called with an entry of the ring's table and the memory that is to be there.
    pub(super) fn resolve(
        &self,
        provider: &Rc<dyn Provider>,
        answer: Answer,
        mut register: impl FnMut(u16, *mut u8, usize) -> io::Result<()>,
    ) -> Result<Resolved> {
        let mut place =
            Place { provider: Rc::clone(provider), answer, entries: [0; MAX_PIECES], own: 0 };
        let mut failed = None;
        for index in 0..place.answer.count {
            let (base, len) = memory(&place.answer.pieces[index]);
            let regions = self.regions.borrow();
            let known = regions.iter().find(|(region, _)| region.holds(base, len));
            let known = known.map(|(_, entry)| *entry);
            drop(regions);
            let entry = match known {
                Some(entry) => Ok(entry),
                None => self.take_entry().and_then(|entry| match register(entry, base, len) {
                    Ok(()) => {
                        place.own |= 1 << index;
                        Ok(entry)
                    }
                    Err(error) => {
                        self.return_entry(entry);
                        Err(refused(&error, len))
                    }
                }),
            };
            match entry {
                Ok(entry) => place.entries[index] = entry,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        match failed {
            None => Ok(Resolved(place)),
            Some(error) => {
                self.give_back(place);
                Err(error)
            }
        }
    }

    pub(super) fn put(&self, slot: u16, resolved: Resolved) {
        *self.places[usize::from(slot)].borrow_mut() = Some(resolved.0);
    }

    pub(super) fn refuse(&self, resolved: Resolved) {
        self.give_back(resolved.0);
    }

    /// Nobody uses a slot's buffer any more.
    pub(super) fn release(&self, slot: u16) {
        let place = self.places[usize::from(slot)].borrow_mut().take();
        if let Some(place) = place {
            self.give_back(place);
        }
    }

    fn give_back(&self, mut place: Place) {
        for (index, entry) in place.entries.iter().enumerate().take(place.answer.count) {
            if place.own & 1 << index != 0 {
                self.vacate(*entry);
            }
        }
        place.answer.release(&*place.provider);
    }

    /// An entry is to be emptied.
    pub(super) fn vacate(&self, entry: u16) {
        self.vacated.borrow_mut().push(entry);
        self.any_vacated.set(true);
    }

    #[inline]
    pub(super) fn has_vacated(&self) -> bool {
        self.any_vacated.get()
    }

    pub(super) fn next_vacated(&self) -> Option<u16> {
        let mut vacated = self.vacated.borrow_mut();
        let entry = vacated.pop();
        self.any_vacated.set(!vacated.is_empty());
        entry
    }

    /// Bytes of a slot, as far as they are in one piece.
    pub(super) fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        let place = self.places[usize::from(slot)].borrow();
        let mut start = start as usize;
        let place = place.as_ref().expect("a lease of a provider has a buffer");
        for (piece, entry) in place.answer.named().zip(place.entries) {
            let (base, there) = memory(piece);
            if start < there {
                let len = len.min((there - start) as u32);
                return Piece { addr: base.wrapping_add(start) as u64, len, index: entry };
            }
            start -= there;
        }
        unreachable!("the pieces hold what the lease has")
    }
}

/// A buffer that is ready to be a slot's.
pub(super) struct Resolved(Place);

impl Resolved {
    pub(super) fn len(&self) -> u32 {
        self.0.answer.len
    }
}

fn memory(piece: &bio_vec) -> (*mut u8, usize) {
    (piece.bv_page.cast::<u8>().wrapping_add(piece.bv_offset as usize), piece.bv_len as usize)
}

/// What it means that memory could not be registered.
#[cold]
pub(super) fn refused(error: &io::Error, len: usize) -> Error {
    let what = format!("registering {len} bytes of a provider's memory");
    if error.raw_os_error() == Some(libc::ENOMEM) {
        let what = format!("{what} (RLIMIT_MEMLOCK bounds how much can be pinned)");
        return Error::io(ErrorKind::MemoryLimit, error, what);
    }
    Error::io(ErrorKind::Ring, error, what)
}
