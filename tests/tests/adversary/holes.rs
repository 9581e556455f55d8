// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known to be wrong. Each entry goes when what it names is mended; the last one takes this
//! file along.

use fastrand::Rng;
use io_uring::types::CloneBuffersFlags;

use crate::program::{Party, What};
use crate::world::World;

/// Panics of the library on misuse that it has to stand: the end of a file's name, and how the panic
/// begins. They are no undefined behaviour, but an overflow goes unnoticed where it is not checked.
pub(crate) const PANICS: &[(&str, &str)] = &[
    // A proxy that is used with another ring than its own, which has more slots.
    ("relay/proxy.rs", "index out of bounds"),
    // A chain that is dropped before it is sent, and after its completion was told.
    ("slots/slot.rs", "attempt to subtract with overflow"),
];

/// Whether programs use safe calls that are unsound: those that `GETBUF_ADVERSARY_HOLES` names.
pub(crate) fn is_open(name: &str) -> bool {
    std::env::var("GETBUF_ADVERSARY_HOLES").is_ok_and(|open| open == name)
}

/// Puts other files and other memory under the requests of a ring, which is safe as long as
/// `Ring::submitter` is.
pub(crate) fn use_the_submitter(rng: &mut Rng, world: &World, parties: &mut [Party; 2]) {
    use std::os::fd::AsRawFd;

    let number = rng.usize(0..2);
    let other = parties[1 - number].ring.as_ref().map(AsRawFd::as_raw_fd);
    let party = &mut parties[number];
    let Some(ring) = &mut party.ring else { return };
    let source = world.sources[rng.usize(0..world.sources.len())].file.as_raw_fd();
    let sinks = party.files.iter().filter(|(_, what)| matches!(what, What::Sink(_)));
    let place = sinks.map(|(file, _)| file.index()).next().unwrap_or(0);
    let count = rng.u32(0..5);
    let submitter = ring.submitter();
    let _ = match rng.u32(0..10) {
        0 => submitter.unregister_buffers(),
        1 => submitter.register_buffers_sparse(count),
        2 => submitter.unregister_files(),
        3 => submitter.register_files_sparse(count),
        4 => submitter.register_files(&[source; 4]),
        5 => submitter.register_buffers_clone(other.unwrap_or(-1)),
        6 => submitter.register_buffers_clone_offset(
            other.unwrap_or(-1),
            0,
            0,
            1,
            CloneBuffersFlags::DST_REPLACE,
        ),
        _ => submitter.register_files_update(place, &[source]).map(drop),
    };
}

/// Calls the hidden door of the C library, whose values need not be those of anybody's lease.
pub(crate) fn use_values(rng: &mut Rng, slots: &uring_getbuf::slots::Slots, names: &[u64]) {
    use std::mem::MaybeUninit;
    use std::ptr;

    let values = slots.values();
    let value = rng.u64(0..8) | 1 << (14 * rng.u64(0..2));
    let mut entry = MaybeUninit::uninit();
    match rng.u32(0..8) {
        0 => values.number(1),
        1 => values.release_all(),
        2 => drop(values.release(value)),
        3 => drop(values.fetch(
            &mut entry,
            (io_uring::types::Fd(0).into(), 0, 4096),
            ptr::null_mut(),
        )),
        4 => {
            if let Ok(found) = values.installed(value) {
                let mut seen = [0; 100];
                let _ = found.copy_out(0, &mut seen);
            }
        }
        _ => {
            let name = names.get(rng.usize(0..names.len().max(1))).copied().unwrap_or_default();
            let _ = values.complete(name, 4096, 0);
        }
    }
}
