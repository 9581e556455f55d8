// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attached files: the places of the ring's table of registered files, and who uses them.
//!
//! A place is given to another file only when no request that names it is left, because a linked
//! request looks its file up when it runs, long after it was submitted. So every request that names a
//! place is counted until its last completion.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use io_uring::types::Fixed;

use crate::engine::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::request::Target;

const NIL: u16 = u16::MAX;

#[derive(Debug)]
struct Place {
    /// Next in the list of free places, or of those to be emptied.
    next: Cell<u16>,
    /// Who names it: the [`Attached`], and each request in flight.
    names: Cell<u32>,
    /// The place of the device's descriptor that is bound to this file, if there is one.
    bound: Cell<u16>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Files {
    places: Box<[Place]>,
    free: Cell<u16>,
    /// Those that nothing names any more, but whose file is still registered.
    vacant: Cell<u16>,
}

impl Files {
    pub(super) fn new(count: u16) -> Rc<Self> {
        let place = |next| Place {
            next: Cell::new(if next < count { next } else { NIL }),
            names: Cell::new(0),
            bound: Cell::new(NIL),
        };
        Rc::new(Self {
            places: (1..=count).map(place).collect(),
            free: Cell::new(if count == 0 { NIL } else { 0 }),
            vacant: Cell::new(NIL),
        })
    }

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
        Ok(Attached { files: Rc::clone(self), index })
    }

    /// A place whose file is to be unregistered now. It counts as free from here on.
    pub(super) fn next_vacant(&self) -> Option<u16> {
        let index = self.pop(&self.vacant)?;
        self.push(&self.free, index);
        match self.place(index).bound.replace(NIL) {
            NIL => {}
            bound => self.done(bound),
        }
        Some(index)
    }

    /// A request that names the place is on its way.
    pub(super) fn begin(&self, index: u16) {
        let names = &self.place(index).names;
        names.set(names.get() + 1);
    }

    /// It has had its last completion.
    pub(super) fn done(&self, index: u16) {
        let names = &self.place(index).names;
        names.set(names.get() - 1);
        if names.get() == 0 {
            self.push(&self.vacant, index);
        }
    }
}

/// Tells one ring from another.
#[derive(Debug)]
pub(crate) struct RingId(Rc<Files>);

impl RingId {
    pub(super) fn of(files: &Rc<Files>) -> Self {
        Self(Rc::clone(files))
    }

    pub(super) fn is_of(&self, files: &Rc<Files>) -> bool {
        Rc::ptr_eq(&self.0, files)
    }
}

/// A file that is attached to a ring. Dropping it detaches the file with the next submission after
/// its last request has completed; the kernel holds a reference of its own until then, so the
/// program may close its descriptor at any time.
#[must_use = "dropping it detaches the file"]
pub struct Attached {
    files: Rc<Files>,
    index: u16,
}

impl Attached {
    /// The file's index in the ring's table of registered files.
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from(self.index)
    }

    /// The place, if it is one of this table's.
    pub(super) fn place_in(&self, files: &Rc<Files>) -> Result<u16> {
        if Rc::ptr_eq(&self.files, files) {
            return Ok(self.index);
        }
        Err(Error::new(ErrorKind::WrongRing, "the file is attached to another ring"))
    }

    /// The file as a sink.
    fn target(&self) -> Target {
        Fixed(self.index()).into()
    }

    /// The file as a source, under the name to which it is bound, if it is.
    pub(crate) fn source(&self) -> Source {
        match self.files.place(self.index).bound.get() {
            NIL => self.target().into(),
            bound => Source::bound(self.target(), Fixed(bound.into())),
        }
    }

    /// The file as a source that is read into the pool.
    pub(crate) fn copied(&self) -> Source {
        Source::copied(self.target())
    }

    /// Says that the device's descriptor in another place is bound to this file. It goes with it.
    pub(super) fn set_bound(&mut self, bound: &Attached) {
        // Named by this place from now on, as well as by `bound`.
        self.files.begin(bound.index);
        self.files.place(self.index).bound.set(bound.index);
    }
}

impl From<&Attached> for Target {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_not_reused_while_a_request_names_it() {
        let files = Files::new(1);
        let file = files.take().unwrap();
        files.begin(0);
        drop(file);
        assert_eq!(files.next_vacant(), None);
        assert_eq!(files.take().unwrap_err().kind(), ErrorKind::NoFile);
        files.done(0);
        assert_eq!(files.next_vacant(), Some(0));
        assert_eq!(files.next_vacant(), None);
        assert_eq!(files.take().unwrap().index(), 0);
    }

    #[test]
    fn a_bound_place_goes_with_its_file() {
        let files = Files::new(2);
        let mut file = files.take().unwrap();
        file.set_bound(&files.take().unwrap());
        assert_eq!(files.next_vacant(), None);
        assert_eq!(file.source(), Source::bound(Fixed(0), Fixed(1)));
        drop(file);
        let mut vacant = [files.next_vacant(), files.next_vacant()];
        vacant.sort();
        assert_eq!(vacant, [Some(0), Some(1)]);
        let file = files.take().unwrap();
        assert_eq!(file.source(), file.target().into(), "the next file is not bound");
    }
}
