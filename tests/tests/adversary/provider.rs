// SPDX-License-Identifier: MIT OR Apache-2.0
//! Providers that keep their contract, that lie, that panic, and that break other things while they
//! are asked.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use fastrand::Rng;
use uring_getbuf::Errno;
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::provider::{Buffer, Provider, Region, Wanted};
use uring_getbuf::ring::Attached;

use crate::world::{BLOCK, Known, REGIONS, Shared, on_purpose, violated};

/// Regions of a program.
pub(crate) const COUNT: usize = 3;
/// Their lengths: one of no whole number of pages.
const LENGTHS: [usize; COUNT] = [4096, 3 * 4096 + 5, 40_000];

/// What a callback may break: it lets go of one of these.
#[derive(Clone, Default)]
pub(crate) struct Fragile {
    pub(crate) leases: Shared<Lease<Installed>>,
    pub(crate) files: Shared<Attached>,
}

impl Fragile {
    fn break_something(&self, rng: &mut Rng) {
        // Whoever calls may have borrowed them: then there is nothing to break.
        match rng.u32(0..6) {
            0 => drop(self.leases.try_borrow_mut().ok().and_then(|mut leases| leases.pop())),
            1 => drop(self.files.try_borrow_mut().ok().and_then(|mut files| files.pop())),
            2 => {
                let lease = self.leases.try_borrow_mut().ok().and_then(|mut leases| leases.pop());
                let _ = lease.map(|lease| lease.release().is_over());
            }
            _ => {}
        }
    }
}

/// The program's own memory, as leases are made of it.
pub(crate) struct Memory {
    pub(crate) regions: Vec<Region>,
    bytes: Vec<Vec<u8>>,
    rng: RefCell<Rng>,
    /// What the last answer named, all pieces of it.
    last: RefCell<Vec<u8>>,
    /// Answers that named memory, less those that came back.
    lent: Cell<i64>,
    fragile: Fragile,
    /// What it is asked for from inside of an answer.
    pub(crate) nested: RefCell<Option<Box<dyn Fn()>>>,
}

impl Memory {
    pub(crate) fn new(rng: &mut Rng, fragile: Fragile) -> uring_getbuf::Result<Rc<Self>> {
        let mut regions = Vec::new();
        let mut bytes = Vec::new();
        for (number, len) in LENGTHS.into_iter().enumerate() {
            let region = Region::new(len)?;
            let id = REGIONS + number as u8;
            let own: Vec<_> = (0..len).map(|place| id << 4 | (place * 7 >> 3) as u8 & 15).collect();
            region.write(0, &own);
            regions.push(region);
            bytes.push(own);
        }
        Ok(Rc::new(Self {
            regions,
            bytes,
            rng: RefCell::new(rng.fork()),
            last: RefCell::default(),
            lent: Cell::new(0),
            fragile,
            nested: RefCell::default(),
        }))
    }

    /// What a lease of the last answer has to show.
    pub(crate) fn known(&self) -> Known {
        Known::Bytes(self.last.borrow().as_slice().into())
    }

    /// Nothing was written to it, and no buffer came back that was not lent.
    pub(crate) fn check(&self) {
        for (region, own) in self.regions.iter().zip(&self.bytes) {
            let mut now = vec![0; own.len()];
            region.read(0, &mut now);
            if now != *own {
                violated("a region was written to");
            }
        }
        if self.lent.get() < 0 {
            violated(format_args!("{} buffers too many came back", -self.lent.get()));
        }
    }

    fn piece(&self, rng: &mut Rng, most: usize) -> (usize, Range<usize>) {
        let number = rng.usize(0..COUNT);
        let len = self.regions[number].len();
        let start = rng.usize(0..len);
        (number, start..len.min(start + rng.usize(1..=most.max(1))))
    }
}

impl Provider for Memory {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let mut rng = self.rng.borrow_mut().fork();
        if rng.u32(0..8) == 0
            && let Ok(nested) = self.nested.try_borrow()
            && let Some(call) = nested.as_ref()
        {
            call();
        }
        self.fragile.break_something(&mut rng);
        let len = wanted.len();
        let _ = (wanted.offset(), wanted.is_empty(), wanted.nowait(), wanted.as_raw());
        let mut named = Vec::new();
        let pieces = match rng.u32(0..20) {
            0 => 0,
            1 => 40,
            2..10 => rng.usize(1..6),
            _ => 1,
        };
        for _ in 0..pieces {
            let (number, range) = self.piece(&mut rng, len / pieces.clamp(1, 4));
            if wanted.add(&self.regions[number], range.clone()).is_ok() {
                named.extend_from_slice(&self.bytes[number][range]);
            }
        }
        let (number, nonsense) = (rng.usize(0..COUNT), rng.usize(0..50_000));
        let range = match rng.u32(0..30) {
            0 => Some(nonsense..usize::MAX),
            1 => Some(nonsense..0),
            2 => Some(usize::MAX - 1..nonsense),
            _ => None,
        };
        if let Some(range) = range
            && wanted.add(&self.regions[number], range.clone()).is_ok()
        {
            violated(format_args!("{range:?} of a region was taken"));
        }
        wanted.set_key(named.len());
        if !named.is_empty() {
            self.lent.set(self.lent.get() + 1);
        }
        let there = named.len();
        *self.last.borrow_mut() = named;
        match rng.u32(0..24) {
            0 => Ok(there.wrapping_add(1)),
            1 => Ok(usize::MAX),
            2 => Ok(0),
            3 => Err(Errno::new(11)),
            4 => on_purpose(),
            5 => Ok(there.saturating_sub(rng.usize(0..100))),
            6 => Ok(len + 1),
            _ => Ok(there.min(len)),
        }
    }

    fn release(&self, mut buffer: Buffer<'_>) {
        self.lent.set(self.lent.get() - 1);
        let bytes: usize = buffer.pieces().map(|(_, len)| len).sum();
        let _ = buffer.as_raw();
        if bytes != buffer.key() {
            violated(format_args!("{bytes} bytes came back, and {} were lent", buffer.key()));
        }
        let mut rng = self.rng.borrow_mut().fork();
        if rng.u32(0..4) == 0
            && let Ok(nested) = self.nested.try_borrow()
            && let Some(call) = nested.as_ref()
        {
            call();
        }
        self.fragile.break_something(&mut rng);
        // A panic while another one is under way ends the process, as Rust has it.
        if rng.u32(0..40) == 0 && !std::thread::panicking() {
            on_purpose();
        }
    }
}

/// How much is asked of a provider.
pub(crate) fn wanted(rng: &mut Rng) -> (u64, u32) {
    let offset = if rng.u32(0..10) == 0 { rng.u64(..) } else { rng.u64(0..50_000) };
    let len = match rng.u32(0..10) {
        0 => 0,
        1 => u32::MAX,
        _ => rng.u32(1..=BLOCK),
    };
    (offset, len)
}
