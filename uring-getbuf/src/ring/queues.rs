// SPDX-License-Identifier: MIT OR Apache-2.0
//! The io_uring itself, with both of its queues held open.
//!
//! Where this side of a queue stands is kept in the program's own memory, and the kernel is shown it
//! when it is entered: what is pushed and taken meanwhile costs no access to what both share.

use std::fmt;
use std::hint::assert_unchecked;
use std::io;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use io_uring::squeue::SubmissionQueue;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, Submitter, cqueue};

/// An io_uring that one thread uses.
pub(super) struct Queues {
    // The others borrow from it, and are given away for no longer than this is borrowed.
    uring: Rc<IoUring>,
    submitter: Submitter<'static>,
    // These are not dropped: a process that was forked off has a copy of them, and would tell the kernel
    // where it stands.
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    /// How many requests the submission queue takes, as far as is known. What the kernel has taken since
    /// is seen when there is no room.
    room: u32,
    /// How many were in it when the kernel was last entered.
    shown: usize,
    /// How many completions are known to be there, and may be taken before anything else is.
    ready: u32,
}

impl Queues {
    /// It belongs to this thread from here on.
    pub(super) fn new(uring: IoUring) -> Self {
        let uring = Rc::new(uring);
        // SAFETY: it stays where it is for as long as the queues are there, which are its only users
        // and are gone when it goes.
        let lasting: &'static IoUring = unsafe { &*Rc::as_ptr(&uring) };
        // SAFETY: nobody else has this queue: who only borrows `uring` is given none, and nobody
        // borrows it mutably.
        let submission = ManuallyDrop::new(unsafe { lasting.submission_shared() });
        // SAFETY: the same.
        let completion = ManuallyDrop::new(unsafe { lasting.completion_shared() });
        let mut submitter = lasting.submitter();
        // So the kernel need not look its descriptor up whenever it is entered. A thread can have 16
        // of these (Linux 5.18, `IO_RINGFD_REG_MAX`); its other rings go without.
        let _ = submitter.register_ring_fd();
        Self { uring, submitter, submission, completion, room: 0, shown: 0, ready: 0 }
    }

    pub(super) fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// For registrations.
    pub(super) fn submitter(&self) -> &Submitter<'_> {
        &self.submitter
    }

    /// Room for requests; `None`: there is not so much now.
    // The number is written before it is looked at, which is two instructions.
    #[inline(always)]
    pub(super) fn room<const COUNT: usize>(&mut self) -> Option<Room<'_, COUNT>> {
        let (room, short) = self.room.overflowing_sub(COUNT as u32);
        self.room = room;
        if short && !self.look_for_room(COUNT as u32) {
            return None;
        }
        Some(Room(&mut self.submission))
    }

    #[cold]
    fn look_for_room(&mut self, count: u32) -> bool {
        self.show();
        let left = self.room.checked_sub(count);
        self.room = left.unwrap_or(self.room);
        left.is_some()
    }

    /// Whether there is room for so many requests.
    pub(super) fn has_room(&mut self, count: usize) -> bool {
        if (self.room as usize) < count {
            self.show();
        }
        self.room as usize >= count
    }

    /// Shows the kernel what was pushed, and sees what it has taken.
    #[inline]
    pub(super) fn show(&mut self) {
        let news = self.submission.len() - self.shown;
        self.submission(SubmissionQueue::sync);
        self.shown = self.submission.len().saturating_sub(news);
    }

    /// Whether something was pushed that the kernel was not entered with.
    pub(super) fn has_news(&self) -> bool {
        self.submission.len() != self.shown
    }

    /// Whether the kernel has taken everything that was pushed, and does not wait to be entered either.
    pub(super) fn is_idle(&mut self) -> bool {
        self.show();
        let queue = &self.submission;
        queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
    }

    /// The submission queue.
    #[inline]
    pub(super) fn submission<T>(
        &mut self,
        with: impl FnOnce(&mut SubmissionQueue<'static>) -> T,
    ) -> T {
        let result = with(&mut self.submission);
        self.room = (self.submission.capacity() - self.submission.len()) as u32;
        result
    }

    /// The next completion that is known to be there.
    #[inline(always)]
    pub(super) fn next_ready(&mut self) -> Option<cqueue::Entry> {
        let (ready, none) = self.ready.overflowing_sub(1);
        self.ready = ready;
        if none {
            self.ready = 0;
            return None;
        }
        // SAFETY: `see` has counted them, and none was taken that was not counted off.
        unsafe { assert_unchecked(!self.completion.is_empty()) };
        self.completion.next()
    }

    /// The next completion that the kernel has left.
    pub(super) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ready = self.ready.saturating_sub(1);
        if self.completion.is_empty() {
            self.completion.sync();
        }
        self.completion.next()
    }

    /// Looks which completions are there: they are [ready](Self::next_ready) from here on. Whether
    /// there are any.
    #[inline]
    pub(super) fn see(&mut self) -> bool {
        self.completion.sync();
        self.ready = self.completion.len() as u32;
        self.ready != 0
    }

    /// Something else comes before the completions that are there.
    pub(super) fn hold(&mut self) {
        self.ready = 0;
    }

    /// Submits everything, and waits for so many completions that have not been taken.
    pub(super) fn enter(&mut self, count: usize) -> io::Result<usize> {
        self.show_all();
        self.submitter.submit_and_wait(count)
    }

    /// The same, but waits no longer than this.
    pub(super) fn enter_for(&mut self, count: usize, time: &Timespec) -> io::Result<usize> {
        self.show_all();
        self.submitter.submit_with_args(count, &SubmitArgs::new().timespec(time))
    }

    /// Shows what was pushed and what was taken: that does not count as there.
    fn show_all(&mut self) {
        self.submission.sync();
        self.shown = self.submission.len();
        self.completion.sync();
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // The thread would keep the ring for as long as it lives.
        let _ = self.submitter.unregister_ring_fd();
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("room", &self.room).finish_non_exhaustive()
    }
}

/// A submission queue that takes so many requests.
pub(super) struct Room<'q, const COUNT: usize>(&'q mut SubmissionQueue<'static>);

impl<'q, const COUNT: usize> Room<'q, COUNT> {
    /// The queue, for so many of them.
    #[inline(always)]
    pub(super) fn queue(self, count: usize) -> &'q mut SubmissionQueue<'static> {
        assert!(count <= COUNT);
        // SAFETY: they were counted off the room that there was when the queue was last looked at, and
        // the kernel has only made more. So the queue need not look again.
        unsafe { assert_unchecked(self.0.capacity() - self.0.len() >= count) };
        self.0
    }
}
