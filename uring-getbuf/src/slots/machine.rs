// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a slot: its states, and the one function that takes it from one to the next.
//!
//! # A lease, step by step
//!
//! 1. A slot is [`Free`](State::Free). A fetch takes it: it is [`Fetching`](State::Fetching), and a
//!    lease holds it.
//! 2. The fetch completes.
//!    - It has brought bytes: the slot is [`Full`](State::Full).
//!    - Its engine refuses the file, and another engine of these slots serves such files: the slot
//!      stays `Fetching`, by that engine, and waits until the request is sent. Nobody is told.
//!    - It has failed, or is at the end of the file: the slot is [`Void`](State::Void) until the
//!      lease is let go. Some engines leave an empty buffer behind even so.
//! 3. Requests use what is in the slot. The slot counts them, and counts one off at its last
//!    completion.
//! 4. The lease is let go, by its release or its drop; so far that may have happened at any time. If it
//!    happens while the slot is `Fetching`, it takes effect when the fetch has completed.
//!    - Memory of the kernel's is given back by a request: the slot is
//!      [`Emptying`](State::Emptying). It waits until the request is sent, and then for its
//!      completion. Requests may go on using the buffer meanwhile, and afterwards: the kernel keeps
//!      it for them.
//!    - Of the pool nothing has to be given back.
//!    - A provider is told when no request uses its memory any more.
//! 5. When the slot holds nothing and no request uses it, it is `Free`. Until then it is
//!    [`Draining`](State::Draining).
//!
//! # A chain
//!
//! Its requests are linked: the kernel starts the next one when the one before it has done all that
//! it was asked for. No lease holds the slot, which is [`Chained`](State::Chained) until the last
//! completion of the chain.
//!
//! If all goes as asked, that is the only one. Otherwise the chain has *strayed*: there are more, and
//! what they say is kept beside the state, in a [`Progress`]. Which one is the last depends on how the engine's chains [end](Ending):
//!
//! | ending | links | the fetch is short or fails | last completion |
//! |---|---|---|---|
//! | handed over | hard | fails: the consumer never runs. Short: the consumer runs into `EFAULT` | the consumer's, or that of a fetch that failed |
//! | released | hard | the consumer fails, the release runs | the release's, and the notification of `SEND_ZC` |
//! | left | soft | the consumer never runs | the consumer's, or that of the fetch |
//!
//! If the engine refuses the file, another one serves the whole chain, as it does a fetch. What a
//! chain leaves in its slot is emptied as that of a lease is.
//!
//! # What may come at any time
//!
//! A completion that fits no request in flight changes nothing, whoever made it up: it is
//! [`Stale`](Told::Stale).

use crate::engine::{Emptied, Ending, Traits};
use crate::error::Errno;
use crate::slots::chain::ChainOutcome;

/// Which of the table's engines serves a slot: an index into them.
pub(super) type By = u8;

/// Where a slot is in its life. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has it.
    Free,
    /// A fetch of so many bytes is in flight, or waits to be sent.
    Fetching {
        asked: u32,
        held: bool,
        waits: bool,
        /// It is being cancelled: no other engine is asked.
        cancelled: bool,
    },
    /// So many bytes are in it, and a lease holds it.
    Full { len: u32, uses: u16 },
    /// There is nothing to lend, and a lease holds it that nobody has looked at yet. `filled`: with an
    /// empty buffer of the kernel's.
    Void { error: Option<Errno>, filled: bool },
    /// A chain of so many bytes is in flight, or waits to be sent. `strayed`: something was not as asked.
    Chained { asked: u32, waits: bool, strayed: bool },
    /// It holds memory of the kernel's, whose release is in flight, or waits to be sent.
    Emptying { uses: u16, waits: bool },
    /// Requests use what was in it.
    Draining { uses: u16 },
}

/// What happens to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A completion of the fetch. `next` is who serves it instead if this engine refuses the file.
    Fetched { result: i32, next: Option<By> },
    /// One request more uses it.
    Use,
    /// The last completion of a request that uses it.
    Used,
    /// A completion of the release.
    Released(i32),
    /// A completion of the chain that was not as asked, and not the last one.
    Strayed,
    /// The last completion of the chain. `next` is who serves it instead if this engine refuses the
    /// file.
    Chained { progress: Progress, next: Option<By> },
    /// The lease is gone, however it went.
    LetGo,
    /// A fetch is about to be cancelled.
    Cancel,
    /// What waited was handed out to be sent.
    Sent,
    /// What was handed out will not be sent, and waits again.
    Unsent,
    /// A chain that was handed out will never be sent.
    Withdrawn,
}

/// What the table has to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// Something waits to be sent for it.
    Queue,
    /// This engine serves it from here on, and its request waits to be sent.
    Ask(By),
    /// It is free.
    Free,
    /// It is free, and its provider is to be told.
    GiveBack,
}

/// What the completion meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Fetched(Result<u32, Errno>),
    Used,
    Released,
    Chained(ChainOutcome),
    /// Nothing to tell.
    Pending,
    /// It answers nothing.
    Stale,
}

/// The state after `input`, what has to be done, and what it meant. `traits` are those of the engine
/// that serves the slot.
// Inlined, each caller keeps only what its own input can do: four times fewer instructions for a lease
// (`cargo bench --bench overhead`, slots-steps).
#[inline(always)]
pub(super) fn next(state: State, input: Input, traits: Traits) -> (State, Effect, Told) {
    let silent = |state| (state, Effect::None, Told::Pending);
    match (input, state) {
        (
            Input::Fetched { result, next },
            State::Fetching { asked, held, waits: false, cancelled },
        ) => {
            if let (Some(by), false) = (next, cancelled) {
                let waiting = State::Fetching { asked, held, waits: true, cancelled };
                return (waiting, Effect::Ask(by), Told::Pending);
            }
            let result = match Errno::check(result) {
                // Another engine would have served it, were it not cancelled.
                Err(_) if next.is_some() => Err(Errno::CANCELED),
                result => result.map(|len| len.min(asked)),
            };
            let filled = result.is_ok_and(|len| len > 0 || traits.installs_empty);
            let (state, effect) = match result {
                _ if !held => let_go(filled, 0, traits),
                Ok(len @ 1..) => (State::Full { len, uses: 0 }, Effect::None),
                _ => (State::Void { error: result.err(), filled }, Effect::None),
            };
            (state, effect, Told::Fetched(result))
        }
        (Input::Cancel, State::Fetching { asked, held, waits, .. }) => {
            silent(State::Fetching { asked, held, waits, cancelled: true })
        }

        (Input::Use, State::Full { len, uses }) => silent(State::Full { len, uses: uses + 1 }),
        (Input::Used, State::Full { len, uses: uses @ 1.. }) => {
            (State::Full { len, uses: uses - 1 }, Effect::None, Told::Used)
        }
        (Input::Used, State::Emptying { uses: uses @ 1.., waits }) => {
            (State::Emptying { uses: uses - 1, waits }, Effect::None, Told::Used)
        }
        (Input::Used, State::Draining { uses: uses @ 1.. }) => {
            let (state, effect) = drained(uses - 1, traits);
            (state, effect, Told::Used)
        }

        (Input::LetGo, State::Fetching { asked, waits, cancelled, .. }) => {
            silent(State::Fetching { asked, held: false, waits, cancelled })
        }
        (Input::LetGo, State::Full { uses, .. }) => {
            let (state, effect) = let_go(true, uses, traits);
            (state, effect, Told::Pending)
        }
        (Input::LetGo, State::Void { filled, .. }) => {
            let (state, effect) = let_go(filled, 0, traits);
            (state, effect, Told::Pending)
        }
        // Cancelled: it never ran, and the buffer is still there. Any other error says that there
        // is nothing of ours in the slot.
        (Input::Released(result), State::Emptying { uses, waits: false }) => {
            if Errno::check(result) == Err(Errno::CANCELED) {
                return (State::Emptying { uses, waits: true }, Effect::Queue, Told::Pending);
            }
            let (state, effect) = drained(uses, traits);
            (state, effect, Told::Released)
        }

        (Input::Strayed, State::Chained { asked, waits: false, .. }) => {
            silent(State::Chained { asked, waits: false, strayed: true })
        }
        (Input::Chained { next: Some(by), .. }, State::Chained { asked, waits: false, .. }) => {
            let waiting = State::Chained { asked, waits: true, strayed: false };
            (waiting, Effect::Ask(by), Told::Pending)
        }
        (Input::Chained { progress, .. }, State::Chained { asked, waits: false, .. }) => {
            let (state, effect) = let_go(progress.filled(asked, traits), 0, traits);
            (state, effect, Told::Chained(progress.outcome(asked)))
        }
        (Input::Withdrawn, State::Chained { waits: false, .. }) => {
            (State::Free, Effect::Free, Told::Pending)
        }

        (Input::Sent, _) if state.waits() == Some(true) => silent(state.waiting(false)),
        (Input::Unsent, _) if state.waits() == Some(false) => {
            (state.waiting(true), Effect::Queue, Told::Pending)
        }
        _ => (state, Effect::None, Told::Stale),
    }
}

/// Nobody holds a slot any more. `filled`: its engine's memory is in it.
#[inline]
fn let_go(filled: bool, uses: u16, traits: Traits) -> (State, Effect) {
    match traits.emptied {
        Emptied::ByRequest if filled => (State::Emptying { uses, waits: true }, Effect::Queue),
        _ => drained(uses, traits),
    }
}

/// There is nothing in a slot that a request would have to take away.
#[inline]
fn drained(uses: u16, traits: Traits) -> (State, Effect) {
    match (uses, traits.emptied) {
        (0, Emptied::WhenUnused) => (State::Free, Effect::GiveBack),
        (0, _) => (State::Free, Effect::Free),
        _ => (State::Draining { uses }, Effect::None),
    }
}

/// What is known of a chain whose requests have had completions. Results are as in the completion;
/// `None`: as asked, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    fetched: Option<i32>,
    used: Option<i32>,
    released: Option<i32>,
    /// A notification of `SEND_ZC` is still to come.
    unreturned: bool,
}

/// A completion of a chain's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Fetched(i32),
    Used { result: i32, more: bool, notification: bool },
    Released(i32),
}

impl Progress {
    /// What is known after a completion of a chain of `asked` bytes, and whether it is the last one.
    /// `None`: it answers nothing.
    // As for `next`.
    #[inline(always)]
    pub(super) fn and(mut self, link: Link, ending: Ending, asked: u32) -> Option<(Self, bool)> {
        let is_last = match link {
            // Told only where it is not as asked.
            Link::Fetched(result) => {
                self.fetched = Some(result);
                match ending {
                    Ending::Released => false,
                    Ending::HandedOver => result < 0,
                    Ending::Left => true,
                }
            }
            Link::Used { notification: true, .. } if !self.unreturned => return None,
            Link::Used { result, more, notification } => {
                self.unreturned = more;
                if !notification && result != asked as i32 {
                    self.used = Some(result);
                }
                !more && (ending != Ending::Released || self.released.is_some())
            }
            Link::Released(result) => {
                self.released = Some(result);
                !self.unreturned
            }
        };
        Some((self, is_last))
    }

    /// The result of the fetch, if it was not as asked.
    #[inline]
    pub(super) fn fetched(self) -> Option<i32> {
        self.fetched
    }

    /// Whether the chain has left memory of its engine's in the slot.
    #[inline]
    fn filled(self, asked: u32, traits: Traits) -> bool {
        let fetched = self.fetched.map_or(Ok(asked), Errno::check);
        match traits.ending {
            Ending::HandedOver => false,
            // The release never ran.
            Ending::Released => {
                self.released.map(Errno::check) == Some(Err(Errno::CANCELED)) && fetched.is_ok()
            }
            Ending::Left => fetched.is_ok_and(|len| len > 0 || traits.installs_empty),
        }
    }

    #[inline]
    fn outcome(self, asked: u32) -> ChainOutcome {
        match self.fetched.map(Errno::check) {
            Some(Err(errno)) => return ChainOutcome::FetchFailed(errno),
            Some(Ok(len)) if len < asked => return ChainOutcome::ShortFetch(len),
            _ => {}
        }
        match self.used.map(Errno::check) {
            Some(Err(errno)) => ChainOutcome::UseFailed(errno),
            Some(Ok(len)) if len < asked => ChainOutcome::ShortUse(len),
            _ => ChainOutcome::Done(asked),
        }
    }
}

impl State {
    /// Whether a request of its waits to be sent, if it has one.
    #[inline]
    fn waits(self) -> Option<bool> {
        match self {
            Self::Fetching { waits, .. }
            | Self::Chained { waits, .. }
            | Self::Emptying { waits, .. } => Some(waits),
            Self::Free | Self::Full { .. } | Self::Void { .. } | Self::Draining { .. } => None,
        }
    }

    #[inline]
    fn waiting(mut self, yes: bool) -> Self {
        if let Self::Fetching { waits, .. }
        | Self::Chained { waits, .. }
        | Self::Emptying { waits, .. } = &mut self
        {
            *waits = yes;
        }
        self
    }

    /// How many requests use it.
    #[inline]
    pub(super) fn uses(self) -> u32 {
        match self {
            Self::Full { uses, .. } | Self::Emptying { uses, .. } | Self::Draining { uses, .. } => {
                uses.into()
            }
            _ => 0,
        }
    }

    /// How many requests of its the kernel may have. A chain counts as one.
    pub(super) fn in_flight(self) -> u32 {
        self.uses() + u32::from(self.waits() == Some(false))
    }

    /// Whether it gets on by itself: it is being emptied, or waits to be filled once more.
    pub(super) fn is_on_its_way(self) -> bool {
        matches!(self, Self::Emptying { .. }) || self.waits() == Some(true)
    }
}

#[cfg(test)]
mod tests;
