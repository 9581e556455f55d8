// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fetch that hands its buffer to the next request of the link (`IORING_GET_BUF_LINKED`). Slots
//! stay as they are; who gets the buffer, and when it is given back.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::cqueue;
use io_uring::opcode as ops;
use io_uring::squeue::{Entry, Flags};
use io_uring::types;
use io_uring::types::{Fd, Timespec};
use uring_getbuf::{Engine, STREAM};

use crate::raw::{Lender, Raw, ring_kinds};
use crate::{BLOCK, Outcome, SLOTS, check, leases, no_leases_left, same, source, with_byte};

const LINK: Flags = Flags::IO_LINK;
const HARD: Flags = Flags::IO_HARDLINK;

/// A fetch of the file's first bytes for the next request, with `slot` for what that does not get.
fn get(raw: &Raw, file: &impl AsRawFd, len: u32, slot: u16) -> Entry {
    raw.get_buf(file, len, slot).linked().build()
}

/// One that does without a completion, unless it fails.
fn quiet(entry: Entry, link: Flags) -> Entry {
    entry.flags(link | Flags::SKIP_SUCCESS)
}

pub(crate) fn is(what: &str, results: &[(u64, i32)], want: &[(u64, i32)]) -> Outcome {
    if results == want { Ok(()) } else { Err(format!("{what}: {results:?}, not {want:?}").into()) }
}

/// The slot is empty, and no lease lives.
fn free(raw: &mut Raw, engine: Engine, slot: u16) -> Outcome {
    check("leases", leases(engine)? as i32, 0)?;
    check("the slot is free", raw.result(&raw.put(slot)), -libc::EINVAL)
}

pub(crate) fn it_goes_to_the_next_request(engine: Engine) -> Outcome {
    let (file, bytes) = source(3 * BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    // The slot that the consumer names holds something else, and keeps it.
    check("another lease", raw.result(&raw.get_at(&file, u64::from(BLOCK), 4096, 5)), 4096)?;
    for (from, len) in [(0, 4096), (100, 3000), (4095, 1), (0, BLOCK)] {
        let requests = [quiet(get(&raw, &file, BLOCK, 0), LINK), raw.write(&sink, from, len, 5)];
        is("a chain", &raw.results(&requests, 1), &[(1, len as i32)])?;
        check("leases", leases(engine)? as i32, 1)?;
        let mut got = vec![0; len as usize];
        peer.read_exact(&mut got)?;
        same("what was written", &got, &bytes[from as usize..][..len as usize])?;
        // One that is told goes another way in the kernel.
        let requests = [get(&raw, &file, BLOCK, 0).flags(LINK), raw.write(&sink, from, len, 5)];
        let want = [(0, BLOCK as i32), (1, len as i32)];
        is("a chain, all of it told", &raw.results(&requests, 2), &want)?;
        check("leases", leases(engine)? as i32, 1)?;
        let mut got = vec![0; len as usize];
        peer.read_exact(&mut got)?;
        same("what was written", &got, &bytes[from as usize..][..len as usize])?;
    }
    check("the other lease", raw.result(&raw.write(&sink, 0, 4096, 5)), 4096)?;
    let mut got = vec![0; 4096];
    peer.read_exact(&mut got)?;
    same("what it holds", &got, &bytes[BLOCK as usize..][..4096])?;
    check("PUT_BUF", raw.result(&raw.put(5)), 0)?;
    free(&mut raw, engine, 0)
}

pub(crate) fn every_consumer_takes_it(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let sink = TcpStream::connect(listener.local_addr()?)?;
    let (mut peer, _) = listener.accept()?;
    let mut raw = Raw::new(engine)?;
    let lease = raw.fetch(&file, 0, BLOCK);
    let send = lease.send(.., Fd(sink.as_raw_fd()), Default::default())?.into_entry();
    let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: BLOCK as usize };
    let fd = Fd(sink.as_raw_fd());
    let consumers = [
        ("SEND", send),
        ("WRITEV_FIXED", ops::WritevFixed::new(fd, &raw const vector, 1, 9).offset(STREAM).build()),
        ("SEND_ZC", ops::SendZc::new(fd, std::ptr::null(), BLOCK).buf_index(Some(9)).build()),
    ];
    // A fetch that is not told is done without a request, the other one has one.
    let ways = consumers.iter().flat_map(|consumer| [(consumer, false), (consumer, true)]);
    for ((name, consumer), told) in ways {
        let fetch = get(&raw, &file, BLOCK, 1);
        let fetch = if told { fetch.flags(LINK) } else { quiet(fetch, LINK) };
        let more = usize::from(*name == "SEND_ZC") + usize::from(told);
        let mut results = raw.results(&[fetch, consumer.clone()], 1 + more);
        results.retain(|(request, _)| *request == 1);
        is(name, &results[..1], &[(1, BLOCK as i32)])?;
        let mut got = vec![0; BLOCK as usize];
        peer.read_exact(&mut got)?;
        same(name, &got, &bytes)?;
    }
    // One that does not want it.
    let requests = [quiet(get(&raw, &file, BLOCK, 1), LINK), ops::Nop::new().build()];
    is("NOP", &raw.results(&requests, 1), &[(1, 0)])?;
    // One that would write to it.
    let requests = [quiet(get(&raw, &file, BLOCK, 1), LINK), raw.read(&file, 0, 4096, 1)];
    is("READ_FIXED", &raw.results(&requests, 1), &[(1, -libc::EFAULT)])?;
    // And one that is a fetch itself.
    let requests = [
        quiet(get(&raw, &file, BLOCK, 1), LINK),
        quiet(get(&raw, &file, 4096, 2), LINK),
        raw.write(&sink, 0, 4096, 7),
    ];
    is("a second fetch", &raw.results(&requests, 1), &[(2, 4096)])?;
    drop(lease);
    raw.events(0);
    free(&mut raw, engine, 1)
}

pub(crate) fn a_short_fetch_stays_in_the_slot(engine: Engine) -> Outcome {
    let (file, bytes) = source(100)?;
    let (sink, mut peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    let requests = [quiet(get(&raw, &file, 4096, 2), LINK), raw.write(&sink, 0, 4096, 2)];
    is("soft", &raw.results(&requests, 1), &[(0, 100)])?;
    check("leases", leases(engine)? as i32, 1)?;
    check("what is in the slot", raw.result(&raw.write(&sink, 0, 100, 2)), 100)?;
    let mut got = [0; 100];
    peer.read_exact(&mut got)?;
    same("what it held", &got, &bytes)?;
    check("PUT_BUF", raw.result(&raw.put(2)), 0)?;
    // A hard link goes on, with what there is.
    let requests = [get(&raw, &file, 4096, 2).flags(HARD), raw.write(&sink, 0, 4096, 2)];
    is("hard, all", &raw.results(&requests, 2), &[(0, 100), (1, -libc::EFAULT)])?;
    let requests = [get(&raw, &file, 4096, 2).flags(HARD), raw.write(&sink, 0, 100, 2)];
    is("hard", &raw.results(&requests, 2), &[(0, 100), (1, 100)])?;
    peer.read_exact(&mut got)?;
    same("what was written", &got, &bytes)?;
    // The end of the file.
    let requests = [quiet(at_the_end(&raw, &file), LINK), raw.write(&sink, 0, 1, 2)];
    is("soft, at the end", &raw.results(&requests, 1), &[(0, 0)])?;
    check("an empty buffer", raw.result(&raw.put(2)), 0)?;
    let requests = [at_the_end(&raw, &file).flags(HARD), raw.write(&sink, 0, 1, 2)];
    is("hard, at the end", &raw.results(&requests, 2), &[(0, 0), (1, -libc::EFAULT)])?;
    free(&mut raw, engine, 2)
}

/// A descriptor that is not open.
struct NoFile;

impl AsRawFd for NoFile {
    fn as_raw_fd(&self) -> i32 {
        -1
    }
}

fn at_the_end(raw: &Raw, file: &File) -> Entry {
    raw.get_buf(file, 4096, 2).offset(100).linked().build()
}

/// An error breaks a hard link too, whoever finds it: the consumer would use what is in some slot.
pub(crate) fn an_error_breaks_the_link(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let folder = File::open(".")?;
    let (sink, peer) = UnixStream::pair()?;
    peer.set_nonblocking(true)?;
    let mut raw = Raw::new(engine)?;
    check("another lease", raw.result(&raw.get(&file, 4096, 5)), 4096)?;
    for link in [LINK, HARD, LINK | HARD] {
        for flags in [Flags::empty(), Flags::ASYNC] {
            let requests = [
                get(&raw, &folder, 4096, 0).flags(link | flags),
                raw.write(&sink, 0, 4096, 5).flags(HARD),
                ops::Nop::new().build(),
            ];
            let results = raw.results(&requests, 3);
            let canceled = -libc::ECANCELED;
            is("an error", &results, &[(0, -524), (1, canceled), (2, canceled)])?;
            // Before the request itself is asked.
            let fetch = raw.get_buf(&NoFile, 4096, 0).linked().build();
            let requests = [
                quiet(fetch, link).flags(link | flags | Flags::SKIP_SUCCESS),
                raw.write(&sink, 0, 4096, 5),
            ];
            is("no file", &raw.results(&requests, 1), &[(0, -libc::EBADF)])?;
        }
        // And while it waits.
        let (reads, _writes) = std::io::pipe()?;
        let fetch = raw.get_buf(&reads, 4096, 0).offset(STREAM).linked().build();
        let requests = [quiet(fetch, link), raw.write(&sink, 0, 4096, 5)];
        is("an empty pipe", &raw.results(&requests, 0), &[])?;
        let cancel = types::CancelBuilder::fd(Fd(reads.as_raw_fd())).all();
        let mut results = raw.results(&[ops::AsyncCancel2::new(cancel).build()], 2);
        results.sort_unstable();
        is("cancelled", &results, &[(0, -libc::ECANCELED), (0, 1)])?;
    }
    for link in [LINK, HARD] {
        let requests = [quiet(get(&raw, &file, 4096, 5), link), raw.write(&sink, 0, 4096, 5)];
        is("a taken slot", &raw.results(&requests, 1), &[(0, -libc::EINVAL)])?;
        let requests = [quiet(get(&raw, &file, 4096, SLOTS), link), raw.write(&sink, 0, 4096, 5)];
        is("no such slot", &raw.results(&requests, 1), &[(0, -libc::EFAULT)])?;
    }
    let nothing = (&peer).read(&mut [0; 1]).map_err(|error| error.kind());
    if nothing != Err(std::io::ErrorKind::WouldBlock) {
        return Err(format!("something was written: {nothing:?}").into());
    }
    check("PUT_BUF", raw.result(&raw.put(5)), 0)?;
    free(&mut raw, engine, 0)
}

pub(crate) fn nobody_to_hand_it_to(engine: Engine) -> Outcome {
    let (file, _) = source(4096)?;
    let folder = File::open(".")?;
    let (sink, _peer) = UnixStream::pair()?;
    let mut raw = Raw::new(engine)?;
    let alone = get(&raw, &file, 4096, 0);
    check("alone", raw.result(&alone), -libc::EINVAL)?;
    // What tells that the kernel knows the flag.
    check("a folder, alone", raw.result(&get(&raw, &folder, 4096, 0)), -524)?;
    for link in [LINK, HARD] {
        let last = [ops::Nop::new().build().flags(link), alone.clone()];
        is("the last of a link", &raw.results(&last, 2), &[(0, 0), (1, -libc::EINVAL)])?;
        // It would be handed over, if the number of the buffer were not to be chosen.
        let mut bytes = [0_u8; 16];
        let select = ops::Read::new(Fd(sink.as_raw_fd()), bytes.as_mut_ptr(), 16);
        let select = select.build().flags(Flags::BUFFER_SELECT);
        let requests = [alone.clone().flags(link), select];
        let want = [(0, -libc::EINVAL), (1, -libc::ECANCELED)];
        is("a request that selects a buffer", &raw.results(&requests, 2), &want)?;
        let soon = Timespec::new().sec(60);
        let timeout = ops::LinkTimeout::new(&raw const soon).build();
        let requests = [alone.clone().flags(link), timeout.flags(link), ops::Nop::new().build()];
        let results = raw.results(&requests, 3);
        check(
            "before a timeout",
            results.iter().find(|r| r.0 == 0).map_or(1, |r| r.1),
            -libc::EINVAL,
        )?;
    }
    let both = raw.get_buf(&file, 4096, 0).linked().replace().build().flags(LINK);
    let requests = [both, ops::Nop::new().build()];
    let want = [(0, -libc::EINVAL), (1, -libc::ECANCELED)];
    is("with REPLACE", &raw.results(&requests, 2), &want)?;
    let unknown = with_byte(alone.flags(LINK), 28);
    let requests = [unknown, ops::Nop::new().build()];
    is("with an unknown flag", &raw.results(&requests, 2), &want)?;
    free(&mut raw, engine, 0)
}

/// Whoever runs them: the submitter, a worker, or the one and then the other.
pub(crate) fn by_workers(engine: Engine) -> Outcome {
    let (file, bytes) = source(BLOCK as usize)?;
    let (sink, mut peer) = UnixStream::pair()?;
    for ring in ring_kinds() {
        let mut raw = Raw::with(engine, &ring, Lender::lend)?;
        for (fetch, consume) in [
            (Flags::ASYNC, Flags::empty()),
            (Flags::empty(), Flags::ASYNC),
            (Flags::ASYNC, Flags::ASYNC),
        ] {
            for link in [LINK, HARD] {
                let requests = [
                    quiet(get(&raw, &file, BLOCK, 0), link)
                        .flags(link | fetch | Flags::SKIP_SUCCESS),
                    raw.write(&sink, 0, BLOCK, 0).flags(consume | HARD),
                    ops::Nop::new().build(),
                ];
                let results = raw.results(&requests, 2);
                is("a chain", &results, &[(1, BLOCK as i32), (2, 0)])?;
                let mut got = vec![0; BLOCK as usize];
                peer.read_exact(&mut got)?;
                same("what was written", &got, &bytes)?;
            }
        }
        check("the slot is free", raw.result(&raw.put(0)), -libc::EINVAL)?;
        drop(raw);
        no_leases_left(engine)?;
    }
    Ok(())
}

/// A source and a sink that have to be waited for.
pub(crate) fn both_sides_wait(engine: Engine) -> Outcome {
    let mut raw = Raw::new(engine)?;
    let (reads, mut writes) = std::io::pipe()?;
    let (sink, mut peer) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_send_buffer_size(&sink, 4096)?;
    let whole = vec![0x5a_u8; BLOCK as usize];
    // The sink is full: what it is sent after this waits.
    let send = ops::Send::new(Fd(sink.as_raw_fd()), whole.as_ptr(), BLOCK);
    let send = send.flags(libc::MSG_WAITALL).build();
    let fetch = raw.get_buf(&reads, 4096, 0).offset(STREAM).linked().build();
    let requests = [send, quiet(fetch, LINK), raw.write(&sink, 0, 4096, 0)];
    let named: Vec<Entry> =
        requests.into_iter().zip(0..).map(|(entry, name)| entry.user_data(name)).collect();
    // SAFETY: the files and the memory live until the requests are waited for.
    unsafe { raw.uring.submission().push_multiple(&named) }.map_err(|_| "no room")?;
    raw.uring.submit()?;
    check("nothing is lent yet", leases(engine)? as i32, 0)?;
    writes.write_all(&[0x33; 4096])?;
    raw.uring.submit_and_wait(0)?;
    let mut got = vec![0; BLOCK as usize + 4096];
    peer.read_exact(&mut got)?;
    let mut results = Vec::new();
    while results.len() < 2 {
        raw.uring.submit_and_wait(1)?;
        let taken =
            raw.uring.completion().map(|entry: cqueue::Entry| (entry.user_data(), entry.result()));
        results.extend(taken);
    }
    results.sort_unstable();
    is("both", &results, &[(0, BLOCK as i32), (2, 4096)])?;
    let want = [whole, vec![0x33; 4096]].concat();
    let split = got.iter().filter(|byte| **byte == 0x33).count();
    check("bytes of the pipe", split as i32, 4096)?;
    check("bytes in all", got.len() as i32, want.len() as i32)?;
    free(&mut raw, engine, 0)
}

/// The consumer holds the buffer to its end, and no longer: when it fails, is cancelled, or the
/// ring goes away with it.
pub(crate) fn it_ends_with_its_consumer(engine: Engine) -> Outcome {
    let (file, _) = source(BLOCK as usize)?;
    let mut raw = Raw::new(engine)?;
    let (reads, writes) = std::io::pipe()?;
    drop(reads);
    let requests = [quiet(get(&raw, &file, BLOCK, 0), LINK), raw.write(&writes, 0, BLOCK, 0)];
    is("nobody reads", &raw.results(&requests, 1), &[(1, -libc::EPIPE)])?;
    free(&mut raw, engine, 0)?;

    let (_reads, writes) = std::io::pipe()?;
    let full = vec![1_u8; 65536];
    (&writes).write_all(&full)?;
    let waits =
        |raw: &Raw| [quiet(get(raw, &file, BLOCK, 0), LINK), raw.write(&writes, 0, BLOCK, 0)];
    let chain = waits(&raw);
    is("a full pipe", &raw.results(&chain, 0), &[])?;
    check("leases", leases(engine)? as i32, 1)?;
    check("the slot stays free", raw.result(&raw.get(&file, 4096, 0)), 4096)?;
    check("PUT_BUF", raw.result(&raw.put(0)), 0)?;
    check("leases", leases(engine)? as i32, 1)?;
    let cancel = ops::AsyncCancel2::new(types::CancelBuilder::fd(Fd(writes.as_raw_fd())).all());
    let mut results = raw.results(&[cancel.build()], 2);
    results.sort_unstable();
    is("cancelled", &results, &[(0, 1), (1, -libc::ECANCELED)])?;
    free(&mut raw, engine, 0)?;

    let chain = waits(&raw);
    is("a full pipe", &raw.results(&chain, 0), &[])?;
    check("leases", leases(engine)? as i32, 1)?;
    drop(raw);
    no_leases_left(engine)
}
