// SPDX-License-Identifier: MIT OR Apache-2.0
//! The objects that C has, so that freeing one twice is an error and not a catastrophe.

use std::mem;
use std::sync::{Mutex, PoisonError};

use crate::errors::Outcome;

/// Addresses of objects of one type.
pub(crate) struct Live(Mutex<Vec<usize>>);

impl Live {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Hands an object to C.
    pub(crate) fn give<T>(&self, object: T) -> *mut T {
        let object = Box::into_raw(Box::new(object));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(object as usize);
        object
    }

    /// Takes it back, if it is one that was given out.
    pub(crate) fn take<T>(&self, object: *mut T) -> Outcome<Box<T>> {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = live.iter().position(|known| *known == object as usize);
        live.swap_remove(place.ok_or(libc::EINVAL)?);
        if live.is_empty() {
            // Nothing is left behind for a leak checker to find.
            drop(mem::take(&mut *live));
        }
        // SAFETY: it is in the list, so `give` made it from a box, of the type that each list has;
        // and not in the list any more, so this happens once.
        Ok(unsafe { Box::from_raw(object) })
    }
}
