// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals, and the threads that a command needs before it touches anything.

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Taken};
use signal_hook::low_level::emulate_default_handler;
use uring_getbuf::relay::Canceller;

use crate::end::End;

/// What ends a command in order.
const ENDS: [i32; 2] = [SIGINT, SIGTERM];

/// The first signal ends a command in order, the second one ends the program.
pub(crate) struct Signals {
    canceller: Canceller,
    /// The first signal, or 0.
    first: Arc<AtomicI32>,
    taken: Handle,
}

impl Signals {
    /// Begins to take signals.
    pub(crate) fn take() -> Result<Self, End> {
        let signals = Self::prepare()?;
        signals.begin()?;
        Ok(signals)
    }

    /// Has what it takes, and leaves signals as they are: they end a program that waits in `open(2)`.
    pub(crate) fn prepare() -> Result<Self, End> {
        let none: [i32; 0] = [];
        let mut signals = Taken::new(none).map_err(failed)?;
        let (canceller, first) = (Canceller::new(), Arc::new(AtomicI32::new(0)));
        let these = Self { canceller, first, taken: signals.handle() };
        let (canceller, first) = (these.canceller.clone(), Arc::clone(&these.first));
        spawn("signals", move || {
            for signal in signals.forever() {
                if canceller.is_cancelled() {
                    let _ = emulate_default_handler(signal);
                }
                first.store(signal, Relaxed);
                canceller.cancel();
            }
        })?;
        Ok(these)
    }

    /// Takes the signals from now on, but for those that whoever started the program has it ignore.
    pub(crate) fn begin(&self) -> Result<(), End> {
        let ignored = ignored();
        for signal in ENDS {
            if ignored & (1 << (signal - 1)) == 0 {
                self.taken.add_signal(signal).map_err(failed)?;
            }
        }
        Ok(())
    }

    pub(crate) fn canceller(&self) -> &Canceller {
        &self.canceller
    }

    pub(crate) fn are_there(&self) -> bool {
        self.canceller.is_cancelled()
    }

    /// The end of a command that a signal has ended.
    pub(crate) fn interrupted(&self, message: impl fmt::Display) -> End {
        End::interrupted(self.first.load(Relaxed), message)
    }
}

fn failed(error: std::io::Error) -> End {
    End::failed(format!("handling signals: {error}"))
}

/// The signals that are ignored, as a mask. It is only said by `/proc`; without it, none is.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Starts a thread, or says what would help.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, End> {
    Builder::new().name(name.into()).spawn(body).map_err(|error| no_thread(&error))
}

/// Whether the kernel can have a thread for requests that have to be waited for, as writes to most
/// file systems. Without one it cancels them, and by then the destination would have been changed.
pub(crate) fn need_worker() -> Result<(), End> {
    let worker = spawn("worker", || {})?;
    let _ = worker.join();
    Ok(())
}

fn no_thread(error: &std::io::Error) -> End {
    if error.kind() != ErrorKind::WouldBlock {
        return End::failed(format!("starting a thread: {error}"));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nproc).current;
    let limit = limit.map_or("no limit".into(), |limit| limit.to_string());
    End::failed(format!(
        "there is no thread to be had: RLIMIT_NPROC is {limit}, for all processes of this user \
         together: raise it (ulimit -u), or end others ({error})"
    ))
}
