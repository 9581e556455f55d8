// SPDX-License-Identifier: MIT OR Apache-2.0
//! Blocks that the page cache has, copied by the relay's own thread.
//!
//! A request that would have to wait is given to a worker thread, and on ext4 (`IOCB_NOWAIT` is refused,
//! `ext4_buffered_write_iter` in Linux 6.18) and others each buffered write counts as one. To hand a block
//! over costs a good part of what copying it does. A relay waits for its blocks anyway. So if it may, and
//! nothing has to be waited for on the source's side, it reads and writes them itself; all others go to the ring.

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwrite};
use rustix::process::{Resource, getrlimit};

use crate::error;
use crate::slots::chain::ChainOutcome;

pub(super) struct AtOnce<'a> {
    source: BorrowedFd<'a>,
    sink: BorrowedFd<'a>,
    /// Empty: the source cannot be read in this way.
    buffer: Box<[u8]>,
    /// Beyond it a write of this thread's would raise `SIGXFSZ`.
    limit: u64,
}

impl<'a> AtOnce<'a> {
    pub(super) fn new(source: BorrowedFd<'a>, sink: BorrowedFd<'a>, block_size: u32) -> Self {
        let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        Self { source, sink, buffer: vec![0; block_size as usize].into(), limit }
    }

    /// For a relay that leaves all to its ring.
    pub(super) fn never(source: BorrowedFd<'a>, sink: BorrowedFd<'a>) -> Self {
        Self { source, sink, buffer: Box::default(), limit: 0 }
    }

    /// Moves a range, if the page cache has all of it. `None`: nothing was moved.
    pub(super) fn moves(&mut self, from: u64, to: u64, len: u32) -> Option<ChainOutcome> {
        let bytes = self.buffer.get_mut(..len as usize)?;
        if to.checked_add(len.into())? > self.limit {
            return None;
        }
        match preadv2(self.source, &mut [IoSliceMut::new(bytes)], from, ReadWriteFlags::NOWAIT) {
            Ok(there) if there == bytes.len() => {}
            // Not all of it is in the cache, or in the file: the ring tells which.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => {
                self.buffer = Box::default();
                return None;
            }
        }
        Some(match pwrite(self.sink, bytes, to) {
            Ok(done) if done == bytes.len() => ChainOutcome::Done(len),
            Ok(done) => ChainOutcome::ShortUse(done as u32),
            Err(errno) => ChainOutcome::UseFailed(error::Errno::new(errno.raw_os_error())),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// This program is in the page cache, as it runs.
    const CACHED: &str = "/proc/self/exe";

    #[test]
    #[cfg_attr(miri, ignore = "needs a kernel")]
    fn a_block_is_moved_whole_or_not_at_all() {
        let source = File::open(CACHED).expect("this program");
        let want = read(CACHED).expect("this program");
        let sink = File::from(memfd_create("sink", MemfdFlags::CLOEXEC).expect("a memfd"));
        let len = || sink.metadata().expect("the sink's").len();
        let mut at_once = AtOnce::new(source.as_fd(), sink.as_fd(), 8192);

        // More than a block, past the end, past the limit.
        assert_eq!(at_once.moves(0, 0, 8193), None);
        assert_eq!(at_once.moves(want.len() as u64 - 10, 0, 11), None);
        at_once.limit = 8000;
        assert_eq!(at_once.moves(0, 0, 8192), None);
        assert_eq!(len(), 0);
        at_once.limit = u64::MAX;

        match at_once.moves(100, 7, 8000) {
            Some(outcome) => {
                assert_eq!(outcome, ChainOutcome::Done(8000));
                let mut got = vec![0; 8000];
                sink.read_exact_at(&mut got, 7).expect("what was written");
                assert_eq!(got, want[100..8100]);
                let full = File::options().write(true).open("/dev/full").expect("/dev/full");
                at_once.sink = full.as_fd();
                let no_space = error::Errno::new(libc::ENOSPC);
                assert_eq!(at_once.moves(0, 0, 1), Some(ChainOutcome::UseFailed(no_space)));
            }
            // It is not asked again.
            None => {
                println!("skipped: the file system of {CACHED} has no reads that do not wait");
                assert_eq!(len(), 0);
                assert!(at_once.buffer.is_empty());
            }
        }
        let mut never = AtOnce::never(source.as_fd(), sink.as_fd());
        assert_eq!(never.moves(0, 0, 1), None);
    }
}
