// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fetch that nobody wants to hear of is done while it is taken from the queue, without a request,
//! if the file can serve it at once (patch 13). Nothing else may tell it from one that has a
//! request: what comes before it, what it is not allowed to do, and what it cannot do yet.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{IoUring, opcode as ops};
use uring_getbuf::{Engine, STREAM};

use crate::linked::is;
use crate::raw::{Lender, Raw, ring_kinds, to_bytes};
use crate::{BLOCK, Outcome, SLOTS, check, leases, no_leases_left, same, source, with_byte};

const LINKS: [Flags; 2] = [Flags::IO_LINK, Flags::IO_HARDLINK];

fn quiet(entry: Entry) -> Entry {
    entry.flags(Flags::SKIP_SUCCESS)
}

/// How many leases live.
fn lent(engine: Engine, want: usize) -> Outcome {
    check("leases", leases(engine)? as i32, want as i32)
}

/// Empties the first slots.
fn put_all(raw: &mut Raw, count: u16) -> Outcome {
    for slot in 0..count {
        check("PUT_BUF", raw.result(&raw.put(slot)), 0)?;
    }
    Ok(())
}

/// Alone, in a row, as the last one of a submission, and on rings of several kinds.
pub(crate) fn many_in_a_row(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    for ring in ring_kinds() {
        let mut raw = Raw::with(engine, &ring, Lender::lend)?;
        raw.uring.submitter().register_files(&[file.as_raw_fd()])?;
        for fixed in [false, true] {
            let mut requests: Vec<_> =
                (0..SLOTS).map(|slot| quiet(raw.get(&file, BLOCK, slot))).collect();
            if fixed {
                requests = requests.into_iter().map(on_first_file).collect();
            }
            // What comes last is answered when all before it is done.
            let nop = ops::Nop::new().build();
            requests.push(nop.clone());
            is("in a row", &raw.results(&requests, 1), &[(u64::from(SLOTS), 0)])?;
            lent(engine, SLOTS.into())?;
            for slot in 0..SLOTS {
                check("a write", raw.result(&raw.write(&sink, 7, 100, slot)), 100)?;
                let mut got = [0; 100];
                peer.read_exact(&mut got)?;
                same("what is in a slot", &got, &bytes[7..107])?;
            }
            put_all(&mut raw, SLOTS)?;
            let last = [nop, quiet(raw.get(&file, BLOCK, 0))];
            is("the last one", &raw.results(&last, 1), &[(0, 0)])?;
            while leases(engine)? == 0 {
                std::thread::yield_now();
            }
            // With another one in its place.
            let again = raw.get_buf(&file, 4096, 0).replace().build();
            let requests = [quiet(again.clone()), quiet(again), raw.write(&sink, 0, 4096, 0)];
            is("replaced", &raw.results(&requests, 1), &[(2, 4096)])?;
            peer.read_exact(&mut [0; 4096])?;
            lent(engine, 1)?;
            put_all(&mut raw, 1)?;
        }
        drop(raw);
        no_leases_left(engine)?;
    }
    Ok(())
}

/// The request with the first registered file instead of its own.
fn on_first_file(entry: Entry) -> Entry {
    let mut bytes = to_bytes(entry);
    // IOSQE_FIXED_FILE is 1.
    bytes[1] |= 1;
    bytes[4..8].copy_from_slice(&0_i32.to_ne_bytes());
    crate::raw::from_bytes(bytes)
}

/// Behind a request that waits: in its link, and behind a drain.
pub(crate) fn in_its_turn(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    for link in LINKS {
        for hands_over in [false, true] {
            let mut raw = Raw::new(engine)?;
            let (reads, mut writes) = std::io::pipe()?;
            let mut byte = [0_u8; 1];
            let waits = ops::Read::new(Fd(reads.as_raw_fd()), byte.as_mut_ptr(), 1).build();
            let get = raw.get_buf(&file, BLOCK, 3);
            let get = if hands_over { get.linked() } else { get }.build();
            let requests = [
                waits.flags(link),
                quiet(get).flags(link | Flags::SKIP_SUCCESS),
                raw.write(&sink, 0, BLOCK, 3),
            ];
            is("before its turn", &raw.results(&requests, 0), &[])?;
            lent(engine, 0)?;
            writes.write_all(b"!")?;
            is("in its turn", &results(&mut raw, 2)?, &[(0, 1), (2, BLOCK as i32)])?;
            let mut got = vec![0; BLOCK as usize];
            peer.read_exact(&mut got)?;
            same("what was written", &got, &bytes)?;
            lent(engine, usize::from(!hands_over))?;
            drop(raw);
            no_leases_left(engine)?;
        }
    }
    let mut raw = Raw::new(engine)?;
    let (reads, mut writes) = std::io::pipe()?;
    let mut byte = [0_u8; 1];
    let waits = ops::Read::new(Fd(reads.as_raw_fd()), byte.as_mut_ptr(), 1).build();
    let requests = [
        waits,
        ops::Nop::new().build().flags(Flags::IO_DRAIN),
        quiet(raw.get(&file, BLOCK, 0)),
        ops::Nop::new().build(),
    ];
    is("behind a drain", &raw.results(&requests, 0), &[])?;
    lent(engine, 0)?;
    writes.write_all(b"!")?;
    is("all of it", &results(&mut raw, 3)?, &[(0, 1), (1, 0), (3, 0)])?;
    lent(engine, 1)?;
    put_all(&mut raw, 1)
}

/// The results of requests that were sent already, by their names.
fn results(raw: &mut Raw, count: usize) -> Result<Vec<(u64, i32)>, libtest_mimic::Failed> {
    let mut results = Vec::new();
    while results.len() < count {
        raw.uring.submit_and_wait(1)?;
        results.extend(raw.uring.completion().map(|entry| (entry.user_data(), entry.result())));
    }
    results.sort_unstable();
    Ok(results)
}

/// What fails is told as ever, and nothing stays behind.
pub(crate) fn what_it_cannot_do_is_told(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let (socket, _peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    raw.uring.submitter().register_files(&[-1, file.as_raw_fd()])?;
    let good = raw.get(&file, 4096, 0);
    for (what, entry, want) in [
        ("a field that must be zero", with_byte(good.clone(), 48), -libc::EINVAL),
        ("an unknown flag", with_byte(good.clone(), 28), -libc::EINVAL),
        ("a socket", raw.get(&socket, 4096, 0), -524),
        ("an empty place", on_first_file(good.clone()), -libc::EBADF),
        ("past the table", raw.get(&file, 4096, SLOTS), -libc::EFAULT),
        ("a short one", raw.get(&file, 4097, 0), 4096),
        ("a taken slot", raw.get(&file, 4096, 0), -libc::EINVAL),
        ("nothing", raw.get(&file, 0, 1), 0),
    ] {
        // A fetch of nothing is as long as it was to be.
        if what == "nothing" {
            let nop = ops::Nop::new().build();
            is(what, &raw.results(&[quiet(entry), nop], 1), &[(1, want)])?;
        } else {
            is(what, &raw.results(&[quiet(entry)], 1), &[(0, want)])?;
        }
    }
    lent(engine, 2)?;
    put_all(&mut raw, 2)?;
    lent(engine, 0)?;

    // On a ring that may not.
    let mut builder = IoUring::builder();
    let mut raw = Raw::with(engine, builder.setup_r_disabled(), Lender::lend)?;
    let mut allowed = [
        Restriction::sqe_op(ops::Nop::CODE),
        // IOSQE_CQE_SKIP_SUCCESS.
        Restriction::sqe_flags_allowed(1 << 6),
    ];
    raw.uring.submitter().register_restrictions(&mut allowed)?;
    raw.uring.submitter().register_enable_rings()?;
    let entry = quiet(raw.get(&file, 4096, 0));
    is("it may not", &raw.results(&[entry], 1), &[(0, -libc::EACCES)])?;
    lent(engine, 0)
}

/// What was fetched for a request that is refused is given back.
pub(crate) fn its_consumer_is_refused(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let (sink, _peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    for link in LINKS {
        let fetch = raw.get_buf(&file, 4096, 0).linked().build();
        let fetch = fetch.flags(link | Flags::SKIP_SUCCESS);
        // An opcode that no kernel has, and a file that is not open.
        let unknown =
            crate::raw::from_bytes(std::array::from_fn(|at| if at == 0 { 255 } else { 0 }));
        is("unknown", &raw.results(&[fetch.clone(), unknown], 1), &[(1, -libc::EINVAL)])?;
        let closed = ops::WriteFixed::new(Fd(-1), std::ptr::null(), 4096, 0).build();
        is("closed", &raw.results(&[fetch.clone(), closed], 1), &[(1, -libc::EBADF)])?;
        let empty = ops::WriteFixed::new(Fixed(0), std::ptr::null(), 4096, 0).build();
        is("empty", &raw.results(&[fetch.clone(), empty], 1), &[(1, -libc::EBADF)])?;
        lent(engine, 0)?;
        // Into a slot: there it stays.
        let fetch = raw.get(&file, 4096, 0).flags(link | Flags::SKIP_SUCCESS);
        let closed = ops::WriteFixed::new(Fd(-1), std::ptr::null(), 4096, 0).build();
        is("in a slot", &raw.results(&[fetch, closed], 1), &[(1, -libc::EBADF)])?;
        lent(engine, 1)?;
        check("what is there", raw.result(&raw.write(&sink, 0, 4096, 0)), 4096)?;
        put_all(&mut raw, 1)?;
    }
    lent(engine, 0)
}

/// A stream gives its bytes once: a fetch of more than is there must not lose them.
pub(crate) fn streams_lose_nothing(engine: Engine) -> Outcome {
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    let (reads, mut writes) = std::io::pipe()?;
    for link in LINKS {
        writes.write_all(b"once")?;
        // A stream has no offset: one that could be one of a file is not looked at.
        let fetch = raw.get_buf(&reads, 4096, 0).offset(0).build();
        let requests = [fetch.flags(link | Flags::SKIP_SUCCESS), raw.write(&sink, 0, 4, 0)];
        // Of a soft link that broke, only the request that broke it is told.
        let want: &[_] = if link == Flags::IO_LINK { &[(0, 4)] } else { &[(0, 4), (1, 4)] };
        is("more than there is", &raw.results(&requests, want.len()), want)?;
        if link == Flags::IO_LINK {
            check("what is in the slot", raw.result(&raw.write(&sink, 0, 4, 0)), 4)?;
        }
        let mut got = [0; 4];
        peer.read_exact(&mut got)?;
        same("what the pipe gave", &got, b"once")?;
        put_all(&mut raw, 1)?;
    }
    // Nor must it be asked before there is anything.
    let fetch = raw.get_buf(&reads, 4, 0).offset(STREAM).linked().build();
    let fetch = fetch.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS);
    let requests = [fetch, raw.write(&sink, 0, 4, 0)];
    is("an empty pipe", &raw.results(&requests, 0), &[])?;
    writes.write_all(b"late")?;
    is("then", &results(&mut raw, 1)?, &[(1, 4)])?;
    let cancel = ops::AsyncCancel2::new(CancelBuilder::any()).build();
    is("nothing else waits", &raw.results(&[cancel], 1), &[(0, 0)])?;
    lent(engine, 0)
}
