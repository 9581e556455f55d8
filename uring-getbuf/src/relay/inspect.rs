// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look at the first bytes before anything is moved.

use std::borrow::Cow;
use std::mem::replace;
use std::os::fd::OwnedFd;

use super::stream::SOURCE_READY;
use super::{Relay, Source, cancelled, source_failed};
use crate::consume::STREAM;
use crate::error::{Errno, Error, ErrorKind, Result};
use crate::lease::{Installed, Lease, NotInstalled};
use crate::ring::{Attached, Ring};
use crate::slots::Event;

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

/// What a stream has given to the inspector, and cannot give again.
#[derive(Default)]
pub(super) struct Head {
    pub(super) leases: Vec<Lease<Installed>>,
    /// Bytes at its begin that are not moved.
    pub(super) skip: u32,
    /// Another sink.
    pub(super) sink: Option<OwnedFd>,
}

impl Relay<'_> {
    /// Has the inspector see the first bytes. What it says of them is done to this relay.
    ///
    /// They are read into the pool, where a look costs nothing, and are few.
    pub(super) fn inspect_source(
        &mut self,
        ring: &mut Ring,
        source: Source,
        file: &Attached,
    ) -> Result<Head> {
        let mut head = Head::default();
        let Some(Inspector { bytes, look }) = self.inspector.take() else { return Ok(head) };
        let most = self.limit.min(bytes.into()) as usize;
        let mut seen = Vec::with_capacity(most);
        while seen.len() < most && ring.free() > 0 {
            let left = ((most - seen.len()) as u32).min(self.block_size);
            let offset = match source.seekable && self.source_offset != STREAM {
                true => self.source_offset + seen.len() as u64,
                false => STREAM,
            };
            // A direct read must ask for whole sectors.
            let asked = if source.direct { self.block_size } else { left };
            let Some(lease) = self.fetch_one(ring, source, file, offset, asked)? else { break };
            let old = seen.len();
            seen.resize(old + lease.len().min(left) as usize, 0);
            lease.copy_out(0, &mut seen[old..])?;
            // A direct read cannot begin where this one has ended.
            let is_last = source.direct;
            if offset == STREAM {
                head.leases.push(lease);
            }
            if is_last {
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
            Verdict::Trim { skip, limit } => {
                self.limit = limit.min(self.limit - u64::from(skip));
                if source.seekable && self.source_offset != STREAM {
                    self.source_offset += u64::from(skip);
                } else {
                    head.skip = skip;
                }
            }
        }
        Ok(head)
    }

    /// Fetches once, and waits for it.
    pub(super) fn fetch_one(
        &self,
        ring: &mut Ring,
        source: Source,
        file: &Attached,
        offset: u64,
        len: u32,
    ) -> Result<Option<Lease<Installed>>> {
        loop {
            let lease = ring.fetch_copied(file, offset, len)?;
            let mut cancelling = false;
            while lease.is_pending() {
                if self.is_cancelled() && !replace(&mut cancelling, true) {
                    ring.cancel_fetch(&lease)?;
                }
                self.pause(ring)?;
                take_events(
                    ring,
                    |event| matches!(event, Event::Fetched { lease: id, .. } if *id == lease.id()),
                );
            }
            if self.is_cancelled() {
                return Err(cancelled());
            }
            match lease.installed() {
                Ok(lease) => return Ok(Some(lease)),
                Err(NotInstalled::EndOfFile) => return Ok(None),
                Err(NotInstalled::Failed(Errno::AGAIN)) if !source.seekable => {
                    self.wait_readable(ring, file)?;
                }
                Err(NotInstalled::Failed(Errno::INTR) | NotInstalled::Pending(_)) => {}
                Err(NotInstalled::Failed(errno)) => return Err(source_failed(errno)),
            }
        }
    }

    fn wait_readable(&self, ring: &mut Ring, file: &Attached) -> Result<()> {
        ring.poll(file, libc::POLLIN as u32, SOURCE_READY)?;
        let mut cancelling = false;
        loop {
            if self.is_cancelled() && !replace(&mut cancelling, true) {
                ring.cancel_poll(file, SOURCE_READY)?;
            }
            self.pause(ring)?;
            let is_it = |event: &Event| matches!(event, Event::Ready { token: SOURCE_READY, .. });
            if take_events(ring, is_it) {
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
