// SPDX-License-Identifier: MIT OR Apache-2.0
//! A source, and what is read in its place.

use std::os::fd::{AsFd, BorrowedFd};

use super::aside::Aside;
use super::control::source_failed;
use super::ends::SourceKind;
use crate::error::Result;

/// A source that can be fetched from.
pub(super) struct Opened<'a> {
    file: BorrowedFd<'a>,
    aside: Option<Aside>,
    /// Of what is fetched from.
    pub(super) kind: SourceKind,
}

impl<'a> Opened<'a> {
    /// Begins to read up to `limit` bytes of it aside, if it has to be read so.
    pub(super) fn new(file: BorrowedFd<'a>, offset: u64, limit: u64) -> Result<Self> {
        let kind = SourceKind::of(file)?;
        if !kind.aside {
            return Ok(Self { file, aside: None, kind });
        }
        let aside = Aside::start(file, offset, limit)?;
        let kind = SourceKind::of(aside.as_fd())?;
        Ok(Self { file, aside: Some(aside), kind })
    }

    /// Fails if reading aside has: what was fetched has ended too early then.
    pub(super) fn check(&self) -> Result<()> {
        match self.aside.as_ref().and_then(Aside::error) {
            None => Ok(()),
            Some(errno) => Err(source_failed(errno)),
        }
    }
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.aside.as_ref().map_or(self.file, AsFd::as_fd)
    }
}
