// SPDX-License-Identifier: MIT OR Apache-2.0
//! Providers that keep their contract, that lie, that panic, and that break other things while they
//! are asked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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

/// The program's own memory, as leases are made of it. What nobody uses any more has other bytes
/// from then on, as in a buffer that is filled again.
pub(crate) struct Memory {
    pub(crate) regions: Vec<Region>,
    bytes: RefCell<Vec<Vec<u8>>>,
    rng: RefCell<Rng>,
    /// What the last answer named, all pieces of it.
    last: RefCell<Vec<u8>>,
    answers: RefCell<HashMap<usize, Answer>>,
    count: Cell<usize>,
    fragile: Fragile,
    /// What it is asked for from inside of an answer.
    pub(crate) nested: RefCell<Option<Box<dyn Fn()>>>,
}

/// Memory that was named.
struct Answer {
    bytes: usize,
    regions: [bool; COUNT],
    /// The answer ended in a panic: nobody may have seen it.
    abandoned: bool,
}

/// What a region holds the nth time that it is filled.
fn content(number: usize, turn: usize) -> Vec<u8> {
    let id = REGIONS + number as u8;
    let byte = |place: usize| id << 4 | (((place * 7) >> 3).wrapping_add(turn) & 15) as u8;
    (0..LENGTHS[number]).map(byte).collect()
}

impl Memory {
    pub(crate) fn new(rng: &mut Rng, fragile: Fragile) -> uring_getbuf::Result<Rc<Self>> {
        let regions = LENGTHS.into_iter().map(Region::new).collect::<Result<Vec<_>, _>>()?;
        let bytes: Vec<_> = (0..COUNT).map(|number| content(number, 0)).collect();
        for (region, bytes) in regions.iter().zip(&bytes) {
            region.write(0, bytes);
        }
        Ok(Rc::new(Self {
            regions,
            bytes: bytes.into(),
            rng: RefCell::new(rng.fork()),
            last: RefCell::default(),
            answers: RefCell::default(),
            count: Cell::new(0),
            fragile,
            nested: RefCell::default(),
        }))
    }

    /// What a lease of the last answer has to show.
    pub(crate) fn known(&self) -> Known {
        Known::Bytes(self.last.borrow().as_slice().into())
    }

    /// Nothing was written to it.
    pub(crate) fn check(&self) {
        for (region, own) in self.regions.iter().zip(self.bytes.borrow().iter()) {
            let mut now = vec![0; own.len()];
            region.read(0, &mut now);
            if now != *own {
                violated("a region was written to");
            }
        }
    }

    fn call_back(&self, rng: &mut Rng, odds: u32) {
        if rng.u32(0..odds) == 0
            && let Ok(nested) = self.nested.try_borrow()
            && let Some(call) = nested.as_ref()
        {
            call();
        }
        self.fragile.break_something(rng);
    }

    fn piece(&self, rng: &mut Rng, most: usize) -> (usize, Range<usize>) {
        let number = rng.usize(0..COUNT);
        let len = self.regions[number].len();
        let start = rng.usize(0..len);
        (number, start..len.min(start + rng.usize(1..=most.max(1))))
    }

    /// Fills the regions anew that no answer names.
    fn fill_again(&self) {
        let answers = self.answers.borrow();
        for number in 0..COUNT {
            let used = |answer: &Answer| answer.regions[number] && !answer.abandoned;
            if !answers.values().any(used) {
                let bytes = content(number, self.count.get());
                self.regions[number].write(0, &bytes);
                self.bytes.borrow_mut()[number] = bytes;
            }
        }
    }
}

impl Provider for Memory {
    fn get_buf(&self, wanted: &mut Wanted<'_>) -> Result<usize, Errno> {
        let mut rng = self.rng.borrow_mut().fork();
        self.call_back(&mut rng, 8);
        let len = wanted.len();
        let _ = (wanted.offset(), wanted.is_empty(), wanted.nowait(), wanted.as_raw());
        let (mut named, mut regions) = (Vec::new(), [false; COUNT]);
        let pieces = match rng.u32(0..20) {
            0 => 0,
            1 => 40,
            2..10 => rng.usize(1..6),
            _ => 1,
        };
        for _ in 0..pieces {
            let (number, range) = self.piece(&mut rng, len / pieces.clamp(1, 4));
            if wanted.add(&self.regions[number], range.clone()).is_ok() {
                named.extend_from_slice(&self.bytes.borrow()[number][range]);
                regions[number] = true;
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
        let (bytes, abandoned) = (named.len(), rng.u32(0..24) == 0);
        let key = self.count.get() + 1;
        self.count.set(key);
        wanted.set_key(key);
        if bytes > 0 {
            self.answers.borrow_mut().insert(key, Answer { bytes, regions, abandoned });
        }
        *self.last.borrow_mut() = named;
        if abandoned {
            on_purpose();
        }
        match rng.u32(0..24) {
            0 => Ok(bytes + 1),
            1 => Ok(usize::MAX),
            2 => Ok(0),
            3 => Err(Errno::new(11)),
            4 => Ok(bytes.saturating_sub(rng.usize(0..100))),
            5 => Ok(len + 1),
            _ => Ok(bytes.min(len)),
        }
    }

    fn release(&self, mut buffer: Buffer<'_>) {
        let bytes: usize = buffer.pieces().map(|(_, len)| len).sum();
        let _ = buffer.as_raw();
        let answer = self.answers.borrow_mut().remove(&buffer.key());
        match answer {
            None => violated("a buffer came back twice, or was never lent"),
            Some(answer) if answer.bytes != bytes => {
                violated(format_args!("{bytes} bytes came back, and {} were lent", answer.bytes));
            }
            Some(_) => {}
        }
        self.fill_again();
        let mut rng = self.rng.borrow_mut().fork();
        self.call_back(&mut rng, 4);
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
