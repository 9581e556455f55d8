// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring for requests by hand: what a program would do that has no use for a library, and does it
//! well.

use anyhow::{Error, Result, anyhow};
use io_uring::squeue::{Entry, SubmissionQueue};
use io_uring::{CompletionQueue, IoUring, Submitter, cqueue};

/// For so many requests at once, with the setup that costs least: `DEFER_TASKRUN`, since Linux 6.1,
/// and `NO_SQARRAY`, since 6.6.
pub(super) fn ring(requests: usize) -> Result<IoUring> {
    // What the kernel has taken is seen when the next ones are shown to it, so there is room for two
    // rounds of them.
    let entries = (2 * requests as u32).next_power_of_two().clamp(8, 4096);
    let mut builder = IoUring::builder();
    builder.setup_submit_all().setup_clamp().setup_cqsize(entries * 4);
    let mut deferred = builder.clone();
    deferred.setup_single_issuer().setup_defer_taskrun();
    let mut direct = deferred.clone();
    direct.setup_no_sqarray();
    for builder in [direct, deferred] {
        if let Ok(ring) = builder.build(entries) {
            return Ok(ring);
        }
    }
    Ok(builder.setup_coop_taskrun().build(entries)?)
}

/// Its two queues, held open. The ring is registered with the thread meanwhile.
pub(super) struct Hand<'r> {
    submitter: Submitter<'r>,
    queue: SubmissionQueue<'r>,
    completions: CompletionQueue<'r>,
}

impl<'r> Hand<'r> {
    pub(super) fn new(ring: &'r mut IoUring) -> Self {
        let (mut submitter, queue, completions) = ring.split();
        // Since Linux 5.18, for 16 rings of a thread.
        let _ = submitter.register_ring_fd();
        Self { submitter, queue, completions }
    }

    /// # Safety
    ///
    /// What the request names must be valid until it has completed.
    #[inline(always)]
    pub(super) unsafe fn push(&mut self, entry: &Entry) -> Result<()> {
        // SAFETY: the caller's promise.
        match unsafe { self.queue.push(entry) } {
            Ok(()) => Ok(()),
            Err(_) => Err(full()),
        }
    }

    /// Submits, and waits until so many completions are there.
    pub(super) fn wait(&mut self, count: usize) -> Result<()> {
        self.queue.sync();
        self.completions.sync();
        self.submitter.submit_and_wait(count)?;
        self.completions.sync();
        Ok(())
    }

    /// Submits requests that the kernel serves while it takes them, where all goes well: then there is
    /// nothing to wait for. The completions that were there have been taken.
    #[inline(always)]
    pub(super) fn submit_or_wait(&mut self) -> Result<()> {
        self.queue.sync();
        let count = self.queue.len() as u32;
        // SAFETY: it has no argument. No thread of the kernel's submits, and what the queue of completions
        // has no room for is seen when there is something to wait for.
        unsafe { self.submitter.enter::<libc::sigset_t>(count, 0, 0, None) }?;
        self.completions.sync();
        if self.completions.is_empty() { self.wait(1) } else { Ok(()) }
    }

    /// The next completion that was there.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }
}

#[cold]
fn full() -> Error {
    anyhow!("the queue is full")
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let _ = self.submitter.unregister_ring_fd();
    }
}
