// SPDX-License-Identifier: MIT OR Apache-2.0
//! What completions do to a slot, and requests that were never sent.

use super::event::Event;
use super::ident::{Kind, LeaseId, UseId};
use super::slot::{Slot, state};
use super::table::{Driver, Lending};
use crate::chain::ChainOutcome;
use crate::engine::Ending;
use crate::error::{Errno, Result};

impl Slot {
    /// Says what a completion that names it meant.
    // Flags are looked at no sooner than in `otherwise`: what has any is never awaited.
    #[inline(always)]
    pub(super) fn told(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Option<Event> {
        if let Some(event) = self.as_asked(user_data, result) {
            return Some(event);
        }
        let mut event = None;
        self.otherwise(user_data, result, flags, driver, &mut event);
        event
    }

    /// The same for what was [awaited](Slot::expects) and has gone as asked. `None`: nothing has
    /// happened.
    #[inline(always)]
    pub(super) fn as_asked(&self, user_data: u64, result: i32) -> Option<Event> {
        const USED: u16 = (state::HELD | state::AWAITED) as u16;
        const FETCHED: u16 = USED | state::FETCHING as u16;
        let (id, now) = (UseId::of(user_data), self.state.get());
        if self.expects(user_data) {
            // Whoever lends it.
            let marks = now as u16;
            if marks == FETCHED {
                if result as u32 == self.len.get() {
                    self.state.set(now - (state::AWAITED + state::FETCHING + state::REQUEST));
                    return Some(Event::Fetched { lease: id.lease(), result: Ok(result as u32) });
                }
            } else if marks == USED {
                if result >= 0 {
                    self.state.set(now - (state::AWAITED + state::REQUEST));
                    return Some(Event::Used { id, result: Ok(result as u32), more: false });
                }
            } else if let Some(event) = self.over(id.lease(), now, result) {
                return Some(event);
            }
        }
        None
    }

    /// The same for what leaves nothing behind but a free slot: a chain, and a release after all the
    /// uses.
    #[inline(always)]
    fn over(&self, id: LeaseId, now: u32, result: i32) -> Option<Event> {
        const RELEASED: u32 = state::LENT | state::RELEASING | state::AWAITED | state::REQUEST;
        const CHAINED: u32 = state::CHAINED | state::AWAITED;
        if now & CHAINED == CHAINED {
            let len = self.len.get();
            let (done, left) = match self.lending() {
                None => (len, now & state::LEFT),
                Some(lending) => match lending.ending {
                    Ending::HandedOver => (len, 0),
                    Ending::Released => (0, 0),
                    Ending::Left if lending.replace => (len, state::LEFT),
                    Ending::Left => return None,
                },
            };
            if result as u32 == done {
                self.vacate(left);
                return Some(Event::Chained { id, outcome: ChainOutcome::Done(len) });
            }
        } else if now == RELEASED && result == 0 {
            self.vacate(0);
            return Some(Event::Released { lease: id });
        }
        None
    }

    /// A completion that was not awaited, or not so.
    // What is returned through memory stays in memory, also where this was not called. A copy does
    // not: those that go as asked stay in registers.
    #[cold]
    fn otherwise(
        &self,
        user_data: u64,
        result: i32,
        flags: u32,
        driver: &impl Driver,
        event: &mut Option<Event>,
    ) {
        if !self.is_named_by(user_data) {
            *event = self.core.unknown(user_data, result, flags, driver);
            return;
        }
        let name = UseId::of(user_data);
        *event = Some(match name.kind() {
            Some(Kind::Fetch) => self.fetched(name.lease(), result, driver),
            Some(kind @ (Kind::Use | Kind::UseRanges)) => {
                self.used(name, kind, result, flags, driver)
            }
            Some(Kind::Release) => self.released(name.lease(), result),
            Some(kind @ (Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease)) => {
                self.chained(name, kind, result, flags, driver)
            }
            None => self.core.stale(),
        });
    }

    /// Whether the pool is to serve what the lender has just refused.
    #[inline]
    fn falls_back(&self, result: i32) -> bool {
        result < 0 && self.refused(result)
    }

    /// It refuses a file that cannot lend its memory, and what would be more than may be pinned
    /// (the module: `EDQUOT`). The pool has its memory already. It also takes `STREAM` for an offset,
    /// unless the file is a stream; a read does not.
    #[cold]
    fn refused(&self, result: i32) -> bool {
        let refused = match Errno::check(result) {
            Err(Errno::NOTSUPP | Errno::NOMEM | Errno::DQUOT) => true,
            Err(Errno::INVAL) => self.source.get().1 > i64::MAX as u64,
            _ => false,
        };
        let may = self.state.get() & (state::LENT | state::ALONE) == state::LENT;
        let again = refused && may && self.core.pool.is_some();
        if again {
            self.unmark(state::LENT);
            self.fill_from_pool();
            self.core.fallbacks.set(self.core.fallbacks.get() + 1);
        }
        again
    }

    /// A lender has been asked, with this result: whether the kernel holds a buffer now.
    fn filled(&self, lending: Option<&Lending>, result: Result<u32, Errno>) {
        let (Some(lending), Ok(len)) = (lending, result) else {
            return self.unmark(state::LENT);
        };
        if len != 0 || lending.lender.installs_empty() {
            self.unmark(state::LEFT);
        } else {
            self.unmark(state::LENT);
        }
    }

    fn fetched(&self, id: LeaseId, result: i32, driver: &impl Driver) -> Event {
        if !self.is(state::FETCHING) {
            return self.core.stale();
        }
        self.expect_nothing();
        if self.falls_back(result) {
            self.core.enqueue(self);
            return Event::Pending;
        }
        self.finish();
        let mut result = Errno::check(result).map(|len| len.min(self.len.get()));
        match &mut result {
            Ok(len) => {
                self.len.set(*len);
                if *len == 0 {
                    self.mark(state::EMPTY);
                }
            }
            Err(errno) => {
                if self.is(state::ALONE) && *errno == Errno::NOTSUPP {
                    *errno = Errno::CANCELED;
                }
                self.len.set(errno.raw() as u32);
                self.mark(state::EMPTY);
            }
        }
        self.filled(self.lending(), result);
        self.unmark(state::FETCHING | state::ALONE);
        self.settle();
        driver.noted(self.note.get());
        Event::Fetched { lease: id, result }
    }

    fn used(&self, id: UseId, kind: Kind, result: i32, flags: u32, driver: &impl Driver) -> Event {
        let more = io_uring::cqueue::more(flags);
        if !more {
            if !self.end_use(id) {
                return self.core.stray(flags);
            }
            if kind == Kind::UseRanges {
                self.unmark(state::RANGING);
            }
            self.finish();
            self.settle();
            driver.used(id.token());
        }
        if io_uring::cqueue::notif(flags) {
            driver.returned(id)
        } else {
            Event::Used { id, result: Errno::check(result), more }
        }
    }

    fn released(&self, id: LeaseId, result: i32) -> Event {
        if !self.is(state::RELEASING) {
            return self.core.stale();
        }
        self.expect_nothing();
        self.unmark(state::RELEASING);
        self.finish();
        // Cancelled: it never ran, and the buffer is still there. Any other error says that there
        // is nothing of ours in the slot.
        let again = Errno::check(result) == Err(Errno::CANCELED);
        if !again {
            self.unmark(state::LENT);
        }
        self.settle();
        if again { Event::Pending } else { Event::Released { lease: id } }
    }

    /// A completion of a chain that did not go as asked.
    fn chained(
        &self,
        name: UseId,
        kind: Kind,
        result: i32,
        flags: u32,
        driver: &impl Driver,
    ) -> Event {
        if !self.is(state::CHAINED) {
            return self.core.stray(flags);
        }
        let id = name.lease();
        let lending = self.lending();
        let ending = lending.map(|lending| lending.ending);
        let releases = ending == Some(Ending::Released);
        self.expect_nothing();
        let mut progress = self.progress.get();
        let done = match kind {
            // Posted only where it is not as asked. A soft link stops here, and one that hands its
            // buffer over if there is none.
            Kind::ChainFetch => {
                progress.fetched = Some(result);
                match ending {
                    Some(Ending::Released) => false,
                    Some(Ending::HandedOver) => result < 0,
                    Some(Ending::Left) | None => true,
                }
            }
            Kind::ChainUse => {
                let (more, notif) = (io_uring::cqueue::more(flags), io_uring::cqueue::notif(flags));
                if notif && (!progress.unreturned || name.sequence() != attempt(lending)) {
                    return self.core.stray(flags);
                }
                progress.unreturned = more;
                if !notif {
                    progress.used = Some(result);
                }
                !more && (!releases || progress.released)
            }
            _ => {
                progress.released = true;
                !progress.unreturned
            }
        };
        self.progress.set(progress);
        if !done {
            return Event::Pending;
        }
        if progress.fetched.is_some_and(|result| self.falls_back(result)) {
            self.core.enqueue(self);
            return Event::Pending;
        }
        let fetched = progress.fetched.map_or(Ok(self.len.get()), Errno::check);
        // What it has left in its slot is released as that of a lease.
        self.filled(lending.filter(|_| ending == Some(Ending::Left)), fetched);
        self.unmark(state::CHAINED);
        self.finish();
        self.settle();
        driver.noted(self.note.get());
        Event::Chained { id, outcome: progress.outcome(self.len.get()) }
    }

    /// The request was never pushed.
    #[cold]
    pub(super) fn retract(&self, user_data: u64, requeue: bool) {
        let (id, Some(kind)) = (UseId::of(user_data), Kind::of(user_data)) else { return };
        let cancelled = -Errno::CANCELED.raw();
        match kind {
            // A release that was cancelled is sent again anyway.
            Kind::Release => {
                self.released(id.lease(), cancelled);
            }
            _ if requeue => self.core.enqueue(self),
            Kind::Fetch => {
                self.fetched(id.lease(), cancelled, &());
            }
            Kind::Use | Kind::UseRanges => {
                self.used(id, kind, cancelled, 0, &());
            }
            Kind::ChainFetch | Kind::ChainUse | Kind::ChainRelease => {}
        }
    }

    /// A chain was never pushed.
    #[cold]
    pub(super) fn retract_chain(&self, requeue: bool) {
        self.expect_nothing();
        if requeue {
            return self.core.enqueue(self);
        }
        self.unmark(state::CHAINED | state::LENT);
        self.finish();
        self.settle();
    }
}

/// Distinguishes the names of a chain's requests: first those of a lender, then those of the pool.
#[inline]
pub(super) fn attempt(lending: Option<&Lending>) -> u8 {
    u8::from(lending.is_none())
}
