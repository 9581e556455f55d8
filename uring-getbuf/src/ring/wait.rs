// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sending what is queued, and waiting: for any events, or for one.

use std::time::Duration;

use super::drive::Ring;
use super::files::Attached;
use crate::error::{Error, ErrorKind, Result};
use crate::slots::chain::ChainOutcome;
use crate::slots::consume::{STREAM, SendFlags};
use crate::slots::lease::{Fetched, Installed, Lease, NotInstalled};
use crate::slots::{Event, LeaseId, UseId};

impl Ring {
    /// Sends what is queued, and lets the kernel process completions that are due. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Ring`](ErrorKind::Ring) if the kernel refuses.
    pub fn submit(&mut self) -> Result<()> {
        self.flush()?;
        if self.is_idle() { Ok(()) } else { self.enter(0) }
    }

    /// Sends what is queued, and waits until at least `count` completions are there. Events that
    /// have not been taken yet count. It waits for ever if fewer requests are in flight.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit).
    pub fn wait(&mut self, count: usize) -> Result<()> {
        self.flush()?;
        self.enter(self.missing(count))
    }

    /// Sends what is queued, and waits until at least `count` completions are there, but no longer than
    /// `timeout`. Whether completions are there is told by [`next_event`](Self::next_event).
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit).
    pub fn wait_timeout(&mut self, count: usize, timeout: Duration) -> Result<()> {
        self.flush()?;
        self.enter_for(self.missing(count), timeout)
    }

    /// How many completions the kernel has to bring until `count` are there.
    fn missing(&self, count: usize) -> usize {
        count.saturating_sub(self.kept.len() + self.taken.len())
    }

    /// The next event that is there. Makes no system call.
    pub fn next_event(&mut self) -> Option<Event> {
        self.kept.pop_front().or_else(|| self.next_completion())
    }

    /// Waits until a fetch is done, whatever came of it: [`Lease::installed`] tells.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), and those of [`submit`](Self::submit). The fetch goes
    /// on then, and can be waited for again.
    pub fn wait_fetched(&mut self, lease: &Lease<Fetched>) -> Result<()> {
        self.check(lease)?;
        let id = lease.id();
        let is_told = |event: &Event| matches!(event, Event::Fetched { lease, .. } if *lease == id);
        while lease.is_pending() {
            self.wait_event(is_told)?;
        }
        // Told here, it is not told again: events that nobody takes would pile up.
        self.forget(is_told);
        Ok(())
    }

    /// Waits for a fetch, and gives the lease in its next state. `None`: end of file.
    ///
    /// On an error the lease is dropped, and its slot comes back; with
    /// [`wait_fetched`](Self::wait_fetched) it is kept.
    ///
    /// # Errors
    ///
    /// [`WrongRing`](ErrorKind::WrongRing), [`Source`](ErrorKind::Source) if the source failed,
    /// and those of [`submit`](Self::submit).
    pub fn wait_installed(&mut self, lease: Lease<Fetched>) -> Result<Option<Lease<Installed>>> {
        let mut lease = lease;
        loop {
            self.wait_fetched(&lease)?;
            lease = match lease.installed() {
                Ok(lease) => return Ok(Some(lease)),
                Err(NotInstalled::EndOfFile) => return Ok(None),
                Err(NotInstalled::Failed(errno)) => {
                    return Err(Error::os(ErrorKind::Source, errno, "fetching from the source"));
                }
                Err(NotInstalled::Pending(lease)) => lease,
            };
        }
    }

    /// Waits for the result of a consumer: the bytes it took. It is there once.
    /// [`Event::Returned`], which follows that of a `SEND_ZC`, stays for
    /// [`next_event`](Self::next_event).
    ///
    /// # Errors
    ///
    /// [`Sink`](ErrorKind::Sink) if the consumer failed, and those of [`submit`](Self::submit).
    pub fn wait_used(&mut self, request: UseId) -> Result<u32> {
        let event =
            self.wait_event(|event| matches!(event, Event::Used { id, .. } if *id == request))?;
        match event {
            Event::Used { result, .. } => {
                result.map_err(|errno| Error::os(ErrorKind::Sink, errno, "writing to the sink"))
            }
            _ => unreachable!("it was asked for"),
        }
    }

    /// Waits for a chain.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit). What the chain itself met is in its outcome.
    pub fn wait_chain(&mut self, chain: LeaseId) -> Result<ChainOutcome> {
        let event =
            self.wait_event(|event| matches!(event, Event::Chained { id, .. } if *id == chain))?;
        match event {
            Event::Chained { outcome, .. } => Ok(outcome),
            _ => unreachable!("it was asked for"),
        }
    }

    /// Writes the whole lease to `offset` of `sink` and waits for it, however many writes it
    /// takes.
    ///
    /// # Errors
    ///
    /// [`Sink`](ErrorKind::Sink), [`WrongRing`](ErrorKind::WrongRing), and those of
    /// [`submit`](Self::submit).
    pub fn write_all(
        &mut self,
        lease: &Lease<Installed>,
        sink: &Attached,
        offset: u64,
    ) -> Result<()> {
        let stream = offset == STREAM;
        self.use_all(
            lease,
            |ring, lease, done| {
                let offset = if stream { offset } else { offset + u64::from(done) };
                ring.write(lease, done.., sink, offset)
            },
            sink,
        )
    }

    /// Sends the whole lease and waits for it, however many sends it takes.
    ///
    /// # Errors
    ///
    /// Those of [`write_all`](Self::write_all).
    pub fn send_all(&mut self, lease: &Lease<Installed>, sink: &Attached) -> Result<()> {
        let flags = SendFlags::WAIT_ALL;
        self.use_all(lease, |ring, lease, done| ring.send(lease, done.., sink, flags), sink)
    }

    fn use_all(
        &mut self,
        lease: &Lease<Installed>,
        mut queue: impl FnMut(&mut Self, &Lease<Installed>, u32) -> Result<UseId>,
        sink: &Attached,
    ) -> Result<()> {
        let mut done = 0;
        while done < lease.len() {
            let request = queue(self, lease, done)?;
            match self.wait_used(request) {
                Ok(0) => {
                    let what = "writing to the sink: it takes nothing more";
                    return Err(Error::new(ErrorKind::Sink, what));
                }
                Ok(bytes) => done += bytes,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => {
                        self.poll(sink, libc::POLLOUT as u32, u32::MAX)?;
                        let ready =
                            |event: &Event| matches!(event, Event::Ready { token: u32::MAX, .. });
                        self.wait_event(ready)?;
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Drops an event that is kept for `next_event`, if it is there.
    fn forget(&mut self, wanted: impl Fn(&Event) -> bool) {
        if let Some(place) = self.kept.iter().position(wanted) {
            self.kept.remove(place);
        }
    }

    /// Waits for an event. Others that come first are kept for `next_event`, unless they tell
    /// nothing that a program could have asked for.
    fn wait_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        if let Some(place) = self.kept.iter().position(&wanted)
            && let Some(event) = self.kept.remove(place)
        {
            return Ok(event);
        }
        loop {
            while let Some(event) = self.next_completion() {
                if wanted(&event) {
                    return Ok(event);
                }
                self.keep(event);
            }
            self.flush()?;
            self.enter(1)?;
        }
    }
}
