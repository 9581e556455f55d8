// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attached files: the places of the ring's table of registered files, and who uses them.
//!
//! A place is given to another file only when no request that names it is left, because a linked
//! request looks its file up when it runs, long after it was submitted.
//!
//! Waits are counted while they run. Fetches, chains and uses are not, which would cost every one
//! of them something: the slots have it [noted](Names) which files they name, and are
//! asked when a file is detached. Only those that still name it then are counted.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use io_uring::types::Fixed;

use crate::engine::{Lent, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::opcode::Target;

const NIL: u16 = u16::MAX;

#[derive(Debug)]
struct Place {
    /// Next in the list of free places, or of those to be emptied.
    next: Cell<u16>,
    /// Who names it: the [`Attached`], each wait in flight, and, once these are gone, each fetch,
    /// chain and use that is [left](Self::left).
    names: Cell<u32>,
    /// Detached, and named by fetches, chains or uses that have not ended.
    left: Cell<bool>,
    /// The place of the device's descriptor that is bound to this file, if there is one.
    bound: Cell<u16>,
}

/// The places that a fetch, a chain or a use names: the note in its slot, or its token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    source: u16,
    sink: u16,
}

impl Names {
    /// A fetch or a use.
    #[inline]
    pub(super) const fn one(place: u16) -> Self {
        Self { source: place, sink: NIL }
    }

    #[inline]
    pub(super) const fn chain(source: u16, sink: u16) -> Self {
        Self { source, sink }
    }

    /// That of one place is its number.
    #[inline]
    pub(super) const fn note(self) -> u32 {
        (!self.sink as u32) << 16 | self.source as u32
    }

    pub(super) const fn of(note: u32) -> Self {
        Self { source: note as u16, sink: !(note >> 16) as u16 }
    }

    /// How often it names a place.
    pub(super) const fn count(self, place: u16) -> u32 {
        (self.source == place) as u32 + (self.sink == place) as u32
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Files {
    places: Box<[Place]>,
    free: Cell<u16>,
    /// Detached, but still registered; fetches, chains and uses may name them.
    vacant: Cell<u16>,
}

impl Files {
    pub(super) fn new(count: u16) -> Rc<Self> {
        let place = |next| Place {
            next: Cell::new(if next < count { next } else { NIL }),
            names: Cell::new(0),
            left: Cell::new(false),
            bound: Cell::new(NIL),
        };
        Rc::new(Self {
            places: (1..=count).map(place).collect(),
            free: Cell::new(if count == 0 { NIL } else { 0 }),
            vacant: Cell::new(NIL),
        })
    }

    #[inline]
    fn place(&self, index: u16) -> &Place {
        &self.places[usize::from(index)]
    }

    fn pop(&self, list: &Cell<u16>) -> Option<u16> {
        let index = list.get();
        (index != NIL).then(|| {
            list.set(self.place(index).next.get());
            index
        })
    }

    fn push(&self, list: &Cell<u16>, index: u16) {
        self.place(index).next.set(list.replace(index));
    }

    /// Finds a place. The caller registers a file there, or gives the place back.
    pub(super) fn take(self: &Rc<Self>) -> Result<Attached> {
        let index = self.pop(&self.free).ok_or_else(|| {
            let count = self.places.len();
            let what = format!(
                "all {count} places for attached files are taken: detach one, or build the ring \
                 with more"
            );
            Error::new(ErrorKind::NoFile, what)
        })?;
        self.begin(index);
        Ok(Attached { files: Rc::clone(self), index, lent: Lent::Itself })
    }

    /// A place whose file is to be unregistered now. It counts as free from here on. `names` says
    /// how often fetches, chains and uses that have not ended name a place.
    pub(super) fn next_vacant(&self, names: impl Fn(u16) -> u32) -> Option<u16> {
        loop {
            let index = self.pop(&self.vacant)?;
            let place = self.place(index);
            place.names.set(names(index));
            if place.names.get() == 0 {
                self.push(&self.free, index);
                match place.bound.replace(NIL) {
                    NIL => {}
                    bound => self.done(bound),
                }
                return Some(index);
            }
            place.left.set(true);
        }
    }

    /// A fetch, a chain or a use that names these has ended.
    pub(super) fn ended(&self, names: Names) {
        for index in [names.source, names.sink] {
            if index != NIL && self.place(index).left.get() {
                self.done(index);
            }
        }
    }

    #[inline]
    pub(super) fn any_vacant(&self) -> bool {
        self.vacant.get() != NIL
    }

    /// A request that names the place is on its way.
    pub(super) fn begin(&self, index: u16) {
        let names = &self.place(index).names;
        names.set(names.get() + 1);
    }

    /// It has completed.
    pub(super) fn done(&self, index: u16) {
        let names = &self.place(index).names;
        names.set(names.get() - 1);
        if names.get() == 0 {
            self.vacate(index);
        }
    }
}

impl Files {
    #[cold]
    fn vacate(&self, index: u16) {
        self.place(index).left.set(false);
        self.push(&self.vacant, index);
    }
}

/// A file that is attached to a ring. Dropping it detaches the file with the next submission after
/// its last request has completed; the kernel holds a reference of its own until then, so the
/// program may close its descriptor at any time.
#[must_use = "dropping it detaches the file"]
pub struct Attached {
    files: Rc<Files>,
    index: u16,
    /// As what it is lent: under the name that the module knows, if it was bound.
    lent: Lent,
}

impl Attached {
    /// The file's index in the ring's table of registered files.
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from(self.index)
    }

    /// The place, if it is one of this table's.
    #[inline(always)]
    pub(super) fn place_in(&self, files: &Rc<Files>) -> Result<u16> {
        if Rc::ptr_eq(&self.files, files) { Ok(self.index) } else { Err(elsewhere()) }
    }
}

impl Attached {
    /// The file as a sink.
    #[inline(always)]
    pub(super) fn target(&self) -> Target {
        Fixed(u32::from(self.index)).into()
    }

    /// The file as a source.
    #[inline(always)]
    pub(crate) fn source(&self) -> Source {
        self.source_in(self.index)
    }

    /// The same for who has found out in which place it is.
    #[inline(always)]
    pub(super) fn source_in(&self, place: u16) -> Source {
        Source::new(Fixed(u32::from(place)).into(), self.lent)
    }

    /// The file as a source that is read into the pool.
    pub(crate) fn copied(&self) -> Source {
        Source::copied(self.target())
    }

    /// Says that the device's descriptor in another place is bound to this file. It goes with it.
    pub(super) fn set_bound(&mut self, bound: Attached) {
        // Named by this place from now on, instead of by `bound`.
        self.files.begin(bound.index);
        self.files.place(self.index).bound.set(bound.index);
        self.lent = Lent::Bound(bound.target());
    }
}

impl From<&Attached> for Target {
    #[inline(always)]
    fn from(file: &Attached) -> Self {
        file.target()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.files.done(self.index);
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attached").field(&self.index).finish()
    }
}

#[cold]
fn elsewhere() -> Error {
    Error::new(ErrorKind::WrongRing, "the file is attached to another ring")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_not_reused_while_a_request_names_it() {
        let files = Files::new(1);
        let file = files.take().unwrap();
        files.begin(0);
        drop(file);
        assert!(!files.any_vacant());
        assert_eq!(files.take().unwrap_err().kind(), ErrorKind::NoFile);
        files.done(0);
        assert_eq!(files.next_vacant(|_| 0), Some(0));
        assert_eq!(files.next_vacant(|_| 0), None);
        assert_eq!(files.take().unwrap().index(), 0);
    }

    #[test]
    fn nor_while_a_fetch_a_chain_or_a_use_does() {
        let files = Files::new(2);
        let (source, sink) = (files.take().unwrap(), files.take().unwrap());
        let running = [Names::chain(0, 1), Names::one(0), Names::chain(1, 1)];
        let names = |place| running.iter().map(|names| names.count(place)).sum();
        drop(source);
        assert_eq!(files.next_vacant(names), None);
        drop(sink);
        assert_eq!(files.next_vacant(names), None);
        files.ended(Names::of(running[0].note()));
        files.ended(running[2]);
        assert_eq!(files.next_vacant(|place| running[1].count(place)), Some(1));
        files.ended(running[1]);
        assert_eq!(files.next_vacant(|_| 0), Some(0));
        assert_eq!(files.next_vacant(|_| 0), None);
    }

    #[test]
    fn a_bound_place_goes_with_its_file() {
        let files = Files::new(2);
        let mut file = files.take().unwrap();
        file.set_bound(files.take().unwrap());
        assert!(!files.any_vacant());
        assert_eq!(file.source(), Source::bound(Fixed(0), Fixed(1)));
        drop(file);
        let mut vacant = [files.next_vacant(|_| 0), files.next_vacant(|_| 0)];
        vacant.sort();
        assert_eq!(vacant, [Some(0), Some(1)]);
        let file = files.take().unwrap();
        assert_eq!(file.source(), file.target().into(), "the next file is not bound");
    }
}
