// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leases of a provider's memory.

use std::rc::Rc;

use super::drive::{Ring, set_buffer};
use crate::error::Result;
use crate::provider::{Provider, Region};
use crate::slots::lease::{Installed, Lease};

impl Ring {
    /// Registers a region: leases of its memory cost no system call from now on. It stays
    /// registered as long as the ring lives, and pinned (`RLIMIT_MEMLOCK`).
    ///
    /// # Errors
    ///
    /// [`NoRegion`](crate::ErrorKind::NoRegion) if there is no place left, see
    /// [`Builder::regions`](crate::ring::Builder::regions); [`MemoryLimit`](crate::ErrorKind::MemoryLimit) if so
    /// much cannot be pinned.
    pub fn register_region(&mut self, region: &Region) -> Result<()> {
        self.clear_vacated()?;
        let submitter = self.uring.submitter();
        self.slots.add_region(region, |entry, base, len| set_buffer(&submitter, entry, (base, len)))
    }

    /// Asks a provider for up to `len` bytes at `offset` of it. The lease can be used at once.
    /// `None`: there is nothing.
    ///
    /// The provider [must not wait](crate::provider::Wanted::nowait): one that would have to
    /// answers `EAGAIN`, and is asked again when the program sees fit.
    ///
    /// # Errors
    ///
    /// [`Source`](crate::ErrorKind::Source) with the provider's own error;
    /// [`Provider`](crate::ErrorKind::Provider) if its answer contradicts itself;
    /// [`NoSlot`](crate::ErrorKind::NoSlot), [`NoRegion`](crate::ErrorKind::NoRegion);
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if `len` is 0;
    /// [`MemoryLimit`](crate::ErrorKind::MemoryLimit) if memory that is in no region cannot be pinned.
    pub fn fetch_provided(
        &mut self,
        provider: &Rc<dyn Provider>,
        offset: u64,
        len: u32,
    ) -> Result<Option<Lease<Installed>>> {
        self.ask_provider(provider, offset, len, true)
    }

    /// Asks a provider that may wait, and with it the whole thread.
    ///
    /// # Errors
    ///
    /// Those of [`fetch_provided`](Self::fetch_provided).
    pub fn fetch_provided_waiting(
        &mut self,
        provider: &Rc<dyn Provider>,
        offset: u64,
        len: u32,
    ) -> Result<Option<Lease<Installed>>> {
        self.ask_provider(provider, offset, len, false)
    }

    fn ask_provider(
        &mut self,
        provider: &Rc<dyn Provider>,
        offset: u64,
        len: u32,
        nowait: bool,
    ) -> Result<Option<Lease<Installed>>> {
        self.clear_vacated()?;
        let submitter = self.uring.submitter();
        self.slots.fetch_provided(provider, offset, len, nowait, |entry, base, len| {
            set_buffer(&submitter, entry, (base, len))
        })
    }

    /// What was registered for one lease only is unregistered before the next one needs the place.
    fn clear_vacated(&mut self) -> Result<()> {
        if self.slots.has_requests() { self.flush() } else { Ok(()) }
    }
}
