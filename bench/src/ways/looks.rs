// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks at the first bytes of a block: in a lease, which is there, and in the file.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::io::pread;
use uring_getbuf::lease::{Installed, Lease};
use uring_getbuf::{Engine, Ring};

use super::{Way, ring};
use crate::ground::Ground;

pub(super) struct Looks {
    lease: Lease<Installed>,
    ring: Ring,
    into: Vec<u8>,
    ground: Arc<Ground>,
}

impl Looks {
    pub(super) fn new(ground: Arc<Ground>, engine: Engine) -> Result<Self> {
        let block = ground.point.block;
        // A block of whole pages, whatever is looked at of it.
        let size = block.next_multiple_of(4096);
        let mut ring = ring(engine, 1, size, 2)?;
        let source = ring.attach(&ground.source)?;
        let fetched = ring.fetch(&source, 0, size)?;
        let lease = ring.wait_installed(fetched)?.context("the source is empty")?;
        ensure!(lease.origin() == engine, "the source was not lent");
        Ok(Self { lease, ring, into: vec![0; block as usize], ground })
    }
}

impl Way for Looks {
    fn run(&mut self, blocks: u64) -> Result<()> {
        for _ in 0..blocks {
            let copied = self.ring.copy_out(&self.lease, 0, &mut self.into)?;
            ensure!(copied == self.into.len(), "{copied} bytes were copied");
        }
        self.ground.compare(&self.into)
    }
}

pub(super) struct Reads {
    into: Vec<u8>,
    ground: Arc<Ground>,
}

impl Reads {
    pub(super) fn new(ground: Arc<Ground>) -> Self {
        Self { into: vec![0; ground.point.block as usize], ground }
    }
}

impl Way for Reads {
    fn run(&mut self, blocks: u64) -> Result<()> {
        for _ in 0..blocks {
            let read = pread(&self.ground.source, &mut self.into[..], 0)?;
            ensure!(read == self.into.len(), "{read} bytes were read");
        }
        self.ground.compare(&self.into)
    }
}
