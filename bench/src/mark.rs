// SPDX-License-Identifier: MIT OR Apache-2.0
//! Marks for a program that counts this one's instructions from outside.

use std::sync::atomic::{AtomicU64, Ordering};

static MARKS: AtomicU64 = AtomicU64::new(0);

/// Executes an instruction that does nothing and that compilers do not produce
/// (`xchg %bx,%bx` on x86-64). Says how many there have been before this one.
#[inline(never)]
pub(crate) fn mark() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: exchanges a register with itself.
    unsafe {
        std::arch::asm!("xchg bx, bx", options(nomem, nostack, preserves_flags));
    }
    MARKS.fetch_add(1, Ordering::Relaxed)
}
