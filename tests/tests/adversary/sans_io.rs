// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots without a ring: requests that are never sent, and completions that nobody has seen.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::rc::{Rc, Weak};

use fastrand::Rng;
use io_uring::squeue::{Entry, Flags};
use uring_getbuf::chain::Chain;
use uring_getbuf::consume::Consumer;
use uring_getbuf::engine::Source;
use uring_getbuf::lease::{Fetched, Installed, Lease, NotInstalled};
use uring_getbuf::provider::Provider;
use uring_getbuf::request::Target;
use uring_getbuf::slots::{Clear, Outgoing, Prepared, PreparedChain, Slots};
use uring_getbuf::{Errno, Pool, STREAM, SendFlags, Support};

use crate::provider::{COUNT, Fragile, Memory, wanted};
use crate::world::{BLOCK, Known, guarded, on_purpose, surviving, violated};

/// What was handed out and is neither sent nor taken back.
enum Pending<'s> {
    Request(Prepared<'s>),
    Chain(PreparedChain<'s>),
    Clear(Clear<'s>),
    Outgoing(Outgoing<'s>),
}

pub(crate) struct Sans {
    slots: Option<Rc<Slots>>,
    memory: Rc<Memory>,
    fetched: Vec<Lease<Fetched>>,
    held: Vec<(Lease<Installed>, Known)>,
    /// What requests were called.
    names: Vec<u64>,
}

/// Slots that make sense, and slots that hardly do.
fn build(rng: &mut Rng, support: &Support) -> Option<Slots> {
    let count = rng.u16(1..6);
    let mut builder = Slots::builder(support);
    // The end of the table, and what is behind it.
    let index = |rng: &mut Rng| if rng.u32(0..6) == 0 { rng.u16(..) } else { rng.u16(0..8) };
    if rng.u32(0..4) != 0 {
        let pool = Pool::new(rng.u16(1..8), rng.u32(1..=BLOCK)).expect("a small pool");
        let _ = (pool.bytes(), pool.blocks(), pool.block_size(), pool.base());
        builder = builder.pool(pool, index(rng));
    }
    builder = match rng.u32(0..4) {
        0 => builder,
        1 => builder.module(target(rng), index(rng), count),
        2 => builder.opcode(rng.u8(..), None, index(rng), count),
        _ => builder.opcode(65, Some(66), index(rng), count),
    };
    if rng.bool() {
        builder = builder.hand_over(rng.bool());
    }
    if rng.bool() {
        builder = builder.regions(index(rng), rng.u16(0..6));
    }
    if rng.u32(0..4) == 0 {
        builder = builder.tag(rng.u8(..));
    }
    builder.build().ok()
}

fn target(rng: &mut Rng) -> Target {
    match rng.u32(0..3) {
        0 => Target::Fd(rng.i32(-2..100)),
        1 => Target::Fixed(rng.u32(0..10)),
        _ => Target::Fixed(rng.u32(..)),
    }
}

fn source(rng: &mut Rng) -> Source {
    match rng.u32(0..4) {
        0 => Source::copied(target(rng)),
        1 => Source::bound(target(rng), target(rng)),
        _ => target(rng).into(),
    }
}

fn consumer(rng: &mut Rng) -> Consumer {
    let (sink, flags) = (target(rng), SendFlags::WAIT_ALL | SendFlags::MORE);
    match rng.u32(0..4) {
        0 => Consumer::Send { sink, flags },
        1 => Consumer::SendZc { sink, flags },
        _ => Consumer::Write { sink, offset: if rng.bool() { STREAM } else { rng.u64(..) } },
    }
}

/// Bytes, or an error, or neither.
fn result(rng: &mut Rng) -> i32 {
    match rng.u32(0..6) {
        0 => -rng.i32(1..134),
        1 => rng.i32(..),
        2 => 0,
        3 => BLOCK as i32,
        _ => rng.i32(0..4096),
    }
}

/// A range of a lease, or of none.
pub(crate) fn range(rng: &mut Rng, len: u32) -> std::ops::Range<u32> {
    match rng.u32(0..24) {
        0 => rng.u32(..)..rng.u32(..),
        1 => 0..len.saturating_add(1),
        2 => len / 2..len / 2,
        3..8 => 0..len,
        _ => {
            let start = rng.u32(0..len.max(1));
            start..rng.u32(start + 1..=len.max(start + 1))
        }
    }
}

impl Sans {
    pub(crate) fn new(rng: &mut Rng, support: &Support, fragile: Fragile) -> Option<Self> {
        let slots = Rc::new(build(rng, support)?);
        let memory = Memory::new(rng, fragile).expect("memory for regions");
        *memory.nested.borrow_mut() =
            Some(nested(Rc::downgrade(&slots), Rc::downgrade(&memory), rng.fork()));
        let (fetched, held, names) = Default::default();
        Some(Self { slots: Some(slots), memory, fetched, held, names })
    }

    /// Some calls in a row. What they prepared is dropped, forgotten or taken as sent at their end.
    pub(crate) fn burst(&mut self, rng: &mut Rng) {
        let Some(slots) = self.slots.clone() else { return self.leases(rng) };
        let mut pending = Vec::new();
        for _ in 0..rng.usize(1..40) {
            self.call(rng, &slots, &mut pending);
            self.check(&slots);
        }
        while let Some(one) = pending.pop() {
            self.settle(rng, one);
        }
        if rng.u32(0..20) == 0 {
            // The leases are left.
            self.slots = None;
        }
    }

    fn call<'s>(&mut self, rng: &mut Rng, slots: &'s Slots, pending: &mut Vec<Pending<'s>>) {
        match rng.u32(0..20) {
            0..4 => {
                let len = if rng.u32(0..8) == 0 { rng.u32(..) } else { rng.u32(1..=BLOCK) };
                let offset = if rng.bool() { STREAM } else { rng.u64(..) };
                if let Ok((lease, request)) = slots.fetch(source(rng), offset, len) {
                    self.fetched.push(lease);
                    pending.push(Pending::Request(request));
                }
            }
            4 => {
                let chain = Chain::new(source(rng), rng.u64(..), rng.u32(0..=BLOCK), consumer(rng));
                if let Ok((_, chain)) = slots.chain(chain) {
                    pending.push(Pending::Chain(chain));
                }
            }
            5..9 => self.complete(rng, slots),
            9..11 => {
                if let Some(outgoing) = slots.next_request() {
                    pending.push(Pending::Outgoing(outgoing));
                }
            }
            11 => pending.extend(slots.next_vacated().map(Pending::Clear)),
            12 => {
                let region = &self.memory.regions[rng.usize(0..COUNT)];
                let answer = rng.u32(0..4);
                let _ = surviving(|| slots.add_region(region, |_, _, _| registered(answer)));
            }
            13..15 => self.provide(rng, slots),
            15 => {
                let _ = slots.claims(rng.u64(..));
                let chain = Chain::new(source(rng), rng.u64(..), rng.u32(..), consumer(rng));
                let _ = slots.chain_len(&chain);
                let _ = (slots.has_requests(), slots.engine(), slots.max_fetch(), slots.stats());
                let _ = slots.in_flight();
            }
            16..18 => {
                if !pending.is_empty() {
                    let one = pending.swap_remove(rng.usize(0..pending.len()));
                    self.settle(rng, one);
                }
            }
            _ => self.leases(rng),
        }
    }

    /// Says that a request has completed, which may be true, too early, or said twice.
    fn complete(&mut self, rng: &mut Rng, slots: &Slots) {
        let mut name = match self.names.len() {
            0 => rng.u64(..),
            count => self.names[rng.usize(0..count)],
        };
        if rng.u32(0..6) == 0 {
            name ^= 1 << rng.u32(0..64);
        }
        let flags = if rng.bool() { 0 } else { rng.u32(0..16) };
        let _ = surviving(|| slots.complete(name, result(rng), flags));
    }

    fn provide(&mut self, rng: &mut Rng, slots: &Slots) {
        let (offset, len) = wanted(rng);
        let answer = rng.u32(0..8);
        let provider: Rc<dyn Provider> = Rc::clone(&self.memory) as _;
        let nowait = rng.bool();
        let lease = surviving(|| {
            slots.fetch_provided(&provider, offset, len, nowait, |_, _, _| registered(answer))
        });
        if let Some(Ok(Some(lease))) = lease {
            self.held.push((lease, self.memory.known()));
        }
    }

    /// What becomes of something that was prepared.
    fn settle(&mut self, rng: &mut Rng, one: Pending<'_>) {
        let how = rng.u32(0..6);
        match one {
            Pending::Request(request) => self.request(rng, how, request),
            Pending::Chain(chain) => self.chain(rng, how, chain),
            Pending::Clear(clear) | Pending::Outgoing(Outgoing::Clear(clear)) => {
                let _ = clear.index();
                match how {
                    0 => std::mem::forget(clear),
                    1 => drop(clear),
                    _ => drop(surviving(|| clear.done())),
                }
            }
            Pending::Outgoing(Outgoing::Request(request)) => self.request(rng, how, request),
            Pending::Outgoing(Outgoing::Chain(chain)) => self.chain(rng, how, chain),
        }
    }

    fn request(&mut self, rng: &mut Rng, how: u32, mut request: Prepared<'_>) {
        if rng.u32(0..3) == 0 {
            request = request.token(rng.u16(..)).flags(Flags::IO_LINK);
        }
        let _ = (request.id().lease().slot(), request.id().token());
        match how {
            0 => std::mem::forget(request),
            1 => surviving(|| drop(request)).unwrap_or_default(),
            _ => self.sent(&request.into_entry()),
        }
    }

    fn chain(&mut self, rng: &mut Rng, how: u32, chain: PreparedChain<'_>) {
        let len = chain.len();
        match how {
            0 => std::mem::forget(chain),
            1 => drop(chain),
            2 => {
                let some = rng.usize(0..=len);
                chain.into_entries().take(some).for_each(|entry| self.sent(&entry));
            }
            3 => chain.into_entries().for_each(|entry| self.sent(&entry)),
            _ => {
                let entries: Vec<_> = chain.into_entries().collect();
                if entries.len() != len {
                    violated(format_args!("a chain of {len} requests has {}", entries.len()));
                }
                entries.iter().for_each(|entry| self.sent(entry));
            }
        }
    }

    fn sent(&mut self, entry: &Entry) {
        let _ = format!("{entry:?}");
        if self.names.len() < 64 {
            self.names.push(entry.get_user_data());
        } else {
            let place = (entry.get_user_data() % 64) as usize;
            self.names[place] = entry.get_user_data();
        }
    }

    /// What can be done with a lease, also when its slots are gone.
    fn leases(&mut self, rng: &mut Rng) {
        if !self.fetched.is_empty() && rng.bool() {
            let lease = self.fetched.swap_remove(rng.usize(0..self.fetched.len()));
            let _ = (lease.id(), lease.is_pending());
            match rng.u32(0..8) {
                0 => drop(lease),
                1 => std::mem::forget(lease),
                _ => match lease.installed() {
                    Ok(lease) => self.held.push((lease, Known::Zeroes)),
                    Err(NotInstalled::Pending(lease)) => self.fetched.push(lease),
                    Err(_) => {}
                },
            }
        }
        if self.held.is_empty() {
            return;
        }
        let place = rng.usize(0..self.held.len());
        let (lease, known) = &self.held[place];
        let (len, to) = (lease.len(), target(rng));
        let some = range(rng, len);
        let flags = SendFlags::NONE;
        let request = match rng.u32(0..12) {
            0 => lease.write(some, to, rng.u64(..)),
            1 => lease.send(some, to, flags),
            2 => lease.send_zc(some, to, flags),
            3 => lease.consume(some, consumer(rng)),
            4 => {
                let ranges: Vec<_> = (0..rng.usize(0..10)).map(|_| range(rng, len)).collect();
                lease.writev(&ranges, to, rng.u64(..))
            }
            5..9 => {
                let offset = if rng.bool() { 0 } else { rng.u32(0..len.saturating_add(2)) };
                let room = rng.usize(0..10_000);
                if let Ok(seen) = guarded(room, |into| lease.copy_out(offset, into)) {
                    known.check(offset, &seen, "Lease::copy_out of slots");
                }
                return;
            }
            9 => {
                let _ = (lease.id(), lease.uses(), lease.origin(), format!("{lease:?}"));
                return;
            }
            _ => {
                let (lease, _) = self.held.swap_remove(place);
                let how = rng.u32(0..6);
                let _ = surviving(|| match how {
                    0 => std::mem::forget(lease),
                    1..4 => drop(lease),
                    _ => drop(lease.release().is_over()),
                });
                return;
            }
        };
        let entry = request.ok().and_then(|request| match rng.u32(0..6) {
            0 | 1 => None,
            _ => Some(request.into_entry()),
        });
        if let Some(entry) = entry {
            self.sent(&entry);
        }
    }

    /// Every lease has a slot of its own.
    fn check(&self, slots: &Slots) {
        let mut taken = HashSet::new();
        let fetched = self.fetched.iter().map(Lease::id);
        for id in fetched.chain(self.held.iter().map(|(lease, _)| lease.id())) {
            if !taken.insert(id.slot()) {
                violated(format_args!("two leases are in slot {}", id.slot()));
            }
        }
        let (free, capacity) = (slots.free(), slots.capacity());
        if free + taken.len() > capacity {
            violated(format_args!("{free} of {capacity} slots are free, {} are held", taken.len()));
        }
    }

    pub(crate) fn end(mut self, rng: &mut Rng) {
        self.memory.check();
        if rng.bool() {
            surviving(|| self.slots = None);
        }
        // One by one: the first that panics would take the others along.
        while let Some(lease) = self.held.pop() {
            surviving(|| drop(lease));
        }
        surviving(|| self.fetched.clear());
        self.memory.nested.replace(None);
        surviving(|| self.slots = None);
        self.memory.check();
    }
}

/// What registering memory comes to.
fn registered(answer: u32) -> io::Result<()> {
    match answer {
        0 => Err(Errno::new(12).into()),
        1 => on_purpose(),
        _ => Ok(()),
    }
}

/// Calls of the slots from inside of a callback of theirs.
fn nested(slots: Weak<Slots>, memory: Weak<Memory>, rng: Rng) -> Box<dyn Fn()> {
    let (depth, rng) = (Cell::new(0_u32), RefCell::new(rng));
    Box::new(move || {
        let Some(slots) = slots.upgrade().filter(|_| depth.get() < 3) else { return };
        depth.set(depth.get() + 1);
        let mut rng = rng.borrow_mut().fork();
        match rng.u32(0..6) {
            0 => {
                if let Ok((lease, request)) = slots.fetch(source(&mut rng), 0, 100) {
                    let name = request.into_entry().get_user_data();
                    let _ = slots.complete(name, result(&mut rng), 0);
                    let _ = lease.installed().map(|lease| guarded(200, |to| lease.copy_out(0, to)));
                }
            }
            1 => drop(slots.next_request()),
            2 => drop(slots.next_vacated().map(Clear::done)),
            3 => drop(slots.has_requests()),
            4 => {
                if let Some(memory) = memory.upgrade() {
                    let provider: Rc<dyn Provider> = memory;
                    let _ = slots.fetch_provided(&provider, 0, 5000, true, |_, _, _| Ok(()));
                }
            }
            _ => {
                let _ = slots.complete(rng.u64(..), 1, 0);
            }
        }
        depth.set(depth.get() - 1);
    })
}
