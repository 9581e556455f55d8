// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look at the first bytes before anything is moved.

use std::borrow::Cow;
use std::mem::replace;
use std::os::fd::OwnedFd;

use super::control::{Control, cancelled, source_failed};
use super::ends::SourceKind;
use super::feed::SOURCE_READY;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::ring::{Attached, Ring};
use crate::slots::Event;
use crate::slots::consume::STREAM;
use crate::slots::lease::{Installed, Lease, NotInstalled};

/// What an inspector says of a source by its first bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// It is moved as it is.
    Pass,
    /// It is not moved; why. The relay fails with [`Refused`](ErrorKind::Refused). What was seen
    /// of a stream, it has given.
    Refuse(Cow<'static, str>),
    /// It is moved to another sink, which is open for writing, and to the same offset.
    Redirect(OwnedFd),
    /// The first `skip` bytes are left out, and after them at most `limit` are moved. `skip` is at
    /// most what the inspector has seen.
    Trim {
        /// Bytes to leave out.
        skip: u32,
        /// Most bytes to move.
        limit: u64,
    },
}

impl Verdict {
    /// [`Verdict::Refuse`], from any text.
    pub fn refuse(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Refuse(why.into())
    }

    /// [`Verdict::Redirect`], from any file.
    pub fn redirect(sink: impl Into<OwnedFd>) -> Self {
        Self::Redirect(sink.into())
    }
}

/// Who looks, and at how many bytes.
pub(super) struct Inspector<'a> {
    pub(super) bytes: u32,
    pub(super) look: Look<'a>,
}

type Look<'a> = Box<dyn FnOnce(&[u8]) -> Verdict + 'a>;

/// What has come of an inspection.
#[derive(Default)]
pub(super) struct Head {
    /// What a stream has given, and cannot give again.
    pub(super) leases: Vec<Lease<Installed>>,
    /// Bytes at the begin that are not moved.
    pub(super) skip: u32,
    /// Most bytes to move after them.
    pub(super) limit: Option<u64>,
    /// Another sink.
    pub(super) sink: Option<OwnedFd>,
}

/// A source that is fetched from a lease at a time.
pub(super) struct Single<'r, 'a> {
    pub(super) ring: &'r mut Ring,
    pub(super) control: &'r Control<'a>,
    pub(super) source: SourceKind,
    pub(super) file: &'r Attached,
}

impl Single<'_, '_> {
    /// Has an inspector see the first bytes, of `limit` from `begin` on.
    ///
    /// They are read into the pool, where a look costs nothing, and are few.
    pub(super) fn inspect(
        &mut self,
        Inspector { bytes, look }: Inspector<'_>,
        begin: u64,
        limit: u64,
        block_size: u32,
    ) -> Result<Head> {
        let mut head = Head::default();
        let most = limit.min(bytes.into()) as usize;
        let mut seen = Vec::with_capacity(most);
        while seen.len() < most && self.ring.free() > 0 {
            let left = ((most - seen.len()) as u32).min(block_size);
            let offset = match self.source.seekable && begin != STREAM {
                true => begin + seen.len() as u64,
                false => STREAM,
            };
            // A direct read must ask for whole sectors.
            let asked = if self.source.direct { block_size } else { left };
            let Some(lease) = self.fetch(offset, asked)? else { break };
            let old = seen.len();
            seen.resize(old + lease.len().min(left) as usize, 0);
            lease.copy_out(0, &mut seen[old..])?;
            if offset == STREAM {
                head.leases.push(lease);
            }
            // A direct read cannot begin where this one has ended.
            if self.source.direct {
                break;
            }
        }
        match look(&seen) {
            Verdict::Pass => {}
            Verdict::Refuse(why) => return Err(Error::new(ErrorKind::Refused, why)),
            Verdict::Redirect(sink) => head.sink = Some(sink),
            Verdict::Trim { skip, .. } if skip as usize > seen.len() => {
                let what = format!("leaving out {skip} bytes after a look at {}", seen.len());
                return Err(Error::new(ErrorKind::InvalidInput, what));
            }
            Verdict::Trim { skip, limit } => (head.skip, head.limit) = (skip, Some(limit)),
        }
        Ok(head)
    }

    /// Fetches once, into the pool, and waits for it. `None`: nothing is there.
    pub(super) fn fetch(&mut self, offset: u64, len: u32) -> Result<Option<Lease<Installed>>> {
        loop {
            let lease = self.ring.fetch_copied(self.file, offset, len)?;
            let mut cancelling = false;
            while lease.is_pending() {
                if self.control.is_cancelled() && !replace(&mut cancelling, true) {
                    self.ring.cancel_fetch(&lease)?;
                }
                self.control.wait(self.ring, 1, None)?;
                take_events(
                    self.ring,
                    |event| matches!(event, Event::Fetched { lease: id, .. } if *id == lease.id()),
                );
            }
            self.control.check()?;
            match lease.installed() {
                Ok(lease) => return Ok(Some(lease)),
                Err(NotInstalled::EndOfFile) => return Ok(None),
                Err(NotInstalled::Failed(Errno::AGAIN)) if !self.source.seekable => {
                    self.wait_readable()?;
                }
                Err(NotInstalled::Failed(Errno::INTR) | NotInstalled::Pending(_)) => {}
                Err(NotInstalled::Failed(errno)) => return Err(source_failed(errno)),
            }
        }
    }

    fn wait_readable(&mut self) -> Result<()> {
        self.ring.poll(self.file, libc::POLLIN as u32, SOURCE_READY)?;
        let mut cancelling = false;
        loop {
            if self.control.is_cancelled() && !replace(&mut cancelling, true) {
                self.ring.cancel_poll(self.file, SOURCE_READY)?;
            }
            self.control.wait(self.ring, 1, None)?;
            let is_it = |event: &Event| matches!(event, Event::Ready { token: SOURCE_READY, .. });
            if take_events(self.ring, is_it) {
                return if cancelling { Err(cancelled()) } else { Ok(()) };
            }
        }
    }
}

/// Takes the event that is waited for, and keeps others. Whether it was there.
fn take_events(ring: &mut Ring, is_it: impl Fn(&Event) -> bool) -> bool {
    let mut found = false;
    while let Some(event) = ring.next_completion() {
        if is_it(&event) {
            found = true;
        } else {
            ring.keep(event);
        }
    }
    found
}
