// SPDX-License-Identifier: MIT OR Apache-2.0
//! A toy engine, which needs nothing but its own code; and completions that were made up.

use std::cell::Cell;

use io_uring::types::Fd;

use super::*;
use crate::engine::{Emptied, Ending, Fetch, Look, Origin, Refusal, Release};
use crate::error::Errno;
use crate::request::{Piece, Sqe};
use crate::slots::chain::ChainOutcome;
use crate::slots::consume::Consumer;

/// How many bytes a slot of the toy's holds.
const BLOCK: u32 = 64;

/// An engine of these tests: byte n of every file is n, in a place of its own. It shows what an
/// engine is made of, and that nothing else has to know it.
#[derive(Debug)]
struct Toy {
    ending: Ending,
    /// The last slot that it was asked to empty.
    emptied: Rc<Cell<Option<u16>>>,
}

impl Room for Toy {
    fn origin(&self) -> Origin {
        Origin::Opcode
    }

    fn traits(&self) -> Traits {
        let emptied = Emptied::ByRequest;
        Traits { lent: true, emptied, ending: self.ending, installs_empty: false }
    }

    fn serves(&self, what: &Fetch) -> bool {
        what.offset != u64::MAX
    }

    fn fetch(&self, slot: u16, what: &Fetch) -> Sqe {
        self.piece(slot, 0, what.len).read(Target::Fd(0), what.offset)
    }

    fn piece(&self, slot: u16, start: u32, len: u32) -> Piece {
        Piece { addr: u64::from(u32::from(slot) * BLOCK + start), len, index: 7 }
    }

    fn release(&self, slot: u16) -> Release {
        self.emptied.set(Some(slot));
        Release::Request(Piece::default().write(Target::Fd(0), slot.into()))
    }

    fn classify(&self, errno: Errno, _: u64) -> Refusal {
        if errno == Errno::NOTSUPP { Refusal::NotThisFile } else { Refusal::Failed }
    }

    fn look(&self, slot: u16, start: u32, into: &mut [u8]) -> Look {
        let first = u32::from(slot) * BLOCK + start;
        into.iter_mut().zip(first..).for_each(|(byte, number)| *byte = number as u8);
        Look::Copied(into.len())
    }
}

/// A toy on two slots, and what it was asked to empty last; with a pool that stands in for it.
fn toy(ending: Ending) -> (Slots, Rc<Cell<Option<u16>>>) {
    let emptied = Rc::default();
    let pool = Pool::new(2, BLOCK).expect("a small pool");
    let rooms: Vec<Box<dyn Room>> = vec![
        Box::new(Toy { ending, emptied: Rc::clone(&emptied) }),
        Box::new(Copying { pool, index: 0 }),
    ];
    let core = Core::new(2, rooms, None, BLOCK, Features::default(), DEFAULT_TAG);
    (Slots { core }, emptied)
}

fn file() -> Target {
    Fd(0).into()
}

/// The `user_data` of a request that counts as pushed.
fn pushed(request: Prepared<'_>) -> u64 {
    request.into_entry().get_user_data()
}

/// What the slots need sent, as if it had been pushed: its names.
fn sent(slots: &Slots) -> Vec<u64> {
    match slots.next_request() {
        Some(Outgoing::Request(request)) => vec![pushed(request)],
        Some(Outgoing::Chain(chain)) => names(chain),
        other => panic!("{other:?} needs sent"),
    }
}

fn names(chain: PreparedChain<'_>) -> Vec<u64> {
    chain.into_entries().map(|entry| entry.get_user_data()).collect()
}

#[test]
fn a_toy_engine_serves_a_lease() {
    let (slots, emptied) = toy(Ending::Left);
    let (lease, request) = slots.fetch(file(), 0, 8).expect("a slot");
    let fetch = pushed(request);
    let done = Event::Fetched { lease: lease.id(), result: Ok(6) };
    assert_eq!(slots.complete(fetch, 6, 0), Some(done));
    let lease = lease.installed().expect("6 bytes");
    assert_eq!((lease.len(), lease.origin()), (6, Origin::Opcode));
    let mut bytes = [0; 6];
    assert!(matches!(slots.core.look(lease.id(), 0, &mut bytes), Look::Copied(6)));
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5]);
    let write = lease.write(1..3, file(), 0).expect("two bytes").token(9);
    let id = write.id();
    let write = pushed(write);
    assert_eq!(lease.uses(), 1);
    let released = lease.release();
    assert_eq!((emptied.get(), slots.free()), (None, 1));
    let release = sent(&slots);
    assert_eq!(emptied.get(), Some(0));
    let gone = Event::Released { lease: released.id() };
    assert_eq!(slots.complete(release[0], 0, 0), Some(gone));
    assert_eq!((slots.free(), slots.in_flight()), (1, 1));
    let used = Event::Used { more: false, id, result: Ok(2) };
    assert_eq!(slots.complete(write, 2, 0), Some(used));
    assert_eq!((slots.free(), slots.has_requests(), id.token()), (2, false, 9));
}

#[test]
fn what_a_toy_engine_refuses_another_one_serves() {
    let (slots, emptied) = toy(Ending::Left);
    let (lease, request) = slots.fetch(file(), 0, 8).expect("a slot");
    let fetch = pushed(request);
    let refused = -Errno::NOTSUPP.raw();
    assert_eq!(slots.complete(fetch, refused, 0), Some(Event::Pending));
    assert!(lease.is_pending());
    let again = sent(&slots);
    let done = Event::Fetched { lease: lease.id(), result: Ok(8) };
    assert_eq!(slots.complete(again[0], 8, 0), Some(done));
    let lease = lease.installed().expect("8 bytes");
    assert_eq!((lease.origin(), slots.stats().fallbacks), (Origin::Copy, 1));
    drop(lease);
    // What it does not serve is not asked of it.
    let (lease, request) = slots.fetch(file(), u64::MAX, 8).expect("a slot");
    drop(request);
    assert!(!slots.is_lent(lease.id()));
    drop(lease);
    assert_eq!((slots.free(), slots.has_requests(), emptied.get()), (2, false, None));
}

#[test]
fn a_toy_engine_serves_chains() {
    for (ending, requests) in [(Ending::Left, 2), (Ending::Released, 3), (Ending::HandedOver, 2)] {
        let (slots, emptied) = toy(ending);
        let consumer = Consumer::Write { sink: file(), offset: 0 };
        let chain = Chain::new(file(), 0, 8, consumer);
        assert_eq!(slots.chain_len(&chain), requests);
        let (id, prepared) = slots.chain(chain).expect("a slot");
        let chain = names(prepared);
        assert_eq!(chain.len(), requests);
        let result = if ending == Ending::Released { 0 } else { 8 };
        let done = Event::Chained { id, outcome: ChainOutcome::Done(8) };
        assert_eq!(slots.complete(chain[requests - 1], result, 0), Some(done));
        if ending == Ending::Left {
            let release = sent(&slots);
            let gone = Event::Released { lease: id };
            assert_eq!(slots.complete(release[0], 0, 0), Some(gone));
        }
        let asked = (ending != Ending::HandedOver).then_some(0);
        assert_eq!((slots.free(), emptied.get()), (2, asked), "{ending:?}");
    }
}

/// A completion that was made up ends a fetch that was never pushed, and its slot is taken again.
#[test]
fn what_is_taken_back_ends_no_other_lease() {
    let (slots, _) = toy(Ending::HandedOver);
    let (other, request) = slots.fetch(file(), 0, 8).expect("a slot");
    pushed(request);
    let (lease, request) = slots.fetch(file(), 0, 8).expect("a slot");
    let failed = Some(Event::Fetched { lease: lease.id(), result: Err(Errno::INVAL) });
    assert_eq!(slots.complete(request.id().user_data(), -libc::EINVAL, 0), failed);
    drop(lease);
    let (next, next_request) = slots.fetch(file(), 0, 8).expect("the slot");
    let fetch = pushed(next_request);
    drop(request);
    assert!(next.is_pending());
    let done = Event::Fetched { lease: next.id(), result: Ok(8) };
    assert_eq!(slots.complete(fetch, 8, 0), Some(done));
    assert!(other.is_pending());
}

/// A completion that was made up has a chain wait for another engine while nobody has pushed it.
#[test]
fn a_chain_that_waits_is_not_taken_back() {
    let (slots, _) = toy(Ending::Released);
    let chain = Chain::new(file(), 0, 8, Consumer::Write { sink: file(), offset: 0 });
    let (id, prepared) = slots.chain(chain).expect("a slot");
    let name = id.request(DEFAULT_TAG, ident::Kind::ChainFetch, 0, 0);
    let refused = -Errno::NOTSUPP.raw();
    assert_eq!(slots.complete(name, refused, 0), Some(Event::Pending));
    let name = id.request(DEFAULT_TAG, ident::Kind::ChainRelease, 0, 0);
    assert_eq!(slots.complete(name, 0, 0), Some(Event::Pending));
    drop(prepared);
    assert_eq!(slots.free(), 1);
    let again = sent(&slots);
    let done = Event::Chained { id, outcome: ChainOutcome::Done(8) };
    assert_eq!(slots.complete(again[1], 8, 0), Some(done));
    assert_eq!((slots.free(), slots.has_requests()), (2, false));
}
