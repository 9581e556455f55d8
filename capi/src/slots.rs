// SPDX-License-Identifier: MIT OR Apache-2.0
//! `struct getbuf`: the slots of one ring.

#![expect(non_camel_case_types, reason = "the names that C sees")]

use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use io_uring::squeue::Entry;
use uring_getbuf::provider::Provider;
use uring_getbuf::slots::Slots;

use crate::leases::Leases;
use crate::provide::Foreign;
use crate::register::RingFd;

/// The slots of one ring. One thread at a time may use it.
pub struct getbuf {
    // Leases go before their slots.
    pub(crate) leases: Leases,
    pub(crate) slots: Slots,
    pub(crate) tag: u8,
    pub(crate) ring: RingFd,
    pub(crate) table: Table,
    /// Requests of the slots themselves that C has been told of and has not fetched.
    pub(crate) outgoing: Vec<Entry>,
    /// How many they are, a chain being one.
    pub(crate) announced: u64,
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

impl fmt::Debug for getbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("getbuf").field("slots", &self.slots).finish_non_exhaustive()
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
        Self {
            leases: Leases::new(slots.capacity()),
            outgoing: Vec::with_capacity(crate::abi::GETBUF_CHAIN_MAX as usize),
            announced: 0,
            slots,
            tag,
            ring,
            table,
            provider: None,
            _device: device,
        }
    }

    /// Requests that the kernel may have.
    pub(crate) fn in_flight(&self) -> u64 {
        // What waits in `outgoing` is counted as on its way.
        self.slots.in_flight().saturating_sub(self.announced)
    }
}
