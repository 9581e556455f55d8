// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring's table of registered buffers, through the ring's descriptor.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;

use libc::iovec;
use rustix::io_uring::{
    IoringRegisterOp as Op, IoringRsrcFlags, io_uring_ptr, io_uring_register,
    io_uring_rsrc_register, io_uring_rsrc_update2,
};

use crate::errors::Outcome;

/// The ring that the caller has. Not ours to close.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingFd(pub(crate) RawFd);

impl RingFd {
    /// # Safety
    ///
    /// `arg` and `count` are what `op` takes.
    unsafe fn register(self, op: Op, arg: *const c_void, count: u32) -> Outcome {
        // SAFETY: not negative (`getbuf_create` has looked), and used for one system call, which
        // answers an error for a descriptor that is closed or no ring.
        let ring = unsafe { BorrowedFd::borrow_raw(self.0) };
        // SAFETY: the caller's promise.
        let result = unsafe { io_uring_register(ring, op, arg, count) };
        result.map(drop).map_err(|errno| match errno.raw_os_error() {
            // A file that is no ring. For us that number says something else.
            libc::EOPNOTSUPP => libc::EINVAL,
            errno => errno,
        })
    }

    /// Makes a table of `count` empty entries.
    pub(crate) fn make_table(self, count: u32) -> Outcome {
        let mut arg = io_uring_rsrc_register::default();
        arg.nr = count;
        arg.flags = IoringRsrcFlags::REGISTER_SPARSE;
        let size = size_of_val(&arg) as u32;
        // SAFETY: the argument is this structure and its size.
        unsafe { self.register(Op::RegisterBuffers2, (&raw const arg).cast(), size) }
    }

    /// Takes the whole table away.
    pub(crate) fn drop_table(self) -> Outcome {
        // SAFETY: takes no argument.
        unsafe { self.register(Op::UnregisterBuffers, ptr::null(), 0) }
    }

    fn update(self, first: u32, vectors: &[iovec]) -> Outcome {
        let mut arg = io_uring_rsrc_update2::default();
        arg.offset = first;
        arg.data = io_uring_ptr::new(vectors.as_ptr().cast_mut().cast());
        arg.nr = vectors.len() as u32;
        let size = size_of_val(&arg) as u32;
        // SAFETY: the argument is this structure and its size, and names as many vectors as there
        // are.
        unsafe { self.register(Op::RegisterBuffersUpdate, (&raw const arg).cast(), size) }
    }

    /// Registers memory, whose pages the kernel pins, as one entry.
    pub(crate) fn set(self, index: u32, base: *mut u8, len: usize) -> Outcome {
        self.update(index, &[iovec { iov_base: base.cast(), iov_len: len }])
    }

    /// Empties entries, as far as it gets.
    pub(crate) fn clear(self, first: u32, count: u32) -> Outcome {
        let nothing = iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let vectors = [nothing; 64];
        let mut done = 0;
        while done < count {
            let some = (count - done).min(vectors.len() as u32);
            self.update(first + done, &vectors[..some as usize])?;
            done += some;
        }
        Ok(())
    }
}
