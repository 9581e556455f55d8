// SPDX-License-Identifier: MIT OR Apache-2.0
//! `struct getbuf`: the slots of one ring, and the typed leases behind the values that C has.

#![expect(non_camel_case_types, reason = "the names that C sees")]

use std::ffi::c_void;
use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::squeue::Entry;
use uring_getbuf::lease::{Fetched, Installed, Lease, NotInstalled};
use uring_getbuf::provider::Provider;
use uring_getbuf::slots::Slots;

use crate::abi::getbuf_lease;
use crate::errors::Outcome;
use crate::provide::Foreign;
use crate::register::RingFd;

/// A lease's `id`, from the top: serial of its `struct getbuf` 24, generation 26, slot 14 bits.
const SERIAL_SHIFT: u32 = 40;
const GENERATION_SHIFT: u32 = 14;
const GENERATION: u32 = (1 << 26) - 1;
const SLOT: u64 = (1 << 14) - 1;

/// The slots of one ring. One thread at a time may use it.
pub struct getbuf {
    pub(crate) slots: Slots,
    pub(crate) places: Box<[Place]>,
    /// In its place in an `id`.
    serial: u64,
    pub(crate) tag: u8,
    pub(crate) ring: RingFd,
    pub(crate) table: Table,
    /// Requests of the slots themselves that C has been told of and has not fetched.
    pub(crate) outgoing: Vec<Entry>,
    /// The provider that was asked last.
    pub(crate) provider: Option<(Foreign, Rc<dyn Provider>)>,
    /// `/dev/getbuf`, which requests name.
    pub(crate) _device: Option<OwnedFd>,
}

/// The entries of the ring's table that are ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The whole table was made by us, and goes with us.
    pub(crate) is_ours: bool,
}

/// What C has of one slot.
#[derive(Debug)]
pub(crate) struct Place {
    /// The last lease that was handed out.
    pub(crate) id: u64,
    generation: u32,
    held: Held,
    pub(crate) data: *mut c_void,
}

#[derive(Debug)]
pub(crate) enum Held {
    /// It is over.
    Nothing,
    Fetched(Lease<Fetched>),
    Installed(Lease<Installed>),
    Chain,
}

impl fmt::Debug for getbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("getbuf").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Place {
    /// Puts something in the place of what is over. It holds no lease then, so nothing is dropped
    /// here, and no time is spent on finding that out.
    #[inline]
    pub(crate) fn put(&mut self, held: Held) {
        mem::forget(mem::replace(&mut self.held, held));
    }

    #[inline]
    fn take(&mut self) -> Held {
        mem::replace(&mut self.held, Held::Nothing)
    }

    /// The fetch is done: its lease, if C has not released it, is installed or over.
    #[inline]
    pub(crate) fn settle(&mut self) {
        let held = match self.take() {
            Held::Fetched(lease) => match lease.installed() {
                Ok(lease) => Held::Installed(lease),
                Err(NotInstalled::Pending(lease)) => Held::Fetched(lease),
                Err(NotInstalled::EndOfFile | NotInstalled::Failed(_)) => return,
            },
            held => held,
        };
        self.put(held);
    }
}

impl getbuf {
    pub(crate) fn new(
        slots: Slots,
        tag: u8,
        ring: RingFd,
        table: Table,
        device: Option<OwnedFd>,
    ) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        // Never 0, so that no lease is 0.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed) % ((1 << 24) - 1) + 1;
        let place = || Place { id: 0, generation: 0, held: Held::Nothing, data: ptr::null_mut() };
        Self {
            places: (0..slots.capacity()).map(|_| place()).collect(),
            serial: u64::from(serial) << SERIAL_SHIFT,
            outgoing: Vec::with_capacity(crate::abi::GETBUF_CHAIN_MAX as usize),
            slots,
            tag,
            ring,
            table,
            provider: None,
            _device: device,
        }
    }

    /// Gives a lease that was just handed out its value.
    #[inline]
    pub(crate) fn hand_out(&mut self, slot: u16, held: Held, data: *mut c_void) -> getbuf_lease {
        let Some(place) = self.places.get_mut(usize::from(slot)) else {
            return getbuf_lease::default();
        };
        place.generation = (place.generation + 1) & GENERATION;
        place.id = self.serial | u64::from(place.generation) << GENERATION_SHIFT | u64::from(slot);
        place.put(held);
        place.data = data;
        getbuf_lease { id: place.id }
    }

    #[inline]
    fn place(&self, lease: getbuf_lease) -> Outcome<usize> {
        let index = (lease.id & SLOT) as usize;
        match self.places.get(index) {
            Some(place) if place.id == lease.id && lease.id != 0 => Ok(index),
            _ => Err(self.why_not(lease)),
        }
    }

    #[cold]
    fn why_not(&self, lease: getbuf_lease) -> i32 {
        match lease.id >> SERIAL_SHIFT {
            0 => libc::EINVAL,
            serial if serial != self.serial >> SERIAL_SHIFT => libc::EXDEV,
            _ => libc::ENOENT,
        }
    }

    /// What is behind a value.
    #[inline]
    pub(crate) fn held(&self, lease: getbuf_lease) -> Outcome<&Held> {
        match self.places.get(self.place(lease)?).map(|place| &place.held) {
            None | Some(Held::Nothing) => Err(libc::ENOENT),
            Some(Held::Chain) => Err(libc::EINVAL),
            Some(held) => Ok(held),
        }
    }

    /// The lease behind a value, if its fetch is done.
    #[inline]
    pub(crate) fn installed(&self, lease: getbuf_lease) -> Outcome<&Lease<Installed>> {
        match self.held(lease)? {
            Held::Installed(lease) => Ok(lease),
            _ => Err(libc::EBUSY),
        }
    }

    /// Takes what is behind a value; the value is stale from now on.
    #[inline]
    pub(crate) fn take(&mut self, lease: getbuf_lease) -> Outcome<Held> {
        let index = self.place(lease)?;
        match self.places.get_mut(index) {
            Some(place) => match place.held {
                Held::Fetched(_) | Held::Installed(_) => Ok(place.take()),
                Held::Nothing => Err(libc::ENOENT),
                Held::Chain => Err(libc::EINVAL),
            },
            None => Err(libc::ENOENT),
        }
    }

    /// Requests that the kernel may have.
    pub(crate) fn in_flight(&self) -> u64 {
        // What waits in `outgoing` is one request or one chain, and counted as on its way.
        self.slots.in_flight().saturating_sub(u64::from(!self.outgoing.is_empty()))
    }
}
