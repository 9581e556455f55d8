// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that the kernel reads from and writes into: pools and regions.
//!
//! No reference into such memory is ever made, because the kernel may change it at any time. It is
//! reached by copies alone, which are checked against its size.

use std::ptr::{self, NonNull};
use std::time::Duration;
use std::{io, thread};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A range of memory that stays where it is until this is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
    /// It was mapped by `new`, and is unmapped with this.
    owned: bool,
}

impl Memory {
    /// Maps `len` bytes of zeroes, more than none.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping at an address that the kernel chooses touches nothing that
        // exists.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, flags) }?;
        let base = NonNull::new(base.cast()).expect("mmap does not return null without MAP_FIXED");
        Ok(Self { base, len, owned: true })
    }

    /// Memory that somebody else has.
    ///
    /// # Safety
    ///
    /// Until this is dropped these bytes are readable, writable and initialised, no reference to any
    /// of them is used, and no other thread writes to them.
    pub(crate) unsafe fn borrowed(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, owned: false }
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a byte, which need not be there.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.base().wrapping_add(offset)
    }

    /// Whether all of these bytes are part of it.
    pub(crate) fn holds(&self, base: *const u8, len: usize) -> bool {
        self.has(base.addr().wrapping_sub(self.base().addr()), len)
    }

    fn has(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn check(&self, offset: usize, len: usize) {
        let size = self.len;
        assert!(self.has(offset, len), "{len} bytes at {offset} of memory of {size} bytes");
    }

    /// Copies bytes out of it.
    ///
    /// # Panics
    ///
    /// If they are not all part of it.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        // SAFETY: so many bytes are there and initialised, and `into`, a reference, is elsewhere.
        unsafe { self.at(offset).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes into it.
    ///
    /// # Panics
    ///
    /// If there is no room for all of them.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: so many bytes are there, no reference to them is used, and `bytes`, a reference, is
        // elsewhere.
        unsafe { self.at(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Asks for huge pages, or for none; what is there becomes zeroes with the latter. A kernel
    /// without huge pages refuses, which costs nothing.
    pub(crate) fn huge_pages(&self, yes: bool) {
        let advice: &[_] = match yes {
            true => &[Advice::LinuxHugepage],
            false => &[Advice::LinuxNoHugepage, Advice::LinuxDontNeed],
        };
        for advice in advice {
            // SAFETY: the range is one mapping of this module's or of `borrowed`'s caller, to whose
            // content nothing refers; after the advice it is still there.
            let _ = unsafe { madvise(self.base().cast(), self.len, *advice) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.owned {
            // Requests on a registered buffer use its pinned pages, not these addresses, so they may
            // even be in flight. Those that name an address are the ring's care: it leaks the memory
            // rather than drop it under one.
            // SAFETY: the mapping was made by `new`, and no reference into it was ever made.
            let _ = unsafe { munmap(self.base().cast(), self.len) };
        }
    }
}

/// The kernel gives back what a closed ring has pinned, but not at once: where memory is missing, it
/// is worth to try again for some 100 ms.
#[derive(Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    pub(crate) const fn new() -> Self {
        Self(Duration::from_millis(1))
    }

    /// Waits a little, longer each time. `false`: it has been long enough.
    pub(crate) fn wait(&mut self) -> bool {
        let more = self.0 < Duration::from_millis(100);
        if more {
            thread::sleep(self.0);
            self.0 *= 2;
        }
        more
    }

    /// Tries for as long as memory is missing and there is patience.
    pub(crate) fn attempt<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut patience = Self::new();
        loop {
            match attempt() {
                Err(error) if is_short(&error) && patience.wait() => {}
                done => return done,
            }
        }
    }
}

/// Whether memory was missing, or may not be pinned.
pub(crate) fn is_short(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn what_is_outside_of_it_is_not_reached() {
        let memory = Memory::new(4096).expect("a page");
        memory.write(4090, b"behind");
        let mut last = [0; 6];
        memory.read(4090, &mut last);
        assert_eq!(&last, b"behind");
        for (offset, len) in [(4091, 6), (4096, 1), (0, 4097), (usize::MAX, 2)] {
            let mut bytes = vec![0; len];
            let read = catch_unwind(AssertUnwindSafe(|| memory.read(offset, &mut bytes)));
            let written = catch_unwind(AssertUnwindSafe(|| memory.write(offset, &bytes)));
            assert!(read.is_err() && written.is_err(), "{len} bytes at {offset}");
            assert!(!memory.holds(memory.at(offset), len));
        }
    }
}
