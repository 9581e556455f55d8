// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every step of the machine, and every pair of state and input that is none.

use super::*;

/// What every fetch and chain here asks for.
const ASKED: u32 = 100;
const FAILED: Errno = Errno::FBIG;

fn full(len: u32, uses: u16) -> State {
    State::Full { len, uses }
}

fn void(error: Option<Errno>, filled: bool) -> State {
    State::Void { error, filled }
}

fn emptying(uses: u16, waits: bool) -> State {
    State::Emptying { uses, waits }
}

fn draining(uses: u16) -> State {
    State::Draining { uses }
}

fn fetch_in(held: bool, waits: bool, cancelled: bool) -> State {
    State::Fetching { asked: ASKED, held, waits, cancelled }
}

/// In flight, and held by a lease.
fn fetching() -> State {
    fetch_in(true, false, false)
}

fn let_go_early() -> State {
    fetch_in(false, false, false)
}

fn chained() -> State {
    State::Chained { asked: ASKED, waits: false, strayed: false }
}

fn fetched(result: i32) -> Input {
    Input::Fetched { result, next: None }
}

fn refused(by: By) -> Input {
    Input::Fetched { result: -Errno::NOTSUPP.raw(), next: Some(by) }
}

fn chain(fetched: Option<i32>, used: Option<i32>, released: Option<i32>) -> Input {
    let progress = Progress { fetched, used, released, unreturned: false };
    Input::Chained { progress, next: None }
}

fn fails(errno: Errno) -> i32 {
    -errno.raw()
}

/// Memory of the kernel's, of the pool, and of a provider.
fn lent(ending: Ending) -> Traits {
    Traits { lent: true, emptied: Emptied::ByRequest, ending, installs_empty: true }
}

fn pool() -> Traits {
    let (emptied, ending) = (Emptied::AtOnce, Ending::Left);
    Traits { lent: false, emptied, ending, installs_empty: false }
}

fn provided() -> Traits {
    Traits { emptied: Emptied::WhenUnused, ..pool() }
}

type Row = (State, Input, Traits, (State, Effect, Told));

fn check(rows: impl IntoIterator<Item = Row>) {
    for (state, input, traits, after) in rows {
        assert_eq!(next(state, input, traits), after, "{state:?} {input:?} {traits:?}");
    }
}

fn silent(state: State) -> (State, Effect, Told) {
    (state, Effect::None, Told::Pending)
}

#[test]
fn a_fetch() {
    let kernel = lent(Ending::Released);
    let some = Told::Fetched(Ok(60));
    let none = Told::Fetched(Ok(0));
    let failed = Told::Fetched(Err(FAILED));
    let cancelled = fetch_in(true, false, true);
    check([
        (fetching(), fetched(60), kernel, (full(60, 0), Effect::None, some)),
        (fetching(), fetched(60), pool(), (full(60, 0), Effect::None, some)),
        (fetching(), fetched(101), pool(), {
            (full(ASKED, 0), Effect::None, Told::Fetched(Ok(ASKED)))
        }),
        (fetching(), fetched(0), kernel, (void(None, true), Effect::None, none)),
        (fetching(), fetched(0), pool(), (void(None, false), Effect::None, none)),
        (fetching(), fetched(fails(FAILED)), kernel, {
            (void(Some(FAILED), false), Effect::None, failed)
        }),
        // Nobody waits for it any more.
        (let_go_early(), fetched(60), kernel, (emptying(0, true), Effect::Queue, some)),
        (let_go_early(), fetched(60), pool(), (State::Free, Effect::Free, some)),
        (let_go_early(), fetched(0), kernel, (emptying(0, true), Effect::Queue, none)),
        (let_go_early(), fetched(0), pool(), (State::Free, Effect::Free, none)),
        (let_go_early(), fetched(fails(FAILED)), kernel, (State::Free, Effect::Free, failed)),
        // Another engine is asked, unless nobody is to be.
        (fetching(), refused(1), kernel, {
            (fetch_in(true, true, false), Effect::Ask(1), Told::Pending)
        }),
        (let_go_early(), refused(2), kernel, {
            (fetch_in(false, true, false), Effect::Ask(2), Told::Pending)
        }),
        (cancelled, refused(1), kernel, {
            let error = Errno::CANCELED;
            (void(Some(error), false), Effect::None, Told::Fetched(Err(error)))
        }),
        (cancelled, fetched(60), kernel, (full(60, 0), Effect::None, some)),
        (fetching(), Input::Cancel, kernel, silent(cancelled)),
        (fetch_in(true, true, false), Input::Cancel, pool(), {
            silent(fetch_in(true, true, true))
        }),
        (fetching(), Input::LetGo, kernel, silent(let_go_early())),
        (fetch_in(true, true, true), Input::LetGo, kernel, { silent(fetch_in(false, true, true)) }),
    ]);
}

#[test]
fn uses_and_the_end_of_a_lease() {
    let kernel = lent(Ending::HandedOver);
    check([
        (full(60, 0), Input::Use, kernel, silent(full(60, 1))),
        (full(60, 1), Input::Use, pool(), silent(full(60, 2))),
        (full(60, 2), Input::Used, kernel, (full(60, 1), Effect::None, Told::Used)),
        (emptying(1, true), Input::Used, kernel, { (emptying(0, true), Effect::None, Told::Used) }),
        (emptying(2, false), Input::Used, kernel, {
            (emptying(1, false), Effect::None, Told::Used)
        }),
        (draining(2), Input::Used, provided(), (draining(1), Effect::None, Told::Used)),
        (draining(1), Input::Used, kernel, (State::Free, Effect::Free, Told::Used)),
        (draining(1), Input::Used, pool(), (State::Free, Effect::Free, Told::Used)),
        (draining(1), Input::Used, provided(), (State::Free, Effect::GiveBack, Told::Used)),
        (full(60, 2), Input::LetGo, kernel, { (emptying(2, true), Effect::Queue, Told::Pending) }),
        (full(60, 0), Input::LetGo, pool(), (State::Free, Effect::Free, Told::Pending)),
        (full(60, 2), Input::LetGo, pool(), silent(draining(2))),
        (full(60, 0), Input::LetGo, provided(), { (State::Free, Effect::GiveBack, Told::Pending) }),
        (full(60, 1), Input::LetGo, provided(), silent(draining(1))),
        (void(None, true), Input::LetGo, kernel, {
            (emptying(0, true), Effect::Queue, Told::Pending)
        }),
        (void(None, false), Input::LetGo, pool(), (State::Free, Effect::Free, Told::Pending)),
        (void(Some(FAILED), false), Input::LetGo, kernel, {
            (State::Free, Effect::Free, Told::Pending)
        }),
    ]);
}

#[test]
fn a_release_and_what_waits() {
    let kernel = lent(Ending::Left);
    check([
        (emptying(0, false), Input::Released(0), kernel, {
            (State::Free, Effect::Free, Told::Released)
        }),
        (emptying(2, false), Input::Released(0), kernel, {
            (draining(2), Effect::None, Told::Released)
        }),
        (emptying(0, false), Input::Released(fails(FAILED)), kernel, {
            (State::Free, Effect::Free, Told::Released)
        }),
        (emptying(1, false), Input::Released(fails(Errno::CANCELED)), kernel, {
            (emptying(1, true), Effect::Queue, Told::Pending)
        }),
    ]);
    for state in [fetching(), let_go_early(), chained(), emptying(1, false)] {
        let waiting = state.waiting(true);
        check([
            (waiting, Input::Sent, kernel, silent(state)),
            (state, Input::Unsent, kernel, (waiting, Effect::Queue, Told::Pending)),
        ]);
    }
}

#[test]
fn a_chain() {
    use ChainOutcome::{Done, FetchFailed, ShortFetch, ShortUse, UseFailed};
    let free = |outcome| (State::Free, Effect::Free, Told::Chained(outcome));
    let full = |outcome| (emptying(0, true), Effect::Queue, Told::Chained(outcome));
    let (over, released, left) =
        (lent(Ending::HandedOver), lent(Ending::Released), lent(Ending::Left));
    let cancelled = Some(fails(Errno::CANCELED));
    let failed = Some(fails(FAILED));
    let progress = Progress { fetched: failed, ..Progress::default() };
    let strayed = State::Chained { asked: ASKED, waits: false, strayed: true };
    check([
        (chained(), chain(None, None, None), over, free(Done(ASKED))),
        (chained(), chain(None, None, None), released, free(Done(ASKED))),
        (chained(), chain(None, None, None), left, full(Done(ASKED))),
        (chained(), chain(None, None, None), pool(), free(Done(ASKED))),
        (strayed, chain(failed, None, None), over, free(FetchFailed(FAILED))),
        (strayed, chain(failed, cancelled, cancelled), released, free(FetchFailed(FAILED))),
        (chained(), chain(failed, None, None), left, free(FetchFailed(FAILED))),
        (chained(), chain(Some(60), failed, None), over, free(ShortFetch(60))),
        (strayed, chain(Some(60), failed, Some(0)), released, free(ShortFetch(60))),
        (strayed, chain(Some(60), failed, cancelled), released, full(ShortFetch(60))),
        (chained(), chain(Some(60), None, None), left, full(ShortFetch(60))),
        (chained(), chain(Some(0), None, None), left, full(ShortFetch(0))),
        (chained(), chain(Some(0), None, None), pool(), free(ShortFetch(0))),
        (chained(), chain(None, Some(30), None), over, free(ShortUse(30))),
        (strayed, chain(None, Some(30), Some(0)), released, free(ShortUse(30))),
        (chained(), chain(None, failed, None), left, full(UseFailed(FAILED))),
        (strayed, chain(None, failed, cancelled), released, full(UseFailed(FAILED))),
        (chained(), Input::Strayed, released, silent(strayed)),
        (strayed, Input::Strayed, released, silent(strayed)),
        (strayed, Input::Chained { progress, next: Some(1) }, over, {
            (chained().waiting(true), Effect::Ask(1), Told::Pending)
        }),
        (chained(), Input::Withdrawn, over, (State::Free, Effect::Free, Told::Pending)),
    ]);
}

/// What comes, and whether it is the last one; `None`: it answers nothing.
type Step = (Link, Option<bool>);

#[test]
fn the_last_completion_of_a_chain() {
    let failed = fails(FAILED);
    let used = |result| Link::Used { result, more: false, notification: false };
    let announced = |result| Link::Used { result, more: true, notification: false };
    let returned = Link::Used { result: 0, more: false, notification: true };
    let all = ASKED as i32;
    let rows: &[(Ending, &[Step])] = &[
        (Ending::HandedOver, &[(used(all), Some(true))]),
        (Ending::HandedOver, &[(Link::Fetched(failed), Some(true))]),
        (Ending::HandedOver, &[(Link::Fetched(60), Some(false)), (used(failed), Some(true))]),
        (Ending::HandedOver, &[(announced(all), Some(false)), (returned, Some(true))]),
        (Ending::HandedOver, &[(returned, None)]),
        (Ending::Released, &[(Link::Released(0), Some(true))]),
        (Ending::Released, &[(used(30), Some(false)), (Link::Released(0), Some(true))]),
        (
            Ending::Released,
            &[
                (Link::Fetched(failed), Some(false)),
                (used(failed), Some(false)),
                (Link::Released(failed), Some(true)),
            ],
        ),
        (
            Ending::Released,
            &[
                (announced(all), Some(false)),
                (Link::Released(0), Some(false)),
                (returned, Some(true)),
            ],
        ),
        (
            Ending::Released,
            &[(announced(all), Some(false)), (returned, Some(false)), (returned, None)],
        ),
        (Ending::Left, &[(used(all), Some(true))]),
        (Ending::Left, &[(Link::Fetched(60), Some(true))]),
        (Ending::Left, &[(announced(all), Some(false)), (returned, Some(true))]),
    ];
    for (ending, links) in rows {
        let mut progress = Progress::default();
        for (link, last) in *links {
            let after = progress.and(*link, *ending, ASKED);
            assert_eq!(after.map(|(_, last)| last), *last, "{link:?} of {links:?}, {ending:?}");
            progress = after.map_or(progress, |(after, _)| after);
        }
    }
    // What was as asked is not kept.
    let known = |link| Progress::default().and(link, Ending::Left, ASKED).map(|(known, _)| known);
    assert_eq!(known(used(all)), Some(Progress::default()));
    assert_eq!(known(used(30)), Some(Progress { used: Some(30), ..Progress::default() }));
}

const BOTH: [bool; 2] = [false, true];

/// Every state, with few numbers.
fn states() -> Vec<State> {
    let mut all = vec![State::Free];
    for (waits, other) in BOTH.into_iter().flat_map(|a| BOTH.map(|b| (a, b))) {
        all.push(State::Chained { asked: ASKED, waits, strayed: other });
        all.extend(BOTH.map(|held| fetch_in(held, waits, other)));
    }
    for uses in 0..=2 {
        all.extend(BOTH.map(|waits| emptying(uses, waits)));
        all.extend([full(60, uses), draining(uses)]);
    }
    all.extend([void(None, false), void(None, true), void(Some(FAILED), false)]);
    all
}

fn inputs() -> Vec<Input> {
    let results = [0, 60, 101, fails(FAILED), fails(Errno::CANCELED)];
    let mut all = vec![
        Input::Use,
        Input::Used,
        Input::Strayed,
        Input::LetGo,
        Input::Cancel,
        Input::Sent,
        Input::Unsent,
        Input::Withdrawn,
    ];
    for result in results {
        all.push(Input::Released(result));
        for next in [None, Some(1)] {
            all.push(Input::Fetched { result, next });
            let progress = Progress { fetched: Some(result), ..Progress::default() };
            all.push(Input::Chained { progress, next });
        }
    }
    all
}

/// Whether something like this can happen to a slot like that.
fn fits(state: State, input: Input) -> bool {
    let waits = state.waits();
    match input {
        Input::Fetched { .. } => matches!(state, State::Fetching { .. }) && waits == Some(false),
        Input::Cancel => matches!(state, State::Fetching { .. }),
        Input::Use => matches!(state, State::Full { .. }),
        Input::Used => state.uses() > 0,
        Input::Released(_) => matches!(state, State::Emptying { .. }) && waits == Some(false),
        Input::LetGo => {
            matches!(state, State::Fetching { .. } | State::Full { .. } | State::Void { .. })
        }
        // A chain that waits is in the table's hands, whoever had it before.
        Input::Strayed | Input::Chained { .. } | Input::Withdrawn => {
            matches!(state, State::Chained { .. }) && waits == Some(false)
        }
        Input::Sent => waits == Some(true),
        Input::Unsent => waits == Some(false),
    }
}

fn every(mut with: impl FnMut(State, Input, Traits)) {
    let endings = [Ending::HandedOver, Ending::Released, Ending::Left].map(lent);
    let all = endings.into_iter().chain([pool(), provided()]);
    for (traits, state) in all.flat_map(|traits| states().into_iter().map(move |s| (traits, s))) {
        inputs().into_iter().for_each(|input| with(state, input, traits));
    }
}

#[test]
fn what_fits_no_state_is_stale() {
    let mut fitting = 0;
    every(|state, input, traits| {
        let (after, effect, told) = next(state, input, traits);
        if fits(state, input) {
            assert_ne!(told, Told::Stale, "{state:?} {input:?}");
            fitting += 1;
        } else {
            let nothing = (state, Effect::None, Told::Stale);
            assert_eq!((after, effect, told), nothing, "{state:?} {input:?}");
        }
    });
    assert!(fitting > 500, "{fitting}");
}

/// The lists of the table hold as long as nothing is put into one twice, or is in both.
#[test]
fn effects_say_which_list_a_slot_is_in() {
    every(|state, input, traits| {
        let (after, effect, told) = next(state, input, traits);
        let what = format!("{state:?} {input:?} {traits:?} -> {after:?}");
        let queued = state.waits() != Some(true) && after.waits() == Some(true);
        assert_eq!(matches!(effect, Effect::Queue | Effect::Ask(_)), queued, "{what}");
        let freed = state != State::Free && after == State::Free;
        assert_eq!(matches!(effect, Effect::Free | Effect::GiveBack), freed, "{what}");
        // Only its being sent takes it out of the list.
        let unqueued = state.waits() == Some(true) && after.waits() != Some(true);
        assert_eq!(unqueued, state.waits() == Some(true) && input == Input::Sent, "{what}");
        // A chain has no provider that could have something back.
        let provider = traits.emptied == Emptied::WhenUnused && input != Input::Withdrawn;
        assert_eq!(effect == Effect::GiveBack, freed && provider, "{what}");
        let uses = i64::from(after.uses()) - i64::from(state.uses());
        let counted = i64::from(input == Input::Use) - i64::from(told == Told::Used);
        assert_eq!(uses, if told == Told::Stale { 0 } else { counted }, "{what}");
    });
}
