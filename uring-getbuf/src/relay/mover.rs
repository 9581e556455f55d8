// SPDX-License-Identifier: MIT OR Apache-2.0
//! In order: one feed, and sinks that take from it, each at its own speed.
//!
//! A piece is kept until every sink has it, so the fastest sink can be ahead of the slowest by as
//! many pieces as there are leases.

use std::time::{Duration, Instant};

use super::control::Control;
use super::feed::Feed;
use super::out::{Out, waited_for};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::Ring;
use crate::slots::Event;

/// When a sink is given up for being slow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    /// So many pieces behind the one that is furthest.
    pub(super) lag: Option<u64>,
    /// So long without taking anything.
    pub(super) time: Option<Duration>,
}

/// Called with the number of a sink that is over.
pub(super) type OnOver<'a> = dyn FnMut(usize, &mut Out<'_>) + 'a;

/// One feed and its sinks.
pub(super) struct Mover<'r, 'a, 'f> {
    pub(super) ring: &'r mut Ring,
    pub(super) control: &'r mut Control<'a>,
    pub(super) feed: Feed<'f>,
    pub(super) outs: Vec<Out<'f>>,
    pub(super) patience: Patience,
    pub(super) on_over: &'r mut OnOver<'r>,
}

impl Mover<'_, '_, '_> {
    /// Moves until every sink is over. Whatever happens, nothing of it stays on the ring.
    pub(super) fn run(&mut self) -> Result<()> {
        let done = self.move_all();
        let quiet = self.quiesce();
        for out in &mut self.outs {
            out.end();
        }
        self.feed.extent.give_back(self.furthest());
        done.and(quiet)
    }

    fn move_all(&mut self) -> Result<()> {
        while self.outs.iter().any(|out| !out.over) {
            self.feed.settle();
            self.feed.fetch(self.ring)?;
            self.go_on()?;
            if let Some(error) = self.feed.error()
                && self.outs.iter().all(|out| out.over || out.has_all(&self.feed))
            {
                return Err(error);
            }
            self.give_up_the_slow()?;
            let live = self.outs.iter().filter(|out| !out.over);
            let slowest = live.map(|out| out.piece).min();
            self.feed.retire(slowest.unwrap_or(self.feed.last()));
            if slowest.is_none() {
                return Ok(());
            }
            self.feed.fetch(self.ring)?;
            self.wait()?;
            self.take_events();
            self.control.check()?;
            self.control.tell(self.furthest(), self.feed.extent.total);
        }
        Ok(())
    }

    /// Bytes that the sink has which is furthest.
    fn furthest(&self) -> u64 {
        self.outs.iter().map(|out| out.bytes).max().unwrap_or(0)
    }

    /// Has every sink take what is there for it.
    fn go_on(&mut self) -> Result<()> {
        let now = self.patience.time.map(|_| Instant::now());
        for index in 0..self.outs.len() {
            let out = &mut self.outs[index];
            if out.over {
                continue;
            }
            match out.go_on(self.ring, &self.feed, now) {
                Ok(false) => {}
                Ok(true) => self.done(index, None),
                Err(error) if error.kind() == ErrorKind::Sink => self.done(index, Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives up the sinks that have been too slow.
    fn give_up_the_slow(&mut self) -> Result<()> {
        let live = |out: &&Out<'_>| !out.over;
        let furthest = self.outs.iter().filter(live).map(|out| out.piece).max().unwrap_or(0);
        let now = self.patience.time.map(|time| (time, Instant::now()));
        for index in 0..self.outs.len() {
            let out = &self.outs[index];
            if out.over {
                continue;
            }
            let behind = furthest - out.piece;
            let waited = now.zip(out.since).map(|((most, now), since)| (now - since, most));
            let why = match (self.patience.lag, waited) {
                (Some(lag), _) if behind > lag => format!(
                    "the sink was {behind} blocks behind the fastest, and {lag} were allowed"
                ),
                (_, Some((waited, most))) if waited >= most => {
                    format!("the sink has taken nothing for {most:?}")
                }
                _ => continue,
            };
            out.cancel(self.ring)?;
            self.done(index, Some(Error::new(ErrorKind::Lagging, why)));
        }
        Ok(())
    }

    fn done(&mut self, index: usize, error: Option<Error>) {
        let out = &mut self.outs[index];
        out.close(error);
        self.ring.sweep();
        (self.on_over)(index, out);
    }

    fn wait(&mut self) -> Result<()> {
        let live = self.outs.iter().filter(|out| !out.over);
        let oldest = live.filter_map(|out| out.since).min();
        let most =
            self.patience.time.zip(oldest).map(|(patience, since)| {
                (since + patience).saturating_duration_since(Instant::now())
            });
        // Of one sink all that is linked: a system call serves many.
        let count = match &self.outs[..] {
            [out] => out.in_flight().max(1),
            _ => 1,
        };
        self.control.wait(self.ring, count, most)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.ring.next_completion() {
            if self.feed.take(&event) {
                continue;
            }
            match event {
                Event::Used { id, result, more } if self.feed.is_ours(id.lease()) => {
                    let outs = self.outs.iter_mut().enumerate();
                    let mut used = outs.filter_map(|(index, out)| {
                        Some((index, out.used(&mut self.feed, id, result, more)?))
                    });
                    if let Some((index, Err(error))) = used.next()
                        && !self.outs[index].over
                    {
                        self.done(index, Some(error));
                    }
                }
                Event::Returned { id } if self.feed.is_ours(id.lease()) => {
                    let index = u32::from(id.token());
                    if let Some(out) = self.outs.iter_mut().find(|out| out.index == index) {
                        out.returned();
                    }
                }
                Event::Ready { token, .. } if waited_for(token).is_some() => {
                    let (index, replies) = waited_for(token).unwrap_or_default();
                    if let Some(out) = self.outs.get_mut(index) {
                        out.is_ready(replies);
                    }
                }
                event => self.ring.keep(event),
            }
        }
    }

    /// Brings what is in flight to its end.
    fn quiesce(&mut self) -> Result<()> {
        for out in &mut self.outs {
            out.over = true;
            out.cancel(self.ring)?;
        }
        // What a lender refuses is repeated through the pool, and has to be cancelled once more.
        let mut cancel = !self.feed.is_quiet();
        while !self.feed.is_quiet() || !self.outs.iter().all(Out::is_quiet) {
            cancel |= !self.feed.is_quiet() && self.ring.has_requests();
            self.ring.flush()?;
            if std::mem::take(&mut cancel) {
                self.feed.cancel(self.ring)?;
            }
            self.ring.enter(1)?;
            self.take_events();
        }
        self.feed.end(self.ring);
        Ok(())
    }
}
