// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot table against a model of it, in random interleavings of everything that can happen.
//!
//! The model plays the kernel. It knows a slot only from outside: who holds a lease of it, which
//! requests that name it have not had their last completion, whether the kernel has a buffer in
//! it, and whether a request has to be sent once more. A slot is free exactly when none of these
//! is the case; everything else that is checked follows from it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;

use io_uring::squeue::Entry;
use proptest::collection::vec;
use proptest::prelude::*;
use uring_getbuf::chain::{Chain, ChainOutcome};
use uring_getbuf::consume::Consumer;
use uring_getbuf::lease::{Fetched, Installed, Lease, NotInstalled, Released};
use uring_getbuf::request::Target;
use uring_getbuf::slots::{DEFAULT_TAG, Event, LeaseId, MAX_SLOTS, Outgoing, Slots, UseId};
use uring_getbuf::{ErrorKind, Origin, Pool, SendFlags, Support};

const SLOTS: u16 = 3;
const BLOCK: u32 = 4096;
/// Where the slots begin in the table, and where the pool is.
const FIRST: u16 = 5;
const POOL_AT: u16 = 9;
const GET_BUF: u8 = 65;
const PUT_BUF: u8 = 66;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const SEND: u8 = 26;
const SEND_ZC: u8 = 47;
const MORE: u32 = 1 << 1;
const NOTIF: u32 = 1 << 3;
const CANCELED: i32 = -125;
const FAULT: i32 = -14;
const INVALID: i32 = -22;
/// What a lender says that will not lend: no file that can, or no more memory for it.
const REFUSALS: [i32; 3] = [-524, -12, -122];
const OPNOTSUPP: i32 = -95;

/// Who serves the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Copy,
    /// Chains end with the release; a source that cannot lend is an error.
    Opcode,
    /// Chains end with the release; for a source that cannot lend the pool steps in.
    OpcodeWithPool,
    /// The kernel has no request that releases.
    Rfc,
    /// The fetch of a chain hands its buffer to the consumer.
    Linked,
}

const KINDS: [Kind; 5] = [Kind::Copy, Kind::Opcode, Kind::OpcodeWithPool, Kind::Rfc, Kind::Linked];

impl Kind {
    fn lends(self) -> bool {
        self != Self::Copy
    }

    fn has_pool(self) -> bool {
        self != Self::Opcode
    }

    fn chain_releases(self) -> bool {
        matches!(self, Self::Opcode | Self::OpcodeWithPool)
    }
}

/// What a raw request says.
#[derive(Clone, Copy, Debug)]
struct Sqe {
    opcode: u8,
    flags: u8,
    addr: u64,
    len: u32,
    op_flags: u32,
    user_data: u64,
    buf_index: u16,
}

fn read(entry: Entry) -> Sqe {
    // SAFETY: an entry is `repr(C)` around the 64 bytes of the kernel's structure, and any bytes
    // are plain data.
    let bytes = unsafe { std::mem::transmute::<Entry, [u8; 64]>(entry) };
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    Sqe {
        opcode: bytes[0],
        flags: bytes[1],
        addr: long(16),
        len: word(24),
        op_flags: word(28),
        user_data: long(32),
        buf_index: u16::from_ne_bytes([bytes[40], bytes[41]]),
    }
}

/// A request, or a chain of them, that the kernel has.
#[derive(Clone, Debug)]
enum Request {
    Fetch {
        id: LeaseId,
        len: u32,
        lent: bool,
        user_data: u64,
    },
    Use {
        id: UseId,
        len: u32,
        zero_copy: bool,
        /// It borrows the slot's array of ranges.
        ranges: bool,
        user_data: u64,
    },
    /// A `SEND_ZC` that has its result.
    Notification {
        id: UseId,
        user_data: u64,
    },
    Release {
        id: LeaseId,
        user_data: u64,
    },
    Chain(Running),
}

#[derive(Clone, Debug)]
struct Running {
    id: LeaseId,
    len: u32,
    lent: bool,
    zero_copy: bool,
    /// What is left to be done, in order: fetch, use, perhaps the release.
    rest: VecDeque<u64>,
    releases: bool,
    fetched: Option<i32>,
    used: Option<i32>,
    notification: Option<u64>,
}

#[derive(Default)]
struct Slot {
    /// Which of its lives, if it is not free.
    id: Option<LeaseId>,
    held: bool,
    lent: bool,
    /// The kernel has a buffer in it.
    buffer: bool,
    /// A fetch or a chain has to be sent once more.
    again: bool,
    releasing: bool,
    /// Requests that were handed out and never will be pushed.
    lost: u32,
}

struct Model {
    kind: Kind,
    slots: Slots,
    base: u64,
    table: [Slot; SLOTS as usize],
    requests: Vec<Request>,
    /// Notifications that nobody announced, of requests that never ran.
    stray: Vec<u64>,
    fetched: Vec<Lease<Fetched>>,
    installed: Vec<Lease<Installed>>,
    released: Vec<(Lease<Released>, LeaseId)>,
    /// Installed buffers, and releases that took effect.
    installs: u64,
    releases: u64,
    stale: u64,
    fallbacks: u64,
    fetches: u64,
}

fn small(number: u32, limit: usize) -> usize {
    number as usize % limit
}

impl Model {
    fn new(kind: Kind) -> Self {
        let pool = Pool::new(SLOTS + 1, BLOCK).expect("a pool");
        let base = pool.base() as u64;
        let mut builder = Slots::builder(&Support::detect());
        if kind.lends() {
            let put_buf = (kind != Kind::Rfc).then_some(PUT_BUF);
            builder = builder.opcode(GET_BUF, put_buf, FIRST, SLOTS);
            builder = builder.hand_over(kind == Kind::Linked);
            if kind.has_pool() {
                builder = builder.pool(pool, POOL_AT);
            }
        } else {
            let pool = Pool::new(SLOTS, BLOCK).expect("a pool");
            let base = pool.base() as u64;
            let slots = builder.pool(pool, POOL_AT).build().expect("slots");
            return Self::with(kind, slots, base);
        }
        Self::with(kind, builder.build().expect("slots"), base)
    }

    fn with(kind: Kind, slots: Slots, base: u64) -> Self {
        assert_eq!((slots.capacity(), slots.free()), (SLOTS.into(), SLOTS.into()));
        Self {
            kind,
            slots,
            base,
            table: Default::default(),
            requests: Vec::new(),
            stray: Vec::new(),
            fetched: Vec::new(),
            installed: Vec::new(),
            released: Vec::new(),
            installs: 0,
            releases: 0,
            stale: 0,
            fallbacks: 0,
            fetches: 0,
        }
    }

    fn slot(&mut self, id: LeaseId) -> &mut Slot {
        let slot = &mut self.table[usize::from(id.slot())];
        assert_eq!(slot.id, Some(id), "a lease of another life of its slot");
        slot
    }

    fn in_flight(&self, index: usize) -> bool {
        self.requests.iter().any(|request| {
            let id = match request {
                Request::Fetch { id, .. } | Request::Release { id, .. } => *id,
                Request::Use { id, .. } | Request::Notification { id, .. } => id.lease(),
                Request::Chain(chain) => chain.id,
            };
            usize::from(id.slot()) == index
        })
    }

    fn chained(&self, index: usize) -> bool {
        self.requests.iter().any(
            |request| matches!(request, Request::Chain(chain) if usize::from(chain.id.slot()) == index),
        )
    }

    fn busy(&self, index: usize) -> bool {
        let slot = &self.table[index];
        slot.held || slot.again || slot.buffer || slot.lost > 0 || self.in_flight(index)
    }

    /// Whether the slots must have something to send for it.
    fn wants(&self, index: usize) -> bool {
        let slot = &self.table[index];
        let release = slot.buffer && !slot.held && !slot.releasing && !self.chained(index);
        slot.again || release
    }

    /// What must be true at any time.
    fn check(&mut self) {
        let mut free = 0;
        for index in 0..self.table.len() {
            if !self.busy(index) {
                free += 1;
                self.table[index].id = None;
            }
        }
        assert_eq!(self.slots.free(), free, "{:?}", self.requests);
        let wanted = (0..self.table.len()).any(|index| self.wants(index));
        assert_eq!(self.slots.has_requests(), wanted);
        let mut names = BTreeSet::new();
        for request in &self.requests {
            let user_data: Vec<_> = match request {
                Request::Fetch { user_data, .. }
                | Request::Use { user_data, .. }
                | Request::Notification { user_data, .. }
                | Request::Release { user_data, .. } => vec![*user_data],
                Request::Chain(chain) => {
                    chain.rest.iter().copied().chain(chain.notification).collect()
                }
            };
            for user_data in user_data {
                assert!(self.slots.claims(user_data), "{user_data:#x}");
                assert!(names.insert(user_data), "two requests are called {user_data:#x}");
            }
        }
        for (lease, id) in &self.released {
            let over = self.table[usize::from(id.slot())].id != Some(*id);
            assert_eq!(lease.is_over(), over);
        }
        for lease in &self.installed {
            let uses = self.requests.iter().filter(|request| match request {
                Request::Use { id, .. } | Request::Notification { id, .. } => {
                    id.lease() == lease.id()
                }
                _ => false,
            });
            let lost = self.table[usize::from(lease.id().slot())].lost;
            assert_eq!(lease.uses(), uses.count() as u32 + lost);
        }
        let stats = self.slots.stats();
        assert_eq!(
            (stats.stale, stats.fallbacks, stats.fetches),
            (self.stale, self.fallbacks, self.fetches)
        );
    }

    /// A slot begins a new life.
    fn begin(&mut self, id: LeaseId, held: bool) {
        let index = usize::from(id.slot());
        assert!(!self.busy(index), "slot {index} is handed out twice");
        let lent = self.kind.lends();
        self.table[index] = Slot { id: Some(id), held, lent, ..Slot::default() };
        self.fetches += 1;
    }

    /// A fetch as it must be for who serves the slot.
    fn check_fetch(&self, id: LeaseId, sqe: Sqe, len: u32) {
        let slot = &self.table[usize::from(id.slot())];
        assert_eq!(sqe.len, len);
        if slot.lent {
            assert_eq!((sqe.opcode, sqe.addr, sqe.buf_index), (GET_BUF, 0, FIRST + id.slot()));
            assert_eq!(sqe.op_flags & 1, 0, "nothing is replaced");
        } else {
            assert_eq!((sqe.opcode, sqe.buf_index), (READ_FIXED, POOL_AT));
            assert_eq!(sqe.addr, self.base + u64::from(id.slot()) * u64::from(BLOCK));
        }
    }

    fn check_use(&self, id: LeaseId, sqe: Sqe, start: u32, len: u32) {
        let slot = &self.table[usize::from(id.slot())];
        assert_eq!(sqe.len, len);
        let block = self.base + u64::from(id.slot()) * u64::from(BLOCK);
        let begin = if slot.lent { 0 } else { block };
        assert_eq!(sqe.addr, begin + u64::from(start));
        let index = if slot.lent { FIRST + id.slot() } else { POOL_AT };
        // A plain send from the pool's address names no buffer.
        assert!(sqe.buf_index == index || (sqe.opcode == SEND && !slot.lent));
    }

    fn fetch(&mut self, len: u32, push: bool) {
        let len = 1 + len % BLOCK;
        let free = self.slots.free();
        let (lease, sqe) = match self.slots.fetch(Target::Fd(0), 77, len) {
            Ok((lease, request)) => {
                let sqe = push.then(|| read(request.into_entry()));
                (lease, sqe)
            }
            Err(error) => {
                assert_eq!((error.kind(), free), (ErrorKind::NoSlot, 0));
                return;
            }
        };
        let id = lease.id();
        self.begin(id, true);
        assert_eq!(lease.is_pending(), push);
        if let Some(sqe) = sqe {
            self.check_fetch(id, sqe, len);
            let (user_data, lent) = (sqe.user_data, self.kind.lends());
            self.requests.push(Request::Fetch { id, len, lent, user_data });
        }
        self.fetched.push(lease);
    }

    fn chain(&mut self, choice: u32, push: bool) {
        let len = 1 + (choice >> 2) % BLOCK;
        let (consumer, zero_copy) = consumer(choice);
        let free = self.slots.free();
        let chain = Chain::new(Target::Fd(0), 99, len, consumer);
        let (id, sqes) = match self.slots.chain(chain) {
            Ok((id, chain)) => {
                assert_eq!(chain.len(), if self.kind.chain_releases() { 3 } else { 2 });
                (id, push.then(|| chain.into_entries().map(read).collect::<Vec<_>>()))
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => return,
            Err(error) => {
                assert_eq!((error.kind(), free), (ErrorKind::NoSlot, 0));
                return;
            }
        };
        self.begin(id, false);
        if let Some(sqes) = sqes {
            self.run_chain(id, len, zero_copy, &sqes);
        }
    }

    fn run_chain(&mut self, id: LeaseId, len: u32, zero_copy: bool, sqes: &[Sqe]) {
        const LINK: u8 = 1 << 2;
        const HARD: u8 = 1 << 3;
        let lent = self.table[usize::from(id.slot())].lent;
        let releases = self.kind.chain_releases() && lent;
        let linked = self.kind == Kind::Linked && lent;
        self.check_fetch(id, sqes[0], len);
        assert_eq!(sqes[0].op_flags & 2 != 0, linked, "whether it hands its buffer over");
        self.check_use(id, sqes[1], 0, len);
        assert_eq!(sqes.len(), if releases { 3 } else { 2 });
        // A soft link must not let a consumer run after a short read into a block that has been
        // used before; a hard one makes sure of the release.
        let link = if releases || linked { HARD } else { LINK };
        assert_eq!(sqes[0].flags & (LINK | HARD), link);
        assert_eq!(sqes[1].flags & (LINK | HARD), if releases { HARD } else { 0 });
        if let Some(release) = sqes.get(2) {
            assert_eq!((release.opcode, release.buf_index), (PUT_BUF, FIRST + id.slot()));
            assert_eq!(release.flags & (LINK | HARD), 0);
        }
        let rest = sqes.iter().map(|sqe| sqe.user_data).collect();
        let (fetched, used, notification) = (None, None, None);
        self.requests.push(Request::Chain(Running {
            id,
            len,
            lent,
            zero_copy,
            rest,
            releases,
            fetched,
            used,
            notification,
        }));
    }

    fn tell(&self, user_data: u64, result: i32, flags: u32) -> Event {
        self.slots.complete(user_data, result, flags).expect("it is ours")
    }

    /// The next completion of one of the requests.
    fn complete(&mut self, which: u32, how: u32) {
        let strays = self.stray.len();
        if strays + self.requests.len() == 0 {
            return;
        }
        let which = small(which, strays + self.requests.len());
        if which < strays {
            let user_data = self.stray.swap_remove(which);
            assert_eq!(self.tell(user_data, 0, NOTIF), Event::Pending);
            return;
        }
        match self.requests.swap_remove(which - strays) {
            Request::Fetch { id, len, lent, user_data } => {
                self.complete_fetch(id, len, lent, user_data, how);
            }
            Request::Use { id, len, zero_copy, user_data, .. } => {
                self.complete_use(id, len, zero_copy, user_data, how);
            }
            Request::Notification { id, user_data } => {
                assert_eq!(self.tell(user_data, 0, NOTIF), Event::Returned { id });
            }
            Request::Release { id, user_data } => {
                let cancelled = how.is_multiple_of(4);
                let result = if cancelled { CANCELED } else { 0 };
                self.slot(id).releasing = false;
                if !cancelled {
                    self.slot(id).buffer = false;
                    self.releases += 1;
                }
                let want = if cancelled { Event::Pending } else { Event::Released { lease: id } };
                assert_eq!(self.tell(user_data, result, 0), want);
            }
            Request::Chain(chain) => self.complete_chain(chain, how),
        }
    }

    fn complete_fetch(&mut self, id: LeaseId, len: u32, lent: bool, user_data: u64, how: u32) {
        let result = fetch_result(how, len);
        if REFUSALS.contains(&result) && lent && self.kind.has_pool() {
            let slot = self.slot(id);
            (slot.lent, slot.again) = (false, true);
            self.fallbacks += 1;
            assert_eq!(self.tell(user_data, result, 0), Event::Pending);
            return;
        }
        if lent && result >= 0 {
            self.install(id);
        }
        match self.tell(user_data, result, 0) {
            Event::Fetched { lease, result: told } => {
                assert_eq!(lease, id);
                assert_eq!(told.map_err(|errno| -errno.raw()), as_result(result));
            }
            other => panic!("{other:?}"),
        }
    }

    /// The kernel puts a buffer into a slot; also an empty one.
    fn install(&mut self, id: LeaseId) {
        let slot = self.slot(id);
        assert!(!slot.buffer, "the slot is taken");
        slot.buffer = true;
        self.installs += 1;
    }

    fn complete_use(&mut self, id: UseId, len: u32, zero_copy: bool, user_data: u64, how: u32) {
        let (result, more) = match (how % 6, zero_copy) {
            (0, _) => {
                // Cancelled before it ran, because of what it was linked to.
                if zero_copy {
                    self.stray.push(user_data);
                }
                (CANCELED, false)
            }
            (1, true) => (OPNOTSUPP, true),
            (1, false) => (FAULT, false),
            (2, _) => ((how >> 3) as i32 % len as i32, zero_copy),
            (3, _) => (0, zero_copy),
            _ => (len as i32, zero_copy),
        };
        if more {
            self.requests.push(Request::Notification { id, user_data });
        }
        match self.tell(user_data, result, if more { MORE } else { 0 }) {
            Event::Used { id: told, result: bytes, more: will } => {
                assert_eq!((told, will), (id, more));
                assert_eq!(bytes.map_err(|errno| -errno.raw()), as_result(result));
            }
            other => panic!("{other:?}"),
        }
    }

    /// Lets a chain run until the next completion that the kernel posts.
    fn complete_chain(&mut self, mut chain: Running, how: u32) {
        // The notification may come as soon as it is owed, also after the release.
        if let Some(user_data) = chain.notification
            && (chain.rest.is_empty() || how.is_multiple_of(2))
        {
            chain.notification = None;
            self.chain_told(chain, user_data, 0, NOTIF);
            return;
        }
        let user_data = chain.rest.pop_front().expect("something is left to do");
        if chain.fetched.is_none() {
            let result = fetch_result(how, chain.len);
            chain.fetched = Some(result);
            let full = result == chain.len as i32;
            // What is handed over never is in the slot.
            let linked = chain.lent && self.kind == Kind::Linked;
            if chain.lent && result >= 0 && !linked {
                self.install(chain.id);
            }
            if full {
                // Skipped: the next request runs at once.
                return self.complete_chain(chain, how >> 8);
            }
            let goes_on = chain.releases || (linked && result >= 0);
            if !goes_on {
                // A soft link ends here, and any where there is nothing to hand over, without a word but the notification of SEND_ZC.
                let silenced = chain.rest.pop_front();
                if chain.zero_copy {
                    self.stray.extend(silenced);
                }
            }
            return self.chain_told(chain, user_data, result, 0);
        }
        if chain.used.is_none() {
            let len = chain.len as i32;
            let full = chain.fetched == Some(len);
            let (result, more) = match how % 5 {
                _ if !full => (FAULT, chain.zero_copy),
                0 => (FAULT, chain.zero_copy),
                1 => ((how >> 3) as i32 % len, chain.zero_copy),
                2 if chain.zero_copy => (OPNOTSUPP, true),
                _ => (len, chain.zero_copy),
            };
            chain.used = Some(result);
            if more {
                chain.notification = Some(user_data);
            } else if chain.releases && result == len {
                return self.complete_chain(chain, how >> 8);
            }
            return self.chain_told(chain, user_data, result, if more { MORE } else { 0 });
        }
        let slot = self.slot(chain.id);
        let result = if slot.buffer { 0 } else { INVALID };
        self.releases += u64::from(slot.buffer);
        self.slot(chain.id).buffer = false;
        self.chain_told(chain, user_data, result, 0);
    }

    fn chain_told(&mut self, chain: Running, user_data: u64, result: i32, flags: u32) {
        let over = chain.rest.is_empty() && chain.notification.is_none();
        let refused = chain.lent
            && chain.fetched.is_some_and(|result| REFUSALS.contains(&result))
            && self.kind.has_pool();
        let want = if !over {
            Event::Pending
        } else if refused {
            let slot = self.slot(chain.id);
            (slot.lent, slot.again) = (false, true);
            self.fallbacks += 1;
            Event::Pending
        } else {
            Event::Chained { id: chain.id, outcome: ChainOutcome::Done(0) }
        };
        let told = self.tell(user_data, result, flags);
        match (told, want) {
            (Event::Chained { id, outcome }, Event::Chained { .. }) => {
                assert_eq!(id, chain.id);
                chain.check(outcome);
            }
            (told, want) => assert_eq!(told, want, "{chain:?} on {:?}", self.kind),
        }
        if !over {
            self.requests.push(Request::Chain(chain));
        }
    }

    /// Looks whether one of the fetches has become a lease.
    fn install_one(&mut self, which: u32) {
        if self.fetched.is_empty() {
            return;
        }
        let lease = self.fetched.swap_remove(small(which, self.fetched.len()));
        let id = lease.id();
        let running = self.slot(id).again
            || self
                .requests
                .iter()
                .any(|request| matches!(request, Request::Fetch { id: other, .. } if *other == id));
        match lease.installed() {
            Ok(lease) => {
                assert!(!running && lease.len() > 0);
                let lent = self.slot(id).lent;
                let origin = if lent { Origin::Opcode } else { Origin::Copy };
                assert_eq!(lease.origin(), origin);
                self.installed.push(lease);
            }
            Err(NotInstalled::Pending(lease)) => {
                assert!(running);
                self.fetched.push(lease);
            }
            Err(NotInstalled::EndOfFile | NotInstalled::Failed(_)) => {
                assert!(!running);
                self.slot(id).held = false;
            }
        }
    }

    fn use_one(&mut self, which: u32, how: u32) {
        if self.installed.is_empty() {
            return;
        }
        let which = small(which, self.installed.len());
        let lease = &self.installed[which];
        let id = lease.id();
        let (start, token) = ((how >> 8) % lease.len(), (how >> 4) as u16);
        let len = lease.len() - start;
        let (consumer, zero_copy) = consumer(how);
        let ranges = how.is_multiple_of(5);
        let ranging = self.requests.iter().any(|request| {
            matches!(request, Request::Use { id: used, ranges: true, .. } if used.lease() == id)
        });
        let request = if ranges {
            lease.writev(&[start..start + len, 0..1], Target::Fd(1), 0)
        } else {
            lease.consume(start.., consumer)
        };
        let request = match request {
            Ok(request) => request.token(token),
            Err(error) if error.kind() == ErrorKind::Unavailable => return,
            Err(error) => {
                assert_eq!((error.kind(), ranging), (ErrorKind::Busy, true));
                return;
            }
        };
        assert!(!(ranges && ranging), "two vectored writes share one array");
        let use_id = request.id();
        assert_eq!((use_id.lease(), use_id.token()), (id, token));
        match (how >> 2) % 8 {
            // Taken back.
            0 => drop(request),
            // Handed out to somebody who never pushes it.
            1 if self.table[usize::from(id.slot())].lost < 1 && !ranges => {
                let _ = request.into_entry();
                self.table[usize::from(id.slot())].lost += 1;
            }
            _ => {
                let sqe = read(request.into_entry());
                if !ranges {
                    self.check_use(id, sqe, start, len);
                    let want = [WRITE_FIXED, SEND, SEND_ZC][consumer_choice(how)];
                    assert_eq!(sqe.opcode, want);
                }
                let zero_copy = zero_copy && !ranges;
                let user_data = sqe.user_data;
                self.requests.push(Request::Use { id: use_id, len, zero_copy, ranges, user_data });
            }
        }
    }

    fn release_one(&mut self, which: u32, drops: bool) {
        let count = self.fetched.len() + self.installed.len() + self.released.len();
        if count == 0 {
            return;
        }
        let which = small(which, count);
        if which < self.fetched.len() {
            let lease = self.fetched.swap_remove(which);
            self.slot(lease.id()).held = false;
        } else if which < self.fetched.len() + self.installed.len() {
            let lease = self.installed.swap_remove(which - self.fetched.len());
            let id = lease.id();
            self.slot(id).held = false;
            if !drops {
                self.released.push((lease.release(), id));
            }
        } else {
            drop(self.released.swap_remove(which - self.fetched.len() - self.installed.len()));
        }
    }

    /// What the slots need sent.
    fn send_one(&mut self, push: bool) {
        // By slot, because the request borrows the slots.
        let wanted: Vec<_> = (0..self.table.len()).filter(|index| self.wants(*index)).collect();
        let (sqes, clear) = match self.slots.next_request() {
            None => {
                assert!(wanted.is_empty());
                return;
            }
            Some(_) if !push => return,
            Some(Outgoing::Request(request)) => (vec![read(request.into_entry())], None),
            Some(Outgoing::Chain(chain)) => (chain.into_entries().map(read).collect(), None),
            Some(Outgoing::Clear(clear)) => {
                assert_eq!(self.kind, Kind::Rfc);
                let index = clear.index();
                (Vec::new(), Some((index, clear.done())))
            }
        };
        if let Some((index, event)) = clear {
            let index = usize::from(index - FIRST);
            assert!(wanted.contains(&index));
            let id = self.table[index].id.expect("it is not free");
            assert_eq!(event, Event::Released { lease: id });
            self.table[index].buffer = false;
            self.releases += 1;
            return;
        }
        let sqe = sqes[0];
        let index = match sqe.opcode {
            READ_FIXED => {
                usize::try_from((sqe.addr - self.base) / u64::from(BLOCK)).expect("small")
            }
            _ => usize::from(sqe.buf_index - FIRST),
        };
        assert!(wanted.contains(&index), "{sqe:?}");
        let id = self.table[index].id.expect("it is not free");
        let user_data = sqe.user_data;
        if !self.table[index].again {
            assert_eq!((sqe.opcode, sqes.len()), (PUT_BUF, 1));
            self.table[index].releasing = true;
            self.requests.push(Request::Release { id, user_data });
            return;
        }
        self.table[index].again = false;
        assert_eq!(sqe.opcode, READ_FIXED, "through the pool now");
        if sqes.len() == 1 {
            self.check_fetch(id, sqe, sqe.len);
            self.requests.push(Request::Fetch { id, len: sqe.len, lent: false, user_data });
        } else {
            self.run_chain(id, sqe.len, sqes[1].opcode == SEND_ZC, &sqes);
        }
    }

    /// Everything is brought to its end: then every slot that is not lost is free.
    fn finish(mut self) {
        self.fetched.iter().for_each(|lease| {
            self.table[usize::from(lease.id().slot())].held = false;
        });
        self.fetched.clear();
        self.installed.iter().for_each(|lease| {
            self.table[usize::from(lease.id().slot())].held = false;
        });
        self.installed.clear();
        self.check();
        for step in 0.. {
            if self.requests.is_empty() && self.stray.is_empty() && !self.slots.has_requests() {
                break;
            }
            assert!(step < 10_000, "it does not end: {:?}", self.requests);
            self.send_one(true);
            self.complete(step, 7 + step);
            self.check();
        }
        let lost = self.table.iter().filter(|slot| slot.lost > 0).count();
        assert_eq!(self.slots.free() + lost, SLOTS.into());
        assert_eq!(self.installs, self.releases, "one release for each buffer");
        assert!(self.table.iter().all(|slot| !slot.buffer));
    }
}

impl Running {
    /// What the outcome must be, by what the kernel did.
    fn check(&self, outcome: ChainOutcome) {
        let len = self.len as i32;
        match (self.fetched.unwrap_or(len), self.used.unwrap_or(len)) {
            (errno, _) if errno < 0 => {
                assert!(
                    matches!(outcome, ChainOutcome::FetchFailed(told) if told.raw() == -errno),
                    "{outcome:?} of {self:?}"
                );
            }
            (short, _) if short < len => {
                assert_eq!(outcome, ChainOutcome::ShortFetch(short as u32));
            }
            (_, errno) if errno < 0 => {
                assert!(
                    matches!(outcome, ChainOutcome::UseFailed(told) if told.raw() == -errno),
                    "{outcome:?} of {self:?}"
                );
            }
            (_, short) if short < len => assert_eq!(outcome, ChainOutcome::ShortUse(short as u32)),
            _ => assert_eq!(outcome, ChainOutcome::Done(self.len)),
        }
    }
}

fn consumer_choice(how: u32) -> usize {
    small(how, 3)
}

fn consumer(how: u32) -> (Consumer, bool) {
    let (sink, flags) = (Target::Fd(1), SendFlags::NONE);
    match consumer_choice(how) {
        0 => (Consumer::Write { sink, offset: 0 }, false),
        1 => (Consumer::Send { sink, flags }, false),
        _ => (Consumer::SendZc { sink, flags }, true),
    }
}

fn fetch_result(how: u32, len: u32) -> i32 {
    match how % 8 {
        0 => 0,
        1 => INVALID,
        2 => REFUSALS[(how >> 3) as usize % REFUSALS.len()],
        3 => ((how >> 3) % len) as i32,
        4 => CANCELED,
        _ => len as i32,
    }
}

fn as_result(result: i32) -> Result<u32, i32> {
    u32::try_from(result).map_err(|_| result)
}

fn play(kind: Kind, steps: &[(u8, u32, u32)]) {
    let mut model = Model::new(kind);
    for (step, a, b) in steps.iter().copied() {
        match step {
            0 | 1 => model.fetch(a, b % 8 != 0),
            2 => model.chain(a, b % 8 != 0),
            3..=6 => model.complete(a, b),
            7 | 8 => model.install_one(a),
            9 | 10 => model.use_one(a, b),
            11 => model.release_one(a, b % 2 == 0),
            12 | 13 => model.send_one(b % 4 != 0),
            _ => {
                // What is nobody's, or answers nothing, changes nothing.
                let foreign = u64::from(a) << 32 | u64::from(b);
                if (foreign >> 56) as u8 != DEFAULT_TAG {
                    assert!(!model.slots.claims(foreign));
                    assert_eq!(model.slots.complete(foreign, 0, 0), None);
                }
                let slot = u64::from(SLOTS + 1 + a as u16 % 100);
                let nowhere = u64::from(DEFAULT_TAG) << 56 | (u64::from(b) & 0x3fff) << 14 | slot;
                assert_eq!(model.slots.complete(nowhere, 1, 0), Some(Event::Stale));
                model.stale += 1;
            }
        }
        model.check();
    }
    model.finish();
}

/// Miri takes a thousand times as long.
const CASES: u32 = if cfg!(miri) { 10 } else { 1000 };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn the_table_does_what_the_model_says(
        steps in vec((0..15_u8, any::<u32>(), any::<u32>()), 1..150),
    ) {
        for kind in KINDS {
            play(kind, &steps);
        }
    }
}

/// A copy table of this many slots.
fn copying(slots: u16) -> Slots {
    let pool = Pool::new(slots, BLOCK).expect("a pool");
    Slots::builder(&Support::detect()).pool(pool, 0).build().expect("slots")
}

fn lending() -> Slots {
    let builder = Slots::builder(&Support::detect()).opcode(GET_BUF, Some(PUT_BUF), 0, 1);
    builder.build().expect("slots")
}

fn name(slots: &Slots) -> (Lease<Fetched>, u64) {
    let (lease, request) = slots.fetch(Target::Fd(0), 0, BLOCK).expect("a slot");
    (lease, request.into_entry().get_user_data())
}

#[test]
fn generations_come_round() {
    let slots = copying(1);
    let (first, old) = name(&slots);
    drop(first);
    assert!(slots.complete(old, 1, 0).is_some());
    // One life short of a whole round, every name is another one.
    for _ in 1..(1 << 14) {
        let (lease, user_data) = name(&slots);
        assert_ne!(user_data, old);
        assert_eq!(slots.complete(old, 1, 0), Some(Event::Stale));
        assert!(matches!(slots.complete(user_data, 4096, 0), Some(Event::Fetched { .. })));
        drop(lease.installed().expect("a block"));
    }
    let (lease, user_data) = name(&slots);
    assert_eq!(user_data, old, "14 bits of generations");
    assert_eq!(slots.free(), 0);
    drop(lease);
    assert!(slots.complete(user_data, 0, 0).is_some());
    assert_eq!(slots.free(), 1);
}

#[test]
fn a_use_that_stays_in_flight_keeps_its_name() {
    let slots = copying(1);
    let (lease, user_data) = name(&slots);
    assert!(slots.complete(user_data, 4096, 0).is_some());
    let lease = lease.installed().expect("a block");
    let write = || lease.write(.., Target::Fd(1), 0);
    let first = write().expect("the first").into_entry().get_user_data();
    // Others come and go, more than there are numbers.
    for _ in 0..1000 {
        let other = write().expect("another").into_entry().get_user_data();
        assert_ne!(other, first);
        assert!(matches!(slots.complete(other, 1, 0), Some(Event::Used { .. })));
    }
    let mut names: BTreeSet<_> = (1..256)
        .map(|_| write().expect("there are 256 numbers").into_entry().get_user_data())
        .collect();
    names.insert(first);
    assert_eq!((names.len(), lease.uses()), (256, 256));
    assert_eq!(write().expect_err("no number is left").kind(), ErrorKind::Busy);
    let ranges = lease.writev(&[const { 0..1 }], Target::Fd(1), 0);
    assert_eq!(ranges.expect_err("no number is left").kind(), ErrorKind::Busy);
    assert!(slots.complete(first, 1, 0).is_some());
    assert_eq!(slots.complete(first, 1, 0), Some(Event::Stale), "it has had its last completion");
    let ranges = lease.writev(&[const { 0..1 }], Target::Fd(1), 0).expect("a number is free");
    drop(ranges);
    names.remove(&first);
    drop(lease);
    for user_data in names {
        assert_eq!(slots.free(), 0);
        assert!(slots.complete(user_data, 1, 0).is_some());
    }
    assert_eq!(slots.free(), 1);
}

#[test]
fn a_notification_that_nobody_announced_ends_nothing() {
    let slots = copying(1);
    let (lease, user_data) = name(&slots);
    assert!(slots.complete(user_data, 4096, 0).is_some());
    let lease = lease.installed().expect("a block");
    let Ok(send) = lease.send_zc(.., Target::Fd(1), SendFlags::NONE) else {
        println!("skipped: this kernel has no SEND_ZC");
        return;
    };
    let cancelled = send.into_entry().get_user_data();
    let again = lease.send_zc(.., Target::Fd(1), SendFlags::NONE).expect("as before");
    let again = again.into_entry().get_user_data();
    // The first was linked to something that failed.
    assert!(matches!(
        slots.complete(cancelled, CANCELED, 0),
        Some(Event::Used { more: false, .. })
    ));
    assert!(matches!(slots.complete(again, 4096, MORE), Some(Event::Used { more: true, .. })));
    assert_eq!(slots.complete(cancelled, 0, NOTIF), Some(Event::Pending));
    assert_eq!(lease.uses(), 1);
    drop(lease);
    assert_eq!(slots.free(), 0, "the second one still reads the block");
    assert!(matches!(slots.complete(again, 0, NOTIF), Some(Event::Returned { .. })));
    assert_eq!((slots.free(), slots.stats().stale), (1, 0));
}

#[test]
fn a_release_that_was_made_up_empties_no_lease() {
    let slots = lending();
    let (lease, user_data) = name(&slots);
    assert!(slots.complete(user_data, 4096, 0).is_some());
    let lease = lease.installed().expect("a block");
    for kind in 0..8 {
        let forged = user_data & !(15 << 52) | kind << 52;
        assert_eq!(slots.complete(forged, 0, 0), Some(Event::Stale), "a request of kind {kind}");
    }
    assert_eq!((lease.len(), lease.origin(), slots.free()), (4096, Origin::Opcode, 0));
    let look = lease.copy_out(0, &mut [0; 16]);
    assert_eq!(look.expect_err("it is the kernel's memory").kind(), ErrorKind::Unavailable);
}

#[test]
fn a_release_waits_for_nobody_and_a_slot_for_everybody() {
    let slots = lending();
    let (lease, user_data) = name(&slots);
    assert!(slots.complete(user_data, 4096, 0).is_some());
    let lease = lease.installed().expect("a block");
    let used = lease.write(.., Target::Fd(1), 0).expect("a use").into_entry().get_user_data();
    let released = lease.release();
    let Some(Outgoing::Request(request)) = slots.next_request() else { panic!("the release") };
    let release = request.into_entry().get_user_data();
    assert!(slots.next_request().is_none(), "once");
    assert!(matches!(slots.complete(release, 0, 0), Some(Event::Released { .. })));
    assert_eq!((slots.free(), released.is_over()), (0, false));
    assert!(slots.complete(used, 1, 0).is_some());
    assert_eq!((slots.free(), released.is_over()), (1, true));
}

#[test]
fn an_empty_buffer_is_released_too() {
    let slots = lending();
    let (lease, user_data) = name(&slots);
    assert!(slots.complete(user_data, 0, 0).is_some());
    assert!(matches!(lease.installed(), Err(NotInstalled::EndOfFile)));
    assert_eq!(slots.free(), 0);
    let Some(Outgoing::Request(request)) = slots.next_request() else { panic!("the release") };
    assert!(slots.complete(request.into_entry().get_user_data(), 0, 0).is_some());
    assert_eq!(slots.free(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "a pool so large wants huge pages, and Miri has none")]
fn numbers_of_slots_that_make_no_sense() {
    let support = Support::detect();
    let invalid = |builder: uring_getbuf::slots::Builder| {
        assert_eq!(builder.build().expect_err("nonsense").kind(), ErrorKind::InvalidInput);
    };
    let pool = |blocks| Pool::new(blocks, BLOCK).expect("a pool");
    invalid(Slots::builder(&support));
    invalid(Slots::builder(&support).opcode(GET_BUF, None, 0, 0));
    invalid(Slots::builder(&support).opcode(GET_BUF, None, 0, MAX_SLOTS + 1));
    invalid(Slots::builder(&support).pool(pool(MAX_SLOTS + 1), 0));
    invalid(Slots::builder(&support).opcode(GET_BUF, None, 0, 3).pool(pool(2), 3));
    let most = Slots::builder(&support).opcode(GET_BUF, None, 0, MAX_SLOTS).build();
    assert_eq!(most.expect("as many as there can be").capacity(), MAX_SLOTS.into());
}

#[test]
fn a_tag_of_ones_own() {
    let pool = Pool::new(2, BLOCK).expect("a pool");
    let slots = Slots::builder(&Support::detect()).pool(pool, 0).tag(7).build().expect("slots");
    let (lease, user_data) = name(&slots);
    assert_eq!(user_data >> 56, 7);
    assert!(slots.claims(user_data));
    assert!(!slots.claims(user_data ^ 1 << 56));
    // Kinds from 8 on are the driver's.
    assert!(!slots.claims(user_data | 8 << 52));
    // The token is the caller's, and nothing depends on it.
    assert!(slots.complete(user_data | 0xffff << 28, 4096, 0).is_some());
    assert!(lease.installed().is_ok());
    fn debug(_: &impl Debug) {}
    debug(&slots);
}
