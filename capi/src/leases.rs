// SPDX-License-Identifier: MIT OR Apache-2.0
//! The leases that C has, as values: what Rust's types promise is looked up here.
//!
//! A value has the number of its slot in its lowest 14 bits, then 24 bits that tell tables apart, and
//! above them a count of the slot's lives. It is compared as a whole.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use uring_getbuf::lease::{Fetched, Installed, Lease};
use uring_getbuf::slots::{Event, LeaseId};

use crate::abi::getbuf_lease;
use crate::errors::Outcome;

const SLOT: u64 = (1 << SERIAL_SHIFT) - 1;
const SERIAL_SHIFT: u32 = 14;
/// One more life.
const LIFE: u64 = 1 << 38;

/// What a value names.
#[derive(Debug, Default)]
enum Held {
    /// A lease that is over.
    #[default]
    Nothing,
    Fetched(Lease<Fetched>),
    Installed(Lease<Installed>),
    Chain,
}

/// The last lease of a slot.
#[derive(Debug)]
struct Last {
    value: u64,
    held: Held,
    /// What C has attached to it.
    data: *mut c_void,
}

/// By slot.
#[derive(Debug)]
pub(crate) struct Leases(Box<[Last]>);

impl Leases {
    pub(crate) fn new(slots: usize) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        // Never 0, so that no value is 0.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed) % ((1 << 24) - 1) + 1;
        let last = |slot| Last {
            value: u64::from(serial) << SERIAL_SHIFT | slot as u64,
            held: Held::Nothing,
            data: ptr::null_mut(),
        };
        Self((0..slots).map(last).collect())
    }

    /// Gives C the next value of a slot.
    fn begin(&mut self, slot: u16, held: Held, data: *mut c_void) -> getbuf_lease {
        let last = &mut self.0[usize::from(slot)];
        last.value = last.value.wrapping_add(LIFE);
        (last.held, last.data) = (held, data);
        getbuf_lease { id: last.value }
    }

    pub(crate) fn fetched(&mut self, lease: Lease<Fetched>, data: *mut c_void) -> getbuf_lease {
        self.begin(lease.id().slot(), Held::Fetched(lease), data)
    }

    pub(crate) fn provided(&mut self, lease: Lease<Installed>, data: *mut c_void) -> getbuf_lease {
        self.begin(lease.id().slot(), Held::Installed(lease), data)
    }

    pub(crate) fn chain(&mut self, id: LeaseId, data: *mut c_void) -> getbuf_lease {
        self.begin(id.slot(), Held::Chain, data)
    }

    /// The slot of a lease that there is.
    ///
    /// The errors tell what else the value is: EINVAL nothing or a chain, EXDEV a lease of other slots,
    /// ENOENT one that is over.
    fn find(&self, lease: getbuf_lease) -> Outcome<usize> {
        let serial = |value: u64| (value % LIFE) >> SERIAL_SHIFT;
        let slot = (lease.id & SLOT) as usize;
        if serial(lease.id) == 0 {
            return Err(libc::EINVAL);
        }
        if serial(lease.id) != serial(self.0[0].value) {
            return Err(libc::EXDEV);
        }
        match self.0.get(slot).filter(|last| last.value == lease.id).map(|last| &last.held) {
            None | Some(Held::Nothing) => Err(libc::ENOENT),
            Some(Held::Chain) => Err(libc::EINVAL),
            Some(Held::Fetched(_) | Held::Installed(_)) => Ok(slot),
        }
    }

    /// A lease whose fetch is done; EBUSY if it is not.
    pub(crate) fn installed(&self, lease: getbuf_lease) -> Outcome<&Lease<Installed>> {
        match &self.0[self.find(lease)?].held {
            Held::Installed(lease) => Ok(lease),
            _ => Err(libc::EBUSY),
        }
    }

    /// Lets a lease go.
    pub(crate) fn release(&mut self, lease: getbuf_lease) -> Outcome {
        let slot = self.find(lease)?;
        self.0[slot].held = Held::Nothing;
        Ok(())
    }

    /// Lets all of them go.
    pub(crate) fn release_all(&mut self) {
        for last in &mut self.0 {
            last.held = Held::Nothing;
        }
    }

    /// What an event is of: the value, and what C has attached to it. A lease takes its next state.
    pub(crate) fn take(&mut self, event: &Event) -> (getbuf_lease, *mut c_void) {
        let id = match event {
            Event::Fetched { lease, .. } | Event::Released { lease } => *lease,
            Event::Used { id, .. } | Event::Returned { id } => id.lease(),
            Event::Chained { id, .. } => *id,
            _ => return (getbuf_lease::default(), ptr::null_mut()),
        };
        let last = &mut self.0[usize::from(id.slot())];
        last.held = match (event, std::mem::take(&mut last.held)) {
            // There is no lease of nothing.
            (Event::Fetched { .. }, Held::Fetched(lease)) => {
                lease.installed().map_or(Held::Nothing, Held::Installed)
            }
            (Event::Chained { .. }, _) => Held::Nothing,
            (_, held) => held,
        };
        (getbuf_lease { id: last.value }, last.data)
    }

    /// Whether the fetch of a lease is done.
    pub(crate) fn is_installed(&self, lease: getbuf_lease) -> Outcome<c_int> {
        Ok(c_int::from(matches!(self.0[self.find(lease)?].held, Held::Installed(_))))
    }
}
